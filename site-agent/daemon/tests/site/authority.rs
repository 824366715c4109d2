//! A CA, and an agent that has joined by it: its data directory holds what a redeemed token leaves there.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use atoll_model::id::{AgentId, TokenId};
use aws_lc_rs::signature::Ed25519KeyPair;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, SanType};
use rustls::ServerConfig;
use rustls::pki_types::PrivateKeyDer;

pub(crate) const SITE: &str = "edge";

/// What the server shows; the agent's identity is in `data_dir` afterwards.
pub(crate) fn join(data_dir: &Path, url: &str) -> ServerConfig {
    let ca_key = KeyPair::generate().unwrap();
    let mut ca = CertificateParams::default();
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority = ca.self_signed(&ca_key).unwrap();
    let issuer = Issuer::new(ca, ca_key);

    let agent = AgentId::from_bits(1);
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    let uri = format!("spiffe://atoll/site/{SITE}/agent/{agent}");
    params.subject_alt_names.push(SanType::URI(uri.try_into().unwrap()));
    let certificate = params.signed_by(&key, &issuer).unwrap();
    let identity = data_dir.join("identity");
    fs::create_dir_all(&identity).unwrap();
    let bound = Ed25519KeyPair::generate_pkcs8(&aws_lc_rs::rand::SystemRandom::new()).unwrap();
    fs::write(identity.join("identity.key"), bound.as_ref()).unwrap();
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let stored = serde_json::json!({
        "agent": agent.to_string(),
        "site": SITE,
        "url": url,
        "token": TokenId::from_bits(1).to_string(),
        "join_counter": 1,
        "tls_key": STANDARD.encode(key.serialize_der()),
        "chain": [STANDARD.encode(certificate.der())],
        "ca_bundle": [STANDARD.encode(authority.der())],
        "issued_at_micros": u64::try_from(now.as_micros()).unwrap(),
        "lifetime_micros": 86_400_000_000_u64,
    });
    fs::write(identity.join("identity.json"), stored.to_string()).unwrap();

    let key = KeyPair::generate().unwrap();
    let certificate = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap().signed_by(&key, &issuer).unwrap();
    let mut config = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.der().clone()], PrivateKeyDer::Pkcs8(key.serialize_der().into()))
        .unwrap();
    config.alpn_protocols = vec![b"h2".to_vec()];
    config
}
