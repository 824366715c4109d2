//! TLS to a server whose CA the token pins: nothing but URL and token is needed, and nobody else is trusted.

use std::path::Path;
use std::sync::Arc;

use anyhow::Context as _;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

/// Whom a client trusts.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Trust<'a> {
    /// The CA that the API token (`atoll.SECRET.PIN`) pins.
    Token(&'a str),
    /// The CAs of a PEM file: for a server with a certificate from elsewhere.
    File(&'a Path),
}

/// What a client accepts: TLS 1.3 alone, and a server that a trusted CA vouches for.
///
/// # Errors
/// When the token has no pin, or the file no certificates.
pub(crate) fn client_config(trust: Trust<'_>) -> anyhow::Result<ClientConfig> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder =
        ClientConfig::builder_with_provider(provider.clone()).with_protocol_versions(&[&rustls::version::TLS13])?;
    match trust {
        Trust::Token(token) => {
            let pin = pin_of(token).context(
                "the token names no CA (it is not atoll.….…): give the server's CA with --ca, or a token of this server",
            )?;
            let verifier = Arc::new(Pinned { pin, provider });
            Ok(builder.dangerous().with_custom_certificate_verifier(verifier).with_no_client_auth())
        }
        Trust::File(file) => {
            let mut roots = RootCertStore::empty();
            let certificates = CertificateDer::pem_file_iter(file)
                .with_context(|| format!("cannot read certificates from {}", file.display()))?;
            for certificate in certificates {
                roots.add(certificate.with_context(|| format!("a certificate in {}", file.display()))?)?;
            }
            anyhow::ensure!(!roots.is_empty(), "there is no certificate in {}", file.display());
            Ok(builder.with_root_certificates(roots).with_no_client_auth())
        }
    }
}

fn pin_of(token: &str) -> Option<[u8; 32]> {
    let (_, pin) = token.strip_prefix("atoll.")?.split_once('.')?;
    URL_SAFE_NO_PAD.decode(pin).ok()?.try_into().ok()
}

/// Accepts a chain that leads to the one CA whose public key has this SHA-256.
#[derive(Debug)]
struct Pinned {
    pin: [u8; 32],
    provider: Arc<CryptoProvider>,
}

impl Pinned {
    fn is_pinned(&self, certificate: &CertificateDer<'_>) -> bool {
        let Ok((_, parsed)) = x509_parser::parse_x509_certificate(certificate) else { return false };
        let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, parsed.public_key().raw);
        digest.as_ref() == self.pin
    }
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let root = intermediates.iter().find(|certificate| self.is_pinned(certificate));
        let root = root.ok_or(Error::InvalidCertificate(CertificateError::UnknownIssuer))?;
        let mut roots = RootCertStore::empty();
        roots.add(root.clone().into_owned())?;
        WebPkiServerVerifier::builder_with_provider(Arc::new(roots), self.provider.clone())
            .build()
            .map_err(|error| Error::General(error.to_string()))?
            .verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("TLS 1.2 is not spoken".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        rustls::crypto::verify_tls13_signature(
            message,
            certificate,
            signature,
            &self.provider.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use aws_lc_rs::digest::{SHA256, digest};
    use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
    use rustls::{ClientConnection, ServerConfig, ServerConnection};
    use rustls_pki_types::PrivateKeyDer;

    use super::*;

    type Authority = CertifiedIssuer<'static, KeyPair>;

    fn authority() -> Authority {
        let mut parameters = CertificateParams::new(Vec::new()).expect("valid");
        parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        CertifiedIssuer::self_signed(parameters, KeyPair::generate().expect("a key")).expect("a certificate")
    }

    fn token(authority: &Authority) -> String {
        let (_, parsed) = x509_parser::parse_x509_certificate(authority.der()).expect("a certificate");
        let pin = digest(&SHA256, parsed.public_key().raw);
        format!("atoll.c2VjcmV0.{}", URL_SAFE_NO_PAD.encode(pin))
    }

    /// A server whose chain ends with the CA's own certificate.
    fn server(name: &str, issuer: &Authority, shown: &Authority) -> Arc<ServerConfig> {
        let key = KeyPair::generate().expect("a key");
        let parameters = CertificateParams::new(vec![name.to_owned()]).expect("valid");
        let leaf = parameters.signed_by(&key, issuer).expect("a certificate");
        let chain = vec![leaf.der().clone(), shown.der().clone()];
        let key = PrivateKeyDer::try_from(key.serialize_der()).expect("a key");
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        let config = builder.expect("the provider has them").with_no_client_auth().with_single_cert(chain, key);
        Arc::new(config.expect("they belong together"))
    }

    fn handshake(client: ClientConfig, server: Arc<ServerConfig>) -> Result<(), Error> {
        let name = ServerName::try_from("atoll.test").expect("valid");
        let mut client = ClientConnection::new(Arc::new(client), name)?;
        let mut server = ServerConnection::new(server)?;
        while client.is_handshaking() || server.is_handshaking() {
            let mut wire = Vec::new();
            client.write_tls(&mut wire).expect("memory");
            server.read_tls(&mut wire.as_slice()).expect("memory");
            server.process_new_packets()?;
            let mut wire = Vec::new();
            server.write_tls(&mut wire).expect("memory");
            client.read_tls(&mut wire.as_slice()).expect("memory");
            client.process_new_packets()?;
        }
        Ok(())
    }

    #[test]
    fn the_ca_that_the_token_pins_is_trusted_and_no_other() {
        let (ours, theirs) = (authority(), authority());
        let trusting = || client_config(Trust::Token(&token(&ours))).expect("a token of ours");
        assert_eq!(handshake(trusting(), server("atoll.test", &ours, &ours)), Ok(()));
        assert!(handshake(trusting(), server("atoll.test", &theirs, &theirs)).is_err());
        assert!(handshake(trusting(), server("other.test", &ours, &ours)).is_err(), "another server of the same CA");
        // It shows our CA, which did not issue its certificate.
        assert!(handshake(trusting(), server("atoll.test", &theirs, &ours)).is_err());
    }

    #[test]
    fn a_given_ca_is_trusted_and_no_other() {
        let (ours, theirs) = (authority(), authority());
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("ca.pem");
        std::fs::write(&file, ours.pem()).expect("a file");
        let trusting = || client_config(Trust::File(&file)).expect("a CA");
        assert_eq!(handshake(trusting(), server("atoll.test", &ours, &ours)), Ok(()));
        assert!(handshake(trusting(), server("atoll.test", &theirs, &theirs)).is_err());
        std::fs::write(&file, "nothing").expect("a file");
        assert!(client_config(Trust::File(&file)).is_err());
    }

    #[test]
    fn a_token_without_a_pin_is_refused() {
        for token in ["", "secret", "atoll.secret", "atoll.secret.short", "atoll.secret.****"] {
            assert!(client_config(Trust::Token(token)).is_err(), "{token}");
        }
    }
}
