//! Measures what the site store and the transfers cost on this machine, in a directory on the file system in question:
//!
//!     cargo run --release -p storage-sync-engine --example figures -- DIR

use std::fs;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context as _, Result};
use async_trait::async_trait;
use atoll_model::id::TransferId;
use atoll_model::value::ObjectRef;
use axum::extract::{Request, State};
use axum::response::Response;
use futures::{StreamExt as _, TryStreamExt as _};
use storage_sync_engine::bucket::{Bucket, BucketError, BucketOptions, UploadRequest};
use storage_sync_engine::store::{Entry, SiteStore};
use storage_sync_engine::transfer::{CredentialError, Credentials, Download, TransferConfig, Transfers, Upload};

fn report(what: &str, started: Instant, bytes: u64) {
    let seconds = started.elapsed().as_secs_f64();
    let rate = if bytes > 0 { format!("{:8.0} MB/s", bytes as f64 / seconds / 1e6) } else { String::new() };
    println!("{what:<58} {:>10.2} ms {rate}", seconds * 1e3);
}

fn large_file(path: &Path, length: u64) -> Result<PathBuf> {
    let file = fs::File::create(path)?;
    file.set_len(length)?;
    file.write_all_at(b"not only zeros", length / 2)?;
    Ok(path.to_owned())
}

fn many_files(path: &Path, count: u32) -> Result<PathBuf> {
    for index in 0..count {
        let folder = path.join(format!("{:02}", index % 50));
        fs::create_dir_all(&folder)?;
        fs::write(folder.join(format!("{index}.txt")), format!("file {index}\n").repeat(20))?;
    }
    Ok(path.to_owned())
}

fn hand_over(store: &SiteStore, root: &Path, what: &str, output: &Path) -> Result<()> {
    let started = Instant::now();
    let sealed = store.seal(what, output)?;
    report(&format!("{what}: seal"), started, 0);
    let started = Instant::now();
    let lent = store.materialise(&root.join("in"), &[Entry::for_sealed("x", &sealed.name, sealed.seal)])?;
    report(&format!("{what}: materialise ({} bytes copied)", lent.bytes_copied), started, 0);
    let started = Instant::now();
    let stored = store.commit(sealed.seal)?;
    report(&format!("{what}: commit (hash, sync, name)"), started, stored.object.bytes);
    let started = Instant::now();
    store.materialise(&root.join("again"), &Entry::for_value("x", &stored.value))?;
    report(&format!("{what}: materialise once more"), started, 0);
    let started = Instant::now();
    store.take_back(&root.join("in"))?;
    store.take_back(&root.join("again"))?;
    report(&format!("{what}: take both back"), started, 0);
    let started = Instant::now();
    store.verify(stored.object)?;
    report(&format!("{what}: verify what is known"), started, 0);
    Ok(())
}

struct Minter(Bucket);

fn refused(error: BucketError) -> CredentialError {
    CredentialError::Refused(error.to_string())
}

#[async_trait]
impl Credentials for Minter {
    async fn download(&self, object: ObjectRef) -> Result<Download, CredentialError> {
        let stream_bytes = self.0.stream_bytes(object).await.map_err(refused)?.unwrap_or(0);
        Ok(Download { url: self.0.mint_download(object).await.map_err(refused)?.url, stream_bytes, key: None })
    }

    async fn upload_plan(&self, _: TransferId, request: &UploadRequest) -> Result<Upload, CredentialError> {
        Ok(Upload { plan: self.0.plan_upload(request, None).await.map_err(refused)?, key: None })
    }

    async fn complete(&self, _: TransferId, request: &UploadRequest, etags: &[String]) -> Result<(), CredentialError> {
        let UploadRequest { object, stream_bytes, upload_id, .. } = request;
        self.0.complete_upload(*object, *stream_bytes, upload_id.as_deref(), etags).await.map_err(refused)
    }
}

async fn answer(State(bucket): State<Bucket>, request: Request) -> Response {
    let request = request.map(|body| body.into_data_stream().map_err(std::io::Error::other).boxed());
    bucket.serve(request).await.map(axum::body::Body::from_stream)
}

async fn transfers(store: &SiteStore, root: &Path) -> Result<()> {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let serve_url = format!("http://{}", listener.local_addr()?);
    let options = BucketOptions { serve_url, ..BucketOptions::default() };
    let bucket = Bucket::open(&root.join("bucket").to_string_lossy(), options)?;
    let router = axum::Router::new()
        .route("/bucket/{*key}", axum::routing::any(answer))
        .layer(axum::extract::DefaultBodyLimit::disable())
        .with_state(bucket.clone());
    let mut tasks = tokio::task::JoinSet::new();
    tasks.spawn(async move { axum::serve(listener, router).await });
    let client = reqwest::Client::builder().build()?;
    let other = SiteStore::open(&root.join("other"))?;
    let mut noise = vec![0; 1 << 30];
    blake3::Hasher::new().finalize_xof().fill(&mut noise);
    fs::write(root.join("noise"), &noise)?;
    drop(noise);
    let file = store.ingest(&root.join("noise"))?.object;
    let tree = store.ingest(&many_files(&root.join("tree"), 10_000)?)?.object;
    for (number, (what, object)) in [("1 GiB", file), ("10,000 files", tree)].into_iter().enumerate() {
        let credentials = Arc::new(Minter(bucket.clone()));
        let from = Transfers::new(store.clone(), client.clone(), credentials.clone(), TransferConfig::default());
        let to = Transfers::new(other.clone(), client.clone(), credentials, TransferConfig::default());
        let started = Instant::now();
        let pushed = from.push(TransferId::from_bits(number as u128), object).await?;
        report(&format!("{what}: push over loopback HTTP"), started, pushed.wire_bytes);
        let started = Instant::now();
        let fetched = to.fetch(object).await?;
        report(&format!("{what}: fetch over loopback HTTP"), started, fetched.wire_bytes);
    }
    tasks.abort_all();
    Ok(())
}

#[tokio::main]
async fn main() -> Result<()> {
    let parent = std::env::args().nth(1).context("usage: figures DIR")?;
    let folder = tempfile::tempdir_in(parent)?;
    let root = folder.path();
    let started = Instant::now();
    let store = SiteStore::open(&root.join("store"))?;
    report("open a new store", started, 0);
    hand_over(&store, root, "10 GiB sparse file", &large_file(&root.join("large"), 10 << 30)?)?;
    hand_over(&store, root, "10,000 files", &many_files(&root.join("many"), 10_000)?)?;
    let started = Instant::now();
    for index in 0..100 {
        fs::write(root.join("one"), format!("output {index}"))?;
        store.ingest(&root.join("one"))?;
    }
    report("100 small outputs, one after the other", started, 0);
    let started = Instant::now();
    let mut seals = Vec::new();
    for index in 0..1_000 {
        fs::write(root.join("one"), format!("more {index}"))?;
        seals.push(store.seal(&format!("claim {index}"), &root.join("one"))?.seal);
    }
    for answer in store.commit_all(&seals) {
        answer?;
    }
    report("1,000 small outputs, committed together", started, 0);
    transfers(&store, root).await
}
