//! TLS towards the control plane: 1.3 only, one provider, and only the CA of the join token.

use std::sync::Arc;
use std::time::SystemTime;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use rustls::time_provider::{DefaultTimeProvider, TimeProvider};
use rustls::version::TLS13;
use rustls::{
    CertificateError, ClientConfig, ConfigBuilder, DigitallySignedStruct, RootCertStore, SignatureScheme, WantsVerifier,
};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::inspect::Expected;
use super::{Identity, sha256};

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

fn builder() -> Result<ConfigBuilder<ClientConfig, WantsVerifier>, rustls::Error> {
    ClientConfig::builder_with_provider(provider()).with_protocol_versions(&[&TLS13])
}

fn http2(mut config: ClientConfig) -> Arc<ClientConfig> {
    config.alpn_protocols = vec![b"h2".to_vec()];
    Arc::new(config)
}

/// For the first connection, when nothing is known of the server but the hash of its CA's public key.
pub(super) fn with_pin(pin: [u8; 32]) -> Result<Arc<ClientConfig>, rustls::Error> {
    let verifier = Arc::new(PinnedAuthority { pin: Some(pin), provider: provider() });
    Ok(http2(builder()?.dangerous().with_custom_certificate_verifier(verifier).with_no_client_auth()))
}

/// For every other connection; without the certificate where it has expired.
pub(super) fn with_identity(identity: &Identity, with_certificate: bool) -> Result<Arc<ClientConfig>, rustls::Error> {
    let builder = builder()?.with_root_certificates(Arc::new(roots(identity)?));
    if !with_certificate {
        return Ok(http2(builder.with_no_client_auth()));
    }
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(identity.tls_key.to_vec()));
    Ok(http2(builder.with_client_auth_cert(identity.chain.clone(), key)?))
}

/// For a connection that is only looked at; with `now`, as if it were that time.
pub(super) fn to_inspect(expected: &Expected, now: Option<UnixTime>) -> Result<Arc<ClientConfig>, rustls::Error> {
    let time: Arc<dyn TimeProvider> = match now {
        Some(now) => Arc::new(At(now)),
        None => Arc::new(DefaultTimeProvider),
    };
    let builder = ClientConfig::builder_with_details(provider(), time).with_protocol_versions(&[&TLS13])?;
    let pin = match expected {
        Expected::Known(identity) => {
            let builder = builder.with_root_certificates(Arc::new(roots(identity)?));
            if identity.is_expired(SystemTime::now()) {
                return Ok(http2(builder.with_no_client_auth()));
            }
            let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(identity.tls_key.to_vec()));
            return Ok(http2(builder.with_client_auth_cert(identity.chain.clone(), key)?));
        }
        Expected::Pinned(pin) => Some(*pin),
        Expected::Anyone => None,
    };
    let verifier = Arc::new(PinnedAuthority { pin, provider: provider() });
    Ok(http2(builder.dangerous().with_custom_certificate_verifier(verifier).with_no_client_auth()))
}

/// A clock that stands still.
#[derive(Debug)]
struct At(UnixTime);

impl TimeProvider for At {
    fn current_time(&self) -> Option<UnixTime> {
        Some(self.0)
    }
}

fn roots(identity: &Identity) -> Result<RootCertStore, rustls::Error> {
    let mut roots = RootCertStore::empty();
    identity.ca_bundle.iter().try_for_each(|certificate| roots.add(certificate.clone()))?;
    Ok(roots)
}

/// A client for the URLs that the control plane mints: of a bucket that the system's own roots vouch for, or of the
/// control plane itself.
///
/// # Errors
/// When the CA's certificates or the system's roots cannot be used.
pub fn http_client(identity: &Identity) -> reqwest::Result<reqwest::Client> {
    let certificates = identity.ca_bundle.iter().map(|der| reqwest::Certificate::from_der(der));
    reqwest::Client::builder()
        .tls_backend_rustls()
        .tls_certs_merge(certificates.collect::<Result<Vec<_>, _>>()?)
        .tls_version_min(reqwest::tls::Version::TLS_1_2)
        .build()
}

/// Trusts the one CA whose public key has this hash, wherever in the server's chain it stands. Without one it believes whoever
/// shows a certificate whose key it has: for a server that is looked at when nothing says which it should be.
#[derive(Debug)]
struct PinnedAuthority {
    pin: Option<[u8; 32]>,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for PinnedAuthority {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let Some(pin) = self.pin else { return Ok(ServerCertVerified::assertion()) };
        let is_pinned = |der: &&CertificateDer<'_>| {
            let parsed = X509Certificate::from_der(der);
            parsed.is_ok_and(|(_, certificate)| sha256(certificate.public_key().raw) == pin)
        };
        let authority = intermediates.iter().find(is_pinned);
        let authority = authority.ok_or(rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer))?;
        let mut roots = RootCertStore::empty();
        roots.add(authority.clone().into_owned())?;
        WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&self.provider))
            .build()
            .map_err(|error| rustls::Error::General(error.to_string()))?
            .verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
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
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
