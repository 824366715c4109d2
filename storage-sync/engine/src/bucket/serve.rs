//! What the server answers to the URLs of a directory bucket. Knows no framework: a request goes in, a response comes out.

use std::io;
use std::ops::RangeInclusive;
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use futures::{StreamExt as _, TryStreamExt as _};
use http::header::{ACCEPT_RANGES, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, ETAG, RANGE};
use http::request::Parts;
use http::{HeaderMap, Method, Request, Response, StatusCode};
use tokio::fs::File;
use tokio::io::{AsyncReadExt as _, AsyncSeekExt as _, AsyncWriteExt as _, SeekFrom};
use tokio_util::io::ReaderStream;

use super::directory::Directory;
use super::signing::{Grant, Refused};
use super::upload::full;
use super::{ByteStream, Key};

const CHUNK_BYTES: usize = 256 << 10;
/// Most of a refused body that is read: two parts of the usual size.
const DRAIN_BYTES_MAX: usize = 32 << 20;

/// A response of text.
pub(super) fn answer(status: StatusCode, text: &str) -> Response<ByteStream> {
    let bytes = Bytes::from(format!("{text}\n"));
    let mut response = Response::new(once(bytes));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, http::HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}

fn once(bytes: Bytes) -> ByteStream {
    futures::stream::once(async { Ok(bytes) }).boxed()
}

fn empty() -> ByteStream {
    futures::stream::empty().boxed()
}

/// An answer is heard only by a sender that could finish sending, or it sees nothing but a broken connection. So what
/// stays unread of a body is read to its end, unless that is too far away.
async fn drain(mut body: ByteStream) {
    let mut left = DRAIN_BYTES_MAX;
    while let Some(Ok(chunk)) = body.next().await {
        left = left.saturating_sub(chunk.len());
        if left == 0 {
            return;
        }
    }
}

pub(super) async fn serve(directory: &Arc<Directory>, request: Request<ByteStream>) -> Response<ByteStream> {
    let (parts, mut body) = request.into_parts();
    let response = respond(directory, &parts, &mut body).await;
    if !response.status().is_success() {
        drain(body).await;
    }
    response
}

async fn respond(directory: &Arc<Directory>, parts: &Parts, body: &mut ByteStream) -> Response<ByteStream> {
    let path = parts.uri.path().strip_prefix("/bucket/").unwrap_or_default();
    let Some(key) = Key::parse(path) else {
        return answer(StatusCode::NOT_FOUND, "this is not the path of an object");
    };
    let query = parts.uri.query().unwrap_or_default();
    let result = match directory.signer.check(parts.method.as_str(), &key, query, SystemTime::now()) {
        Err(Refused::Expired) => return answer(StatusCode::FORBIDDEN, "this URL has expired; ask for a fresh one"),
        Err(Refused::Signature) => {
            return answer(StatusCode::FORBIDDEN, "the signature is not that of this URL, method and object");
        }
        Ok(Grant::Download) => download(directory, &key, &parts.method, &parts.headers).await,
        Ok(Grant::Upload { length }) => upload(directory, key.clone(), length, &parts.headers, body).await,
        Ok(Grant::Part { upload, part, length }) => {
            let target = Part { upload, part, length };
            upload_part(directory, &key, &target, &parts.headers, body).await
        }
    };
    result.unwrap_or_else(|error| {
        if full(&error) {
            answer(StatusCode::INSUFFICIENT_STORAGE, "the bucket has no space left")
        } else {
            tracing::error!(%error, %key, "the bucket cannot serve a request");
            answer(StatusCode::INTERNAL_SERVER_ERROR, "the bucket cannot serve this request")
        }
    })
}

async fn download(
    directory: &Directory,
    key: &Key,
    method: &Method,
    headers: &HeaderMap,
) -> io::Result<Response<ByteStream>> {
    let mut file = match File::open(directory.path(key)).await {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Ok(answer(StatusCode::NOT_FOUND, "the object is not in the bucket"));
        }
        file => file?,
    };
    let size = file.metadata().await?.len();
    let range = headers.get(RANGE).map(|range| parse_range(range.to_str().unwrap_or_default(), size));
    let (status, range) = match range {
        None => (StatusCode::OK, None),
        Some(Some(range)) => (StatusCode::PARTIAL_CONTENT, Some(range)),
        Some(None) => {
            let mut response = answer(StatusCode::RANGE_NOT_SATISFIABLE, "there are no such bytes");
            insert(response.headers_mut(), CONTENT_RANGE, &format!("bytes */{size}"));
            return Ok(response);
        }
    };
    let (start, length) = range.as_ref().map_or((0, size), |range| (*range.start(), range.end() - range.start() + 1));
    let body = if method == Method::HEAD {
        empty()
    } else {
        file.seek(SeekFrom::Start(start)).await?;
        ReaderStream::with_capacity(file.take(length), CHUNK_BYTES).boxed()
    };
    let mut response = Response::new(body);
    *response.status_mut() = status;
    let headers = response.headers_mut();
    insert(headers, ACCEPT_RANGES, "bytes");
    insert(headers, CONTENT_LENGTH, &length.to_string());
    insert(headers, CONTENT_TYPE, "application/octet-stream");
    if let Some(range) = range {
        insert(headers, CONTENT_RANGE, &format!("bytes {}-{}/{size}", range.start(), range.end()));
    }
    Ok(response)
}

fn insert(headers: &mut HeaderMap, name: http::HeaderName, value: &str) {
    headers.insert(name, value.parse().expect("digits, and words of ours, are a header's value"));
}

/// The one range that a `Range` header asks for, within `size` bytes; nothing if it asks for none that exists.
fn parse_range(text: &str, size: u64) -> Option<RangeInclusive<u64>> {
    let (start, end) = text.strip_prefix("bytes=")?.split_once('-')?;
    let last = size.checked_sub(1)?;
    let (start, end) = match (start, end) {
        ("", suffix) => (size.saturating_sub(suffix.parse().ok().filter(|count| *count > 0)?), last),
        (start, "") => (start.parse().ok()?, last),
        (start, end) => (start.parse().ok()?, end.parse::<u64>().ok()?.min(last)),
    };
    (start <= end && start <= last).then_some(start..=end)
}

/// Bytes came in as they should, or the answer says what was wrong.
enum Received {
    Whole { etag: String },
    Refused(Response<ByteStream>),
}

/// Writes a body of exactly `length` bytes to where the file stands.
async fn receive(file: &mut File, length: u64, headers: &HeaderMap, body: &mut ByteStream) -> io::Result<Received> {
    let announced = headers.get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    if announced.is_some_and(|announced| announced != length) {
        let text = format!("this URL is for exactly {length} bytes");
        return Ok(Received::Refused(answer(StatusCode::BAD_REQUEST, &text)));
    }
    let mut hasher = blake3::Hasher::new();
    let mut received = 0;
    loop {
        let chunk = match body.try_next().await {
            Ok(Some(chunk)) => chunk,
            Ok(None) => break,
            // The sender went away; nobody reads this answer.
            Err(error) => {
                let text = format!("the body broke off after {received} bytes: {error}");
                return Ok(Received::Refused(answer(StatusCode::BAD_REQUEST, &text)));
            }
        };
        received += chunk.len() as u64;
        if received > length {
            let text = format!("this URL is for exactly {length} bytes");
            return Ok(Received::Refused(answer(StatusCode::BAD_REQUEST, &text)));
        }
        hasher.update(&chunk);
        file.write_all(&chunk).await?;
    }
    if received < length {
        let text = format!("the body ended after {received} of {length} bytes");
        return Ok(Received::Refused(answer(StatusCode::BAD_REQUEST, &text)));
    }
    file.flush().await?;
    file.sync_data().await?;
    Ok(Received::Whole { etag: format!("\"{}\"", hasher.finalize().to_hex()) })
}

fn stored(etag: &str) -> Response<ByteStream> {
    let mut response = Response::new(empty());
    insert(response.headers_mut(), ETAG, etag);
    insert(response.headers_mut(), CONTENT_LENGTH, "0");
    response
}

async fn upload(
    directory: &Arc<Directory>,
    key: Key,
    length: u64,
    headers: &HeaderMap,
    body: &mut ByteStream,
) -> io::Result<Response<ByteStream>> {
    let temporary = directory.temporary();
    let mut file = File::create_new(&temporary).await?;
    let received = receive(&mut file, length, headers, body).await;
    drop(file);
    match received {
        Ok(Received::Whole { etag }) => {
            let directory = directory.clone();
            tokio::task::spawn_blocking(move || directory.publish(&key, &temporary)).await??;
            Ok(stored(&etag))
        }
        Ok(Received::Refused(response)) => {
            remove(&temporary).await;
            Ok(response)
        }
        Err(error) => {
            remove(&temporary).await;
            Err(error)
        }
    }
}

async fn remove(path: &Path) {
    if let Err(error) = tokio::fs::remove_file(path).await {
        tracing::warn!(%error, path = %path.display(), "what is left of an upload cannot be removed");
    }
}

struct Part {
    upload: String,
    part: u32,
    length: u64,
}

async fn upload_part(
    directory: &Directory,
    key: &Key,
    target: &Part,
    headers: &HeaderMap,
    body: &mut ByteStream,
) -> io::Result<Response<ByteStream>> {
    let Part { upload: id, part, length } = target;
    let (Some(upload), Some(folder)) = (directory.upload(key, id)?, directory.upload_folder(id)) else {
        return Ok(answer(StatusCode::NOT_FOUND, "there is no such upload (any more)"));
    };
    if upload.part_length(*part) != *length {
        return Ok(answer(StatusCode::BAD_REQUEST, "the upload has no such part"));
    }
    let etag_path = folder.join(format!("{part}.etag"));
    // While it is written again, the part is not there.
    match tokio::fs::remove_file(&etag_path).await {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = File::options().write(true).open(folder.join("data")).await?;
    file.seek(SeekFrom::Start(u64::from(*part) * upload.part_bytes)).await?;
    match receive(&mut file, *length, headers, body).await? {
        Received::Whole { etag } => {
            tokio::fs::write(&etag_path, &etag).await?;
            Ok(stored(&etag))
        }
        Received::Refused(response) => Ok(response),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_is_what_http_says_it_is() {
        let cases = [
            ("bytes=0-0", 10, Some(0..=0)),
            ("bytes=2-5", 10, Some(2..=5)),
            ("bytes=5-", 10, Some(5..=9)),
            ("bytes=-3", 10, Some(7..=9)),
            ("bytes=-30", 10, Some(0..=9)),
            ("bytes=5-99", 10, Some(5..=9)),
            ("bytes=10-", 10, None),
            ("bytes=5-4", 10, None),
            ("bytes=-0", 10, None),
            ("bytes=0-", 0, None),
            ("bytes=1-2,4-5", 10, None),
            ("lines=1-2", 10, None),
        ];
        for (text, size, expected) in cases {
            assert_eq!(parse_range(text, size), expected, "{text} of {size}");
        }
    }
}
