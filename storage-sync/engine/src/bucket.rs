//! The bucket: transit storage between sites. Only the server opens it; agents get URLs for one object and method.
//!
//! An object's stream (see [`crate::stream`]) stands at `o/<2 hex>/<64 hex>` if it is a file, at `t/…` if it is a tree.
//! With S3 the URLs are presigned, and agents talk to S3. With a directory they are signed with a key of the server's,
//! which answers them itself ([`Bucket::serve`]); agents cannot tell.

mod directory;
mod inside;
mod open;
mod serve;
mod signing;
mod upload;

use std::ops::Range;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use atoll_model::id::ObjectId;
use atoll_model::limits::URL_LIFETIME;
use atoll_model::value::{ObjectKind, ObjectRef};
use bytes::Bytes;
use futures::{Stream, StreamExt as _, TryStreamExt as _};
use object_store::aws::AmazonS3;
use object_store::path::Path;
use object_store::signer::{Method, Signer as _};
use object_store::{GetOptions, ObjectStore, ObjectStoreExt as _};

pub use self::inside::TreeContents;
use crate::store::error::is_full;
use directory::Directory;

pub type ByteStream = Pin<Box<dyn Stream<Item = std::io::Result<Bytes>> + Send>>;

/// URLs of parts in one plan: an answer stays well below 1 MiB.
pub const PART_URLS_MAX: u32 = 1_000;

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
    S3(Arc<AmazonS3>),
    Directory(Arc<Directory>),
}

#[derive(Clone)]
pub struct BucketOptions {
    /// How long a URL lives.
    pub url_lifetime: Duration,
    /// Where agents reach the server that serves a directory bucket: `https://host:port`. URLs are this and `/bucket/…`.
    pub serve_url: String,
    /// Signs the URLs of a directory bucket; kept by the server so that a restart does not void them.
    pub signing_key: [u8; 32],
    /// `http://host:port` of an S3 server other than Amazon's; addressed path-style.
    pub endpoint: Option<String>,
    pub region: Option<String>,
    /// A file as the AWS tools write it (`aws_access_key_id = …`, `aws_secret_access_key = …`, and optionally
    /// `aws_session_token`, `region`, `endpoint_url`); what it does not say comes from the environment's `AWS_…`.
    pub credentials_file: Option<PathBuf>,
}

impl Default for BucketOptions {
    /// For S3. A directory needs `serve_url` and `signing_key` as well.
    fn default() -> Self {
        Self {
            url_lifetime: URL_LIFETIME,
            serve_url: String::new(),
            signing_key: [0; 32],
            endpoint: None,
            region: None,
            credentials_file: None,
        }
    }
}

impl std::fmt::Debug for BucketOptions {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("BucketOptions")
            .field("url_lifetime", &self.url_lifetime)
            .field("serve_url", &self.serve_url)
            .field("endpoint", &self.endpoint)
            .field("region", &self.region)
            .field("credentials_file", &self.credentials_file)
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

impl From<object_store::Error> for BucketError {
    fn from(error: object_store::Error) -> Self {
        let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(&error);
        while let Some(current) = cause {
            if current.downcast_ref().is_some_and(is_full) {
                return Self::NoSpace;
            }
            cause = current.source();
        }
        Self::Store(error)
    }
}

impl BucketError {
    fn io(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> Self {
        let what = what.into();
        move |source| if is_full(&source) { Self::NoSpace } else { Self::Io { what, source } }
    }
}

impl Bucket {
    /// Opens `file:///dir` or a plain path (made if it is not there), or `s3://bucket/prefix`. Of S3 nothing is asked
    /// yet: see [`Self::check`].
    pub fn open(url: &str, options: BucketOptions) -> Result<Self, BucketError> {
        open::open(url, options)
    }

    /// Asks for something, so that wrong settings show at the start and not at the first transfer.
    pub async fn check(&self) -> Result<(), BucketError> {
        match self.store().list(Some(&self.prefix)).next().await {
            None | Some(Ok(_)) => Ok(()),
            Some(Err(error)) => Err(error.into()),
        }
    }

    pub async fn mint_download(&self, object: ObjectRef) -> Result<SignedUrl, BucketError> {
        let expires_at = SystemTime::now() + self.url_lifetime;
        let url = match &self.backend {
            Backend::S3(s3) => s3.signed_url(Method::GET, &self.key(object), self.url_lifetime).await?.to_string(),
            Backend::Directory(directory) => directory.download_url(object, expires_at),
        };
        Ok(SignedUrl { url, expires_at })
    }

    /// Says how an object is to be brought in. An upload that is not whole after all is done again if asked for again.
    pub async fn plan_upload(&self, request: &UploadRequest) -> Result<UploadPlan, BucketError> {
        upload::plan(self, request).await
    }

    /// Ends an upload; `etags` are those of all parts, in order (empty after a single PUT). The object counts as there
    /// only after this. Repeating it is harmless.
    ///
    /// # Errors
    /// [`BucketError::Incomplete`] when what is there is not as long as the stream.
    pub async fn complete_upload(
        &self,
        object: ObjectRef,
        stream_bytes: u64,
        upload_id: Option<&str>,
        etags: &[String],
    ) -> Result<(), BucketError> {
        upload::complete(self, object, stream_bytes, upload_id, etags).await
    }

    /// Gives an upload up. Harmless if there is none.
    pub async fn abort_upload(&self, object: ObjectRef, upload_id: &str) -> Result<(), BucketError> {
        upload::abort(self, object, upload_id).await
    }

    /// Harmless if it is not there.
    pub async fn delete(&self, object: ObjectRef) -> Result<(), BucketError> {
        match self.store().delete(&self.key(object)).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Length of its stream, if it is there.
    pub async fn stream_bytes(&self, object: ObjectRef) -> Result<Option<u64>, BucketError> {
        match self.store().head(&self.key(object)).await {
            Ok(meta) => Ok(Some(meta.size)),
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// The bytes of a range of an object's stream, or all of it. They are not verified.
    pub async fn get_stream(&self, object: ObjectRef, range: Option<Range<u64>>) -> Result<ByteStream, BucketError> {
        let options = GetOptions { range: range.map(Into::into), ..GetOptions::default() };
        match self.store().get_opts(&self.key(object), options).await {
            Ok(result) => Ok(result.into_stream().map_err(std::io::Error::other).boxed()),
            Err(object_store::Error::NotFound { .. }) => Err(BucketError::NotFound(object)),
            Err(error) => Err(error.into()),
        }
    }

    /// Takes in an object, verifying it on the way; a damaged one never becomes visible. How many bytes it had.
    pub async fn put_stream(&self, object: ObjectRef, bytes: ByteStream) -> Result<u64, BucketError> {
        upload::put_stream(self, object, bytes).await
    }

    /// What a directory in the bucket holds. Only its manifests are read, and they are verified.
    pub async fn contents(&self, tree: ObjectRef) -> Result<TreeContents, BucketError> {
        inside::contents(self, tree).await
    }

    /// Makes a file of a directory in the bucket an object of its own, verified on the way. How many bytes it has.
    ///
    /// # Errors
    /// [`BucketError::Corrupt`] names the directory when the file in it is damaged.
    pub async fn take_out(&self, from: &TreeContents, file: ObjectId) -> Result<u64, BucketError> {
        inside::take_out(self, from, file).await
    }

    /// Everything that is there, with the length of its stream, which stands in `bytes` of the reference too.
    pub async fn list_all(&self) -> Result<Vec<(ObjectRef, u64)>, BucketError> {
        let mut objects = Vec::new();
        for kind in [ObjectKind::File, ObjectKind::Tree] {
            let folder = self.prefix.clone().join(folder(kind));
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
            Backend::S3(_) => serve::answer(http::StatusCode::NOT_FOUND, "this bucket is served by S3"),
        }
    }

    fn store(&self) -> &dyn ObjectStore {
        match &self.backend {
            Backend::S3(s3) => s3.as_ref(),
            Backend::Directory(directory) => &directory.files,
        }
    }

    fn key(&self, object: ObjectRef) -> Path {
        key_names(object).into_iter().fold(self.prefix.clone(), |path, name| path.join(name))
    }
}

fn folder(kind: ObjectKind) -> &'static str {
    match kind {
        ObjectKind::File => "o",
        ObjectKind::Tree => "t",
    }
}

fn key_names(object: ObjectRef) -> [String; 3] {
    let hex = object.id.hex();
    [folder(object.kind).to_owned(), hex[..2].to_owned(), hex]
}

/// The object whose key this is. (`bytes` is 0: a key does not say.)
fn parse_key(key: &str) -> Option<ObjectRef> {
    let mut names = key.split('/');
    let kind = match names.next()? {
        "o" => ObjectKind::File,
        "t" => ObjectKind::Tree,
        _ => return None,
    };
    let digits = names.next()?;
    let hex = names.next()?;
    let id = format!("b3:{hex}").parse().ok()?;
    let object = ObjectRef { id, kind, bytes: 0 };
    // Exactly the one way in which it is written, so that an object has one URL path.
    (names.next().is_none() && key_names(object)[1] == digits && key_names(object)[2] == hex).then_some(object)
}
