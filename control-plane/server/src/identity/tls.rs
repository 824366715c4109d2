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

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a panic is a failed test")]

    use std::time::{Duration, SystemTime};

    use atoll_model::id::AgentId;
    use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256};
    use rustls::pki_types::ServerName;
    use rustls::version::TLS12;
    use rustls::{ClientConfig, ClientConnection, NamedGroup, ServerConnection, SupportedProtocolVersion};

    use super::*;
    use crate::identity::{AgentIdentity, SigningRequest, server_names};

    fn authority() -> (tempfile::TempDir, Arc<Authority>) {
        let directory = tempfile::tempdir().unwrap();
        let authority = Arc::new(Authority::open(directory.path()).unwrap());
        (directory, authority)
    }

    fn server(authority: &Arc<Authority>) -> Arc<ServerConfig> {
        let certificate = ServerCertificate::issue(Arc::clone(authority), &server_names([], [])).unwrap();
        tls_for_agents(authority, certificate).unwrap()
    }

    type Certified = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

    fn agent(authority: &Authority, lifetime: Duration, now: SystemTime) -> Certified {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
        let request = CertificateParams::default().serialize_request(&key).unwrap();
        let request = SigningRequest::verify(request.der()).unwrap();
        let site = "edge".parse().unwrap();
        let issued = authority.certify_agent(AgentId::from_bits(1), &site, [7; 32], &request, now, lifetime).unwrap();
        (issued.chain, PrivateKeyDer::Pkcs8(key.serialize_der().into()))
    }

    fn client(
        authority: &Authority,
        certified: Option<Certified>,
        version: &'static SupportedProtocolVersion,
    ) -> Arc<ClientConfig> {
        let mut roots = RootCertStore::empty();
        roots.add(authority.certificate().clone()).unwrap();
        let builder = ClientConfig::builder_with_provider(provider()).with_protocol_versions(&[version]).unwrap();
        let builder = builder.with_root_certificates(roots);
        Arc::new(match certified {
            Some((chain, key)) => builder.with_client_auth_cert(chain, key).unwrap(),
            None => builder.with_no_client_auth(),
        })
    }

    /// Shakes hands in memory; the server's end of it.
    fn shake_hands(client: Arc<ClientConfig>, server: Arc<ServerConfig>) -> Result<ServerConnection, rustls::Error> {
        let mut client = ClientConnection::new(client, ServerName::try_from("localhost").unwrap()).unwrap();
        let mut server = ServerConnection::new(server).unwrap();
        while client.is_handshaking() || server.is_handshaking() {
            let mut bytes = Vec::new();
            client.write_tls(&mut bytes).unwrap();
            server.read_tls(&mut &bytes[..]).unwrap();
            server.process_new_packets()?;
            let mut bytes = Vec::new();
            server.write_tls(&mut bytes).unwrap();
            client.read_tls(&mut &bytes[..]).unwrap();
            client.process_new_packets()?;
        }
        Ok(server)
    }

    #[test]
    fn an_agent_is_known_by_its_certificate_over_a_post_quantum_key_exchange() {
        let (_directory, authority) = authority();
        let certified = agent(&authority, Duration::from_secs(60), SystemTime::now());
        let server = shake_hands(client(&authority, Some(certified), &TLS13), server(&authority)).unwrap();
        let (identity, _) = AgentIdentity::of_certificate(&server.peer_certificates().unwrap()[0]).unwrap();
        assert_eq!((identity.site.as_str(), identity.agent), ("edge", AgentId::from_bits(1)));
        assert_eq!(server.negotiated_key_exchange_group().unwrap().name(), NamedGroup::X25519MLKEM768);
    }

    #[test]
    fn whoever_has_no_certificate_yet_may_shake_hands_and_is_nobody() {
        let (_directory, authority) = authority();
        let server = shake_hands(client(&authority, None, &TLS13), server(&authority)).unwrap();
        assert!(server.peer_certificates().is_none());
    }

    #[test]
    fn tls_1_2_is_refused() {
        let (_directory, authority) = authority();
        assert!(shake_hands(client(&authority, None, &TLS12), server(&authority)).is_err());
        let certificate = ServerCertificate::issue(Arc::clone(&authority), &server_names([], [])).unwrap();
        assert!(shake_hands(client(&authority, None, &TLS12), tls_for_people(certificate).unwrap()).is_err());
    }

    #[test]
    fn g3_a_certificate_of_another_ca_or_one_that_has_expired_is_refused() {
        let ((_here, authority), (_there, other)) = (authority(), authority());
        let server = server(&authority);
        let strange = agent(&other, Duration::from_secs(60), SystemTime::now());
        assert!(shake_hands(client(&authority, Some(strange), &TLS13), Arc::clone(&server)).is_err());
        let expired = agent(&authority, Duration::from_secs(60), SystemTime::now() - Duration::from_secs(120));
        assert!(shake_hands(client(&authority, Some(expired), &TLS13), server).is_err());
    }
}
