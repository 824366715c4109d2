//! Who is at the other end: TLS 1.3 both ways, with the certificates that the control plane gives agents.

use std::sync::{Arc, PoisonError, RwLock};

use atoll_model::id::{AgentId, SiteName};
use atoll_model::ticket::{SignedTicket, Ticket, TicketError};
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_ASN1, ECDSA_P384_SHA384_ASN1, ED25519, RSA_PKCS1_2048_8192_SHA256, UnparsedPublicKey,
    VerificationAlgorithm,
};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::crypto::aws_lc_rs::cipher_suite;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use rustls::version::TLS13;
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, ServerConfig, SignatureScheme};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use super::frame::ALPN;

/// Certificates that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    #[error("the certificate or key of this agent cannot be used")]
    Own(#[from] rustls::Error),
    #[error("the certificates of the control plane cannot be used: {0}")]
    Roots(String),
}

/// What an agent shows, and by what it knows others. Cheap to clone; all clones change together.
#[derive(Debug, Clone)]
pub struct AgentTls {
    current: Arc<RwLock<Current>>,
}

#[derive(Debug, Clone)]
struct Current {
    client: Arc<ClientConfig>,
    server: Arc<ServerConfig>,
    authorities: Arc<Vec<Vec<u8>>>,
}

impl AgentTls {
    /// # Errors
    /// When certificate, key or roots are of no use.
    pub fn new(
        chain: Vec<CertificateDer<'static>>,
        key: PrivateKeyDer<'static>,
        roots: &[CertificateDer<'static>],
    ) -> Result<Self, IdentityError> {
        Ok(Self { current: Arc::new(RwLock::new(Current::new(chain, key, roots)?)) })
    }

    /// The certificate was renewed: connections from now on show the new one.
    ///
    /// # Errors
    /// When it is of no use; then the old one stays.
    pub fn replace(
        &self,
        chain: Vec<CertificateDer<'static>>,
        key: PrivateKeyDer<'static>,
        roots: &[CertificateDer<'static>],
    ) -> Result<(), IdentityError> {
        let fresh = Current::new(chain, key, roots)?;
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = fresh;
        Ok(())
    }

    fn current(&self) -> Current {
        self.current.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn client(&self) -> Arc<ClientConfig> {
        self.current().client
    }

    pub(super) fn server(&self) -> Arc<ServerConfig> {
        self.current().server
    }

    /// Reads a ticket that one of the control plane's CAs has signed.
    pub(super) fn open_ticket(&self, bytes: &[u8]) -> Result<Ticket, TicketError> {
        let authorities = self.current().authorities;
        SignedTicket::open(bytes, |message, signature| {
            authorities.iter().any(|key| is_signed_by(key, message, signature))
        })
    }
}

/// Whatever kind of key the CA has: a signature by one kind is none by another.
fn is_signed_by(key: &[u8], message: &[u8], signature: &[u8]) -> bool {
    let kinds: [&'static dyn VerificationAlgorithm; 4] =
        [&ECDSA_P256_SHA256_ASN1, &ECDSA_P384_SHA384_ASN1, &ED25519, &RSA_PKCS1_2048_8192_SHA256];
    kinds.into_iter().any(|kind| UnparsedPublicKey::new(kind, key).verify(message, signature).is_ok())
}

impl Current {
    fn new(
        chain: Vec<CertificateDer<'static>>,
        key: PrivateKeyDer<'static>,
        roots: &[CertificateDer<'static>],
    ) -> Result<Self, IdentityError> {
        let mut store = RootCertStore::empty();
        let mut authorities = Vec::new();
        for root in roots {
            store.add(root.clone())?;
            let parsed = X509Certificate::from_der(root).map_err(|error| IdentityError::Roots(error.to_string()))?;
            authorities.push(parsed.1.public_key().subject_public_key.data.to_vec());
        }
        let provider = Arc::new(provider());
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(store), Arc::clone(&provider))
            .build()
            .map_err(|error| IdentityError::Roots(error.to_string()))?;
        let mut server = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(&[&TLS13])?
            .with_client_cert_verifier(Arc::clone(&verifier))
            .with_single_cert(chain.clone(), key.clone_key())?;
        server.alpn_protocols = vec![ALPN.to_vec()];
        // A reader stays connected while it reads; there is nothing to resume.
        server.send_tls13_tickets = 0;
        let mut client = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&TLS13])?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(AnyAgent { verifier }))
            .with_client_auth_cert(chain, key)?;
        client.alpn_protocols = vec![ALPN.to_vec()];
        Ok(Self { client: Arc::new(client), server: Arc::new(server), authorities: Arc::new(authorities) })
    }
}

/// AES with the shorter key first: it is as good here, and a fifth faster.
fn provider() -> CryptoProvider {
    let mut provider = rustls::crypto::aws_lc_rs::default_provider();
    provider.cipher_suites = vec![
        cipher_suite::TLS13_AES_128_GCM_SHA256,
        cipher_suite::TLS13_AES_256_GCM_SHA384,
        cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
    ];
    provider
}

/// An agent that listens shows the certificate that it shows the control plane: one of a client, without a name that DNS
/// knows. Which agent it is, is looked at when the connection is there: see [`agent_of`].
#[derive(Debug)]
struct AnyAgent {
    verifier: Arc<dyn ClientCertVerifier>,
}

impl ServerCertVerifier for AnyAgent {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.verifier.verify_client_cert(end_entity, intermediates, now).map(|_| ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("TLS 1.2 is not spoken".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.verifier.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.verifier.supported_verify_schemes()
    }
}

/// Whom a certificate speaks for that TLS has verified.
pub(super) fn agent_of(chain: Option<&[CertificateDer<'_>]>) -> Option<(AgentId, SiteName)> {
    let (_, certificate) = X509Certificate::from_der(chain?.first()?).ok()?;
    let names = &certificate.subject_alternative_name().ok()??.value.general_names;
    let [GeneralName::URI(uri)] = &names[..] else { return None };
    let (site, agent) = uri.strip_prefix("spiffe://atoll/site/")?.split_once("/agent/")?;
    Some((agent.parse().ok()?, site.parse().ok()?))
}
