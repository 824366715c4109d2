//! What goes into opening a journal, and what comes out of it.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use crate::backend::{Backend, MemoryDisk};
use crate::journal::Journal;

/// Number of a batch, from 1, without gaps, never used twice in the life of a journal.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BatchSeq(pub u64);

impl fmt::Display for BatchSeq {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "batch {}", self.0)
    }
}

/// Which journal this is: drawn when it is made, kept as long as it lives.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct JournalId(pub u128);

impl fmt::Display for JournalId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "journal_{:032x}", self.0)
    }
}

impl fmt::Debug for JournalId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// How to open a journal.
#[derive(Clone, Debug)]
pub struct Options {
    /// The journal's own directory; made if it is not there.
    pub directory: PathBuf,
    /// The store to use. A journal that is in the other one is carried over when it is opened.
    pub backend: Backend,
    /// Version of the payloads' format that the owner writes; a journal with a higher one is refused.
    pub format: u16,
    /// Memory that the store may use as its cache.
    pub cache_bytes: u64,
    /// Size of the file that is given up when the disk is full; 0 for none.
    pub ballast_bytes: u64,
    /// Opens also on NFS, Lustre and the like, where a barrier may promise too much.
    pub allow_network_file_system: bool,
    /// How long opening may take, beside a second for each 16 MiB on disk.
    pub patience: Duration,
    /// The disk of [`Backend::Memory`].
    pub memory: MemoryDisk,
}

impl Options {
    pub fn new(directory: impl Into<PathBuf>, backend: Backend, format: u16) -> Self {
        Self {
            directory: directory.into(),
            backend,
            format,
            cache_bytes: 16 << 20,
            ballast_bytes: 64 << 20,
            allow_network_file_system: false,
            patience: Duration::from_secs(20),
            memory: MemoryDisk::default(),
        }
    }

    /// A journal on a disk in memory.
    pub fn in_memory(disk: MemoryDisk, format: u16) -> Self {
        Self { memory: disk, ..Self::new(PathBuf::new(), Backend::Memory, format) }
    }
}

/// Something that was put right, or left out, while a journal was opened; in words, for the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Repair(pub String);

impl fmt::Display for Repair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A journal, and what it holds.
#[derive(Debug)]
pub struct Opened {
    pub journal: Journal,
    /// The checkpoint, and the last batch that it stands for.
    pub checkpoint: Option<(BatchSeq, Vec<u8>)>,
    /// The batches after the checkpoint, in order, without gaps. All of them are durable.
    pub batches: Vec<(BatchSeq, Vec<u8>)>,
    /// Format in which checkpoint and batches were written: at most [`Options::format`].
    pub format: u16,
    /// Whether the journal was made just now.
    pub created: bool,
    pub repaired: Vec<Repair>,
}

/// Figures of a journal.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct JournalStats {
    /// Bytes of the checkpoint and of the batches after it.
    pub live_bytes: u64,
    /// Bytes of the batches after the checkpoint alone: what recovery has to go through.
    pub batch_bytes: u64,
    /// Bytes that the store took on disk when that was last looked at: not long ago.
    pub disk_bytes: u64,
    pub barriers: u64,
    /// Syncs of the store that the barriers took.
    pub syncs: u64,
    pub appended_batches: u64,
    pub appended_bytes: u64,
    pub checkpoints: u64,
    /// Whether the ballast is there. If it is not, the disk is full or was: take on no new work.
    pub ballast_held: bool,
}
