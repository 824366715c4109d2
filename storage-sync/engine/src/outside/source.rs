//! Web servers and buckets, asked for a file from any byte on.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use atoll_model::value::FileName;
use atoll_model::workflow::OutsideUrl;
use bytes::Bytes;
use futures::stream::BoxStream;
use futures::{StreamExt as _, TryStreamExt as _};
use object_store::path::Path;
use object_store::{GetOptions, GetRange, ObjectStore};
use reqwest::StatusCode;
use reqwest::header::{
    ACCEPT_ENCODING, CONTENT_RANGE, ETAG, HeaderMap, HeaderValue, IF_RANGE, LAST_MODIFIED, RANGE, RETRY_AFTER,
};
use reqwest::redirect::Policy;

use super::OutsideError;
use crate::bucket;

const CONNECT_PATIENCE: Duration = Duration::from_secs(15);
const ANSWER_PATIENCE: Duration = Duration::from_secs(60);
const REDIRECTIONS_MAX: usize = 10;

/// Why a file does not come now.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) message: String,
    /// Whether it would be the same again.
    pub(super) is_final: bool,
    /// When the other side wants to be asked again.
    pub(super) pause: Option<Duration>,
}

/// The bytes of a file from one of them on.
pub(super) struct Opened {
    pub(super) bytes: BoxStream<'static, Result<Bytes, String>>,
    pub(super) from: u64,
    /// Bytes of the whole file, if that is known.
    pub(super) until: Option<u64>,
    /// What tells it from any other file at its place, if the other side says so.
    pub(super) tag: Option<String>,
}

/// Where a file is.
#[derive(Debug)]
pub(super) enum Place {
    Web,
    Key(Path),
}

pub(super) enum Remote {
    Web {
        client: reqwest::Client,
        url: OutsideUrl,
    },
    /// `url` is that of the bucket.
    Bucket {
        store: Arc<dyn ObjectStore>,
        url: String,
        key: Path,
    },
}

impl Remote {
    pub(super) fn open(
        url: &OutsideUrl,
        allowed: impl Fn(&OutsideUrl) -> bool + Send + Sync + 'static,
    ) -> Result<Self, OutsideError> {
        let refused = |message: String| OutsideError::Refused { url: url.to_string(), message };
        let Some((name, key)) = url.in_bucket() else {
            let policy = Policy::custom(move |attempt| {
                let to = attempt.url().as_str().parse::<OutsideUrl>();
                let shown = attempt.url().to_string();
                if attempt.previous().len() > REDIRECTIONS_MAX {
                    attempt.error("it leads from one place to another without end")
                } else if to.is_ok_and(|to| to.in_bucket().is_none() && allowed(&to)) {
                    attempt.follow()
                } else {
                    attempt.error(format!("it leads to {shown}, which the site does not fetch from"))
                }
            });
            let client = reqwest::Client::builder()
                .tls_backend_rustls()
                .tls_version_min(reqwest::tls::Version::TLS_1_2)
                .connect_timeout(CONNECT_PATIENCE)
                .redirect(policy)
                .build()
                .map_err(|error| refused(full_message(&error)))?;
            return Ok(Self::Web { client, url: url.clone() });
        };
        let key = Path::parse(key.trim_end_matches('/')).map_err(|error| refused(error.to_string()))?;
        let store = bucket::open_outside(url.scheme(), name).map_err(|error| refused(error.to_string()))?;
        Ok(Self::Bucket { store, url: format!("{}://{name}", url.scheme()), key })
    }

    /// Where the one file is that the URL names.
    pub(super) fn place(&self) -> Place {
        match self {
            Self::Web { .. } => Place::Web,
            Self::Bucket { key, .. } => Place::Key(key.clone()),
        }
    }

    pub(super) fn shown(&self, place: &Place) -> String {
        match (self, place) {
            (Self::Web { url, .. }, _) => url.to_string(),
            (Self::Bucket { url, .. }, Place::Key(key)) | (Self::Bucket { url, key, .. }, Place::Web) => {
                format!("{url}/{key}")
            }
        }
    }

    /// Everything below the key, by its path from there.
    pub(super) async fn list(&self, most: usize) -> Result<Vec<(PathBuf, Place)>, OutsideError> {
        let Self::Bucket { store, url, key } = self else {
            let message = "only a bucket has some".to_owned();
            return Err(OutsideError::NoDirectory { url: self.shown(&Place::Web), message });
        };
        let url = format!("{url}/{key}");
        let no_directory = |message: String| OutsideError::NoDirectory { url: url.clone(), message };
        let mut found = Vec::new();
        let mut listing = store.list(Some(key));
        while let Some(entry) = listing.try_next().await.map_err(|error| {
            let failure = bucket_failure(&error);
            match failure.is_final {
                true => OutsideError::Refused { url: url.clone(), message: failure.message },
                false => OutsideError::Unreachable { url: url.clone(), message: failure.message },
            }
        })? {
            let Some(parts) = entry.location.prefix_match(key) else { continue };
            let parts: Vec<_> = parts.map(|part| part.as_ref().to_owned()).collect();
            // The key itself is a file beside the directory.
            if parts.is_empty() {
                continue;
            }
            if let Some(part) = parts.iter().find(|part| FileName::new(part.as_bytes()).is_err()) {
                return Err(no_directory(format!("{:?} in {} cannot be the name of a file", part, entry.location)));
            }
            if found.len() == most {
                return Err(no_directory(format!("it has more than {most} files")));
            }
            found.push((parts.iter().collect(), Place::Key(entry.location)));
        }
        if found.is_empty() {
            return Err(no_directory("the bucket has nothing there".to_owned()));
        }
        Ok(found)
    }

    /// Asks for a file from a byte on, if it is still the one of the tag, else from its first.
    pub(super) async fn open_at(&self, place: &Place, from: u64, tag: Option<&str>) -> Result<Opened, Failure> {
        match (self, place) {
            (Self::Web { client, url }, _) => open_web(client, url, from, tag).await,
            (Self::Bucket { store, .. }, Place::Key(key)) | (Self::Bucket { store, key, .. }, Place::Web) => {
                open_key(store.as_ref(), key, from, tag).await
            }
        }
    }
}

async fn open_web(client: &reqwest::Client, url: &OutsideUrl, from: u64, tag: Option<&str>) -> Result<Opened, Failure> {
    let mut request = client.get(url.as_str()).header(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
    if let Some(tag) = tag.filter(|_| from > 0) {
        request = request.header(RANGE, format!("bytes={from}-")).header(IF_RANGE, tag);
    }
    let again = |message: String| Failure { message, is_final: false, pause: None };
    let response = match tokio::time::timeout(ANSWER_PATIENCE, request.send()).await {
        Err(_) => return Err(again(format!("no answer within {} s", ANSWER_PATIENCE.as_secs()))),
        Ok(Err(error)) => {
            let is_final = error.is_redirect() || error.is_builder();
            return Err(Failure { message: full_message(&error), is_final, pause: None });
        }
        Ok(Ok(response)) => response,
    };
    let (status, headers) = (response.status(), response.headers());
    if !status.is_success() {
        let pause = text(headers, RETRY_AFTER.as_str()).and_then(|text| text.parse().ok()).map(Duration::from_secs);
        let may_pass = status.is_server_error()
            || matches!(status, StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_EARLY);
        return Err(Failure { message: format!("the server says {status}"), is_final: !may_pass, pause });
    }
    let (from, until) = if status == StatusCode::PARTIAL_CONTENT {
        match content_range(headers).filter(|(begin, _)| *begin == from) {
            Some((begin, whole)) => (begin, whole),
            None => return Err(again("the server sent another part than it was asked for".to_owned())),
        }
    } else {
        (0, response.content_length())
    };
    // A weak tag says only that it looks the same.
    let tag = text(headers, ETAG.as_str()).filter(|tag| !tag.starts_with("W/"));
    let tag = tag.or_else(|| text(headers, LAST_MODIFIED.as_str())).map(str::to_owned);
    let bytes = response.bytes_stream().map_err(|error| full_message(&error)).boxed();
    Ok(Opened { bytes, from, until, tag })
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

/// The first byte and the bytes of the whole, of `bytes 5-9/10`.
fn content_range(headers: &HeaderMap) -> Option<(u64, Option<u64>)> {
    let (range, whole) = text(headers, CONTENT_RANGE.as_str())?.strip_prefix("bytes ")?.split_once('/')?;
    let (begin, _) = range.split_once('-')?;
    Some((begin.parse().ok()?, whole.parse().ok()))
}

async fn open_key(store: &dyn ObjectStore, key: &Path, from: u64, tag: Option<&str>) -> Result<Opened, Failure> {
    let resumed = tag.filter(|_| from > 0);
    let options = GetOptions {
        range: resumed.map(|_| GetRange::Offset(from)),
        if_match: resumed.map(str::to_owned),
        ..GetOptions::default()
    };
    match store.get_opts(key, options).await {
        Ok(result) => {
            let (from, until) = (result.range.start, Some(result.meta.size));
            let tag = result.meta.e_tag.clone();
            let bytes = result.into_stream().map_err(|error| full_message(&error)).boxed();
            Ok(Opened { bytes, from, until, tag })
        }
        // It is another one by now.
        Err(object_store::Error::Precondition { .. }) if resumed.is_some() => {
            Box::pin(open_key(store, key, 0, None)).await
        }
        Err(error) => Err(bucket_failure(&error)),
    }
}

/// What else is wrong may pass.
fn bucket_failure(error: &object_store::Error) -> Failure {
    use object_store::Error;
    let is_final = bucket::unusable(error).is_some()
        || matches!(
            error,
            Error::NotFound { .. }
                | Error::InvalidPath { .. }
                | Error::NotSupported { .. }
                | Error::UnknownConfigurationKey { .. }
        );
    Failure { message: full_message(error), is_final, pause: None }
}

/// An error with everything that caused it, in one line.
fn full_message(error: &dyn std::error::Error) -> String {
    let mut message = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let next = error.to_string();
        if !message.contains(&next) {
            message = format!("{message}: {next}");
        }
        cause = error.source();
    }
    message
}
