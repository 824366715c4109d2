//! Bringing objects in.

use std::fs::{self, File};
use std::time::SystemTime;

use atoll_model::limits::{PART_BYTES_MIN, PARTS_MAX, SINGLE_PUT_BYTES_MAX};
use atoll_model::value::ObjectRef;
use bytes::BytesMut;
use futures::TryStreamExt as _;
use futures::stream::FuturesUnordered;
use object_store::signer::Method;
use object_store::{MultipartUpload, ObjectStoreExt as _, PutPayload};

use super::directory::{Directory, UploadSize};
use super::signing::Grant;
use super::{Backend, Bucket, BucketError, ByteStream, Key, MultipartPlan, Stored, UploadPlan, UploadRequest};
use crate::encryption::{Encrypting, Header};
use crate::store::error::is_full;
use crate::stream::{CorruptStream, Receiver, Sink};

/// Parts of a stream that are on their way to the bucket at a time; each is held in memory.
const PARTS_AT_ONCE: usize = 3;

/// Parts are at least 16 MiB, few enough for S3, and whole mebibytes.
fn part_bytes(stream_bytes: u64) -> u64 {
    stream_bytes.div_ceil(PARTS_MAX).next_multiple_of(1 << 20).max(PART_BYTES_MIN)
}

fn part_count(stream_bytes: u64) -> u32 {
    stream_bytes.div_ceil(part_bytes(stream_bytes)) as u32
}

pub(super) async fn plan(bucket: &Bucket, request: &UploadRequest, stored: &Stored) -> Result<UploadPlan, BucketError> {
    let &UploadRequest { object, first_part, .. } = request;
    let stream_bytes = stored.bytes_of(request.stream_bytes);
    let (key, path) = (stored.key(), bucket.path(stored));
    match bucket.bytes_there(stored).await? {
        Some(there) if there == stream_bytes => return Ok(UploadPlan::AlreadyThere),
        Some(there) => tracing::warn!(object = %object.id, there, stream_bytes, "a broken object is uploaded again"),
        None => {}
    }
    let expires_at = SystemTime::now() + bucket.url_lifetime;
    if stream_bytes <= SINGLE_PUT_BYTES_MAX {
        let (url, headers) = match &bucket.backend {
            Backend::Remote(remote) => {
                (remote.url(Method::PUT, &path, bucket.url_lifetime).await?, remote.put_headers())
            }
            Backend::Directory(directory) => {
                (directory.url(&key, &Grant::Upload { length: stream_bytes }, expires_at), Vec::new())
            }
        };
        return Ok(UploadPlan::Single { url, headers });
    }
    let size = UploadSize { stream_bytes, part_bytes: part_bytes(stream_bytes) };
    let part_count = part_count(stream_bytes);
    let upload_id = match &request.upload_id {
        Some(id) if bucket.backend.is_upload(id) => id.clone(),
        _ => begin(bucket, stored, size).await?,
    };
    let last = part_count.min(first_part.saturating_add(bucket.backend.part_urls_max()));
    let mut urls = Vec::new();
    for part in first_part..last {
        urls.push(match &bucket.backend {
            Backend::Remote(remote) => remote.part_url(&path, &upload_id, part, bucket.url_lifetime).await?,
            Backend::Directory(directory) => {
                let length = (stream_bytes - u64::from(part) * size.part_bytes).min(size.part_bytes);
                directory.url(&key, &Grant::Part { upload: upload_id.clone(), part, length }, expires_at)
            }
        });
    }
    Ok(UploadPlan::Multipart(MultipartPlan { upload_id, part_bytes: size.part_bytes, part_count, first_part, urls }))
}

async fn begin(bucket: &Bucket, stored: &Stored, size: UploadSize) -> Result<String, BucketError> {
    match &bucket.backend {
        Backend::Remote(remote) => remote.begin(&bucket.path(stored)).await,
        Backend::Directory(directory) => {
            directory.create_upload(&stored.key(), &size).map_err(BucketError::io("an upload cannot be begun"))
        }
    }
}

pub(super) async fn complete(
    bucket: &Bucket,
    stored: &Stored,
    stream_bytes: u64,
    upload_id: Option<&str>,
    etags: &[String],
) -> Result<(), BucketError> {
    let (object, stream_bytes) = (stored.object, stored.bytes_of(stream_bytes));
    let completed = match (upload_id, &bucket.backend) {
        (None, _) => Ok(()),
        // Some would make an object of fewer.
        (Some(_), Backend::Remote(_)) if etags.len() as u64 != u64::from(part_count(stream_bytes)) => {
            let message = format!("{} of {} parts were announced", etags.len(), part_count(stream_bytes));
            Err(BucketError::Incomplete { object, message })
        }
        (Some(id), Backend::Remote(remote)) => remote.complete(object, &bucket.path(stored), id, etags).await,
        (Some(id), Backend::Directory(directory)) => {
            let (directory, key, id, etags) = (directory.clone(), stored.key(), id.to_owned(), etags.to_vec());
            blocking(move || complete_in_directory(&directory, object, &key, &id, &etags)).await
        }
    };
    // Whatever the answer was, what counts is what is there: an answer may be lost, or be wrong either way.
    match (bucket.bytes_there(stored).await?, completed) {
        (Some(there), _) if there == stream_bytes => Ok(()),
        (_, Err(error)) => Err(error),
        (there, Ok(())) => {
            let message = match there {
                Some(there) => format!("{there} of {stream_bytes} bytes are there"),
                None => "it is not there".to_owned(),
            };
            Err(BucketError::Incomplete { object, message })
        }
    }
}

fn complete_in_directory(
    directory: &Directory,
    object: ObjectRef,
    key: &Key,
    id: &str,
    etags: &[String],
) -> Result<(), BucketError> {
    let failed = || BucketError::io("an upload cannot be completed");
    let incomplete = |message: String| BucketError::Incomplete { object, message };
    let upload = directory.upload(key, id).map_err(failed())?;
    let (Some(upload), Some(folder)) = (upload, directory.upload_folder(id)) else {
        return Err(incomplete("there is no such upload".to_owned()));
    };
    if etags.len() as u64 != upload.part_count() {
        return Err(incomplete(format!("{} of {} parts were announced", etags.len(), upload.part_count())));
    }
    for (part, etag) in etags.iter().enumerate() {
        match fs::read_to_string(folder.join(format!("{part}.etag"))) {
            Ok(there) if there == *etag => {}
            Ok(_) => return Err(incomplete(format!("part {part} is another than was announced"))),
            Err(_) => return Err(incomplete(format!("part {part} is missing"))),
        }
    }
    let data = folder.join("data");
    File::open(&data).and_then(|data| data.sync_all()).map_err(failed())?;
    directory.publish(key, &data).map_err(failed())?;
    fs::remove_dir_all(&folder).map_err(failed())
}

pub(super) async fn abort(bucket: &Bucket, stored: &Stored, upload_id: &str) -> Result<(), BucketError> {
    match &bucket.backend {
        Backend::Remote(remote) => remote.abort(&bucket.path(stored), upload_id).await,
        Backend::Directory(directory) => match directory.upload_folder(upload_id) {
            Some(folder) if folder.exists() => {
                fs::remove_dir_all(folder).map_err(BucketError::io("an upload cannot be given up"))
            }
            _ => Ok(()),
        },
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, BucketError> + Send + 'static,
) -> Result<T, BucketError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(BucketError::Io { what: "a task was lost".to_owned(), source: std::io::Error::other(error) }),
    }
}

pub(super) async fn put_stream(bucket: &Bucket, stored: &Stored, mut bytes: ByteStream) -> Result<u64, BucketError> {
    let (object, path) = (stored.object, bucket.path(stored));
    let mut receiver = Receiver::new(object);
    let mut encrypting =
        stored.encryption.as_ref().map(|encryption| Encrypting::new(&encryption.key, Header::random()));
    // The stream of a tree is longer than its bytes by its manifests; parts of this size leave room for that.
    let part_bytes = part_bytes(object.bytes.saturating_mul(2)) as usize;
    let mut upload = None;
    let mut sent = FuturesUnordered::new();
    let mut buffer = BytesMut::new();
    let result: Result<(), BucketError> = async {
        while let Some(chunk) = bytes.try_next().await.map_err(BucketError::reading(object))? {
            receiver.push(&chunk, &mut Nowhere).map_err(|error| corrupt(object, error))?;
            match &mut encrypting {
                Some(encrypting) => encrypting.push(&chunk, &mut buffer),
                None => buffer.extend_from_slice(&chunk),
            }
            while buffer.len() >= part_bytes {
                if upload.is_none() {
                    upload = Some(bucket.store().put_multipart(&path).await?);
                }
                let upload: &mut Box<dyn MultipartUpload> = upload.as_mut().expect("it was begun above");
                sent.push(upload.put_part(PutPayload::from(buffer.split_to(part_bytes).freeze())));
                if sent.len() >= PARTS_AT_ONCE {
                    sent.try_next().await?;
                }
            }
        }
        receiver.finish(&mut Nowhere).map_err(|error| corrupt(object, error))?;
        if let Some(encrypting) = &mut encrypting {
            encrypting.finish(&mut buffer);
        }
        let rest = PutPayload::from(buffer.split().freeze());
        match upload.as_mut() {
            None => {
                bucket.store().put(&path, rest).await?;
            }
            Some(upload) => {
                if rest.content_length() > 0 {
                    sent.push(upload.put_part(rest));
                }
                while sent.try_next().await?.is_some() {}
                upload.complete().await?;
            }
        }
        Ok(())
    }
    .await;
    if let Err(error) = result {
        if let Some(mut upload) = upload
            && let Err(error) = upload.abort().await
        {
            tracing::warn!(%error, object = %object.id, "an upload could not be given up; the bucket's own rule ends it");
        }
        return Err(error);
    }
    let received = receiver.received();
    match bucket.stream_bytes(stored.clone()).await? {
        Some(there) if there == received => Ok(received),
        there => Err(BucketError::Incomplete {
            object,
            message: format!("{} of {received} bytes are there", there.unwrap_or(0)),
        }),
    }
}

pub(super) fn corrupt(object: ObjectRef, error: CorruptStream) -> BucketError {
    BucketError::Corrupt { object, message: error.0 }
}

/// Verifies, and keeps nothing.
struct Nowhere;

impl Sink for Nowhere {
    type Error = CorruptStream;

    fn begin(&mut self, _: &crate::stream::plan::StreamPlan) -> Result<(), CorruptStream> {
        Ok(())
    }

    fn file(&mut self, _: usize, _: &crate::stream::plan::PlannedFile) -> Result<(), CorruptStream> {
        Ok(())
    }

    fn bytes(&mut self, _: &[u8]) -> Result<(), CorruptStream> {
        Ok(())
    }

    fn file_verified(&mut self, _: usize, _: &crate::stream::plan::PlannedFile) -> Result<(), CorruptStream> {
        Ok(())
    }
}

/// Whether an error of a write means that the bucket is full.
pub(super) fn full(error: &std::io::Error) -> bool {
    is_full(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_upload_never_has_more_parts_than_every_provider_takes() {
        for stream_bytes in [1, 17 << 20, 10 << 30, 200 << 30, 5 << 40, 40 << 40] {
            let size = part_bytes(stream_bytes);
            assert!(stream_bytes.div_ceil(size) <= PARTS_MAX);
            assert!(size >= PART_BYTES_MIN && size.is_multiple_of(1 << 20) && size <= 5 << 30);
        }
    }
}
