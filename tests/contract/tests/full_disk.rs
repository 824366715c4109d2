//! E1: a full disk. Needs a small file system of its own: root, or user namespaces.
#![expect(clippy::unwrap_used, reason = "a failed assertion is the result of a test")]

use std::process::Command;
use std::time::Duration;

use anyhow::{Result, ensure};
use contract_tests::journal_child::run_within;
use storage_sync_journal::Backend;

fn fill_the_disk(backend: Backend) -> Result<()> {
    let scratch = tempfile::tempdir()?;
    let script = r#"mount -t tmpfs -o size=96m tmpfs "$1" && exec "$2" full-disk "$1" "$3""#;
    let mut command = Command::new("unshare");
    command.args(["--mount", "--user", "--map-root-user", "sh", "-c", script, "sh"]);
    command.arg(scratch.path()).arg(env!("CARGO_BIN_EXE_journal-child")).arg(backend.to_string());
    let output = run_within(&mut command, Duration::from_secs(60))?;
    let said = String::from_utf8_lossy(&output.stdout);
    println!("{said}");
    ensure!(output.status.success(), "{backend}: {said}");
    Ok(())
}

#[test]
fn e1_a_journal_on_sled_outlives_a_full_disk() {
    fill_the_disk(Backend::Sled).unwrap();
}

#[test]
fn e1_a_journal_on_redb_outlives_a_full_disk() {
    fill_the_disk(Backend::Redb).unwrap();
}
