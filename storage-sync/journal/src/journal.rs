//! The journal itself: what is appended, what is durable, and what is kept.

mod opening;

use std::path::PathBuf;

pub(crate) use opening::look;
pub use opening::open;

use crate::backend::Backend;
use crate::directory::{Current, Directory};
use crate::error::JournalError;
use crate::frame::Record;
use crate::generation::{self, Contents, Description, LoadError, Mark, batch_records};
use crate::guard::contained_store;
use crate::options::{BatchSeq, JournalId, JournalStats, Options};
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
/// What it takes on disk is looked at again after so many barriers, or so many appended bytes: that walks a folder, which
/// takes longer than writing a small batch.
const LOOK_AFTER_BARRIERS: u64 = 256;
const LOOK_AFTER_BYTES: u64 = 1 << 20;

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
    looked_at: LookedAt,
}

/// How far the journal had come when it was last looked at what it takes on disk.
#[derive(Debug, Clone, Copy, Default)]
struct LookedAt {
    barriers: u64,
    appended_bytes: u64,
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
        if self.stats.barriers - self.looked_at.barriers >= LOOK_AFTER_BARRIERS
            || self.stats.appended_bytes - self.looked_at.appended_bytes >= LOOK_AFTER_BYTES
        {
            self.look_at_disk();
        }
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
        // One that a full disk has closed is opened again as soon as there is room.
        self.store()?;
        if self.stats.disk_bytes <= COMPACT_FACTOR * self.stats.live_bytes + COMPACT_SLACK_BYTES {
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
        JournalStats { ballast_held, ..self.stats }
    }

    fn look_at_disk(&mut self) {
        self.stats.disk_bytes = self.store.as_ref().map_or(0, |store| store.disk_bytes());
        let JournalStats { barriers, appended_bytes, .. } = self.stats;
        self.looked_at = LookedAt { barriers, appended_bytes };
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
                self.look_at_disk();
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
        self.look_at_disk();
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
