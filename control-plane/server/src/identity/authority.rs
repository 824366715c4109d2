//! The CA: a P-256 key and a self-signed certificate in the data directory.

use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use atoll_model::id::{AgentId, SiteName};
use atoll_model::limits::CERTIFICATE_BACKDATE;
use atoll_model::ticket::{SignedTicket, Ticket};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, SanType, SerialNumber, SigningKey as _,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::sign::CertifiedKey;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::agent_certificate::{IDENTITY_KEY_OID, spiffe_uri};
use super::{AgentIdentity, IssuedCertificate, SigningRequest, key_file, sha256};

/// How long a CA that is made here lives: replacing it means that every site joins again.
const AUTHORITY_LIFETIME: Duration = Duration::from_secs(10 * 365 * 24 * 3_600);
/// How long a certificate of this server lives; it is replaced at half of it.
pub(super) const SERVER_LIFETIME: Duration = Duration::from_secs(30 * 24 * 3_600);

/// The CA of this control plane.
#[derive(Debug)]
pub struct Authority {
    certificate: CertificateDer<'static>,
    fingerprint: [u8; 32],
    issuer: Issuer<'static, KeyPair>,
    file: PathBuf,
}

#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    #[error("cannot read or write {}", path.display())]
    File {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{} is there and {} is not: put the missing one back, or remove both and let every site join again", there.display(), missing.display())]
    HalfThere { there: PathBuf, missing: PathBuf },
    #[error("{} holds no usable certificate of a CA: {problem}", path.display())]
    Unusable { path: PathBuf, problem: String },
    #[error("a certificate cannot be made")]
    Make(#[from] rcgen::Error),
    #[error("the key of a certificate cannot be used")]
    Key(#[from] rustls::Error),
    #[error("no random numbers can be had")]
    Random,
}

impl Authority {
    /// Reads `ca.pem` and `ca.key` from the directory, where an administrator may have put his own; makes them if neither
    /// is there.
    ///
    /// # Errors
    /// When only one of them is there, they do not belong together, or cannot be read or written.
    pub fn open(directory: &Path) -> Result<Self, AuthorityError> {
        let (certificate_file, key_file) = (directory.join("ca.pem"), directory.join("ca.key"));
        match (certificate_file.exists(), key_file.exists()) {
            (true, true) => Self::read(certificate_file, &key_file),
            (false, false) => Self::make(certificate_file, &key_file),
            (true, false) => Err(AuthorityError::HalfThere { there: certificate_file, missing: key_file }),
            (false, true) => Self::make_certificate(certificate_file, &key_file),
        }
    }

    fn make(certificate_file: PathBuf, key_path: &Path) -> Result<Self, AuthorityError> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let pem = zeroize::Zeroizing::new(key.serialize_pem());
        key_file::write(key_path, pem.as_bytes(), 0o600)
            .map_err(|source| AuthorityError::File { path: key_path.to_owned(), source })?;
        Self::make_certificate(certificate_file, key_path)
    }

    /// The key is written first: one that has no certificate yet has issued nothing.
    fn make_certificate(certificate_file: PathBuf, key_path: &Path) -> Result<Self, AuthorityError> {
        let key = read_key(key_path)?;
        let now = SystemTime::now();
        let mut params = blank(now, AUTHORITY_LIFETIME)?;
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.distinguished_name.push(DnType::CommonName, "Atoll control plane");
        let certificate = params.self_signed(&key)?;
        key_file::write(&certificate_file, certificate.pem().as_bytes(), 0o644)
            .map_err(|source| AuthorityError::File { path: certificate_file.clone(), source })?;
        tracing::info!(file = %certificate_file.display(), "made the CA of this control plane");
        Self::read(certificate_file, key_path)
    }

    fn read(certificate_file: PathBuf, key_path: &Path) -> Result<Self, AuthorityError> {
        let unusable = |problem: String| AuthorityError::Unusable { path: certificate_file.clone(), problem };
        let certificate =
            CertificateDer::from_pem_file(&certificate_file).map_err(|error| unusable(error.to_string()))?;
        let key = read_key(key_path)?;
        let (_, parsed) = X509Certificate::from_der(&certificate).map_err(|error| unusable(error.to_string()))?;
        if !parsed.is_ca() {
            return Err(unusable("it is not the certificate of a CA".to_owned()));
        }
        if *parsed.public_key().subject_public_key.data != *key.public_key_raw() {
            return Err(unusable(format!("{} is not its key", key_path.display())));
        }
        if !parsed.validity().is_valid() {
            return Err(unusable("it is not valid at this time".to_owned()));
        }
        let fingerprint = sha256(parsed.public_key().raw);
        let issuer = Issuer::from_ca_cert_der(&certificate, key)?;
        Ok(Self { certificate: certificate.into_owned(), fingerprint, issuer, file: certificate_file })
    }

    pub const fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    /// The PEM file of the certificate.
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// The fingerprint, as servers of one installation compare it.
    pub(crate) fn fingerprint_hex(&self) -> String {
        self.fingerprint.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// SHA-256 of the CA's public key (its SubjectPublicKeyInfo): what tokens pin.
    pub const fn fingerprint(&self) -> [u8; 32] {
        self.fingerprint
    }

    /// Issues a certificate to an agent: for its name and the key of the signing request, whatever else that asks for.
    ///
    /// # Errors
    /// When the certificate cannot be made.
    pub fn certify_agent(
        &self,
        agent: AgentId,
        site: &SiteName,
        identity_key: [u8; 32],
        request: &SigningRequest,
        now: SystemTime,
        lifetime: Duration,
    ) -> Result<IssuedCertificate, AuthorityError> {
        let identity = AgentIdentity { agent, site: site.clone(), identity_key };
        let mut params = blank(now, lifetime)?;
        params.subject_alt_names = vec![SanType::URI(spiffe_uri(&identity).try_into()?)];
        let key_name = DnType::CustomDnType(IDENTITY_KEY_OID.to_vec());
        params.distinguished_name.push(key_name, hex(&identity_key));
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let certificate = params.signed_by(request.public_key(), &self.issuer)?;
        Ok(IssuedCertificate {
            chain: vec![certificate.der().clone()],
            not_before: now - CERTIFICATE_BACKDATE,
            not_after: now + lifetime,
        })
    }

    /// Signs the right of one agent to read from another.
    ///
    /// # Errors
    /// When the key does not sign.
    pub fn sign_ticket(&self, ticket: &Ticket) -> Result<SignedTicket, AuthorityError> {
        ticket.signed(|bytes| self.issuer.key().sign(bytes)).map_err(AuthorityError::Make)
    }

    /// Issues a certificate to this server, with a key that is never written down. Its chain ends with the CA's own, so
    /// that whoever has only a pin finds it there.
    pub(super) fn certify_server(
        &self,
        names: &[SanType],
        now: SystemTime,
    ) -> Result<Arc<CertifiedKey>, AuthorityError> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let mut params = blank(now, SERVER_LIFETIME)?;
        params.subject_alt_names = names.to_vec();
        params.distinguished_name.push(DnType::CommonName, "Atoll server");
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let certificate = params.signed_by(&key, &self.issuer)?;
        let chain = vec![certificate.der().clone(), self.certificate.clone()];
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let signer = rustls::crypto::aws_lc_rs::sign::any_ecdsa_type(&key)?;
        Ok(Arc::new(CertifiedKey::new(chain, signer)))
    }
}

fn read_key(path: &Path) -> Result<KeyPair, AuthorityError> {
    let pem = std::fs::read_to_string(path)
        .map(zeroize::Zeroizing::new)
        .map_err(|source| AuthorityError::File { path: path.to_owned(), source })?;
    KeyPair::from_pem(&pem).map_err(|error| AuthorityError::Unusable {
        path: path.to_owned(),
        problem: format!("its key cannot be read: {error}"),
    })
}

/// A certificate that says nothing yet, dated back for clocks that are late.
fn blank(now: SystemTime, lifetime: Duration) -> Result<CertificateParams, AuthorityError> {
    let mut serial = [0u8; 16];
    aws_lc_rs::rand::fill(&mut serial).map_err(|_| AuthorityError::Random)?;
    serial[0] = serial[0] & 0x7f | 0x40;
    let mut params = CertificateParams::default();
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    params.distinguished_name = DistinguishedName::new();
    params.not_before = (now - CERTIFICATE_BACKDATE).into();
    params.not_after = (now + lifetime).into();
    params.use_authority_key_identifier_extension = true;
    Ok(params)
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").expect("writing to a string cannot fail");
        text
    })
}

/// A name of this server, as its certificate carries it.
pub(super) fn subject_name(name: &str) -> Option<SanType> {
    match name.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>() {
        Ok(address) => Some(SanType::IpAddress(address)),
        Err(_) => name.try_into().ok().map(SanType::DnsName),
    }
}
