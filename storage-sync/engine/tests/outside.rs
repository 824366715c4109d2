//! Files and directories from outside: web servers that break, lie and lead elsewhere; a bucket of somebody else's.

#![expect(clippy::unwrap_used, reason = "a test that panics has failed")]

mod support;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::Result;
use atoll_model::workflow::OutsideUrl;
use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use bytes::Bytes;
use futures::StreamExt as _;
use object_store::path::Path as Key;
use object_store::{ObjectStore, ObjectStoreExt as _};
use storage_sync_engine::outside::{OutsideError, fetch_outside};
use support::azurite::Azurite;
use support::s3;
use tokio::task::JoinSet;

/// What a server does with each request, by its number.
type Answer = fn(usize, &HeaderMap, &Bytes) -> Response;

struct Web {
    address: std::net::SocketAddr,
    asked: Arc<AtomicUsize>,
    _serving: JoinSet<std::io::Result<()>>,
}

impl Web {
    async fn start(content: Vec<u8>, answer: Answer) -> Result<Self> {
        let asked = Arc::new(AtomicUsize::new(0));
        let state = (Arc::clone(&asked), Bytes::from(content), answer);
        let app = Router::new().fallback(handle).with_state(state);
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let mut serving = JoinSet::new();
        serving.spawn(async move { axum::serve(listener, app).await });
        Ok(Self { address, asked, _serving: serving })
    }

    fn url(&self, path: &str) -> OutsideUrl {
        format!("http://{}{path}", self.address).parse().unwrap()
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::Relaxed)
    }
}

async fn handle(
    State((asked, content, answer)): State<(Arc<AtomicUsize>, Bytes, Answer)>,
    request: Request,
) -> Response {
    answer(asked.fetch_add(1, Ordering::Relaxed), request.headers(), &content)
}

fn noise(bytes: usize) -> Vec<u8> {
    let mut hash = blake3::Hasher::new().finalize_xof();
    let mut noise = vec![0; bytes];
    hash.fill(&mut noise);
    noise
}

async fn fetch(url: &OutsideUrl, into: &Path) -> Result<(), OutsideError> {
    fetch_outside(url, false, into, |_| true).await
}

/// A body that says how long it is and breaks off before.
fn broken(content: &Bytes, sent: usize) -> Body {
    let sent = content.slice(..sent);
    let parts = [Ok(sent), Err(std::io::Error::other("the connection is cut"))];
    Body::from_stream(futures::stream::iter(parts).then(|part| async move {
        tokio::task::yield_now().await;
        part
    }))
}

fn from_range(headers: &HeaderMap) -> Option<usize> {
    headers.get(header::RANGE)?.to_str().ok()?.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok()
}

/// Breaks the first answer off in the middle, and serves the rest when it is asked for it.
fn breaks_once(number: usize, headers: &HeaderMap, content: &Bytes) -> Response {
    if number == 0 {
        return ([(header::ETAG, "\"one\"")], broken(content, content.len() / 2)).into_response();
    }
    match from_range(headers) {
        Some(from) if headers.get(header::IF_RANGE).is_some_and(|tag| tag == "\"one\"") => {
            let range = format!("bytes {from}-{}/{}", content.len() - 1, content.len());
            let told = [(header::ETAG, "\"one\"".to_owned()), (header::CONTENT_RANGE, range)];
            (StatusCode::PARTIAL_CONTENT, told, content.slice(from..)).into_response()
        }
        _ => StatusCode::IM_A_TEAPOT.into_response(),
    }
}

#[tokio::test]
async fn a_fetch_goes_on_where_the_connection_broke() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let content = noise(3 << 20);
    let web = Web::start(content.clone(), breaks_once).await?;
    let into = folder.path().join("a");
    fetch(&web.url("/a.bin"), &into).await?;
    assert_eq!(std::fs::read(&into)?, content);
    assert_eq!(web.asked(), 2);
    Ok(())
}

/// Breaks the first answer off, and is asked to go on with a file that is another one by now.
fn changes(number: usize, _: &HeaderMap, content: &Bytes) -> Response {
    if number == 0 {
        let other = Bytes::from(vec![7; content.len()]);
        return ([(header::ETAG, "\"one\"")], broken(&other, content.len() / 2)).into_response();
    }
    ([(header::ETAG, "\"two\"")], content.clone()).into_response()
}

#[tokio::test]
async fn of_a_file_that_changed_meanwhile_nothing_old_is_kept() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let content = noise(1 << 20);
    let web = Web::start(content.clone(), changes).await?;
    let into = folder.path().join("a");
    fetch(&web.url("/a.bin"), &into).await?;
    assert_eq!(std::fs::read(&into)?, content);
    Ok(())
}

fn busy_then_there(number: usize, _: &HeaderMap, content: &Bytes) -> Response {
    match number {
        0 => (StatusCode::TOO_MANY_REQUESTS, [(header::RETRY_AFTER, "1")]).into_response(),
        1 => StatusCode::BAD_GATEWAY.into_response(),
        _ => content.clone().into_response(),
    }
}

#[tokio::test]
async fn a_server_that_is_busy_is_asked_again() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let web = Web::start(b"there".to_vec(), busy_then_there).await?;
    let into = folder.path().join("a");
    fetch(&web.url("/a.bin"), &into).await?;
    assert_eq!((std::fs::read(&into)?.as_slice(), web.asked()), (b"there".as_slice(), 3));
    Ok(())
}

#[tokio::test]
async fn what_is_not_there_fails_at_once_with_what_the_server_says() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let web = Web::start(Vec::new(), |_, _, _| StatusCode::NOT_FOUND.into_response()).await?;
    let error = fetch(&web.url("/a.bin"), &folder.path().join("a")).await.expect_err("it is not there");
    assert!(matches!(error, OutsideError::Refused { .. }) && error.to_string().contains("404"), "{error}");
    assert_eq!(web.asked(), 1);
    Ok(())
}

#[tokio::test]
async fn a_redirection_is_followed_only_to_what_is_allowed() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let inside = Web::start(b"inside".to_vec(), |_, _, content| content.clone().into_response()).await?;
    let target: &'static str = inside.url("/secret").to_string().leak();
    static TARGET: std::sync::OnceLock<&str> = std::sync::OnceLock::new();
    TARGET.set(target).unwrap();
    let web = Web::start(Vec::new(), |_, _, _| {
        (StatusCode::FOUND, [(header::LOCATION, *TARGET.get().unwrap())]).into_response()
    })
    .await?;
    let (own, into) = (format!("http://{}", web.address), folder.path().join("a"));
    let refused = fetch_outside(&web.url("/a"), false, &into, move |to| to.is_below(&own)).await;
    let error = refused.expect_err("it leads elsewhere");
    assert!(error.to_string().contains("which the site does not fetch from"), "{error}");
    assert_eq!(inside.asked(), 0, "nobody there was asked");
    fetch(&web.url("/a"), &folder.path().join("b")).await?;
    assert_eq!(std::fs::read(folder.path().join("b"))?, b"inside");
    Ok(())
}

/// A bucket at `url`, by which what is to be fetched is put there.
async fn what_is_below_a_key_is_a_directory(url: &str, store: &dyn ObjectStore) -> Result<()> {
    let (scheme, rest) = url.split_once("://").unwrap();
    let (name, prefix) = rest.split_once('/').unwrap_or((rest, ""));
    let root = format!("{prefix}/outside-{}", std::process::id());
    let root = root.trim_start_matches('/');
    let large = noise(9 << 20);
    for (key, content) in [("tiles/a", b"a".to_vec()), ("tiles/deep/b", b"b".to_vec()), ("tiles/large", large.clone())]
    {
        store.put(&Key::from(format!("{root}/{key}")), content.into()).await?;
    }
    store.put(&Key::from(format!("{root}/tiles-other")), "no".into()).await?;
    let folder = tempfile::tempdir()?;
    let into = folder.path().join("tiles");
    let url: OutsideUrl = format!("{scheme}://{name}/{root}/tiles").parse()?;
    fetch_outside(&url, true, &into, |_| false).await?;
    assert_eq!(std::fs::read(into.join("a"))?, b"a");
    assert_eq!(std::fs::read(into.join("deep/b"))?, b"b");
    assert_eq!(std::fs::read(into.join("large"))?, large);
    assert_eq!(std::fs::read_dir(&into)?.count(), 3);
    let one: OutsideUrl = format!("{scheme}://{name}/{root}/tiles/deep/b").parse()?;
    fetch(&one, &folder.path().join("b")).await?;
    assert_eq!(std::fs::read(folder.path().join("b"))?, b"b");
    let nothing: OutsideUrl = format!("{scheme}://{name}/{root}/nothing").parse()?;
    let error = fetch_outside(&nothing, true, &folder.path().join("n"), |_| false).await.expect_err("nothing there");
    assert!(matches!(error, OutsideError::NoDirectory { .. }), "{error}");
    let error = fetch(&nothing, &folder.path().join("n")).await.expect_err("nothing there");
    assert!(matches!(error, OutsideError::Refused { .. }), "{error}");
    assert!(error.to_string().contains(nothing.as_str()), "{error}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_bucket_has_below_a_key_is_a_directory() -> Result<()> {
    let Some(bucket) = s3::url() else { return Ok(()) };
    let store = s3::store(&bucket)?;
    what_is_below_a_key_is_a_directory(&bucket, &store).await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_container_has_below_a_key_is_a_directory() -> Result<()> {
    let Some(azurite) = Azurite::found() else { return Ok(()) };
    let store = azurite.store()?;
    what_is_below_a_key_is_a_directory(&azurite.url, &store).await?;
    let folder = tempfile::tempdir()?;
    let elsewhere: OutsideUrl = "az://not-there/tiles".parse()?;
    let error = fetch_outside(&elsewhere, true, &folder.path().join("n"), |_| false).await.expect_err("nothing there");
    assert!(
        matches!(&error, OutsideError::Refused { .. }) && error.to_string().contains("ContainerNotFound"),
        "{error}"
    );
    Ok(())
}
