//! The journal itself: what is appended, what is durable, and what is kept.

mod opening;

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

pub use opening::open;

use crate::backend::{Backend, MemoryDisk};
use crate::directory::{Current, Directory};
use crate::error::JournalError;
use crate::frame::Record;
use crate::generation::{self, Contents, Description, LoadError, Mark, batch_records};
use crate::guard::contained_store;
use crate::space::Ballast;
use crate::store::{Store, StoreError, open_store};
use crate::watermark::Watermark;

/// Largest batch: all of its records are applied at once, from memory.
pub const BATCH_BYTES_MAX: usize = 64 << 20;
/// Records that wait for a barrier before one is made unasked.
const PENDING_BYTES_MAX: usize = 64 << 20;
/// How much larger than what lives the store may be on disk, beside [`COMPACT_SLACK_BYTES`].
const COMPACT_FACTOR: u64 = 8;
const COMPACT_SLACK_BYTES: u64 = 64 << 20;

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
    /// Bytes that the store takes on disk.
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

#[derive(Debug)]
enum Home {
    Disk { directory: Directory, watermark: Watermark, ballast: Ballast },
    Memory,
}

/// An open journal. Used from one thread.
#[derive(Debug)]
pub struct Journal {
    options: Options,
    home: Home,
    /// Absent after the disk was full, until it could be opened again.
    store: Option<Box<dyn Store>>,
    generation: u64,
    description: Description,
    /// The last batch that was appended.
    last: u64,
    /// The last batch that a barrier has covered.
    durable: u64,
    pending: Vec<(u64, Vec<Record>)>,
    pending_bytes: usize,
    failed: bool,
    stats: JournalStats,
}

impl Journal {
    /// Takes in a batch. It is not durable before the next [`Journal::barrier`]; with no room for it nothing happens.
    ///
    /// # Errors
    /// [`JournalError::NoSpace`] and [`JournalError::TooLarge`] leave the journal as it was.
    pub fn append(&mut self, batch: &[u8]) -> Result<BatchSeq, JournalError> {
        self.usable()?;
        if batch.len() > BATCH_BYTES_MAX {
            return Err(JournalError::TooLarge(batch.len()));
        }
        if self.pending_bytes > 0 && self.pending_bytes + batch.len() > PENDING_BYTES_MAX {
            self.barrier()?;
        }
        self.make_room((self.pending_bytes + batch.len()) as u64)?;
        let payload_max = self.store()?.payload_max();
        let seq = self.last + 1;
        let records = batch_records(seq, batch, payload_max);
        self.pending_bytes += records.iter().map(Record::bytes).sum::<usize>();
        self.pending.push((seq, records));
        self.last = seq;
        self.stats.appended_batches += 1;
        self.stats.appended_bytes += batch.len() as u64;
        Ok(BatchSeq(seq))
    }

    /// Makes everything appended so far durable: it survives `kill -9` and power loss from here on.
    ///
    /// # Errors
    /// After [`JournalError::NoSpace`] the batches still wait, and another barrier tries again.
    pub fn barrier(&mut self) -> Result<(), JournalError> {
        self.usable()?;
        if self.pending.is_empty() {
            return Ok(());
        }
        match self.write_pending() {
            Ok(()) => {}
            Err(StoreError::NoSpace) => self.write_pending_after_full_disk()?,
            Err(StoreError::Failed(message)) => return Err(self.fail(message)),
        }
        self.pending.clear();
        self.stats.live_bytes += self.pending_bytes as u64;
        self.stats.batch_bytes += self.pending_bytes as u64;
        self.pending_bytes = 0;
        self.durable = self.last;
        self.stats.barriers += 1;
        if let Home::Disk { watermark, .. } = &mut self.home
            && let Err(source) = watermark.set(self.description.identity, self.durable)
        {
            // The batches are durable; that the mark lags only proves less about them.
            tracing::warn!(error = %source, path = %watermark.path().display(), "could not move the watermark");
        }
        Ok(())
    }

    /// Keeps `state` in place of every batch appended so far, which are then removed. A crash at any point leaves either
    /// the batches or the checkpoint.
    ///
    /// # Errors
    /// [`JournalError::NoSpace`] leaves the journal as it was.
    pub fn checkpoint(&mut self, state: &[u8]) -> Result<(), JournalError> {
        self.barrier()?;
        let mark = Mark::of(self.last, state);
        let description = Description { checkpoint: Some(mark), format: self.options.format, ..self.description };
        self.next_generation(description, Some(state), &[])?;
        self.stats.checkpoints += 1;
        self.stats.batch_bytes = 0;
        Ok(())
    }

    /// Writes what lives into a fresh store if the present one has grown far beyond it. Returns whether it did.
    ///
    /// # Errors
    /// [`JournalError::NoSpace`] leaves the journal as it was.
    pub fn compact_if_needed(&mut self) -> Result<bool, JournalError> {
        self.usable()?;
        if let Home::Disk { ballast, .. } = &mut self.home {
            ballast.retake();
        }
        if self.store()?.disk_bytes() <= COMPACT_FACTOR * self.stats.live_bytes + COMPACT_SLACK_BYTES {
            return Ok(false);
        }
        self.barrier()?;
        let store = self.store()?;
        let contents = match contained_store(|| Ok(generation::load(&**store))) {
            Ok(Ok(contents)) => contents,
            Ok(Err(error)) => return Err(self.fail(format!("reading it back: {error:?}"))),
            Err(error) => return Err(self.fail(format!("reading it back: {error:?}"))),
        };
        self.next_generation(contents.description, contents.checkpoint.as_deref(), &contents.batches)?;
        Ok(true)
    }

    /// Which journal this is.
    pub fn identity(&self) -> JournalId {
        JournalId(self.description.identity)
    }

    /// The last batch that a barrier has covered.
    pub fn durable(&self) -> BatchSeq {
        BatchSeq(self.durable)
    }

    pub fn stats(&self) -> JournalStats {
        let ballast_held = match &self.home {
            Home::Disk { ballast, .. } => ballast.is_held(),
            Home::Memory => true,
        };
        let disk_bytes = self.store.as_ref().map_or(0, |store| store.disk_bytes());
        JournalStats { disk_bytes, ballast_held, ..self.stats }
    }

    fn usable(&self) -> Result<(), JournalError> {
        if self.failed { Err(JournalError::Failed) } else { Ok(()) }
    }

    fn fail(&mut self, message: String) -> JournalError {
        self.failed = true;
        JournalError::Store(message)
    }

    fn make_room(&mut self, bytes: u64) -> Result<(), JournalError> {
        let Home::Disk { ballast, .. } = &mut self.home else { return Ok(()) };
        // Stores rewrite their inner pages and leaves while they grow: several times what is put in.
        if ballast.make_room(bytes.saturating_mul(4)) { Ok(()) } else { Err(JournalError::NoSpace) }
    }

    fn store(&mut self) -> Result<&mut Box<dyn Store>, JournalError> {
        if self.store.is_none() {
            self.reopen()?;
        }
        self.store.as_mut().ok_or(JournalError::NoSpace)
    }

    fn write_pending(&mut self) -> Result<(), StoreError> {
        let Some(store) = &mut self.store else { return Err(StoreError::NoSpace) };
        let pending = &self.pending;
        let syncs = contained_store(|| {
            for (_, records) in pending {
                store.apply(records)?;
            }
            store.sync()
        })?;
        self.stats.syncs += u64::from(syncs);
        Ok(())
    }

    /// A store that met a full disk takes nothing more until it is opened again; what it had not yet synced may be there
    /// or not.
    fn write_pending_after_full_disk(&mut self) -> Result<(), JournalError> {
        if let Home::Disk { ballast, .. } = &mut self.home {
            ballast.release();
        }
        self.store = None;
        self.reopen()?;
        match self.write_pending() {
            Ok(()) => Ok(()),
            Err(StoreError::NoSpace) => {
                self.store = None;
                Err(JournalError::NoSpace)
            }
            Err(StoreError::Failed(message)) => Err(self.fail(message)),
        }
    }

    /// Opens the current generation again. What waits is written again as it was, so batches that did get there count
    /// once.
    fn reopen(&mut self) -> Result<(), JournalError> {
        let opened = match &self.home {
            Home::Disk { directory, .. } => opening::load_generation(&self.options, directory, self.generation),
            Home::Memory => return Ok(()),
        };
        match opened {
            Ok((store, contents)) => {
                self.store = Some(store);
                self.check_reopened(&contents)
            }
            Err(LoadError::NoSpace) => Err(JournalError::NoSpace),
            Err(error) => Err(self.fail(format!("after the disk was full: {error:?}"))),
        }
    }

    fn check_reopened(&mut self, contents: &Contents) -> Result<(), JournalError> {
        if contents.last() < self.durable || contents.last() > self.last {
            let message = format!("after the disk was full it ends with batch {}", contents.last());
            return Err(self.fail(message));
        }
        Ok(())
    }

    fn next_generation(
        &mut self,
        description: Description,
        checkpoint: Option<&[u8]>,
        batches: &[(u64, Vec<u8>)],
    ) -> Result<(), JournalError> {
        let batch_bytes: usize = batches.iter().map(|(_, batch)| batch.len()).sum();
        self.make_room((checkpoint.map_or(0, <[u8]>::len) + batch_bytes) as u64)?;
        let generation = self.generation + 1;
        let made = match &self.home {
            Home::Disk { directory, .. } => {
                make_generation(&self.options, directory, generation, description, checkpoint, batches)
            }
            Home::Memory => make_memory_generation(&self.options, generation, description, checkpoint, batches),
        };
        let (store, live_bytes) = match made {
            Ok(made) => made,
            Err(error) => {
                return Err(match (error, &self.home) {
                    (StoreError::NoSpace, Home::Disk { directory, .. }) if !directory.counts(generation) => {
                        directory.remove_generation(generation);
                        JournalError::NoSpace
                    }
                    (StoreError::NoSpace, _) => self.fail("the disk was full while CURRENT was replaced".to_owned()),
                    (StoreError::Failed(message), _) => self.fail(message),
                });
            }
        };
        self.store = Some(store);
        let old = std::mem::replace(&mut self.generation, generation);
        self.description = description;
        self.stats.live_bytes = live_bytes;
        match &mut self.home {
            Home::Disk { directory, watermark, ballast } => {
                directory.remove_generation(old);
                if let Err(error) = watermark.sync() {
                    tracing::warn!(%error, path = %watermark.path().display(), "could not sync the watermark");
                }
                ballast.retake();
            }
            Home::Memory => {
                self.options.memory.state().durable.remove(&old);
            }
        }
        Ok(())
    }
}

impl Drop for Journal {
    fn drop(&mut self) {
        if let Home::Disk { watermark, .. } = &self.home
            && let Err(error) = watermark.sync()
        {
            tracing::warn!(%error, path = %watermark.path().display(), "could not sync the watermark");
        }
        let store = self.store.take();
        if let Err(message) = crate::guard::contained(|| drop(store)) {
            tracing::warn!(%message, "closing the journal's store");
        }
        if matches!(self.home, Home::Memory) {
            self.options.memory.state().locked = false;
        }
    }
}

/// Makes a generation in the wanted store and lets it be the one that counts.
fn make_generation(
    options: &Options,
    directory: &Directory,
    generation: u64,
    description: Description,
    checkpoint: Option<&[u8]>,
    batches: &[(u64, Vec<u8>)],
) -> Result<(Box<dyn Store>, u64), StoreError> {
    directory.remove_generation(generation);
    contained_store(|| {
        let path = directory.generation_path(generation);
        let mut store = open_store(options.backend, &path, generation, options.cache_bytes, &options.memory)?;
        let live_bytes = generation::write(&mut *store, description, checkpoint, batches)?;
        directory.set_current(Current { generation, backend: options.backend })?;
        Ok((store, live_bytes))
    })
}

fn make_memory_generation(
    options: &Options,
    generation: u64,
    description: Description,
    checkpoint: Option<&[u8]>,
    batches: &[(u64, Vec<u8>)],
) -> Result<(Box<dyn Store>, u64), StoreError> {
    let path = PathBuf::new();
    let mut store = open_store(Backend::Memory, &path, generation, options.cache_bytes, &options.memory)?;
    let live_bytes = generation::write(&mut *store, description, checkpoint, batches)?;
    options.memory.state().current = Some(generation);
    Ok((store, live_bytes))
}
