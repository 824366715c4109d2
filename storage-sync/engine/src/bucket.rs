//! The bucket: transit storage between sites. Only the server opens it; agents get URLs.

use std::ops::Range;
use std::pin::Pin;
use std::time::{Duration, SystemTime};

use atoll_model::value::ObjectRef;
use bytes::Bytes;
use futures::Stream;

pub type ByteStream = Pin<Box<dyn Stream<Item = std::io::Result<Bytes>> + Send>>;

/// Cheap to clone.
#[derive(Debug, Clone)]
pub struct Bucket {}

#[derive(Debug, Clone)]
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
    /// A file as the AWS tools write it (`aws_access_key_id = …`, `aws_secret_access_key = …`, optionally
    /// `aws_session_token`, `region`, `endpoint_url`); otherwise the environment's `AWS_*` variables are used.
    pub credentials_file: Option<std::path::PathBuf>,
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

/// URLs of parts in one plan: an answer stays well below 1 MiB.
pub const PART_URLS_MAX: u32 = 1_000;

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
    Store(#[from] object_store::Error),
    #[error("{what}")]
    Io {
        what: String,
        #[source]
        source: std::io::Error,
    },
}

impl Bucket {
    /// `file:///dir`, a plain path, or `s3://bucket/prefix`.
    pub async fn open(url: &str, options: BucketOptions) -> Result<Self, BucketError> {
        let _ = (url, options);
        unimplemented!()
    }

    pub async fn mint_download(&self, object: ObjectRef) -> Result<SignedUrl, BucketError> {
        let _ = object;
        unimplemented!()
    }

    pub async fn plan_upload(&self, request: &UploadRequest) -> Result<UploadPlan, BucketError> {
        let _ = request;
        unimplemented!()
    }

    /// Ends an upload; `etags` are those of all parts, in order (empty after a single PUT). The object counts as there
    /// only after this. Repeating it is harmless.
    pub async fn complete_upload(
        &self,
        object: ObjectRef,
        stream_bytes: u64,
        upload_id: Option<&str>,
        etags: &[String],
    ) -> Result<(), BucketError> {
        let _ = (object, stream_bytes, upload_id, etags);
        unimplemented!()
    }

    pub async fn abort_upload(&self, object: ObjectRef, upload_id: &str) -> Result<(), BucketError> {
        let _ = (object, upload_id);
        unimplemented!()
    }

    /// Harmless if it is not there.
    pub async fn delete(&self, object: ObjectRef) -> Result<(), BucketError> {
        let _ = object;
        unimplemented!()
    }

    /// Length of its stream, if it is there.
    pub async fn stream_bytes(&self, object: ObjectRef) -> Result<Option<u64>, BucketError> {
        let _ = object;
        unimplemented!()
    }

    pub async fn get_stream(&self, object: ObjectRef, range: Option<Range<u64>>) -> Result<ByteStream, BucketError> {
        let _ = (object, range);
        unimplemented!()
    }

    /// Takes in an object, verifying it on the way; a damaged one never becomes visible.
    pub async fn put_stream(&self, object: ObjectRef, bytes: ByteStream) -> Result<u64, BucketError> {
        let _ = (object, bytes);
        unimplemented!()
    }

    /// Everything that is there, with the length of its stream. (`bytes` of the reference is that length too.)
    pub async fn list_all(&self) -> Result<Vec<(ObjectRef, u64)>, BucketError> {
        unimplemented!()
    }

    /// Whether the server has to serve the bucket's URLs itself, under `/bucket/`.
    pub fn is_served(&self) -> bool {
        unimplemented!()
    }

    /// Answers a request under `/bucket/`: checks its signature, then serves or takes in the bytes. The path is the
    /// whole path of the request.
    pub async fn serve(&self, request: http::Request<ByteStream>) -> http::Response<ByteStream> {
        let _ = request;
        unimplemented!()
    }
}
