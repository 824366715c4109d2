//! A generation in one sled 0.34.7 database, with the rules that make it safe:
//!
//! - one tree, one thread, records only ever added;
//! - an fsync of `db` at each barrier, because sled's own flush ends in `sync_file_range`;
//! - `conf`, which sled writes and never syncs, synced by us, and the directory with it;
//! - no leaf near the size at which sled writes files of their own, which it never syncs;
//! - little under way between two syncs, and no flusher, for two reasons. sled reuses a segment of its file once what
//!   replaced it is written, not once it is synced, so after power loss both may be gone; with less than one segment of log
//!   between two syncs, what replaced a reused segment was synced before. And sled writes on seven threads, each of which
//!   takes the lock of the segment accountant; when the accountant waits for a truncation of the file it holds that lock,
//!   and the truncation waits for one of the seven: seven writes under way are a deadlock (sled #1412). Without the flusher
//!   nobody but us writes; its other work, collecting garbage, is done by moving to a fresh generation.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::frame::{FRAME_OVERHEAD, KEY_BYTES, Record};
use crate::store::{Store, StoreError, Visit, directory_bytes, is_out_of_space};

const SEGMENT_BYTES: usize = 512 << 10;
/// sled rewrites a whole leaf at once, and splits it only above 16 entries; a leaf of more than a quarter of a segment
/// would go to a file of its own, unsynced. So a leaf of 18 full records must stay below that.
const LEAF_RECORDS_MAX: usize = 18;
const PAYLOAD_BYTES_MAX: usize = SEGMENT_BYTES / 4 / LEAF_RECORDS_MAX - FRAME_OVERHEAD - KEY_BYTES - 64;

/// Records put in between two syncs: with the leaves that sled rewrites on the way they make up to five times as many bytes
/// of log, which stays below one segment.
const APPLY_BYTES: usize = 64 << 10;
/// How long the threads of a store that was dropped may take to end.
const LOCK_PATIENCE: Duration = Duration::from_secs(5);
const LOCK_PAUSE: Duration = Duration::from_millis(5);

#[derive(Debug)]
pub(crate) struct SledStore {
    database: sled::Db,
    file: File,
    directory: PathBuf,
    unflushed_bytes: usize,
}

/// The directory of the journal is locked by who opens this, so it is a store of this process that has just been dropped
/// and whose threads still end.
fn is_locked(error: &sled::Error) -> bool {
    matches!(error, sled::Error::Io(error) if error.to_string().contains("could not acquire lock"))
}

impl SledStore {
    pub(crate) fn open(directory: &Path, cache_bytes: u64) -> Result<Self, StoreError> {
        let config = sled::Config::new()
            .path(directory)
            .cache_capacity(cache_bytes)
            .segment_size(SEGMENT_BYTES)
            .flush_every_ms(None)
            .mode(sled::Mode::LowSpace)
            .use_compression(false);
        let began = Instant::now();
        let database = loop {
            match config.open() {
                Err(error) if is_locked(&error) && began.elapsed() < LOCK_PATIENCE => std::thread::sleep(LOCK_PAUSE),
                opened => break opened.map_err(failed)?,
            }
        };
        let file = File::open(directory.join("db"))?;
        let store = Self { database, file, directory: directory.to_owned(), unflushed_bytes: 0 };
        // What sled reads first, and neither syncs itself nor names durably.
        File::open(directory.join("conf"))?.sync_all()?;
        File::open(directory)?.sync_all()?;
        Ok(store)
    }
}

impl Store for SledStore {
    fn payload_max(&self) -> usize {
        PAYLOAD_BYTES_MAX
    }

    fn apply(&mut self, records: &[Record]) -> Result<(), StoreError> {
        let mut batch = sled::Batch::default();
        let mut bytes = 0;
        for record in records {
            assert!(record.frame.len() <= PAYLOAD_BYTES_MAX + FRAME_OVERHEAD, "a record too large for a leaf of sled");
            batch.insert(record.key.as_slice(), record.frame.as_slice());
            bytes += record.bytes();
            if bytes >= APPLY_BYTES {
                self.database.apply_batch(std::mem::take(&mut batch)).map_err(failed)?;
                self.sync()?;
                bytes = 0;
            }
        }
        self.database.apply_batch(batch).map_err(failed)?;
        self.unflushed_bytes += bytes;
        if self.unflushed_bytes >= APPLY_BYTES {
            self.sync()?;
        }
        Ok(())
    }

    fn sync(&mut self) -> Result<u32, StoreError> {
        self.database.flush().map_err(failed)?;
        self.unflushed_bytes = 0;
        self.file.sync_all()?;
        Ok(1)
    }

    fn scan(&self, visit: Visit<'_>) -> Result<(), StoreError> {
        for item in self.database.iter() {
            let (key, value) = item.map_err(failed)?;
            if !visit(&key, &value) {
                break;
            }
        }
        Ok(())
    }

    fn last(&self) -> Result<Option<[u8; KEY_BYTES]>, StoreError> {
        let last = self.database.last().map_err(failed)?;
        Ok(last.and_then(|(key, _)| key.as_ref().try_into().ok()))
    }

    fn disk_bytes(&self) -> u64 {
        directory_bytes(&self.directory)
    }
}

fn failed(error: sled::Error) -> StoreError {
    if let sled::Error::Io(error) = &error
        && is_out_of_space(error)
    {
        return StoreError::NoSpace;
    }
    StoreError::Failed(error.to_string())
}
