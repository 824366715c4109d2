//! The bucket: transit storage between sites. Only the server opens it; agents get URLs for one object and method.
//!
//! An object's stream (see [`crate::stream`]) stands at `o/<2 hex>/<64 hex>` if it is a file, at `t/…` if it is a tree; an
//! encrypted one (see [`crate::encryption`]) at `e/…`, under a name that only its project's key makes.
//! With S3, Google's and Azure's storage the URLs are presigned, and agents talk to these. With a directory they are signed
//! with a key of the server's, which answers them itself ([`Bucket::serve`]); agents cannot tell.

mod directory;
mod inside;
mod open;
mod provider;
mod remote;
mod serve;
mod signing;
mod stored;
mod upload;

use std::ops::Range;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use atoll_model::id::ObjectId;
use atoll_model::limits::URL_LIFETIME;
use atoll_model::value::{ObjectKind, ObjectRef};
use bytes::Bytes;
use futures::{Stream, StreamExt as _, TryStreamExt as _};
use object_store::path::Path;
use object_store::signer::Method;
use object_store::{GetOptions, ObjectStore, ObjectStoreExt as _};

pub use self::inside::TreeContents;
pub(crate) use self::open::open_outside;
pub use self::provider::{AzureOptions, GcsOptions, S3Options};
pub use self::stored::{Encryption, Found, Stored};
use crate::encryption::{HEADER_BYTES, Header, RangeReader, Tampered};
use crate::store::error::is_full;
use directory::Directory;
use remote::Remote;
use stored::Key;

pub type ByteStream = Pin<Box<dyn Stream<Item = std::io::Result<Bytes>> + Send>>;

/// URLs of parts in one plan: an answer stays well below 1 MiB.
pub const PART_URLS_MAX: u32 = 1_000;

/// A provider whose credentials are asked for somewhere that is not there would let one wait for minutes.
const CHECK_PATIENCE: Duration = Duration::from_secs(20);

/// Cheap to clone.
#[derive(Debug, Clone)]
pub struct Bucket {
    backend: Backend,
    /// What all keys begin with.
    prefix: Path,
    url_lifetime: Duration,
}

#[derive(Debug, Clone)]
enum Backend {
    Remote(Remote),
    Directory(Arc<Directory>),
}

impl Backend {
    /// How many URLs of parts one plan holds at most.
    fn part_urls_max(&self) -> u32 {
        match self {
            Self::Remote(remote) => remote.part_urls_max(),
            Self::Directory(_) => PART_URLS_MAX,
        }
    }

    fn is_upload(&self, id: &str) -> bool {
        match self {
            Self::Remote(remote) => remote.is_upload(id),
            Self::Directory(_) => true,
        }
    }
}

#[derive(Clone)]
pub struct BucketOptions {
    /// How long a URL lives.
    pub url_lifetime: Duration,
    /// Where agents reach the server that serves a directory bucket: `https://host:port`. URLs are this and `/bucket/…`.
    pub serve_url: String,
    /// Signs the URLs of a directory bucket; kept by the server so that a restart does not void them.
    pub signing_key: [u8; 32],
    /// How the bucket's provider is reached; what is said of the others does not matter.
    pub s3: S3Options,
    pub gcs: GcsOptions,
    pub azure: AzureOptions,
}

impl Default for BucketOptions {
    /// As the environment says. A directory needs `serve_url` and `signing_key` as well.
    fn default() -> Self {
        Self {
            url_lifetime: URL_LIFETIME,
            serve_url: String::new(),
            signing_key: [0; 32],
            s3: S3Options::default(),
            gcs: GcsOptions::default(),
            azure: AzureOptions::default(),
        }
    }
}

impl std::fmt::Debug for BucketOptions {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("BucketOptions")
            .field("url_lifetime", &self.url_lifetime)
            .field("serve_url", &self.serve_url)
            .field("s3", &self.s3)
            .field("gcs", &self.gcs)
            .field("azure", &self.azure)
            .finish_non_exhaustive()
    }
}

/// A URL for one object and method.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SignedUrl {
    pub url: String,
    pub expires_at: SystemTime,
}

/// How an upload is to go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum UploadPlan {
    AlreadyThere,
    /// One PUT with these headers.
    Single {
        url: String,
        headers: Vec<(String, String)>,
    },
    Multipart(MultipartPlan),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MultipartPlan {
    pub upload_id: String,
    /// Of each part but the last.
    pub part_bytes: u64,
    /// Of the whole upload.
    pub part_count: u32,
    /// URLs of the parts from this one on (from 0), at most [`PART_URLS_MAX`]; ask again for the rest, and whenever they
    /// have expired.
    pub first_part: u32,
    pub urls: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UploadRequest {
    pub object: ObjectRef,
    /// Exact length of the object's stream.
    pub stream_bytes: u64,
    /// Goes on with an upload that an earlier plan began.
    pub upload_id: Option<String>,
    /// The first part of which a URL is wanted.
    pub first_part: u32,
}

#[derive(Debug, thiserror::Error)]
pub enum BucketError {
    #[error("{} is not in the bucket", .0.id)]
    NotFound(ObjectRef),
    #[error("the bucket's settings are not usable: {0}")]
    Settings(String),
    /// What was uploaded is not what was announced.
    #[error("the upload of {} is not whole: {message}", .object.id)]
    Incomplete { object: ObjectRef, message: String },
    #[error("the bytes are not those of {}: {message}", .object.id)]
    Corrupt { object: ObjectRef, message: String },
    /// Nothing goes until somebody has changed what the message names.
    #[error("{message}")]
    Unusable {
        message: String,
        #[source]
        source: object_store::Error,
    },
    #[error("the bucket has no space left")]
    NoSpace,
    /// What the sender of a stream said when it broke off.
    #[error("the stream broke off")]
    Source(#[source] std::io::Error),
    #[error("the bucket answers with an error")]
    Store(#[source] object_store::Error),
    #[error("{what}")]
    Io {
        what: String,
        #[source]
        source: std::io::Error,
    },
}

const REFUSED: &str = "the bucket refuses the server's credentials: they must be right, and allow it to read, write, list and \
                       delete objects there";
const NO_BUCKET: &str = "there is no such bucket or container: it must be made first, and its name be right";

impl From<object_store::Error> for BucketError {
    fn from(error: object_store::Error) -> Self {
        let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(&error);
        while let Some(current) = cause {
            if current.downcast_ref().is_some_and(is_full) {
                return Self::NoSpace;
            }
            cause = current.source();
        }
        match unusable(&error) {
            Some(message) => Self::Unusable { message: message.to_owned(), source: error },
            None => Self::Store(error),
        }
    }
}

/// What somebody has to change before such an error goes away, if it is one of those.
pub(crate) fn unusable(error: &object_store::Error) -> Option<&'static str> {
    use object_store::Error::{PermissionDenied, Unauthenticated};
    let is_refused = matches!(error, PermissionDenied { .. } | Unauthenticated { .. })
        || remote::says(error, &["401 Unauthorized", "403 Forbidden"]);
    let is_nowhere = || remote::says(error, &["NoSuchBucket", "ContainerNotFound"]);
    is_refused.then_some(REFUSED).or_else(|| is_nowhere().then_some(NO_BUCKET))
}

impl BucketError {
    /// Of an object that is read: where it was encrypted, what does not open is damaged.
    fn reading(object: ObjectRef) -> impl Fn(std::io::Error) -> Self {
        move |error| match error.get_ref().and_then(|inner| inner.downcast_ref::<Tampered>()) {
            Some(tampered) => Self::Corrupt { object, message: tampered.to_string() },
            None => Self::Source(error),
        }
    }

    fn io(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> Self {
        let what = what.into();
        move |source| if is_full(&source) { Self::NoSpace } else { Self::Io { what, source } }
    }
}

impl Bucket {
    /// Opens `file:///dir` or a plain path (made if it is not there), `s3://bucket/prefix`, `gs://bucket/prefix` or
    /// `az://container/prefix`. A provider is asked nothing yet: see [`Self::check`].
    pub fn open(url: &str, options: BucketOptions) -> Result<Self, BucketError> {
        open::open(url, options)
    }

    /// Signs and asks for something, so that wrong settings show at the start and not at the first transfer.
    pub async fn check(&self) -> Result<(), BucketError> {
        match tokio::time::timeout(CHECK_PATIENCE, self.try_out()).await {
            Ok(result) => result,
            Err(elapsed) => {
                let mut what = format!("the bucket did not answer within {} s", CHECK_PATIENCE.as_secs());
                if let Backend::Remote(remote) = &self.backend {
                    what = format!("{what}; if it has no credentials: {}", remote.provider().signs_with());
                }
                Err(BucketError::Io { what, source: elapsed.into() })
            }
        }
    }

    async fn try_out(&self) -> Result<(), BucketError> {
        if let Backend::Remote(remote) = &self.backend {
            remote.url(Method::GET, &self.prefix.clone().join("o"), self.url_lifetime).await?;
        }
        match self.store().list(Some(&self.prefix)).next().await {
            None | Some(Ok(_)) => Ok(()),
            Some(Err(error)) => Err(error.into()),
        }
    }

    pub async fn mint_download(&self, stored: impl Into<Stored>) -> Result<SignedUrl, BucketError> {
        let (stored, expires_at) = (stored.into(), SystemTime::now() + self.url_lifetime);
        let url = match &self.backend {
            Backend::Remote(remote) => remote.url(Method::GET, &self.path(&stored), self.url_lifetime).await?,
            Backend::Directory(directory) => directory.download_url(&stored.key(), expires_at),
        };
        Ok(SignedUrl { url, expires_at })
    }

    /// Says how an object is to be brought in. An upload that is not whole after all is done again if asked for again. With
    /// `encryption`, what is to be brought in is what [`crate::encryption`] makes of the stream.
    pub async fn plan_upload(
        &self,
        request: &UploadRequest,
        encryption: Option<&Encryption>,
    ) -> Result<UploadPlan, BucketError> {
        upload::plan(self, request, &Stored { object: request.object, encryption: encryption.cloned() }).await
    }

    /// Ends an upload; `etags` are those of all parts, in order (empty after a single PUT). The object counts as there
    /// only after this. Repeating it is harmless.
    ///
    /// # Errors
    /// [`BucketError::Incomplete`] when what is there is not as long as the stream.
    pub async fn complete_upload(
        &self,
        stored: impl Into<Stored>,
        stream_bytes: u64,
        upload_id: Option<&str>,
        etags: &[String],
    ) -> Result<(), BucketError> {
        upload::complete(self, &stored.into(), stream_bytes, upload_id, etags).await
    }

    /// Gives an upload up. Harmless if there is none.
    pub async fn abort_upload(&self, stored: impl Into<Stored>, upload_id: &str) -> Result<(), BucketError> {
        upload::abort(self, &stored.into(), upload_id).await
    }

    /// Harmless if it is not there.
    pub async fn delete(&self, stored: impl Into<Stored>) -> Result<(), BucketError> {
        match self.store().delete(&self.path(&stored.into())).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Length of its stream, if it is there; 0 if it has a length that no encrypted stream has.
    pub async fn stream_bytes(&self, stored: impl Into<Stored>) -> Result<Option<u64>, BucketError> {
        let stored = stored.into();
        Ok(self.bytes_there(&stored).await?.map(|there| stored.stream_bytes(there)))
    }

    /// Bytes that stand there, encrypted or not.
    async fn bytes_there(&self, stored: &Stored) -> Result<Option<u64>, BucketError> {
        match self.store().head(&self.path(stored)).await {
            Ok(meta) => Ok(Some(meta.size)),
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// What is to be known of an object to read it, if it is there. Whether it is whole is seen by whoever reads it.
    pub async fn find(&self, stored: impl Into<Stored>) -> Result<Option<Found>, BucketError> {
        let stored = stored.into();
        let Some(encryption) = &stored.encryption else {
            return Ok(self.stream_bytes(stored).await?.map(|stream_bytes| Found { stream_bytes, key: None }));
        };
        let header = GetOptions { range: Some((0..HEADER_BYTES).into()), ..GetOptions::default() };
        let (there, header) = match self.store().get_opts(&self.path(&stored), header).await {
            Ok(result) => (result.meta.size, Header::read(&result.bytes().await?)),
            Err(object_store::Error::NotFound { .. }) => return Ok(None),
            // What has no bytes has no range of them either.
            Err(error) => match self.bytes_there(&stored).await? {
                Some(there) if there < HEADER_BYTES => (there, Header::read(&[])),
                Some(_) => return Err(error.into()),
                None => return Ok(None),
            },
        };
        let key = encryption.key.stream_key(&header);
        Ok(Some(Found { stream_bytes: stored.stream_bytes(there), key: Some(key) }))
    }

    /// The bytes of a range of an object's stream, or all of it. They are not verified, but if they were encrypted, they
    /// are those that were.
    pub async fn get_stream(
        &self,
        stored: impl Into<Stored>,
        range: Option<Range<u64>>,
    ) -> Result<ByteStream, BucketError> {
        let stored = stored.into();
        if stored.encryption.is_none() {
            return self.get_bytes(&stored, range).await;
        }
        let Some(Found { stream_bytes, key: Some(key) }) = self.find(stored.clone()).await? else {
            return Err(BucketError::NotFound(stored.object));
        };
        let range = range.unwrap_or(0..stream_bytes);
        if range.end > stream_bytes {
            let message = format!("it is {stream_bytes} bytes long, and ends before {}", range.end);
            return Err(BucketError::Corrupt { object: stored.object, message });
        }
        if range.is_empty() {
            return Ok(futures::stream::empty().boxed());
        }
        let reader = RangeReader::new(&key, stream_bytes, range);
        let bytes = self.get_bytes(&stored, Some(reader.encrypted_range())).await?;
        Ok(stored::decrypted(reader, bytes))
    }

    async fn get_bytes(&self, stored: &Stored, range: Option<Range<u64>>) -> Result<ByteStream, BucketError> {
        let options = GetOptions { range: range.map(Into::into), ..GetOptions::default() };
        match self.store().get_opts(&self.path(stored), options).await {
            Ok(result) => Ok(result.into_stream().map_err(std::io::Error::other).boxed()),
            Err(object_store::Error::NotFound { .. }) => Err(BucketError::NotFound(stored.object)),
            Err(error) => Err(error.into()),
        }
    }

    /// Takes in an object, verifying it on the way; a damaged one never becomes visible. How many bytes it had.
    pub async fn put_stream(&self, stored: impl Into<Stored>, bytes: ByteStream) -> Result<u64, BucketError> {
        upload::put_stream(self, &stored.into(), bytes).await
    }

    /// What a directory in the bucket holds. Only its manifests are read, and they are verified.
    pub async fn contents(&self, tree: impl Into<Stored>) -> Result<TreeContents, BucketError> {
        inside::contents(self, tree.into()).await
    }

    /// The bytes of a file of a directory in the bucket, verified. They are held in memory: the listing says how many.
    ///
    /// # Errors
    /// [`BucketError::Corrupt`] names the directory when the file in it is damaged.
    pub async fn read_file(&self, from: &TreeContents, file: ObjectId) -> Result<Vec<u8>, BucketError> {
        inside::read_file(self, from, file).await
    }

    /// Makes a file of a directory in the bucket an object of its own, verified on the way, and encrypted if `encrypt` says
    /// how. How many bytes it has.
    ///
    /// # Errors
    /// [`BucketError::Corrupt`] names the directory when the file in it is damaged.
    pub async fn take_out(
        &self,
        from: &TreeContents,
        file: ObjectId,
        encrypt: Option<&Encryption>,
    ) -> Result<u64, BucketError> {
        inside::take_out(self, from, file, encrypt).await
    }

    /// Everything that is there and not encrypted, with the length of its stream, which stands in `bytes` of the reference too.
    pub async fn list_all(&self) -> Result<Vec<(ObjectRef, u64)>, BucketError> {
        let mut objects = Vec::new();
        for kind in [ObjectKind::File, ObjectKind::Tree] {
            let folder = self.prefix.clone().join(stored::folder(kind));
            let mut listed = self.store().list(Some(&folder));
            while let Some(meta) = listed.try_next().await? {
                let hex = meta.location.filename().unwrap_or_default();
                if let Ok(id) = format!("b3:{hex}").parse() {
                    objects.push((ObjectRef { id, kind, bytes: meta.size }, meta.size));
                }
            }
        }
        Ok(objects)
    }

    /// Whether the server has to serve the bucket's URLs itself, under `/bucket/`.
    pub fn is_served(&self) -> bool {
        matches!(self.backend, Backend::Directory(_))
    }

    /// Answers a request under `/bucket/`: checks its signature, then serves or takes in the bytes. The path is the
    /// whole path of the request.
    pub async fn serve(&self, request: http::Request<ByteStream>) -> http::Response<ByteStream> {
        match &self.backend {
            Backend::Directory(directory) => serve::serve(directory, request).await,
            Backend::Remote(_) => serve::answer(http::StatusCode::NOT_FOUND, "this bucket is served by its provider"),
        }
    }

    fn store(&self) -> &dyn ObjectStore {
        match &self.backend {
            Backend::Remote(remote) => remote.store(),
            Backend::Directory(directory) => &directory.files,
        }
    }

    fn path(&self, stored: &Stored) -> Path {
        stored.key().names().into_iter().fold(self.prefix.clone(), |path, name| path.join(name))
    }
}
