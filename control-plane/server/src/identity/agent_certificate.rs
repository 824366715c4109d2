//! Certificates of agents: what is asked for, what is issued, and who presents one.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use atoll_model::id::{AgentId, SiteName};
use rcgen::{CertificateSigningRequestParams, PKCS_ECDSA_P256_SHA256, PublicKey};
use rustls::pki_types::{CertificateDer, CertificateSigningRequestDer};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

/// `serialNumber` of the subject (X.520): there the certificate carries the SHA-256 of the identity key, so that whoever
/// stole only certificate and TLS key cannot renew them.
pub(super) const IDENTITY_KEY_OID: &[u64] = &[2, 5, 4, 5];

/// Whom a certificate speaks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AgentIdentity {
    pub agent: AgentId,
    pub site: SiteName,
    /// SHA-256 of the public identity key.
    pub identity_key: [u8; 32],
}

/// A certificate as it goes to an agent.
#[derive(Debug, Clone)]
pub struct IssuedCertificate {
    pub chain: Vec<CertificateDer<'static>>,
    pub not_before: SystemTime,
    pub not_after: SystemTime,
}

/// A request for a certificate whose signature was verified. Only its public key counts.
#[derive(Debug)]
pub struct SigningRequest {
    key: PublicKey,
}

#[derive(Debug, thiserror::Error)]
pub enum SigningRequestError {
    #[error("the signing request cannot be read or is not signed by its key: {0}")]
    Invalid(#[from] rcgen::Error),
    #[error("the signing request is not for a P-256 key")]
    Algorithm,
}

impl SigningRequest {
    /// # Errors
    /// When it is not a PKCS#10 request signed by a P-256 key.
    pub fn verify(der: &[u8]) -> Result<Self, SigningRequestError> {
        let request = CertificateSigningRequestParams::from_der(&CertificateSigningRequestDer::from(der))?;
        if request.public_key.algorithm() == &PKCS_ECDSA_P256_SHA256 {
            Ok(Self { key: request.public_key })
        } else {
            Err(SigningRequestError::Algorithm)
        }
    }

    pub(super) const fn public_key(&self) -> &PublicKey {
        &self.key
    }
}

pub(super) fn spiffe_uri(identity: &AgentIdentity) -> String {
    format!("spiffe://atoll/site/{}/agent/{}", identity.site, identity.agent)
}

impl AgentIdentity {
    /// Whom a certificate names, and when it ends. To be called with one that TLS has verified against the CA.
    pub(crate) fn of_certificate(der: &CertificateDer<'_>) -> Option<(Self, SystemTime)> {
        let (_, certificate) = X509Certificate::from_der(der).ok()?;
        let names = &certificate.subject_alternative_name().ok()??.value.general_names;
        let [GeneralName::URI(uri)] = &names[..] else { return None };
        let (site, agent) = uri.strip_prefix("spiffe://atoll/site/")?.split_once("/agent/")?;
        let key = certificate.subject().iter_attributes().find_map(|attribute| {
            let same = attribute.attr_type().iter()?.eq(IDENTITY_KEY_OID.iter().copied());
            same.then(|| attribute.as_str().ok().and_then(read_hex)).flatten()
        });
        let identity = Self { agent: agent.parse().ok()?, site: site.parse().ok()?, identity_key: key? };
        let not_after = u64::try_from(certificate.validity().not_after.timestamp()).ok()?;
        Some((identity, UNIX_EPOCH + Duration::from_secs(not_after)))
    }
}

fn read_hex(text: &str) -> Option<[u8; 32]> {
    if text.len() != 64 || !text.is_ascii() {
        return None;
    }
    let mut bytes = [0; 32];
    for (place, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&text[place * 2..place * 2 + 2], 16).ok()?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a panic is a failed test")]

    use rcgen::{CertificateParams, DnType, KeyPair, PKCS_ED25519, SanType};

    use super::*;
    use crate::identity::Authority;

    #[test]
    fn a_certificate_names_the_agent_and_nothing_that_the_request_asked_for() {
        let directory = tempfile::tempdir().unwrap();
        let authority = Authority::open(directory.path()).unwrap();
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
        let mut asked = CertificateParams::new(vec!["control-plane.example.org".to_owned()]).unwrap();
        asked.distinguished_name.push(DnType::CommonName, "root");
        let uri = "spiffe://atoll/site/other/agent/x".to_owned().try_into().unwrap();
        asked.subject_alt_names.push(SanType::URI(uri));
        let request = SigningRequest::verify(asked.serialize_request(&key).unwrap().der()).unwrap();

        let (agent, site) = (AgentId::from_bits(5), "edge".parse().unwrap());
        let now = SystemTime::now();
        let issued = authority.certify_agent(agent, &site, [3; 32], &request, now, Duration::from_secs(60)).unwrap();
        let (identity, not_after) = AgentIdentity::of_certificate(&issued.chain[0]).unwrap();
        assert_eq!(identity, AgentIdentity { agent, site, identity_key: [3; 32] });
        assert!(not_after.duration_since(now).unwrap() <= Duration::from_secs(60));
        let text = String::from_utf8_lossy(&issued.chain[0]).into_owned();
        assert!(!text.contains("example.org") && !text.contains("other"));
    }

    #[test]
    fn a_request_for_another_kind_of_key_or_with_a_broken_signature_is_refused() {
        let request = |key: &KeyPair| CertificateParams::default().serialize_request(key).unwrap().der().to_vec();
        let error = SigningRequest::verify(&request(&KeyPair::generate_for(&PKCS_ED25519).unwrap())).unwrap_err();
        assert!(matches!(error, SigningRequestError::Algorithm));
        let mut damaged = request(&KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap());
        let last = damaged.len() - 1;
        damaged[last] ^= 1;
        assert!(matches!(SigningRequest::verify(&damaged).unwrap_err(), SigningRequestError::Invalid(_)));
    }

    #[test]
    fn the_authority_is_found_again_and_half_of_one_is_refused() {
        use std::os::unix::fs::PermissionsExt;
        let directory = tempfile::tempdir().unwrap();
        let first = Authority::open(directory.path()).unwrap();
        assert_eq!(Authority::open(directory.path()).unwrap().fingerprint(), first.fingerprint());
        let key = directory.path().join("ca.key");
        assert_eq!(std::fs::metadata(&key).unwrap().permissions().mode() & 0o777, 0o600);
        std::fs::remove_file(key).unwrap();
        let error = Authority::open(directory.path()).unwrap_err();
        assert!(error.to_string().contains("ca.key is not"), "{error}");
    }

    #[test]
    fn a_key_that_does_not_belong_to_the_certificate_is_refused() {
        let (left, right) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        Authority::open(left.path()).unwrap();
        Authority::open(right.path()).unwrap();
        std::fs::copy(right.path().join("ca.key"), left.path().join("ca.key")).unwrap();
        let error = Authority::open(left.path()).unwrap_err();
        assert!(error.to_string().contains("is not its key"), "{error}");
    }
}
