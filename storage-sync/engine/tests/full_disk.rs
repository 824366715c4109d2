//! E1: a full disk at the site. On a real file system of 64 MiB, made for the test; needs root, as CI has it.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, Result};
use atoll_model::id::TransferId;
use storage_sync_engine::store::{Entry, SiteStore};
use storage_sync_engine::transfer::FetchError;
use support::disk::SmallDisk;
use support::server::{Minter, Served, quick, transfers};
use support::{Site, noise};

fn partial(store: &SiteStore) -> Result<Vec<String>> {
    fs::read_dir(store.root().join("partial"))?.map(|entry| Ok(entry?.file_name().to_string_lossy().into())).collect()
}

fn write(path: &Path, bytes: &[u8]) -> Result<PathBuf> {
    fs::create_dir_all(path.parent().context("it has a parent")?)?;
    fs::write(path, bytes)?;
    Ok(path.to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn e1_a_full_disk_is_said_so_and_harms_nothing() -> Result<()> {
    let disk = SmallDisk::new()?;
    let store = SiteStore::open(&disk.root().join("store"))?;
    let kept = store.ingest(&write(&disk.root().join("out/kept"), &noise(1 << 20, 1))?)?;
    let elsewhere = Site::new()?;
    let large = elsewhere.write("large", &noise(20 << 20, 2))?;
    let served = Served::start().await?;
    let minter = Minter::new(&served.bucket);
    let object = elsewhere.store.import(&large)?.object;
    transfers(&elsewhere.store, &minter, quick())?.push(TransferId::from_bits(1), object).await?;
    let tree = {
        for index in 0..200 {
            elsewhere.write(&format!("tree/{index}"), &noise(50_000, index as u8))?;
        }
        elsewhere.store.ingest(&elsewhere.path("tree"))?
    };
    transfers(&elsewhere.store, &minter, quick())?.push(TransferId::from_bits(2), tree.object).await?;

    let ballast = disk.fill()?;
    let error = store.import(&large).unwrap_err();
    assert!(error.is_no_space(), "{error:?}");
    for object in [object, tree.object] {
        let error = transfers(&store, &minter, quick())?.fetch(object).await.unwrap_err();
        assert!(matches!(error, FetchError::NoSpace), "{error:?}");
        assert!(!store.contains(object));
    }
    assert!(!partial(&store)?.iter().any(|name| name.starts_with("fetch-")), "{:?}", partial(&store)?);
    store.scrub(kept.object)?;
    let stats = store.stats();
    assert_eq!(stats.quarantined, 0);

    fs::remove_file(ballast)?;
    store.import(&large)?;
    transfers(&store, &minter, quick())?.fetch(tree.object).await?;
    for object in [kept.object, object, tree.object] {
        store.scrub(object)?;
    }
    let lent = store.materialise(&disk.root().join("in"), &Entry::for_value("t", &tree.value))?;
    assert_eq!((lent.files, lent.bytes_copied), (200, 0));
    drop(store);
    let store = SiteStore::open(&disk.root().join("store"))?;
    assert_eq!(store.stats().quarantined, 0);
    store.scrub(tree.object)?;
    drop(store);
    Ok(())
}

/// Taking in many small files runs out of space somewhere in the middle, wherever that is.
#[tokio::test(flavor = "multi_thread")]
async fn e1_an_output_that_does_not_fit_leaves_the_store_as_it_was() -> Result<()> {
    let disk = SmallDisk::new()?;
    let store = SiteStore::open(&disk.root().join("store"))?;
    for index in 0..300 {
        write(&disk.root().join(format!("out/tree/{index}")), &noise(1_000, index as u8))?;
    }
    let sealed = store.seal("claim", &disk.root().join("out/tree"))?;
    let ballast = disk.fill()?;
    // Manifests have to be written, which is all that taking in needs space for.
    match store.commit(sealed.seal) {
        Ok(_) => {}
        Err(error) => assert!(error.is_no_space(), "{error:?}"),
    }
    fs::remove_file(ballast)?;
    let stored = store.commit(sealed.seal)?;
    store.scrub(stored.object)?;
    assert_eq!(store.listing(stored.object.id, 1_000)?.len(), 300);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn e1_a_full_bucket_is_said_so_and_its_uploads_can_be_done_again() -> Result<()> {
    let disk = SmallDisk::new()?;
    let options =
        storage_sync_engine::bucket::BucketOptions { serve_url: "http://127.0.0.1:1".to_owned(), ..Default::default() };
    let bucket =
        Arc::new(storage_sync_engine::bucket::Bucket::open(&disk.root().join("bucket").to_string_lossy(), options)?);
    let bytes = noise(1 << 20, 3);
    let object = atoll_model::value::ObjectRef {
        id: atoll_model::id::ObjectId::from_digest(*blake3::hash(&bytes).as_bytes()),
        kind: atoll_model::value::ObjectKind::File,
        bytes: bytes.len() as u64,
    };
    let stream = || -> storage_sync_engine::bucket::ByteStream {
        let chunk = Ok(bytes::Bytes::from(bytes.clone()));
        Box::pin(futures::stream::iter([chunk]))
    };
    let ballast = disk.fill()?;
    let error = bucket.put_stream(object, stream()).await.unwrap_err();
    assert!(matches!(error, storage_sync_engine::bucket::BucketError::NoSpace), "{error:?}");
    assert_eq!(bucket.stream_bytes(object).await?, None);
    fs::remove_file(ballast)?;
    bucket.put_stream(object, stream()).await?;
    assert_eq!(bucket.stream_bytes(object).await?, Some(object.bytes));
    Ok(())
}
