//! Files and directories that people send in.

use std::sync::Arc;

use atoll_model::id::ObjectId;
use atoll_model::value::{DirectoryRef, FileName, FileRef, ObjectKind, ObjectRef, Value};
use axum::extract::{Request as HttpRequest, State};
use axum::{Extension, Json};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::{Bytes, BytesMut};
use control_plane_core::view::RunTags;
use control_plane_core::{BucketCopy, Encryption, Request, Response};
use futures::{StreamExt as _, TryStreamExt as _};
use http::StatusCode;
use serde::Deserialize;
use storage_sync_engine::bucket::ByteStream;
use storage_sync_engine::stream::{Packed, TreeHead, identify_tree};
use tokio::io::{AsyncSeekExt as _, AsyncWriteExt as _};
use tokio_util::io::ReaderStream;
use utoipa::IntoParams;

use super::App;
use super::error::{ApiError, ErrorBody};
use super::extract::Query;
use super::tokens::Person;

/// Bytes that are read from a spooled file at a time.
const READ_BYTES: usize = 1 << 20;

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct UploadQuery {
    /// `file`: the body is its bytes. `tree`: the body is the canonical stream of a directory.
    kind: String,
    /// The name that it has where it comes from.
    name: Option<String>,
    /// The same in base64url, for names that are not UTF-8.
    name_base64: Option<String>,
    /// Whether a file may be run where it goes to.
    #[serde(default)]
    executable: bool,
    /// Length of the body; one that is shorter is refused.
    stream_bytes: Option<u64>,
    /// The project that the run will be counted to: where a rule of it encrypts inputs, this is encrypted in the bucket.
    project: Option<String>,
    /// Encrypt it by the project's key whatever the rules are.
    #[serde(default)]
    encrypted: bool,
}

/// Send a file or a directory in; the answer is the value to give for an input
#[utoipa::path(put, path = "/uploads", tag = "data", params(UploadQuery),
    request_body(content = String, content_type = "application/octet-stream"),
    responses(
        (status = 201, body = Object, description = "`{kind, object, bytes, name}`, for a directory `files` too, `executable` for a file that may be run"),
        (status = 400, body = ErrorBody),
        (status = 422, body = ErrorBody, description = "The bytes are not whole, or not those of a tree"),
        (status = 507, body = ErrorBody),
    ))]
pub(super) async fn upload(
    State(app): State<Arc<App>>,
    Extension(person): Extension<Person>,
    Query(query): Query<UploadQuery>,
    request: HttpRequest,
) -> Result<(StatusCode, Json<serde_json::Value>), ApiError> {
    let name = name(&query)?;
    let body: ByteStream = Box::pin(request.into_body().into_data_stream().map_err(std::io::Error::other));
    let body = exactly(body, query.stream_bytes);
    let project = query.project.clone().unwrap_or_else(|| RunTags::PROJECT.to_owned());
    let wanted = query.encrypted;
    let encryption = app.handle.query(move |core| core.encryption_of_uploads(&project, wanted)).await?;
    let (object, value) = match query.kind.as_str() {
        "file" => take_file(&app, body, encryption.clone(), (name, query.executable)).await?,
        "tree" => take_tree(&app, body, encryption.clone(), name).await?,
        other => {
            return Err(ApiError::with_help(format!("{other:?} is no kind of upload"), "a kind is file or tree"));
        }
    };
    let request = record(object, encryption.as_ref());
    let recorded = app.change(&person, "upload", &object.id.to_string(), None, request).await?;
    keep_what_counts(&app, BucketCopy { object, encryption }, recorded).await?;
    Ok((StatusCode::CREATED, Json(value.to_json())))
}

/// Takes in the folder of an action that the server has itself, as if somebody had sent it.
pub(crate) async fn take_bundle(app: &App, project: String, packed: Packed) -> Result<ObjectRef, ApiError> {
    let encryption = app.handle.query(move |core| core.encryption_of_uploads(&project, false)).await?;
    let name = FileName::new(b"action").expect("a name without a slash");
    let (object, _) = take_tree(app, stream_of(packed), encryption.clone(), name).await?;
    let recorded = app.handle.request(record(object, encryption.as_ref())).await?;
    keep_what_counts(app, BucketCopy { object, encryption }, recorded).await?;
    Ok(object)
}

fn stream_of(packed: Packed) -> ByteStream {
    let packed = Arc::new(packed);
    Box::pin(futures::stream::try_unfold(0, move |offset| {
        let packed = Arc::clone(&packed);
        async move {
            if offset >= packed.stream_bytes() {
                return Ok(None);
            }
            let reading = tokio::task::spawn_blocking(move || packed.read_at(offset, READ_BYTES));
            let bytes = Bytes::from(reading.await.map_err(std::io::Error::other)??);
            let next = offset + bytes.len() as u64;
            Ok(Some((bytes, next)))
        }
    }))
}

fn record(object: ObjectRef, encryption: Option<&Encryption>) -> Request {
    Request::RecordUpload { object, key: encryption.map(|encryption| encryption.key.clone()) }
}

/// Lets go of what came in if another copy was there before: that is the one that counts.
async fn keep_what_counts(app: &App, came: BucketCopy, recorded: Response) -> Result<(), ApiError> {
    let key = |copy: &BucketCopy| copy.encryption.as_ref().map(|encryption| encryption.key.clone());
    if let Response::Staged { copy } = recorded
        && key(&copy) != key(&came)
    {
        app.bucket.delete(app.keys.stored(&app.handle, &came).await?).await?;
    }
    Ok(())
}

fn name(query: &UploadQuery) -> Result<FileName, ApiError> {
    let bytes = match (&query.name, &query.name_base64) {
        (Some(name), None) => name.as_bytes().to_vec(),
        (None, Some(text)) => URL_SAFE_NO_PAD
            .decode(text)
            .map_err(|_| ApiError::bad_request("name_base64 is not base64url without padding"))?,
        (Some(_), Some(_)) | (None, None) => return Err(ApiError::bad_request("give either name or name_base64")),
    };
    FileName::new(&bytes).map_err(|error| ApiError::bad_request(error.to_string()))
}

/// The stream, ended with an error if it is not as long as was announced.
fn exactly(stream: ByteStream, announced: Option<u64>) -> ByteStream {
    let Some(announced) = announced else { return stream };
    let checked = futures::stream::try_unfold((stream, announced), |(mut stream, left)| async move {
        let wrong = |what: &str| Err(std::io::Error::new(std::io::ErrorKind::InvalidData, what.to_owned()));
        match stream.next().await.transpose()? {
            Some(bytes) => match left.checked_sub(bytes.len() as u64) {
                Some(left) => Ok(Some((bytes, (stream, left)))),
                None => wrong("the body is longer than was announced"),
            },
            None if left == 0 => Ok(None),
            None => wrong("the body is shorter than was announced"),
        }
    });
    Box::pin(checked)
}

/// The name of a file is known when all of it has come: it waits in a file of the server's own until then.
async fn take_file(
    app: &App,
    mut body: ByteStream,
    encryption: Option<Encryption>,
    (name, executable): (FileName, bool),
) -> Result<(ObjectRef, Value), ApiError> {
    let spooling = |source: std::io::Error| {
        if source.kind() == std::io::ErrorKind::StorageFull {
            return ApiError::Bucket(storage_sync_engine::bucket::BucketError::NoSpace);
        }
        ApiError::internal("the upload cannot be kept", source)
    };
    let broken = |source| ApiError::Bucket(storage_sync_engine::bucket::BucketError::Source(source));
    // It has no name: whatever becomes of the process, nothing is left behind.
    let spool = app.spool.clone();
    let file = tokio::task::spawn_blocking(move || tempfile::tempfile_in(spool))
        .await
        .map_err(|error| ApiError::internal("the upload cannot be kept", error))?
        .map_err(spooling)?;
    let mut file = tokio::fs::File::from_std(file);
    let mut hasher = blake3::Hasher::new();
    let mut length = 0;
    while let Some(bytes) = body.next().await {
        let bytes = bytes.map_err(broken)?;
        hasher.update(&bytes);
        length += bytes.len() as u64;
        file.write_all(&bytes).await.map_err(spooling)?;
    }
    file.flush().await.map_err(spooling)?;
    file.rewind().await.map_err(spooling)?;
    let id = ObjectId::from_digest(*hasher.finalize().as_bytes());
    let object = ObjectRef { id, kind: ObjectKind::File, bytes: length };
    let stored = app.keys.stored(&app.handle, &BucketCopy { object, encryption }).await?;
    app.bucket.put_stream(stored, Box::pin(ReaderStream::with_capacity(file, READ_BYTES))).await?;
    Ok((object, Value::File(FileRef { object: id, bytes: length, name, executable })))
}

/// The name of a tree stands at the beginning of its stream: it goes into the bucket as it comes.
async fn take_tree(
    app: &App,
    mut body: ByteStream,
    encryption: Option<Encryption>,
    name: FileName,
) -> Result<(ObjectRef, Value), ApiError> {
    let not_whole = || ApiError::bad_request("the body ends before the directory's first manifest does");
    let mut beginning = BytesMut::new();
    let TreeHead { object, files } = loop {
        match identify_tree(&beginning).map_err(|error| ApiError::bad_request(error.to_string()))? {
            Some(head) => break head,
            None => {
                let bytes = body.next().await.ok_or_else(not_whole)?;
                let bytes = bytes.map_err(|_| not_whole())?;
                beginning.extend_from_slice(&bytes);
            }
        }
    };
    let beginning: Result<Bytes, std::io::Error> = Ok(beginning.freeze());
    let whole = futures::stream::iter([beginning]).chain(body);
    let stored = app.keys.stored(&app.handle, &BucketCopy { object, encryption }).await?;
    app.bucket.put_stream(stored, Box::pin(whole)).await?;
    let directory = DirectoryRef { object: object.id, bytes: object.bytes, files, name, listing: None };
    Ok((object, Value::Directory(directory)))
}
