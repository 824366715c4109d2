//! The contract of a journal, the same for every store.
#![expect(clippy::unwrap_used, reason = "a failed assertion is the result of a test")]

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use contract_tests::journal_child::copy_directory;
use contract_tests::journals::{Bench, Database, Place, Refusal};
use contract_tests::random::Random;
use storage_sync_journal::{
    BATCH_BYTES_MAX, Backend, BatchSeq, IntegrityFault, JournalError, MemoryDisk, OpenError, Opened, Options, open,
    set_aside,
};

fn batches(opened: &Opened) -> Vec<(u64, Vec<u8>)> {
    opened.batches.iter().map(|(seq, batch)| (seq.0, batch.clone())).collect()
}

fn batches_come_back_in_order(place: &dyn Place) -> Result<()> {
    let mut opened = place.open(1)?;
    assert!(opened.created && opened.checkpoint.is_none() && opened.batches.is_empty());
    let mut written = Vec::new();
    let mut random = Random::new(1);
    for round in 1..=60u64 {
        let mut batch = vec![0; random.below(30_000) as usize];
        random.fill(&mut batch);
        assert_eq!(opened.journal.append(&batch)?, BatchSeq(round));
        written.push((round, batch));
        if random.one_in(3) {
            opened.journal.barrier()?;
        }
    }
    opened.journal.barrier()?;
    assert_eq!(opened.journal.durable(), BatchSeq(60));
    drop(opened);
    let opened = place.open(1)?;
    assert!(!opened.created && opened.repaired.is_empty(), "{:?}", opened.repaired);
    assert_eq!(opened.batches(), written);
    Ok(())
}

fn an_empty_batch_and_the_largest_come_back(place: &dyn Place) -> Result<()> {
    let mut large = vec![0; BATCH_BYTES_MAX];
    Random::new(2).fill(&mut large);
    let mut journal = place.open(1)?.journal;
    journal.append(b"")?;
    journal.append(&large)?;
    large.push(0);
    assert!(matches!(journal.append(&large), Err(JournalError::TooLarge(_))));
    large.pop();
    assert_eq!(journal.append(b"after")?, BatchSeq(3));
    journal.barrier()?;
    drop(journal);
    let opened = place.open(1)?;
    assert_eq!(opened.batches(), [(1, Vec::new()), (2, large), (3, b"after".to_vec())]);
    Ok(())
}

fn a_checkpoint_stands_for_the_batches_before_it(place: &dyn Place) -> Result<()> {
    let mut journal = place.open(1)?.journal;
    let mut state = vec![0; 3_000_000];
    Random::new(3).fill(&mut state);
    for _ in 0..20 {
        journal.append(&[1; 10_000])?;
    }
    journal.checkpoint(&state)?;
    assert_eq!(journal.append(b"later")?, BatchSeq(21));
    journal.barrier()?;
    assert_eq!(journal.stats().batch_bytes, journal.stats().live_bytes.min(journal.stats().batch_bytes));
    drop(journal);
    let opened = place.open(1)?;
    assert_eq!(opened.checkpoint, Some((BatchSeq(20), state)));
    assert_eq!(opened.batches(), [(21, b"later".to_vec())]);
    let mut journal = opened.journal;
    journal.checkpoint(b"")?;
    drop(journal);
    let opened = place.open(1)?;
    assert_eq!(opened.checkpoint, Some((BatchSeq(21), Vec::new())));
    assert!(opened.batches.is_empty());
    Ok(())
}

fn a_journal_keeps_its_identity(place: &dyn Place) -> Result<()> {
    let mut journal = place.open(1)?.journal;
    let identity = journal.identity();
    journal.append(b"x")?;
    journal.checkpoint(b"state")?;
    drop(journal);
    assert_eq!(place.open(1)?.journal.identity(), identity);
    let other = place.another()?;
    assert_ne!(other.open(1)?.journal.identity(), identity);
    Ok(())
}

fn a_newer_format_is_refused_and_an_older_one_is_told(place: &dyn Place) -> Result<()> {
    let mut journal = place.open(3)?.journal;
    journal.append(b"of format 3")?;
    journal.barrier()?;
    drop(journal);
    assert!(matches!(place.open(2), Err(Refusal::Newer { found: 3, supported: 2 })));
    let opened = place.open(4)?;
    assert_eq!((opened.format, opened.batches.len()), (3, 1));
    drop(opened);
    assert!(matches!(place.open(3), Err(Refusal::Newer { found: 4, supported: 3 })));
    Ok(())
}

fn a_journal_is_open_once(place: &dyn Place) -> Result<()> {
    let first = place.open(1)?;
    assert!(matches!(place.open(1), Err(Refusal::InUse)));
    drop(first);
    place.open(1)?;
    Ok(())
}

fn churn_stays_small_and_opens_fast(place: &dyn Place) -> Result<()> {
    let mut journal = place.open(1)?.journal;
    let mut random = Random::new(4);
    let mut batch = vec![0; 8_000];
    let mut disk_most = 0;
    for round in 0..6_000u64 {
        random.fill(&mut batch);
        journal.append(&batch)?;
        if round % 20 == 0 {
            journal.barrier()?;
        }
        if round % 500 == 499 {
            disk_most = disk_most.max(journal.stats().disk_bytes);
            journal.checkpoint(&batch)?;
        }
    }
    journal.barrier()?;
    journal.compact_if_needed()?;
    let stats = journal.stats();
    println!("{place:?}: {} bytes appended, at most {disk_most} on disk", stats.appended_bytes);
    ensure!(stats.appended_bytes == 48_000_000, "{stats:?}");
    ensure!(disk_most < 40 << 20, "{disk_most} bytes on disk for 4 MB between checkpoints");
    ensure!(stats.disk_bytes < 4 << 20, "{stats:?}");
    drop(journal);
    let start = std::time::Instant::now();
    let opened = place.open(1)?;
    ensure!(start.elapsed().as_secs() < 5, "it took {:?} to open", start.elapsed());
    ensure!(opened.batches.is_empty() && opened.checkpoint == Some((BatchSeq(6_000), batch)));
    Ok(())
}

/// One test for each claim and each store.
macro_rules! contract {
    ($($claim:ident),* $(,)?) => {
        mod sled {
            $(#[test] fn $claim() { super::$claim(&super::Bench::new(super::Backend::Sled).unwrap()).unwrap(); })*
        }
        mod redb {
            $(#[test] fn $claim() { super::$claim(&super::Bench::new(super::Backend::Redb).unwrap()).unwrap(); })*
        }
        mod memory {
            $(#[test] fn $claim() { super::$claim(&super::Bench::new(super::Backend::Memory).unwrap()).unwrap(); })*
        }
        mod postgres {
            $(#[test] fn $claim() {
                if let Some(database) = super::Database::fresh().unwrap() {
                    super::$claim(&database).unwrap();
                }
            })*
        }
    };
}

contract!(
    batches_come_back_in_order,
    an_empty_batch_and_the_largest_come_back,
    a_checkpoint_stands_for_the_batches_before_it,
    a_journal_keeps_its_identity,
    a_newer_format_is_refused_and_an_older_one_is_told,
    a_journal_is_open_once,
    churn_stays_small_and_opens_fast,
);

#[test]
fn a_crash_of_a_disk_in_memory_drops_what_no_barrier_covered() {
    let disk = MemoryDisk::default();
    let mut journal = open(Options::in_memory(disk.clone(), 1)).unwrap().journal;
    journal.append(b"durable").unwrap();
    journal.barrier().unwrap();
    journal.append(b"pending").unwrap();
    drop(journal);
    disk.crash();
    let opened = open(Options::in_memory(disk, 1)).unwrap();
    assert_eq!(batches(&opened), [(1, b"durable".to_vec())]);
}

#[test]
fn e7_two_processes_never_open_one_journal() {
    let bench = Bench::new(Backend::Sled).unwrap();
    let directory = bench.options(1).directory;
    let mut holder = Command::new(env!("CARGO_BIN_EXE_journal-child"))
        .arg("hold")
        .args([directory.as_os_str(), "sled".as_ref()])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(holder.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, "held\n");
    let refused = open(bench.options(1)).unwrap_err();
    let OpenError::Locked { holder: who, .. } = &refused else { panic!("{refused:?}") };
    assert!(who.contains(&format!("process {}", holder.id())), "{who}");
    assert!(matches!(set_aside(&directory), Err(OpenError::Locked { .. })));
    drop(holder.stdin.take());
    assert!(holder.wait().unwrap().success());
    open(bench.options(1)).unwrap();
}

fn damage_the_middle(file: &Path) -> Result<()> {
    let mut bytes = std::fs::read(file)?;
    for place in (0..bytes.len()).step_by(1_000) {
        bytes[place] ^= 0xFF;
    }
    Ok(std::fs::write(file, bytes)?)
}

#[test]
fn a16_a_broken_journal_is_set_aside_and_the_next_has_a_new_identity() {
    for (backend, file) in [(Backend::Sled, "db"), (Backend::Redb, "journal.redb")] {
        let bench = Bench::new(backend).unwrap();
        let mut journal = open(bench.options(1)).unwrap().journal;
        let identity = journal.identity();
        for _ in 0..50 {
            journal.append(&[7; 5_000]).unwrap();
        }
        journal.barrier().unwrap();
        drop(journal);
        let directory = bench.options(1).directory;
        damage_the_middle(&directory.join("journal.1").join(file)).unwrap();
        let damaged = open(bench.options(1)).unwrap_err();
        assert!(matches!(damaged, OpenError::Damaged { .. }), "{damaged:?}");
        let again = open(bench.options(1)).unwrap_err();
        assert!(matches!(again, OpenError::Damaged { .. }), "nothing was moved: {again:?}");
        let bad = set_aside(&directory).unwrap();
        assert!(bad.join("journal.1").join(file).exists());
        let opened = open(bench.options(1)).unwrap();
        assert!(opened.created && opened.batches.is_empty());
        assert_ne!(opened.journal.identity(), identity);
    }
}

#[test]
fn a_tail_that_was_acknowledged_and_is_gone_is_a_fault() {
    for backend in [Backend::Sled, Backend::Redb] {
        let bench = Bench::new(backend).unwrap();
        let directory = bench.options(1).directory;
        let mut journal = open(bench.options(1)).unwrap().journal;
        journal.append(b"first").unwrap();
        journal.barrier().unwrap();
        drop(journal);
        let older = bench.path().join("older");
        copy_directory(&directory.join("journal.1"), &older).unwrap();
        let mut journal = open(bench.options(1)).unwrap().journal;
        journal.append(b"second").unwrap();
        journal.barrier().unwrap();
        drop(journal);
        std::fs::remove_dir_all(directory.join("journal.1")).unwrap();
        std::fs::rename(older, directory.join("journal.1")).unwrap();
        let fault = open(bench.options(1)).unwrap_err();
        let OpenError::Damaged { fault, .. } = &fault else { panic!("{fault:?}") };
        assert!(matches!(fault, IntegrityFault::AcknowledgedMissing { last: 1, acknowledged: 2 }), "{fault}");
    }
}

#[test]
fn a_journal_is_carried_over_from_one_store_to_the_other() {
    let bench = Bench::new(Backend::Sled).unwrap();
    let mut journal = open(bench.options(1)).unwrap().journal;
    let identity = journal.identity();
    journal.append(b"before").unwrap();
    journal.checkpoint(b"state").unwrap();
    journal.append(b"one").unwrap();
    journal.barrier().unwrap();
    drop(journal);
    for backend in [Backend::Redb, Backend::Sled] {
        let opened = open(Options { backend, ..bench.options(1) }).unwrap();
        assert_eq!(opened.checkpoint, Some((BatchSeq(1), b"state".to_vec())));
        assert_eq!(batches(&opened), [(2, b"one".to_vec())]);
        assert_eq!(opened.journal.identity(), identity);
        assert_eq!(opened.repaired.len(), 1, "{:?}", opened.repaired);
    }
}

#[test]
fn every_barrier_takes_a_sync() -> Result<()> {
    for backend in [Backend::Sled, Backend::Redb] {
        let bench = Bench::new(backend)?;
        let mut journal = open(bench.options(1))?.journal;
        for round in 0..50u64 {
            journal.append(&round.to_be_bytes())?;
            journal.barrier()?;
            journal.barrier().context("of nothing")?;
        }
        let stats = journal.stats();
        assert_eq!(stats.barriers, 50);
        assert!(stats.syncs >= stats.barriers, "{stats:?}");
    }
    Ok(())
}
