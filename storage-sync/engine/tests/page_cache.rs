//! D9: what the system remembers of a file is not what stands on the disk. On a real file system, made for the test; needs
//! root, as CI has it.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::fs;

use anyhow::Result;
use storage_sync_engine::store::SiteStore;
use support::disk::SmallDisk;
use support::{noise, object_path};

#[test]
fn d9_a_fault_of_the_disk_that_the_page_cache_hides_is_found_by_a_scrub() -> Result<()> {
    let disk = SmallDisk::new()?;
    let store = SiteStore::open(&disk.root().join("store"))?;
    let bytes = noise(3 << 20, 9);
    let made = disk.root().join("made");
    fs::write(&made, &bytes)?;
    let object = store.ingest(&made)?.object;
    store.scrub(object)?;
    // Whoever reads it has it in memory now.
    let path = object_path(&store, "objects", object.id);
    assert!(fs::read(&path)? == bytes);
    disk.damage(&bytes[1 << 20..(1 << 20) + 1024])?;
    assert!(fs::read(&path)? == bytes, "the page cache does not hide what happened to the disk");
    let error = store.scrub(object).unwrap_err();
    assert!(error.to_string().contains(&object.id.to_string()), "{error}");
    assert!(store.verify(object).is_err(), "what a scrub found is not handed over any more");
    Ok(())
}
