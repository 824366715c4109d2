//! The executable bit goes where its file goes.

mod support;

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::Result;
use atoll_model::value::Value;
use storage_sync_engine::store::Entry;
use support::{Seen, Site, look};

fn mode(path: &Path) -> Result<u32> {
    Ok(path.metadata()?.permissions().mode() & 0o777)
}

/// A file of mode 0755.
fn program(site: &Site, path: &str) -> Result<PathBuf> {
    let program = site.write(path, b"#!/bin/sh\n")?;
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755))?;
    Ok(program)
}

#[test]
fn an_output_that_is_one_executable_file_is_lent_as_one() -> Result<()> {
    let site = Site::new()?;
    let sealed = site.store.seal("a/out/program", &program(&site, "program")?)?;
    assert!(sealed.executable);
    let entry = Entry::for_sealed("p", &sealed.name, sealed.seal);
    site.store.materialise(&site.path("before"), std::slice::from_ref(&entry))?;
    assert_eq!(mode(&site.path("before/p/program"))?, 0o555);
    let stored = site.store.commit(sealed.seal)?;
    let Value::File(file) = &stored.value else { panic!("a file") };
    assert!(file.executable);
    site.store.materialise(&site.path("after"), &[entry])?;
    site.store.materialise(&site.path("by value"), &Entry::for_value("p", &stored.value))?;
    assert_eq!(mode(&site.path("after/p/program"))?, 0o555);
    assert_eq!(mode(&site.path("by value/p/program"))?, 0o555);

    let plain = site.store.ingest(&site.write("plain", b"#!/bin/sh\n")?)?;
    assert_eq!(plain.object, stored.object);
    site.store.materialise(&site.path("plainly"), &Entry::for_value("p", &plain.value))?;
    assert_eq!(mode(&site.path("plainly/p/plain"))?, 0o444);
    Ok(())
}

#[test]
fn a_committed_seal_of_an_executable_file_is_taken_up_again_as_one() -> Result<()> {
    let site = Site::new()?;
    let sealed = site.store.seal("a/out/program", &program(&site, "program")?)?;
    let stored = site.store.commit(sealed.seal)?;
    let site = site.reopen()?;
    let again = site.store.seal("a/out/program", &site.path("program"))?;
    assert!(again.executable);
    assert_eq!(site.store.commit(again.seal)?.value, stored.value);
    Ok(())
}

#[test]
fn an_executable_input_that_is_passed_on_or_imported_stays_executable() -> Result<()> {
    let site = Site::new()?;
    let stored = site.store.import(&program(&site, "program")?)?;
    site.store.materialise(&site.path("in"), &Entry::for_value("p", &stored.value))?;
    fs::hard_link(site.path("in/p/program"), site.path("passed on"))?;
    let passed_on = site.store.ingest(&site.path("passed on"))?;
    let (Value::File(imported), Value::File(passed_on)) = (&stored.value, &passed_on.value) else { panic!("files") };
    assert!(imported.executable && passed_on.executable);
    assert_eq!(imported.object, passed_on.object);
    Ok(())
}

#[test]
fn an_executable_file_is_executable_where_it_was_and_nowhere_else() -> Result<()> {
    let site = Site::new()?;
    site.write("t/plain", b"#!/bin/sh\n")?;
    let program = site.write("t/program", b"#!/bin/sh\n")?;
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755))?;
    let before = look(&site.path("t"))?;
    let stored = site.store.ingest(&site.path("t"))?;
    site.store.materialise(&site.path("in"), &Entry::for_value("t", &stored.value))?;
    assert_eq!(look(&site.path("in/t/t"))?, before);
    assert_eq!(before[&b"program"[..]], Seen::File { bytes: b"#!/bin/sh\n".to_vec(), executable: true });
    Ok(())
}
