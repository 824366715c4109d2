//! A client without manners: what somebody can do who holds some of an agent's secrets, or none.

use std::path::Path;
use std::sync::{Arc, Mutex};

use atoll_proto::v1::agents_client::AgentsClient;
use atoll_proto::v1::{IdentityProof, RenewCertificateRequest};
use atoll_proto::{EXPORTER_LABEL, IdentityCall, proof_statement};
use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair as _};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hyper_util::rt::TokioIo;
use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use serde_json::Value;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tonic::transport::{Channel, Endpoint};

/// What was read from an agent's directory.
pub(crate) struct Stolen {
    url: String,
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    authority: CertificateDer<'static>,
    pub(crate) join_counter: u64,
}

pub(crate) fn stored(directory: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(directory.join("identity.json")).unwrap()).unwrap()
}

/// Takes certificate and TLS key, and not the identity key.
pub(crate) fn steal(directory: &Path) -> Stolen {
    let stored = stored(directory);
    let decode = |value: &Value| STANDARD.decode(value.as_str().unwrap()).unwrap();
    Stolen {
        url: stored["url"].as_str().unwrap().to_owned(),
        chain: stored["chain"].as_array().unwrap().iter().map(|der| decode(der).into()).collect(),
        key: PrivateKeyDer::Pkcs8(decode(&stored["tls_key"]).into()),
        authority: decode(&stored["ca_bundle"][0]).into(),
        join_counter: stored["join_counter"].as_u64().unwrap(),
    }
}

pub(crate) fn identity_key(directory: &Path) -> Ed25519KeyPair {
    Ed25519KeyPair::from_pkcs8(&std::fs::read(directory.join("identity.key")).unwrap()).unwrap()
}

pub(crate) struct Connection {
    pub(crate) client: AgentsClient<Channel>,
    exporter: [u8; 32],
}

/// Opens a connection; with the stolen certificate, or with none.
pub(crate) async fn connect(stolen: &Stolen, with_certificate: bool) -> std::io::Result<Connection> {
    let mut roots = RootCertStore::empty();
    roots.add(stolen.authority.clone()).unwrap();
    let builder = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots);
    let mut config = if with_certificate {
        builder.with_client_auth_cert(stolen.chain.clone(), stolen.key.clone_key()).unwrap()
    } else {
        builder.with_no_client_auth()
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    let address = stolen.url.strip_prefix("https://").unwrap();
    let host = address.rsplit_once(':').unwrap().0.to_owned();
    let tcp = TcpStream::connect(address).await?;
    let name = ServerName::try_from(host).unwrap();
    let tls = TlsConnector::from(Arc::new(config)).connect(name, tcp).await?;
    let exporter = tls.get_ref().1.export_keying_material([0; 32], EXPORTER_LABEL, None).unwrap();
    let only = Mutex::new(Some(TokioIo::new(tls)));
    let connector = tower::service_fn(move |_: http::Uri| {
        let stream = only.lock().unwrap().take();
        std::future::ready(stream.ok_or_else(|| std::io::Error::from(std::io::ErrorKind::NotConnected)))
    });
    let endpoint = Endpoint::from_shared(format!("http://{address}")).unwrap();
    let channel = endpoint.connect_with_connector(connector).await.map_err(std::io::Error::other)?;
    Ok(Connection { client: AgentsClient::new(channel), exporter })
}

pub(crate) fn signing_request() -> Vec<u8> {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
    CertificateParams::default().serialize_request(&key).unwrap().der().to_vec()
}

impl Connection {
    pub(crate) fn proof(&self, call: IdentityCall, key: &Ed25519KeyPair, signing_request: &[u8]) -> IdentityProof {
        let statement = proof_statement(call, &self.exporter, signing_request);
        let public_key = key.public_key().as_ref().to_vec().into();
        IdentityProof { public_key, signature: key.sign(&statement).as_ref().to_vec().into() }
    }

    pub(crate) fn renewal(&self, key: &Ed25519KeyPair, join_counter: u64) -> RenewCertificateRequest {
        let signing_request = signing_request();
        let proof = Some(self.proof(IdentityCall::Renew, key, &signing_request));
        RenewCertificateRequest { signing_request: signing_request.into(), proof, join_counter }
    }
}
