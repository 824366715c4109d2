//! Fetches from the bucket into a site store, and pushes the other way, with URLs that somebody else mints.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use atoll_model::id::TransferId;
use atoll_model::value::ObjectRef;

use crate::bucket::{UploadPlan, UploadRequest};
use crate::store::SiteStore;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Download {
    pub url: String,
    /// Exact length of the object's stream.
    pub stream_bytes: u64,
}

#[derive(Debug, Clone, thiserror::Error)]
pub enum CredentialError {
    /// Asking again is of no use.
    #[error("the control plane refuses: {0}")]
    Refused(String),
    #[error("the control plane cannot be asked: {0}")]
    Unavailable(String),
}

/// Where URLs come from. A seam: the agent asks the control plane, a test asks a bucket.
#[async_trait]
pub trait Credentials: Send + Sync {
    async fn download(&self, object: ObjectRef) -> Result<Download, CredentialError>;
    async fn upload_plan(&self, transfer: TransferId, request: &UploadRequest) -> Result<UploadPlan, CredentialError>;
    /// The bytes are there; `etags` are those of all parts in order, empty after a single PUT.
    async fn complete(
        &self,
        transfer: TransferId,
        request: &UploadRequest,
        etags: &[String],
    ) -> Result<(), CredentialError>;
}

#[derive(Debug, Clone)]
pub struct TransferConfig {
    /// Requests at a time, all transfers together.
    pub requests_max: usize,
    /// Tries of one request that bring nothing further, before the transfer is given up.
    pub tries_max: u32,
    pub backoff_first: Duration,
    pub backoff_max: Duration,
    /// A request that brings no byte for this long is made again.
    pub stall_timeout: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fetched {
    /// Bytes that came over the wire, repeats included; 0 if the object was there already.
    pub wire_bytes: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pushed {
    /// Bytes that went over the wire; 0 if the object was there already.
    pub wire_bytes: u64,
}

#[derive(Debug, Clone, thiserror::Error)]
pub enum FetchError {
    #[error("{} is not in the bucket", .0.id)]
    Missing(ObjectRef),
    /// Twice, with fresh URLs.
    #[error("what the bucket has is not {}: {message}", .object.id)]
    Corrupt { object: ObjectRef, message: String },
    #[error("no space left in the site's store")]
    NoSpace,
    #[error("{0}")]
    Credentials(CredentialError),
    #[error("gave up after {tries} tries: {message}")]
    Unreachable { tries: u32, message: String },
    #[error("the site's store fails: {0}")]
    Store(String),
}

#[derive(Debug, Clone, thiserror::Error)]
pub enum PushError {
    #[error("{} is not in the site's store", .0.id)]
    Missing(ObjectRef),
    /// It was never sent whole, and its copy is in quarantine now.
    #[error("the copy of {} in the site's store is damaged: {message}", .object.id)]
    Damaged { object: ObjectRef, message: String },
    #[error("{0}")]
    Credentials(CredentialError),
    #[error("gave up after {tries} tries: {message}")]
    Unreachable { tries: u32, message: String },
    #[error("the site's store fails: {0}")]
    Store(String),
}

/// Cheap to clone. Dropping the future of a fetch or push stops it; what was done of it is kept for the next try.
#[derive(Clone)]
pub struct Transfers {
    _store: SiteStore,
}

impl std::fmt::Debug for Transfers {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Transfers").finish_non_exhaustive()
    }
}

impl Transfers {
    pub fn new(
        store: SiteStore,
        client: reqwest::Client,
        credentials: Arc<dyn Credentials>,
        config: TransferConfig,
    ) -> Self {
        let _ = (store, client, credentials, config);
        unimplemented!()
    }

    /// Brings an object into the store. Calls for an object that is on its way already wait for that one fetch.
    pub async fn fetch(&self, object: ObjectRef) -> Result<Fetched, FetchError> {
        let _ = object;
        unimplemented!()
    }

    /// Brings an object of the store into the bucket.
    pub async fn push(&self, transfer: TransferId, object: ObjectRef) -> Result<Pushed, PushError> {
        let _ = (transfer, object);
        unimplemented!()
    }

    /// Forgets what is kept of an unfinished push.
    pub async fn forget_push(&self, transfer: TransferId) {
        let _ = transfer;
        unimplemented!()
    }
}
