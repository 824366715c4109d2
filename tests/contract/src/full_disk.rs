//! A journal on a small file system that fills up.

use std::fs::File;
use std::io::{ErrorKind, Write};
use std::path::Path;

use anyhow::{Result, bail, ensure};
use storage_sync_journal::{Backend, BatchSeq, Journal, JournalError, Options, open};

const BALLAST_BYTES: u64 = 8 << 20;

fn options(directory: &Path, backend: Backend) -> Options {
    Options { ballast_bytes: BALLAST_BYTES, ..Options::new(directory.join("journal"), backend, 1) }
}

/// Fills the file system around a journal, goes on appending, makes room again, and looks whether anything is missing.
///
/// # Errors
/// If the journal lost, doubled or half wrote anything, or failed in another way than with `NoSpace`.
pub fn survive(directory: &Path, backend: Backend) -> Result<()> {
    let mut journal = open(options(directory, backend))?.journal;
    ensure!(journal.stats().ballast_held, "there was no room for the ballast");
    let mut durable = write_one(&mut journal)?;
    let filler = fill(directory)?;
    let mut appended_without_room = 0;
    loop {
        match write_one(&mut journal) {
            Ok(seq) => durable = seq,
            Err(error) => match error.downcast_ref::<JournalError>() {
                Some(JournalError::NoSpace) => break,
                _ => return Err(error),
            },
        }
        appended_without_room += 1;
    }
    ensure!(appended_without_room > 10, "the ballast gave room for {appended_without_room} batches only");
    ensure!(!journal.stats().ballast_held, "the ballast was not given up");
    ensure!(matches!(journal.checkpoint(&vec![1; 4 << 20]), Err(JournalError::NoSpace)), "a checkpoint without room");
    std::fs::remove_file(filler)?;
    let after = write_one(&mut journal)?;
    ensure!(after.0 == durable.0 + 1, "{after} follows {durable}");
    journal.compact_if_needed()?;
    ensure!(journal.stats().ballast_held, "the ballast was not taken again");
    let last = overtaken(&mut journal, directory)?;
    drop(journal);
    let opened = open(options(directory, backend))?;
    let found: Vec<u64> = opened.batches.iter().map(|(seq, _)| seq.0).collect();
    ensure!(found == (1..=last.0).collect::<Vec<u64>>(), "{found:?} instead of all up to {last}");
    ensure!(opened.batches.iter().all(|(seq, batch)| *batch == content(seq.0)), "a batch is not what was written");
    println!("{backend}: {appended_without_room} batches on the ballast, {last} in all");
    Ok(())
}

/// Fills the disk between an append, which looks for room, and its barrier, which then has none. The threads of the store
/// before this one may let go of its files after that, which makes room again: then once more.
fn overtaken(journal: &mut Journal, directory: &Path) -> Result<BatchSeq> {
    for _ in 0..20 {
        let mut last = BatchSeq(journal.durable().0);
        for _ in 0..40 {
            last = journal.append(&content(last.0 + 1))?;
        }
        let filler = fill(directory)?;
        ensure!(journal.stats().ballast_held, "the ballast is for the barrier");
        let met_full_disk = match journal.barrier() {
            Ok(()) => !journal.stats().ballast_held,
            Err(JournalError::NoSpace) => {
                ensure!(!journal.stats().ballast_held, "no room, and the ballast was not given up");
                true
            }
            Err(error) => return Err(error.into()),
        };
        std::fs::remove_file(&filler)?;
        journal.barrier()?;
        if met_full_disk {
            last = journal.append(&content(last.0 + 1))?;
            journal.barrier()?;
            return Ok(last);
        }
    }
    bail!("no barrier met a full disk")
}

fn content(seq: u64) -> Vec<u8> {
    crate::payload::make(
        crate::payload::Claim { kind: crate::payload::Kind::Batch, run: 0, seq },
        10_000 + (seq % 7) as usize,
    )
}

fn write_one(journal: &mut Journal) -> Result<BatchSeq> {
    let next = journal.durable().0 + 1;
    let seq = journal.append(&content(next))?;
    ensure!(seq.0 == next, "{seq} instead of {next}");
    journal.barrier()?;
    Ok(seq)
}

fn fill(directory: &Path) -> Result<std::path::PathBuf> {
    let path = directory.join("filler");
    let mut file = File::create(&path)?;
    for size in [1 << 20, 4 << 10, 1] {
        let block = vec![0; size];
        loop {
            match file.write(&block) {
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::StorageFull => break,
                Err(error) => bail!("filling the disk: {error}"),
            }
        }
    }
    Ok(path)
}
