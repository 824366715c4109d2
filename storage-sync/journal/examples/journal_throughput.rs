//! How fast a journal takes batches: `cargo run --release -p storage-sync-journal --example journal_throughput [DIR]`.
//! For each store, and for a bare file with one `fdatasync` a barrier, it prints bytes and barriers a second.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::time::{Duration, Instant};

use storage_sync_journal::{Backend, Options, open};

const BATCH_BYTES: usize = 16 << 10;
const SECONDS: u64 = 4;
const SMALL_BATCH_BYTES: usize = 200;
const LATENCIES: usize = 1_000;
/// As a shell does: a checkpoint once the batches after the last one have grown this far.
const CHECKPOINT_EVERY_BYTES: u64 = 64 << 20;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let parent = std::env::args().nth(1).unwrap_or_else(|| ".".to_owned());
    println!("{:<8} {:>9} {:>9} {:>9}  microseconds for a small batch and its barrier", "store", "p50", "p90", "p99");
    for backend in [Backend::Sled, Backend::Redb] {
        let directory = tempfile::tempdir_in(&parent)?;
        latency(directory.path(), backend)?;
    }
    println!(
        "{:<8} {:>9} {:>12} {:>12} {:>12} {:>12}",
        "store", "batches/", "MB/s", "barriers/s", "checkpoints", "disk MiB"
    );
    println!("{:<8} {:>9}", "", "barrier");
    for per_barrier in [1, 8, 64] {
        for backend in [Backend::Sled, Backend::Redb] {
            let directory = tempfile::tempdir_in(&parent)?;
            journal(directory.path(), backend, per_barrier)?;
        }
        let directory = tempfile::tempdir_in(&parent)?;
        raw_file(directory.path(), per_barrier)?;
    }
    Ok(())
}

fn batch(round: u64) -> Vec<u8> {
    let mut bytes = vec![0; BATCH_BYTES];
    let mut state = round.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    for chunk in bytes.chunks_mut(8) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        chunk.copy_from_slice(&state.to_le_bytes()[..chunk.len()]);
    }
    bytes
}

fn journal(directory: &Path, backend: Backend, per_barrier: u64) -> Result<(), Box<dyn std::error::Error>> {
    let mut journal = open(Options::new(directory, backend, 1))?.journal;
    let state = vec![7; 1 << 20];
    let start = Instant::now();
    let mut round = 0;
    let mut slowest = Duration::ZERO;
    while start.elapsed() < Duration::from_secs(SECONDS) {
        for _ in 0..per_barrier {
            journal.append(&batch(round))?;
            round += 1;
        }
        journal.barrier()?;
        if journal.stats().batch_bytes > CHECKPOINT_EVERY_BYTES {
            let started = Instant::now();
            journal.checkpoint(&state)?;
            slowest = slowest.max(started.elapsed());
        }
    }
    let seconds = start.elapsed().as_secs_f64();
    let stats = journal.stats();
    println!(
        "{backend:<8} {per_barrier:>9} {:>12.1} {:>12.0} {:>12} {:>12.1}   slowest checkpoint {slowest:?}",
        stats.appended_bytes as f64 / seconds / 1e6,
        stats.barriers as f64 / seconds,
        stats.checkpoints,
        stats.disk_bytes as f64 / f64::from(1 << 20),
    );
    Ok(())
}

fn raw_file(directory: &Path, per_barrier: u64) -> Result<(), Box<dyn std::error::Error>> {
    let mut file = File::create(directory.join("raw"))?;
    let start = Instant::now();
    let (mut bytes, mut barriers, mut round) = (0, 0u64, 0);
    while start.elapsed() < Duration::from_secs(SECONDS) {
        for _ in 0..per_barrier {
            let batch = batch(round);
            file.write_all(&batch)?;
            bytes += batch.len();
            round += 1;
        }
        file.sync_data()?;
        barriers += 1;
    }
    let seconds = start.elapsed().as_secs_f64();
    println!(
        "{:<8} {per_barrier:>9} {:>12.1} {:>12.0}",
        "raw",
        bytes as f64 / seconds / 1e6,
        barriers as f64 / seconds
    );
    Ok(())
}

/// What a chain of short steps sees: one small batch, made durable, then nothing for a while.
fn latency(directory: &Path, backend: Backend) -> Result<(), Box<dyn std::error::Error>> {
    let mut journal = open(Options::new(directory, backend, 1))?.journal;
    let mut micros = Vec::with_capacity(LATENCIES);
    for round in 0..LATENCIES {
        std::thread::sleep(Duration::from_micros(500));
        let started = Instant::now();
        journal.append(&batch(round as u64)[..SMALL_BATCH_BYTES])?;
        journal.barrier()?;
        micros.push(started.elapsed().as_micros());
    }
    micros.sort_unstable();
    println!(
        "{backend:<8} {:>9} {:>9} {:>9}",
        micros[LATENCIES / 2],
        micros[LATENCIES * 9 / 10],
        micros[LATENCIES * 99 / 100]
    );
    Ok(())
}
