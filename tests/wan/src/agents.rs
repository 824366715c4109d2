//! A control plane's CA and agents with certificates of it, as far as transfers between agents need them.

use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Result;
use async_trait::async_trait;
use atoll_model::id::{AgentId, SiteName, TransferId};
use atoll_model::ticket::Ticket;
use atoll_model::time::Timestamp;
use atoll_model::value::ObjectRef;
use rcgen::{
    BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType,
    SigningKey as _,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use storage_sync_engine::bucket::UploadRequest;
use storage_sync_engine::direct::{AgentTls, Host, Offer};
use storage_sync_engine::transfer::{CredentialError, Credentials, Download, Offers, Upload};
use tokio::runtime::{Builder, Runtime};

use crate::site::Site;

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

/// A site whose administrator lets everything leave.
#[derive(Debug)]
pub struct Open;

impl Host for Open {
    fn admit(&self, _: &SiteName, _: ObjectRef) -> Result<(), String> {
        Ok(())
    }
    fn damaged(&self, object: ObjectRef, message: &str) {
        eprintln!("{} is damaged: {message}", object.id);
    }
    fn sent(&self, _: AgentId, _: ObjectRef, _: u64) {}
}

/// There is no bucket: what the other agent does not give is not had.
#[derive(Debug)]
pub struct OnlyOffer {
    offer: Offer,
    failed: Mutex<Vec<String>>,
}

fn no_bucket<T>() -> Result<T, CredentialError> {
    Err(CredentialError::Refused("there is no bucket".to_owned()))
}

impl OnlyOffer {
    pub fn new(offer: Offer) -> Self {
        Self { offer, failed: Mutex::default() }
    }

    /// Why the holder did not give what it was asked for.
    pub fn failed(&self) -> Vec<String> {
        self.failed.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

#[async_trait]
impl Credentials for OnlyOffer {
    async fn download(&self, _: ObjectRef) -> Result<Download, CredentialError> {
        no_bucket()
    }
    async fn offers(&self, _: ObjectRef) -> Result<Offers, CredentialError> {
        Ok(Offers::From(vec![self.offer.clone()]))
    }
    async fn offer_failed(&self, _: ObjectRef, _: AgentId, message: &str) -> Result<(), CredentialError> {
        self.failed.lock().unwrap_or_else(PoisonError::into_inner).push(message.to_owned());
        Ok(())
    }
    async fn upload_plan(&self, _: TransferId, _: &UploadRequest) -> Result<Upload, CredentialError> {
        no_bucket()
    }
    async fn complete(&self, _: TransferId, _: &UploadRequest, _: &[String]) -> Result<(), CredentialError> {
        no_bucket()
    }
}

/// Writes a file of noise, different for each seed: nothing of it is there already, and nothing shrinks.
///
/// # Errors
/// When it cannot be written.
pub fn write_noise(path: &Path, bytes: u64, seed: u64) -> Result<()> {
    use std::io::Write as _;
    let mut file = std::io::BufWriter::with_capacity(1 << 20, std::fs::File::create(path)?);
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut left = bytes;
    let mut block = vec![0; 64 << 10];
    while left > 0 {
        for word in block.chunks_exact_mut(8) {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            word.copy_from_slice(&state.to_le_bytes());
        }
        let part = left.min(block.len() as u64);
        file.write_all(&block[..part as usize])?;
        left -= part;
    }
    file.flush()?;
    Ok(())
}

/// A runtime whose threads are in a site.
///
/// # Errors
/// When it cannot be made.
pub fn runtime(site: Option<&Site>) -> Result<Runtime> {
    let mut builder = Builder::new_multi_thread();
    builder.worker_threads(2).enable_all();
    if let Some(site) = site {
        builder.on_thread_start(site.entrance());
    }
    Ok(builder.build()?)
}
