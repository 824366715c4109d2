//! Single requests, and when to make them again.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use aws_lc_rs::rand::{SecureRandom as _, SystemRandom};
use bytes::Bytes;
use reqwest::StatusCode;
use reqwest::header::{CONTENT_LENGTH, ETAG, RANGE};
use tokio::sync::Mutex;

use super::filler::{Abandoned, Filler};
use super::{CredentialError, Download, Inner, TransferConfig, chain};
use crate::encryption::{RangeReader, Tampered};
use atoll_model::value::ObjectRef;

/// Why a request did not do what it should.
#[derive(Debug)]
pub(super) enum Fault {
    /// The object is not there.
    Missing,
    /// The URL is not (any more) accepted: a fresh one may be.
    Url(String),
    /// A connection that could not be made, or broke. A server that refuses a URL may break it while a body is sent.
    Broken(String),
    /// Something else that passes: a server that is overloaded.
    Passing(String),
    /// Whoever wanted the bytes wants them no more.
    Abandoned,
    /// What came does not open.
    Tampered(Tampered),
}

impl Fault {
    fn of_status(status: StatusCode, text: &str) -> Self {
        let message = format!("{status} {}", text.chars().take(300).collect::<String>().trim());
        match status {
            StatusCode::NOT_FOUND => Self::Missing,
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN | StatusCode::GONE | StatusCode::BAD_REQUEST => {
                Self::Url(message)
            }
            _ => Self::Passing(message),
        }
    }

    pub(super) fn message(&self) -> String {
        match self {
            Self::Missing => "the object is not in the bucket".to_owned(),
            Self::Abandoned => Abandoned.to_string(),
            Self::Tampered(tampered) => tampered.to_string(),
            Self::Url(message) | Self::Broken(message) | Self::Passing(message) => message.clone(),
        }
    }
}

/// Counts tries that brought nothing, and waits between them.
#[derive(Debug)]
pub(super) struct Retry<'a> {
    config: &'a TransferConfig,
    pub(super) tries: u32,
}

impl<'a> Retry<'a> {
    pub(super) fn new(config: &'a TransferConfig) -> Self {
        Self { config, tries: 0 }
    }

    /// Something came: it is a new beginning.
    pub(super) fn progressed(&mut self) {
        self.tries = 0;
    }

    /// Waits, longer each time; whether to try again.
    pub(super) async fn wait(&mut self) -> bool {
        self.tries += 1;
        if self.tries >= self.config.tries_max {
            return false;
        }
        let factor = 1u32.checked_shl(self.tries - 1).unwrap_or(u32::MAX);
        let longest = self.config.backoff_first.saturating_mul(factor).min(self.config.backoff_max);
        tokio::time::sleep(jittered(longest)).await;
        true
    }
}

/// Between half of it and all of it, so that those who failed together do not come back together.
fn jittered(longest: Duration) -> Duration {
    let mut bytes = [0; 4];
    // Without randomness it is only less spread.
    let random = SystemRandom::new().fill(&mut bytes).map_or(0, |()| u32::from_le_bytes(bytes));
    longest / 2 + (longest / 2).mul_f64(f64::from(random) / f64::from(u32::MAX))
}

/// The URL of one object, asked for anew when it is refused.
pub(super) struct Source<'a> {
    inner: &'a Inner,
    object: ObjectRef,
    current: Mutex<Option<(u64, Download)>>,
    wire_bytes: &'a AtomicU64,
}

/// Why a range could not be had.
#[derive(Debug)]
pub(super) enum RangeError {
    Missing,
    Credentials(CredentialError),
    Unreachable {
        tries: u32,
        message: String,
    },
    /// An agent of another site is lost, or gives nothing (more).
    Lost(String),
    /// What is there is not what was put there.
    Tampered(Tampered),
}

impl<'a> Source<'a> {
    pub(super) fn new(inner: &'a Inner, object: ObjectRef, wire_bytes: &'a AtomicU64) -> Self {
        Self { inner, object, current: Mutex::new(None), wire_bytes }
    }

    /// A URL that is not the one of generation `not`.
    pub(super) async fn url(&self, not: Option<u64>) -> Result<(u64, Download), RangeError> {
        let mut current = self.current.lock().await;
        let generation = match &*current {
            Some((generation, download)) if not != Some(*generation) => return Ok((*generation, download.clone())),
            Some((generation, _)) => generation + 1,
            None => 0,
        };
        let mut retry = Retry::new(&self.inner.config);
        loop {
            match self.inner.credentials.download(self.object).await {
                Ok(download) => {
                    *current = Some((generation, download.clone()));
                    return Ok((generation, download));
                }
                Err(error @ CredentialError::Unavailable(_)) => {
                    if !retry.wait().await {
                        return Err(RangeError::Credentials(error));
                    }
                }
                Err(error @ CredentialError::Refused(_)) => return Err(RangeError::Credentials(error)),
            }
        }
    }

    /// Brings the bytes from `start` on; what came before a connection broke is not asked for again.
    pub(super) async fn bring(&self, start: u64, filler: &mut Filler) -> Result<(), RangeError> {
        let end = start + filler.left();
        let mut retry = Retry::new(&self.inner.config);
        let mut refused = None;
        loop {
            let (generation, download) = self.url(refused.take()).await?;
            let before = filler.left();
            let fault = match self.request(&download, end, filler).await {
                Ok(()) => return Ok(()),
                Err(Fault::Missing) => return Err(RangeError::Missing),
                Err(Fault::Abandoned) => return Err(RangeError::Lost(Abandoned.to_string())),
                Err(Fault::Tampered(tampered)) => return Err(RangeError::Tampered(tampered)),
                Err(fault) => fault,
            };
            if filler.left() < before {
                retry.progressed();
            }
            if let Fault::Url(_) = &fault {
                refused = Some(generation);
            }
            tracing::debug!(object = %self.object.id, at = end - filler.left(), fault = fault.message(), "a request failed");
            if !retry.wait().await {
                return Err(RangeError::Unreachable { tries: retry.tries, message: fault.message() });
            }
        }
    }

    async fn request(&self, download: &Download, end: u64, filler: &mut Filler) -> Result<(), Fault> {
        let _permit = self.inner.requests.acquire().await.expect("the semaphore is never closed");
        let stall = self.inner.config.stall_timeout;
        let (from, wanted) = (end - filler.left(), filler.left());
        let mut reader = match &download.key {
            // The stream that the URL is of now may be a shorter one than that which the range was made for.
            Some(_) if end > download.stream_bytes => return Err(Fault::Passing(TOO_SHORT.to_owned())),
            Some(key) => Some(RangeReader::new(key, download.stream_bytes, from..end)),
            None => None,
        };
        let range = reader.as_ref().map_or(from..end, RangeReader::encrypted_range);
        let request =
            self.inner.client.get(&download.url).header(RANGE, format!("bytes={}-{}", range.start, range.end - 1));
        let mut response = timely(stall, request.send()).await?;
        match response.status() {
            StatusCode::PARTIAL_CONTENT => {}
            // The whole object, from its beginning: good enough for who wants that.
            StatusCode::OK if range.start == 0 => {}
            StatusCode::OK => return Err(Fault::Passing("the bucket does not serve ranges".to_owned())),
            StatusCode::RANGE_NOT_SATISFIABLE => return Err(Fault::Passing(TOO_SHORT.to_owned())),
            status => {
                let text = timely(stall, response.text()).await.unwrap_or_default();
                return Err(Fault::of_status(status, &text));
            }
        }
        while filler.left() > 0 {
            let Some(chunk) = timely(stall, response.chunk()).await? else {
                let came = wanted - filler.left();
                return Err(Fault::Passing(format!("the answer ended after {came} of {wanted} bytes")));
            };
            self.wire_bytes.fetch_add(chunk.len() as u64, Ordering::Relaxed);
            match &mut reader {
                None => filler.put(&chunk).await.map_err(|Abandoned| Fault::Abandoned)?,
                Some(reader) => {
                    let mut rest = &chunk[..];
                    while let Some(opened) = reader.next(&mut rest).map_err(Fault::Tampered)? {
                        filler.put(opened).await.map_err(|Abandoned| Fault::Abandoned)?;
                    }
                }
            }
        }
        Ok(())
    }
}

const TOO_SHORT: &str = "the object in the bucket is shorter than it should be";

async fn timely<T>(stall: Duration, future: impl Future<Output = Result<T, reqwest::Error>>) -> Result<T, Fault> {
    match tokio::time::timeout(stall, future).await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => Err(Fault::Broken(chain(&error.without_url()))),
        Err(_) => Err(Fault::Broken(format!("no byte came for {} seconds", stall.as_secs()))),
    }
}

/// Sends bytes to a URL; the entity tag that it was given.
pub(super) async fn put(inner: &Inner, url: &str, headers: &[(String, String)], bytes: Bytes) -> Result<String, Fault> {
    let _permit = inner.requests.acquire().await.expect("the semaphore is never closed");
    // A body in memory does not say how far it is; so a rate is demanded of the whole.
    let slowest = Duration::from_secs(bytes.len() as u64 / (64 << 10));
    let mut request = inner.client.put(url).header(CONTENT_LENGTH, bytes.len()).body(bytes);
    for (name, value) in headers {
        request = request.header(name, value);
    }
    let response = timely(inner.config.stall_timeout.saturating_add(slowest), request.send()).await?;
    let status = response.status();
    if status.is_success() {
        let etag = response.headers().get(ETAG).and_then(|etag| etag.to_str().ok()).unwrap_or_default();
        return Ok(etag.to_owned());
    }
    let text = timely(inner.config.stall_timeout, response.text()).await.unwrap_or_default();
    Err(Fault::of_status(status, &text))
}
