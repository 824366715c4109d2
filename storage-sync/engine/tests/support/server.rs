//! A server of a directory bucket on loopback, as `control-plane/server` mounts it, with faults on demand.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::Result;
use async_trait::async_trait;
use atoll_model::id::TransferId;
use atoll_model::value::ObjectRef;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::Response;
use futures::{StreamExt as _, TryStreamExt as _};
use storage_sync_engine::bucket::{Bucket, BucketOptions, ByteStream, Encryption, Found, Stored, UploadRequest};
use storage_sync_engine::encryption::ProjectKey;
use storage_sync_engine::store::SiteStore;
use storage_sync_engine::transfer::{CredentialError, Credentials, Download, TransferConfig, Transfers, Upload};

/// What happens to one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    None,
    Status(u16),
    /// The connection is torn down after this many bytes of the body.
    Reset(usize),
    /// The body ends after this many bytes, as if that were all.
    Truncate(usize),
    /// One byte is another.
    WrongByte,
    /// One bit is another: which, this number says.
    Flip(u64),
    /// After this many bytes of the body, nothing comes any more.
    Stall(usize),
    /// Success is answered, and nothing is done.
    Swallow,
}

#[derive(Debug)]
pub(crate) struct Served {
    pub(crate) bucket: Bucket,
    /// The same bucket, all of whose URLs have expired.
    pub(crate) expired: Bucket,
    pub(crate) faults: Mutex<VecDeque<Fault>>,
    pub(crate) requests: AtomicU64,
    pub(crate) bytes_out: AtomicU64,
    pub(crate) bytes_in: AtomicU64,
    pub(crate) folder: tempfile::TempDir,
    pub(crate) address: SocketAddr,
}

impl Served {
    pub(crate) async fn start() -> Result<Arc<Self>> {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let folder = tempfile::tempdir()?;
        let options =
            BucketOptions { serve_url: format!("http://{address}"), signing_key: [5; 32], ..BucketOptions::default() };
        let url = folder.path().to_string_lossy().into_owned();
        let served = Arc::new(Self {
            bucket: Bucket::open(&url, options.clone())?,
            expired: Bucket::open(&url, BucketOptions { url_lifetime: Duration::ZERO, ..options })?,
            faults: Mutex::default(),
            requests: AtomicU64::new(0),
            bytes_out: AtomicU64::new(0),
            bytes_in: AtomicU64::new(0),
            folder,
            address,
        });
        let router = axum::Router::new()
            .route("/bucket/{*key}", axum::routing::any(answer))
            .layer(axum::extract::DefaultBodyLimit::disable())
            .with_state(served.clone());
        let mut tasks = tokio::task::JoinSet::new();
        tasks.spawn(async move { axum::serve(listener, router).await });
        // It ends with the test's runtime.
        tasks.detach_all();
        Ok(served)
    }

    pub(crate) fn fail(&self, faults: impl IntoIterator<Item = Fault>) {
        self.faults.lock().expect("no test panics with it").extend(faults);
    }

    pub(crate) fn path(&self, object: ObjectRef) -> std::path::PathBuf {
        let folder = match object.kind {
            atoll_model::value::ObjectKind::File => "o",
            atoll_model::value::ObjectKind::Tree => "t",
        };
        let hex = object.id.hex();
        self.folder.path().join(folder).join(&hex[..2]).join(hex)
    }
}

async fn answer(State(served): State<Arc<Served>>, request: Request) -> Response {
    served.requests.fetch_add(1, Ordering::Relaxed);
    let fault = served.faults.lock().expect("no test panics with it").pop_front().unwrap_or(Fault::None);
    let (parts, body) = request.into_parts();
    let counter = served.clone();
    let body: ByteStream = body
        .into_data_stream()
        .map_err(std::io::Error::other)
        .inspect_ok(move |chunk| {
            counter.bytes_in.fetch_add(chunk.len() as u64, Ordering::Relaxed);
        })
        .boxed();
    if let Fault::Status(_) | Fault::Swallow = fault {
        let status = if let Fault::Status(status) = fault { status } else { 200 };
        // Taken whole, so that the sender hears the answer.
        let _ = body.collect::<Vec<_>>().await;
        return Response::builder().status(status).body(Body::from("a fault\n")).expect("it is a response");
    }
    let response = served.bucket.serve(http::Request::from_parts(parts, body)).await;
    let (mut parts, body) = response.into_parts();
    let counter = served.clone();
    let body = body.inspect_ok(move |chunk| {
        counter.bytes_out.fetch_add(chunk.len() as u64, Ordering::Relaxed);
    });
    let body = match fault {
        Fault::None | Fault::Status(_) | Fault::Swallow => Body::from_stream(body),
        Fault::Reset(after) => {
            let broken = futures::stream::once(async { Err(std::io::Error::other("torn down")) });
            Body::from_stream(cut(body.boxed(), after).chain(broken))
        }
        Fault::Stall(after) => Body::from_stream(cut(body.boxed(), after).chain(futures::stream::pending())),
        Fault::Flip(number) => {
            let mut bytes = body.map_ok(|chunk| chunk.to_vec()).try_concat().await.unwrap_or_default();
            let bit = (number % (bytes.len().max(1) as u64 * 8)) as usize;
            if let Some(byte) = bytes.get_mut(bit / 8) {
                *byte ^= 1 << (bit % 8);
            }
            Body::from(bytes)
        }
        Fault::Truncate(after) => {
            parts.headers.remove(http::header::CONTENT_LENGTH);
            Body::from_stream(cut(body.boxed(), after))
        }
        Fault::WrongByte => {
            let mut first = true;
            Body::from_stream(body.map_ok(move |chunk| {
                let mut chunk = chunk.to_vec();
                if std::mem::take(&mut first) && !chunk.is_empty() {
                    let last = chunk.len() - 1;
                    chunk[last] ^= 1;
                }
                chunk
            }))
        }
    };
    Response::from_parts(parts, body)
}

fn cut(body: ByteStream, after: usize) -> ByteStream {
    let mut left = after;
    body.map_ok(move |chunk| {
        let kept = chunk.slice(..left.min(chunk.len()));
        left -= kept.len();
        kept
    })
    .try_take_while(|chunk| futures::future::ready(Ok(!chunk.is_empty())))
    .boxed()
}

/// Mints URLs as the control plane does, from the bucket itself.
#[derive(Debug)]
pub(crate) struct Minter {
    pub(crate) bucket: Bucket,
    /// Mints the first URLs instead: as many as there are.
    pub(crate) first: Mutex<Vec<Bucket>>,
    pub(crate) minted: AtomicU64,
    pub(crate) completed: AtomicU64,
    /// The next requests are not answered: as many as this says.
    pub(crate) unavailable: AtomicU64,
    /// Encrypts everything.
    pub(crate) project: Option<ProjectKey>,
}

impl Minter {
    pub(crate) fn new(bucket: &Bucket) -> Arc<Self> {
        Self::of_project(bucket, None)
    }

    pub(crate) fn of_project(bucket: &Bucket, project: Option<ProjectKey>) -> Arc<Self> {
        Arc::new(Self {
            project,
            bucket: bucket.clone(),
            first: Mutex::default(),
            minted: AtomicU64::new(0),
            completed: AtomicU64::new(0),
            unavailable: AtomicU64::new(0),
        })
    }

    pub(crate) fn stored(&self, object: ObjectRef) -> Stored {
        Stored { object, encryption: self.project.as_ref().map(|key| Encryption::new(key, object)) }
    }

    fn next(&self) -> Result<Bucket, CredentialError> {
        let down = self.unavailable.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1));
        if down.is_ok() {
            return Err(CredentialError::Unavailable("down".to_owned()));
        }
        self.minted.fetch_add(1, Ordering::Relaxed);
        Ok(self.first.lock().expect("no test panics with it").pop().unwrap_or_else(|| self.bucket.clone()))
    }
}

fn refused(error: storage_sync_engine::bucket::BucketError) -> CredentialError {
    CredentialError::Refused(format!("{error:?}"))
}

#[async_trait]
impl Credentials for Minter {
    async fn download(&self, object: ObjectRef) -> Result<Download, CredentialError> {
        let (bucket, stored) = (self.next()?, self.stored(object));
        let found = bucket.find(stored.clone()).await.map_err(refused)?;
        let Found { stream_bytes, key } = found.unwrap_or(Found { stream_bytes: 0, key: None });
        let url = bucket.mint_download(stored).await.map_err(refused)?.url;
        Ok(Download { url, stream_bytes, key })
    }

    async fn upload_plan(&self, _: TransferId, request: &UploadRequest) -> Result<Upload, CredentialError> {
        let encryption = self.stored(request.object).encryption;
        let plan = self.next()?.plan_upload(request, encryption.as_ref()).await.map_err(refused)?;
        Ok(Upload { plan, key: encryption.map(|encryption| encryption.key().clone()) })
    }

    async fn complete(&self, _: TransferId, request: &UploadRequest, etags: &[String]) -> Result<(), CredentialError> {
        self.completed.fetch_add(1, Ordering::Relaxed);
        let UploadRequest { object, stream_bytes, upload_id, .. } = request;
        let stored = self.stored(*object);
        self.bucket.complete_upload(stored, *stream_bytes, upload_id.as_deref(), etags).await.map_err(refused)
    }
}

pub(crate) fn transfers(store: &SiteStore, minter: &Arc<Minter>, config: TransferConfig) -> Result<Transfers> {
    let client = reqwest::Client::builder().build()?;
    Ok(Transfers::new(store.clone(), client, minter.clone(), config))
}

/// Short waits, so that tests of long outages are short.
pub(crate) fn quick() -> TransferConfig {
    TransferConfig {
        backoff_first: Duration::from_millis(1),
        backoff_max: Duration::from_millis(4),
        stall_timeout: Duration::from_secs(5),
        ..TransferConfig::default()
    }
}
