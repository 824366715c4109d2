//! What keeps batches in the journal, by its own thread or by the core's.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use site_agent_core::Snapshot;
use storage_sync_journal::{Journal, JournalError};

use super::{Batch, Performer};
use crate::telemetry::level;

/// Facts after the last checkpoint that are not worth a new one.
const CHECKPOINT_BYTES_MIN: u64 = 4 << 20;
/// Batches that are made durable with one barrier at most.
const PILE_MAX: usize = 256;
/// Between two tries on a full disk.
const FULL_DISK_PAUSE: Duration = Duration::from_millis(500);

/// The way of batches into the journal.
pub(super) struct Keeping {
    shared: Arc<Shared>,
    batches: SyncSender<Batch>,
}

pub(super) struct Shared {
    keeper: Mutex<Keeper>,
    /// Batches that were handed over and are not kept yet.
    pending: AtomicUsize,
}

/// The journal has failed: its thread has ended, or finds the same when it is handed the next batch.
pub(super) struct Ended;

pub(super) struct Keeper {
    journal: Journal,
    performer: Performer,
    /// Set when the core is to send a snapshot with its next batch.
    wanted: Arc<AtomicBool>,
    checkpoint_bytes: u64,
    /// What was appended is not durable yet.
    appended: bool,
}

impl Keeping {
    pub(super) fn new(keeper: Keeper, batches: SyncSender<Batch>) -> Self {
        let shared = Shared { keeper: Mutex::new(keeper), pending: AtomicUsize::new(0) };
        Self { shared: Arc::new(shared), batches }
    }

    pub(super) fn shared(&self) -> Arc<Shared> {
        Arc::clone(&self.shared)
    }

    /// Keeps a batch and carries out what it asks for, or hands it over to the journal's thread: if that has others before it,
    /// and whatever may take long.
    ///
    /// # Errors
    /// When the journal has failed.
    pub(super) fn keep(&self, batch: Batch) -> Result<(), Ended> {
        let mut batch = batch;
        let is_alone = self.shared.pending.load(Ordering::Acquire) == 0;
        if is_alone && batch.snapshot.is_none() && !batch.commands.is_empty() {
            let mut keeper = self.shared.keeper.lock().map_err(|_| Ended)?;
            match keeper.keep_now(batch) {
                None => return Ok(()),
                Some(left) => batch = left,
            }
        }
        self.shared.pending.fetch_add(1, Ordering::Relaxed);
        self.batches.send(batch).map_err(|_| Ended)
    }
}

impl Shared {
    /// Runs until the core's thread has ended.
    ///
    /// # Errors
    /// When the journal fails: nothing of what was not durable is ever carried out.
    pub(super) fn keep_all(&self, batches: &Receiver<Batch>) -> anyhow::Result<()> {
        let mut pile = Vec::new();
        while let Ok(first) = batches.recv() {
            pile.push(first);
            while pile.len() < PILE_MAX
                && pile.last().is_some_and(|last: &Batch| last.snapshot.is_none())
                && let Ok(next) = batches.try_recv()
            {
                pile.push(next);
            }
            let count = pile.len();
            let mut keeper = self.keeper.lock().map_err(|_| anyhow::anyhow!("the core's thread has panicked"))?;
            keeper.keep(&mut pile)?;
            drop(keeper);
            self.pending.fetch_sub(count, Ordering::Release);
        }
        Ok(())
    }
}

impl Keeper {
    pub(super) fn new(journal: Journal, performer: Performer, wanted: Arc<AtomicBool>, checkpoint_bytes: u64) -> Self {
        Self { journal, performer, wanted, checkpoint_bytes, appended: false }
    }

    /// Keeps one batch without waiting for anything but the disk. Returns what is left to do of one that cannot be kept now:
    /// there is no room, or the journal has failed for good.
    fn keep_now(&mut self, mut batch: Batch) -> Option<Batch> {
        if let Err(error) = self.write(&mut batch) {
            if !matches!(error, JournalError::NoSpace) {
                tracing::error!(%error, "the journal has failed");
            }
            return Some(batch);
        }
        self.performer.perform(batch.commands);
        self.performer.flush();
        self.want_checkpoint();
        None
    }

    fn write(&mut self, batch: &mut Batch) -> Result<(), JournalError> {
        if !batch.bytes.is_empty() {
            self.journal.append(&batch.bytes)?;
            batch.bytes.clear();
            self.appended = true;
        }
        if self.appended { self.sync() } else { Ok(()) }
    }

    fn keep(&mut self, pile: &mut Vec<Batch>) -> anyhow::Result<()> {
        self.make_durable(pile)?;
        let mut state = None;
        for batch in pile.drain(..) {
            self.performer.perform(batch.commands);
            state = batch.snapshot;
        }
        self.performer.flush();
        match state {
            Some(state) => self.checkpoint(&state)?,
            None => self.want_checkpoint(),
        }
        Ok(())
    }

    fn want_checkpoint(&self) {
        if self.journal.stats().batch_bytes > CHECKPOINT_BYTES_MIN.max(2 * self.checkpoint_bytes) {
            self.wanted.store(true, Ordering::Relaxed);
        }
    }

    fn sync(&mut self) -> Result<(), JournalError> {
        let began = Instant::now();
        self.journal.barrier()?;
        self.appended = false;
        let meters = &self.performer.meters;
        meters.barrier_seconds.observe(began.elapsed().as_secs_f64());
        meters.journal_live_bytes.set(level(self.journal.stats().batch_bytes));
        Ok(())
    }

    fn make_durable(&mut self, pile: &[Batch]) -> Result<(), JournalError> {
        for batch in pile.iter().filter(|batch| !batch.bytes.is_empty()) {
            self.wait_for_room(|keeper| keeper.journal.append(&batch.bytes).map(drop))?;
            self.appended = true;
        }
        if self.appended { self.wait_for_room(Self::sync) } else { Ok(()) }
    }

    /// A full disk is waited out: what runs goes on, nothing new begins, nothing is lost (E1).
    fn wait_for_room(
        &mut self,
        mut write: impl FnMut(&mut Self) -> Result<(), JournalError>,
    ) -> Result<(), JournalError> {
        let mut told = false;
        loop {
            match write(self) {
                Err(JournalError::NoSpace) if told => {}
                Err(JournalError::NoSpace) => {
                    told = true;
                    tracing::error!("the disk is full: the agent waits until there is room for its journal");
                }
                Ok(()) if told => {
                    tracing::info!("there is room for the journal again");
                    return Ok(());
                }
                result => return result,
            }
            std::thread::sleep(FULL_DISK_PAUSE);
        }
    }

    fn checkpoint(&mut self, state: &Snapshot) -> anyhow::Result<()> {
        let bytes = postcard::to_stdvec(state)?;
        match self.journal.checkpoint(&bytes) {
            Ok(()) => drop(self.performer.meters.checkpoints.inc()),
            // The journal is as it was; there may be room when the next one is due.
            Err(JournalError::NoSpace) => tracing::warn!("no space left for a checkpoint of the journal"),
            Err(error) => return Err(error.into()),
        }
        self.checkpoint_bytes = bytes.len() as u64;
        match self.journal.compact_if_needed() {
            Ok(_) => Ok(()),
            Err(JournalError::NoSpace) => {
                tracing::warn!("no space left to write the journal anew");
                Ok(())
            }
            Err(error) => Err(error.into()),
        }
    }
}
