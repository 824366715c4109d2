//! The seam to the stores: ordered keys, records added in order, one barrier. Three implementations, two of them behind a log
//! of their own, and one contract suite (`tests/contract`).

mod ahead;
mod memory_store;
mod redb_store;
mod sled_store;

pub(crate) use ahead::AheadStore;
pub(crate) use memory_store::MemoryStore;
pub(crate) use redb_store::RedbStore;
pub(crate) use sled_store::SledStore;

use std::fmt::Debug;
use std::io;
use std::path::Path;

use crate::backend::{Backend, MemoryDisk};
use crate::frame::{KEY_BYTES, Record};

/// What a store says when it fails.
#[derive(Debug)]
pub(crate) enum StoreError {
    /// The disk is full.
    NoSpace,
    /// Anything else, in the store's words.
    Failed(String),
}

impl From<io::Error> for StoreError {
    fn from(error: io::Error) -> Self {
        if is_out_of_space(&error) { Self::NoSpace } else { Self::Failed(error.to_string()) }
    }
}

pub(crate) fn is_out_of_space(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// Takes one record in the order of keys; says whether to go on.
pub(crate) type Visit<'a> = &'a mut dyn FnMut(&[u8], &[u8]) -> bool;

/// One generation of a journal in one store. Used from one thread.
pub(crate) trait Store: Debug + Send {
    /// Largest payload of a record in this store.
    fn payload_max(&self) -> usize;
    /// Writes records in their order, not yet durable. After a crash all of them may be there, or the first few, or none.
    fn apply(&mut self, records: &[Record]) -> Result<(), StoreError>;
    /// Makes everything applied durable, and says how many syncs that took.
    fn sync(&mut self) -> Result<u32, StoreError>;
    /// Visits all records in the order of their keys.
    fn scan(&self, visit: Visit<'_>) -> Result<(), StoreError>;
    /// The last key.
    fn last(&self) -> Result<Option<[u8; KEY_BYTES]>, StoreError>;
    /// Bytes on disk.
    fn disk_bytes(&self) -> u64;
}

/// Opens the store of a generation in `directory`, making it if it is not there.
pub(crate) fn open_store(
    backend: Backend,
    directory: &Path,
    generation: u64,
    cache_bytes: u64,
    disk: &MemoryDisk,
) -> Result<Box<dyn Store>, StoreError> {
    let log = directory.join("ahead");
    Ok(match backend {
        Backend::Sled => Box::new(AheadStore::open(SledStore::open(directory, cache_bytes)?, log)?),
        Backend::Redb => Box::new(AheadStore::open(RedbStore::open(directory, cache_bytes)?, log)?),
        Backend::Memory => Box::new(MemoryStore::open(disk.clone(), generation)),
    })
}

/// Bytes of all files below `directory`, as far as they can be read.
pub(crate) fn directory_bytes(directory: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let Ok(entries) = std::fs::read_dir(directory) else { return 0 };
    entries
        .flatten()
        .map(|entry| match entry.metadata() {
            Ok(metadata) if metadata.is_dir() => directory_bytes(&entry.path()),
            Ok(metadata) => metadata.blocks() * 512,
            Err(_) => 0,
        })
        .sum()
}
