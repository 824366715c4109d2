//! A durable journal of batches and one checkpoint, on sled or redb.
//!
//! A *batch* is opaque bytes that its owner wants to find again whole or not at all; a *checkpoint* is opaque bytes that
//! stand for every batch appended before it. Each is cut into records of at most 16 KiB, each record is framed with its
//! place and a checksum, and all records of a batch are applied in one atomic write of the store.
//!
//! Call [`open`] once, then on one thread [`Journal::append`] as often as wanted, [`Journal::barrier`] before anybody is
//! told, [`Journal::checkpoint`] when [`JournalStats::live_bytes`] has grown, [`Journal::compact_if_needed`] when idle.
//!
//! Invariants:
//! - what a barrier has covered is found again after `kill -9` and after power loss, whole and in order;
//! - a damaged or missing record is an [`IntegrityFault`] that names its place, never skipped;
//! - nothing that was acknowledged is cut: the watermark file says how far barriers have come, so a store that lost its
//!   tail is told apart from one that lost what nobody was told about;
//! - a broken journal stays where it is until its owner calls [`set_aside`], and is never deleted.
//!
//! Beside it, [`Tables`] keep what is looked up by its key, such as the history of runs.
//!
//! What it does not: it knows nothing of what the bytes mean, and has no thread of its own (sled has).

mod backend;
mod directory;
mod error;
mod frame;
mod generation;
mod guard;
mod inspection;
mod journal;
mod options;
mod space;
mod store;
mod tables;
mod watermark;

pub use backend::{Backend, MemoryDisk, UnknownBackend};
pub use directory::set_aside;
pub use error::{IntegrityFault, JournalError, OpenError};
pub use inspection::{Inspection, inspect};
pub use journal::{BATCH_BYTES_MAX, Journal, open};
pub use options::{BatchSeq, JournalId, JournalStats, Opened, Options, Repair};
pub use tables::{TableChange, Tables, TablesError};
