//! A control plane's CA and agents with certificates of it, as far as transfers between agents need them.

use anyhow::Result;
use atoll_model::id::AgentId;
use atoll_model::ticket::Ticket;
use atoll_model::time::Timestamp;
use atoll_model::value::ObjectRef;
use rcgen::{
    BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType,
    SigningKey as _,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use storage_sync_engine::direct::AgentTls;

/// Issues certificates, and tickets.
#[derive(Debug)]
pub struct Authority {
    certificate: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    /// # Errors
    /// When no key can be made.
    pub fn new() -> Result<Self> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let certificate = params.self_signed(&key)?.der().clone();
        Ok(Self { certificate, issuer: Issuer::new(params, key) })
    }

    /// What an agent of a site shows.
    ///
    /// # Errors
    /// When no certificate can be made.
    pub fn agent(&self, agent: AgentId, site: &str) -> Result<AgentTls> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![SanType::URI(format!("spiffe://atoll/site/{site}/agent/{agent}").try_into()?)];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let certificate = params.signed_by(&key, &self.issuer)?;
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        Ok(AgentTls::new(vec![certificate.der().clone()], key, std::slice::from_ref(&self.certificate))?)
    }

    /// A ticket for one object that lives for a minute.
    pub fn ticket(&self, reader: AgentId, holder: AgentId, object: ObjectRef) -> Ticket {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Ticket {
            number: now.as_nanos(),
            reader,
            holder,
            objects: vec![object],
            expires_at: Timestamp::ZERO + (now + Duration::from_secs(60)),
            bytes_max: 4 * object.bytes + (64 << 20),
        }
    }

    /// Signs it, and makes it ready to be shown.
    ///
    /// # Errors
    /// When the key does not sign.
    pub fn sign(&self, ticket: &Ticket) -> Result<Vec<u8>> {
        Ok(ticket.signed(|bytes| self.issuer.key().sign(bytes))?.to_bytes())
    }
}
