//! One TLS configuration for each purpose.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{NoServerSessionStorage, ResolvesServerCert, WebPkiClientVerifier};
use rustls::version::TLS13;
use rustls::{ConfigBuilder, RootCertStore, ServerConfig, WantsVerifier};

use super::{Authority, AuthorityError, ServerCertificate};

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

fn builder() -> Result<ConfigBuilder<ServerConfig, WantsVerifier>, rustls::Error> {
    ServerConfig::builder_with_provider(provider()).with_protocol_versions(&[&TLS13])
}

/// For the listener that agents connect to. A client certificate is verified if there is one: enrolment has none yet, and
/// the bucket's URLs carry their own right. Sessions are not resumed, because that would skip looking at the certificate.
///
/// # Errors
/// When the CA's certificate cannot be used.
pub fn tls_for_agents(
    authority: &Authority,
    certificate: Arc<ServerCertificate>,
) -> Result<Arc<ServerConfig>, AuthorityError> {
    let mut roots = RootCertStore::empty();
    roots.add(authority.certificate().clone())?;
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider())
        .allow_unauthenticated()
        .build()
        .map_err(|error| rustls::Error::General(error.to_string()))?;
    let mut config = builder()?.with_client_cert_verifier(verifier).with_cert_resolver(certificate);
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

/// For the listener that people connect to, with a certificate of the own CA.
///
/// # Errors
/// When the provider cannot speak TLS 1.3.
pub fn tls_for_people(certificate: Arc<dyn ResolvesServerCert>) -> Result<Arc<ServerConfig>, AuthorityError> {
    let mut config = builder()?.with_no_client_auth().with_cert_resolver(certificate);
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

/// For the listener that people connect to, with a certificate chain and key from PEM files.
///
/// # Errors
/// When they cannot be read, or do not belong together.
pub fn tls_for_people_with_files(chain: &Path, key: &Path) -> Result<Arc<ServerConfig>, AuthorityError> {
    let unusable = |path: &Path| {
        let path = PathBuf::from(path);
        move |error: rustls::pki_types::pem::Error| AuthorityError::Unusable { path, problem: error.to_string() }
    };
    let certificates = CertificateDer::pem_file_iter(chain)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(unusable(chain))?;
    let key = PrivateKeyDer::from_pem_file(key).map_err(unusable(key))?;
    let mut config = builder()?.with_no_client_auth().with_single_cert(certificates, key)?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}
