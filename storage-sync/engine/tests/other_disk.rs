//! A store and executions on different file systems, and a store that somebody else has. Mounting needs root, as CI has it.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use anyhow::Result;
use storage_sync_engine::store::{Entry, IngestError, SiteStore, StoreError};
use support::disk::SmallDisk;
use support::{Site, damage, look, noise, object_path};

fn write(folder: &Path, name: &str, bytes: &[u8]) -> Result<PathBuf> {
    let path = folder.join(name);
    fs::create_dir_all(path.parent().unwrap())?;
    fs::write(&path, bytes)?;
    Ok(path)
}

#[test]
fn an_output_of_another_file_system_is_copied_counted_and_removed_there() -> Result<()> {
    let (site, disk) = (Site::new()?, SmallDisk::new()?);
    let output = disk.root().join("out/t");
    let large = noise((9 << 20) + 7, 1);
    write(&output, "large", &large)?;
    write(&output, "below/small", b"abc")?;
    std::os::unix::fs::symlink("below/small", output.join("link"))?;
    let holed = fs::File::create(output.join("holed"))?;
    holed.set_len(20 << 20)?;
    drop(holed);
    let before = look(&output)?;
    let stored = site.store.ingest(&output)?;
    assert_eq!(stored.bytes_copied, large.len() as u64 + 3, "holes are not copied");
    assert_eq!(site.store.stats().bytes_copied, stored.bytes_copied);
    assert!(!output.exists());
    site.store.scrub(stored.object)?;
    // The same tree, made beside the store, is the same object.
    for (name, bytes) in [("t/large", &large[..]), ("t/below/small", b"abc")] {
        site.write(name, bytes)?;
    }
    std::os::unix::fs::symlink("below/small", site.path("t/link"))?;
    fs::File::create(site.path("t/holed"))?.set_len(20 << 20)?;
    let moved = site.store.ingest(&site.path("t"))?;
    assert_eq!((moved.object, moved.bytes_copied, moved.bytes_new), (stored.object, 0, 0));

    let entries = Entry::for_value("t", &stored.value);
    let linked = site.store.materialise(&site.path("in"), &entries)?;
    assert_eq!(linked.bytes_copied, 0);
    let lent = site.store.materialise(&disk.root().join("in"), &entries)?;
    assert_eq!(lent.bytes_copied, stored.bytes_copied);
    assert_eq!(look(&disk.root().join("in/t/t"))?, before);
    Ok(())
}

#[test]
fn an_output_that_does_not_fit_stays_where_it_was_made_and_can_be_taken_in_later() -> Result<()> {
    let (site, disk) = (Site::new()?, SmallDisk::new()?);
    let store = SiteStore::open(&disk.root().join("store"))?;
    for index in 0..40 {
        site.write(&format!("out/t/{index}"), &noise(1 << 20, index))?;
    }
    let output = site.path("out/t");
    let before = look(&output)?;
    let ballast = disk.fill()?;
    let error = store.seal("execution/out", &output).unwrap_err();
    assert!(error.is_no_space(), "{error:?}");
    assert_eq!(look(&output)?, before);
    assert_eq!(fs::read_dir(disk.root().join("store/partial"))?.count(), 0);
    fs::remove_file(ballast)?;
    let sealed = store.seal("execution/out", &output)?;
    let stored = store.commit(sealed.seal)?;
    store.scrub(stored.object)?;
    assert_eq!((stored.bytes_copied, output.exists()), (40 << 20, false));
    Ok(())
}

#[test]
fn a_copy_that_a_killed_process_has_begun_is_never_taken_for_the_whole() -> Result<()> {
    let (site, disk) = (Site::new()?, SmallDisk::new()?);
    let output = disk.root().join("out/t");
    write(&output, "first", b"first")?;
    write(&output, "second", b"second")?;
    // What is on disk when a process dies in the middle: a claim, and a part of the copy where copies are made.
    let sealed = site.store.seal("execution/out", &output)?;
    let log = fs::read_to_string(site.store.root().join("sealed/log"))?;
    let claim = log.lines().find(|line| line.contains("execution/out")).unwrap().to_owned();
    site.store.drop_seal(sealed.seal)?;
    write(&output, "first", b"first")?;
    write(&output, "second", b"second")?;
    let root = site.store.root().to_owned();
    let Site { folder, store } = site;
    drop(store);
    fs::write(root.join("sealed/log"), format!("{claim}\n"))?;
    write(&root.join("partial/tmp-7"), "first", b"fir")?;
    let store = SiteStore::open(&root)?;
    assert!(store.seals().is_empty());
    assert!(!root.join("partial/tmp-7").exists());
    let stored = store.commit(store.seal("execution/out", &output)?.seal)?;
    assert_eq!(store.listing(stored.object.id, 10)?.len(), 2);
    store.scrub(stored.object)?;
    drop(folder);
    Ok(())
}

#[test]
fn d5_a_damaged_file_is_not_copied_to_an_execution() -> Result<()> {
    let (site, disk) = (Site::new()?, SmallDisk::new()?);
    let stored = site.store.ingest(&site.write("out/file", b"as it was made")?)?;
    damage(&object_path(&site.store, "objects", stored.object.id))?;
    let error = site.store.materialise(&disk.root().join("in"), &Entry::for_value("file", &stored.value)).unwrap_err();
    assert!(matches!(error, StoreError::Damaged { .. }), "{error:?}");
    assert!(!site.store.contains(stored.object));
    Ok(())
}

#[test]
fn e7_a_store_that_another_agent_has_is_refused_with_the_way_out() -> Result<()> {
    let site = Site::new()?;
    let path = site.path("link");
    std::os::unix::fs::symlink(site.store.root(), &path)?;
    let stored = site.store.ingest(&site.write("out/file", b"kept")?)?;
    for root in [site.store.root(), &path] {
        let error = SiteStore::open(root).unwrap_err();
        assert!(matches!(error, StoreError::InUse(_)), "{error:?}");
        assert!(error.to_string().contains("give each a data directory of its own"), "{error}");
    }
    // Whoever was refused has done nothing to it.
    site.store.scrub(stored.object)?;
    let again = site.store.ingest(&site.write("out/file", b"kept")?)?;
    assert_eq!((again.object, again.bytes_new), (stored.object, 0));
    assert!(matches!(site.store.ingest(&site.path("none")), Err(IngestError::Missing(_))));
    let site = site.reopen()?;
    assert_eq!(site.store.stats().objects, 1);
    assert_eq!(object_path(&site.store, "objects", stored.object.id).metadata()?.nlink(), 1);
    Ok(())
}
