//! Whom an agent trusts before it has joined: the CA that its token pins, over TLS 1.3, and nobody else.
#![expect(clippy::unwrap_used, reason = "a panic is a failed test")]

use std::net::SocketAddr;
use std::sync::Arc;

use atoll_model::id::TokenId;
use atoll_model::time::Timestamp;
use atoll_proto::JoinToken;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, PublicKeyData as _};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ServerConfig, SupportedProtocolVersion};
use site_agent_daemon::link::{ConnectError, EnrolError, enrol};
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

/// A CA, and a certificate of it for this machine.
struct Authority {
    fingerprint: [u8; 32],
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
}

fn authority(name: &str) -> Authority {
    let ca_key = KeyPair::generate().unwrap();
    let mut ca = CertificateParams::default();
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let certificate = ca.self_signed(&ca_key).unwrap();
    let hash = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &ca_key.subject_public_key_info());
    let key = KeyPair::generate().unwrap();
    let issuer = Issuer::new(ca, ca_key);
    let leaf = CertificateParams::new(vec![name.to_owned()]).unwrap().signed_by(&key, &issuer).unwrap();
    Authority {
        fingerprint: hash.as_ref().try_into().unwrap(),
        chain: vec![leaf.der().clone(), certificate.der().clone()],
        key: PrivateKeyDer::Pkcs8(key.serialize_der().into()),
    }
}

/// A server for one connection: what it read of it, or why there was no handshake.
async fn one_connection(
    authority: &Authority,
    version: &'static SupportedProtocolVersion,
) -> (SocketAddr, tokio::task::JoinHandle<std::io::Result<usize>>) {
    let config = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
        .with_protocol_versions(&[version])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(authority.chain.clone(), authority.key.clone_key())
        .unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let served = tokio_util::task::TaskTracker::new().spawn(async move {
        let (stream, _) = listener.accept().await?;
        let mut stream = TlsAcceptor::from(Arc::new(config)).accept(stream).await?;
        stream.read(&mut [0; 1]).await
    });
    (address, served)
}

fn token(address: SocketAddr, pin: [u8; 32]) -> String {
    JoinToken {
        url: format!("https://localhost:{}", address.port()),
        token: TokenId::from_bits(1),
        secret: zeroize::Zeroizing::new([1; 32]),
        ca_sha256: pin,
        expires_at: Timestamp::from_micros(i64::MAX / 4),
    }
    .to_string()
}

#[tokio::test]
async fn a_server_of_another_ca_is_refused_before_anything_is_sent() {
    let (pinned, other) = (authority("localhost"), authority("localhost"));
    let (address, served) = one_connection(&other, &rustls::version::TLS13).await;
    let directory = tempfile::tempdir().unwrap();
    let error = enrol(directory.path(), &token(address, pinned.fingerprint)).await.unwrap_err();
    assert!(matches!(error, EnrolError::Connect(ConnectError::WrongAuthority { .. })), "{error:?}");
    assert!(error.to_string().contains("not of the pinned CA"), "{error}");
    let served = served.await.unwrap();
    assert!(served.is_err(), "the handshake was completed, and {served:?} bytes were sent");
}

#[tokio::test]
async fn a_certificate_of_the_pinned_ca_for_another_name_is_refused() {
    let pinned = authority("elsewhere.example.org");
    let (address, served) = one_connection(&pinned, &rustls::version::TLS13).await;
    let directory = tempfile::tempdir().unwrap();
    let error = enrol(directory.path(), &token(address, pinned.fingerprint)).await.unwrap_err();
    assert!(matches!(error, EnrolError::Connect(ConnectError::Tls { .. })), "{error:?}");
    assert!(served.await.unwrap().is_err());
}

#[tokio::test]
async fn a_server_that_speaks_only_tls_1_2_is_refused() {
    let pinned = authority("localhost");
    let (address, served) = one_connection(&pinned, &rustls::version::TLS12).await;
    let directory = tempfile::tempdir().unwrap();
    let error = enrol(directory.path(), &token(address, pinned.fingerprint)).await.unwrap_err();
    assert!(matches!(error, EnrolError::Connect(ConnectError::Tls { .. })), "{error:?}");
    assert!(served.await.unwrap().is_err());
}

#[tokio::test]
async fn a_text_that_is_no_token_is_refused_with_what_to_do() {
    let directory = tempfile::tempdir().unwrap();
    let whole = token(SocketAddr::from(([127, 0, 0, 1], 1)), [0; 32]);
    for (text, message) in [("hello", "this is not a join token"), (&whole[..whole.len() / 2], "copy it again, whole")]
    {
        let error = enrol(directory.path(), text).await.unwrap_err();
        assert!(error.to_string().contains(message), "{error}");
    }
}
