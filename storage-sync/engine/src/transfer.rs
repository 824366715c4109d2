//! Fetches from another site or from the bucket into a site store, and pushes to the bucket, with tickets and URLs that
//! somebody else mints.
//!
//! A fetch asks for what the store lacks only, in ranges of at most [`hash::SEGMENT_BYTES`], several at a time. Of a large
//! file each grain of [`hash::GRAIN_BYTES`] is hashed and written as soon as it has come; small ones are held in memory
//! until their range is there. What arrived is kept over a crash: small files are in the store
//! already, and of large ones `partial/fetch-…` knows the grains. So a fetch that begins at another site can end at the
//! bucket: the grains stay. A push reads the object once, verifying it, and sends
//! a large one in parts; `partial/push-…` knows those that arrived. Where a key came with the URL, what goes to the bucket is
//! encrypted and what comes from it decrypted on the way; from site to site nothing is, beyond what TLS does.
//!
//! [`hash::GRAIN_BYTES`]: crate::hash::GRAIN_BYTES
//! [`hash::SEGMENT_BYTES`]: crate::hash::SEGMENT_BYTES

mod arrival;
mod fetch;
mod filler;
mod http;
mod incoming;
mod note;
mod origin;
mod outlet;
mod progress;
mod push;
mod reading;
mod segments;
mod verifying;
mod work;

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use atoll_model::id::{AgentId, TransferId};
use atoll_model::value::ObjectRef;
use futures::FutureExt as _;
use futures::future::{BoxFuture, Shared, WeakShared};
use tokio::sync::Semaphore;

use crate::bucket::{UploadPlan, UploadRequest};
use crate::buffers::Pool;
use crate::direct::{Dialer, Offer};
use crate::encryption::{ObjectKey, StreamKey};
use crate::hash::GRAIN_BYTES;
use crate::store::{SiteStore, StoreError};
pub use arrival::{NotedArrival, arrivals};
pub(crate) use filler::Filler;
pub(crate) use incoming::Had;
pub use incoming::Incoming;
pub use progress::Underway;

#[derive(Debug, Clone)]
pub struct Download {
    pub url: String,
    /// Exact length of the object's stream, before it was encrypted.
    pub stream_bytes: u64,
    /// Opens what is there, if it is encrypted.
    pub key: Option<StreamKey>,
}

/// How an object is to be brought into the bucket.
#[derive(Debug, Clone)]
pub struct Upload {
    pub plan: UploadPlan,
    /// Encrypts it: the plan is for what becomes of the stream by that.
    pub key: Option<ObjectKey>,
}

#[derive(Debug, Clone, thiserror::Error)]
pub enum CredentialError {
    /// Asking again is of no use.
    #[error("the control plane refuses: {0}")]
    Refused(String),
    #[error("the control plane cannot be asked: {0}")]
    Unavailable(String),
}

/// Who gives an object.
#[derive(Debug, Clone)]
pub enum Offers {
    /// These, the best first.
    From(Vec<Offer>),
    /// Somebody will who has a better link and is just getting it: to be asked again after this time.
    AskAgain(Duration),
}

/// Where URLs come from. A seam: the agent asks the control plane, a test asks a bucket.
#[async_trait]
pub trait Credentials: Send + Sync {
    async fn download(&self, object: ObjectRef) -> Result<Download, CredentialError>;
    /// Agents of other sites that may be asked for the object, the best first.
    async fn offers(&self, _: ObjectRef) -> Result<Offers, CredentialError> {
        Ok(Offers::From(Vec::new()))
    }
    /// An agent that was offered does not give the object: it is to be had in another way.
    async fn offer_failed(&self, _: ObjectRef, _: AgentId, _: &str) -> Result<(), CredentialError> {
        Ok(())
    }
    async fn upload_plan(&self, transfer: TransferId, request: &UploadRequest) -> Result<Upload, CredentialError>;
    /// The bytes are there; `etags` are those of all parts in order, empty after a single PUT. `request` names the upload.
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
    /// Parts of one push in memory at a time.
    pub parts_max: usize,
    /// Tries in a row that bring nothing further, before a transfer is given up.
    pub tries_max: u32,
    pub backoff_first: Duration,
    pub backoff_max: Duration,
    /// A request that brings no byte for this long is made again; so is one that sends less than 64 KiB/s beyond it.
    pub stall_timeout: Duration,
}

impl Default for TransferConfig {
    fn default() -> Self {
        Self {
            requests_max: 8,
            parts_max: 4,
            // With the waits below, some four minutes: an outage beyond that is the control plane's to plan around.
            tries_max: 10,
            backoff_first: Duration::from_millis(200),
            backoff_max: Duration::from_secs(60),
            stall_timeout: Duration::from_secs(15),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fetched {
    /// Bytes that came over the wire, repeats included; 0 if the object was there already.
    pub wire_bytes: u64,
    /// Those of them that came straight from another site, and the agent there that sent the last of them.
    pub direct: Option<(AgentId, u64)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pushed {
    /// Bytes that went over the wire, repeats included; 0 if the object was there already.
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

impl From<StoreError> for FetchError {
    fn from(error: StoreError) -> Self {
        if error.is_no_space() { Self::NoSpace } else { Self::Store(chain(&error)) }
    }
}

/// An error with its causes, for where it goes on as text.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(current) = cause {
        text = format!("{text}: {current}");
        cause = current.source();
    }
    text
}

type SharedFetch = Shared<BoxFuture<'static, Result<Fetched, FetchError>>>;
type WeakFetch = WeakShared<BoxFuture<'static, Result<Fetched, FetchError>>>;

/// Cheap to clone. Dropping the future of a fetch or push stops it; what was done of it is kept for the next try.
#[derive(Clone)]
pub struct Transfers {
    inner: Arc<Inner>,
}

struct Inner {
    store: SiteStore,
    client: reqwest::Client,
    credentials: Arc<dyn Credentials>,
    config: TransferConfig,
    direct: Option<Dialer>,
    underway: progress::Board,
    incoming: Incoming,
    requests: Semaphore,
    grains: Pool,
    fetches: Mutex<HashMap<ObjectRef, WeakFetch>>,
}

impl fmt::Debug for Transfers {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Transfers")
            .field("store", &self.inner.store)
            .field("config", &self.inner.config)
            .finish_non_exhaustive()
    }
}

impl Transfers {
    /// `client` trusts whoever serves the bucket: the own CA as well as the web's.
    pub fn new(
        store: SiteStore,
        client: reqwest::Client,
        credentials: Arc<dyn Credentials>,
        config: TransferConfig,
    ) -> Self {
        Self::with_direct(store, client, credentials, config, None)
    }

    /// Like [`Self::new`], for one that may ask agents of other sites too.
    pub fn with_direct(
        store: SiteStore,
        client: reqwest::Client,
        credentials: Arc<dyn Credentials>,
        config: TransferConfig,
        direct: Option<Dialer>,
    ) -> Self {
        let requests = Semaphore::new(config.requests_max.max(1));
        let (underway, incoming) = (progress::Board::default(), Incoming::default());
        let (fetches, grains) = (Mutex::default(), Pool::new(GRAIN_BYTES as usize));
        let inner = Inner { store, client, credentials, config, direct, underway, incoming, requests, grains, fetches };
        Self { inner: Arc::new(inner) }
    }

    /// Where what is fetched goes, and what is pushed comes from.
    pub fn store(&self) -> &SiteStore {
        &self.inner.store
    }

    /// Fetches and pushes that are going on, and how far they are.
    pub fn underway(&self) -> Vec<Underway> {
        self.inner.underway.look()
    }

    /// What comes, for [`crate::direct::Serving::relaying`].
    pub fn incoming(&self) -> Incoming {
        self.inner.incoming.clone()
    }

    /// Brings an object into the store. Calls for an object that is on its way already wait for that one fetch, and get
    /// its answer.
    pub async fn fetch(&self, object: ObjectRef) -> Result<Fetched, FetchError> {
        self.shared_fetch(object, None).await
    }

    /// Like [`Self::fetch`], and keeps a note under this intent from when all bytes have come, and before the object is in
    /// the store, to [`Self::forget_arrival`]. The note outlives the process; a fetch that fails takes it back.
    pub async fn fetch_noted(&self, object: ObjectRef, intent: u64) -> Result<Fetched, FetchError> {
        self.shared_fetch(object, Some(intent)).await
    }

    /// The note of an arrival under this intent: that of a fetch which was dropped may have been written before.
    pub fn arrival(&self, object: ObjectRef, intent: u64) -> Result<Option<NotedArrival>, StoreError> {
        Ok(arrival::read(&self.inner.store, object)?.filter(|noted| noted.intent == intent))
    }

    /// Drops the note of an arrival. A note of another intent stays.
    pub fn forget_arrival(&self, object: ObjectRef, intent: u64) -> Result<(), StoreError> {
        arrival::forget(&self.inner.store, object, intent)
    }

    /// Brings an object of the store into the bucket. Called again with the same `transfer`, it goes on where it was.
    pub async fn push(&self, transfer: TransferId, object: ObjectRef) -> Result<Pushed, PushError> {
        push::push(&self.inner, transfer, object).await
    }

    /// Forgets what is kept of an unfinished push.
    pub fn forget_push(&self, transfer: TransferId) -> Result<(), StoreError> {
        push::forget(&self.inner.store, transfer)
    }

    fn shared_fetch(&self, object: ObjectRef, intent: Option<u64>) -> SharedFetch {
        let mut fetches = self.inner.fetches.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(running) = fetches.get(&object).and_then(WeakShared::upgrade)
            // One that has its answer is over: whoever comes now asks anew.
            && running.peek().is_none()
        {
            return running;
        }
        let inner = self.inner.clone();
        let shared = async move { fetch::fetch(&inner, object, intent).await }.boxed().shared();
        fetches.retain(|_, fetch| fetch.upgrade().is_some());
        fetches.extend(shared.downgrade().map(|weak| (object, weak)));
        shared
    }
}

/// Runs what blocks where it may.
pub(crate) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // Only a runtime that is going down cancels it, and then nobody is left to be answered.
            Err(_) => std::future::pending().await,
        },
    }
}
