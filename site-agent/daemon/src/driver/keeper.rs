//! The journal's thread.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

use site_agent_core::Snapshot;
use storage_sync_journal::{Journal, JournalError};

use super::{Batch, Performer};
use crate::telemetry::level;

/// Facts after the last checkpoint that are not worth a new one.
const CHECKPOINT_BYTES_MIN: u64 = 4 << 20;
/// Batches that are made durable with one barrier at most.
const PILE_MAX: usize = 256;
/// How long facts that nothing follows from wait for others.
const QUIET_WAIT: Duration = Duration::from_millis(20);
/// Between two tries on a full disk.
const FULL_DISK_PAUSE: Duration = Duration::from_millis(500);

pub(super) struct Keeper {
    journal: Journal,
    batches: Receiver<Batch>,
    performer: Performer,
    /// Set when the core is to send a snapshot with its next batch.
    wanted: Arc<AtomicBool>,
    checkpoint_bytes: u64,
}

impl Keeper {
    pub(super) fn new(
        journal: Journal,
        batches: Receiver<Batch>,
        performer: Performer,
        wanted: Arc<AtomicBool>,
        checkpoint_bytes: u64,
    ) -> Self {
        Self { journal, batches, performer, wanted, checkpoint_bytes }
    }

    /// Runs until the core's thread has ended.
    ///
    /// # Errors
    /// When the journal fails: nothing of what was not durable is ever carried out.
    pub(super) fn run(mut self) -> anyhow::Result<()> {
        let mut pile = Vec::new();
        while let Ok(first) = self.batches.recv() {
            pile.push(first);
            self.fill(&mut pile);
            self.make_durable(&pile)?;
            let mut state = None;
            for batch in pile.drain(..) {
                self.performer.perform(batch.commands);
                state = batch.snapshot;
            }
            self.performer.flush();
            match state {
                Some(state) => self.checkpoint(&state)?,
                None if self.journal.stats().batch_bytes > CHECKPOINT_BYTES_MIN.max(2 * self.checkpoint_bytes) => {
                    self.wanted.store(true, Ordering::Relaxed);
                }
                None => {}
            }
        }
        Ok(())
    }

    /// Adds what is there already to a pile of one batch. A pile that only notes something (that an acknowledgement was
    /// heard, say) waits a while for others: nobody waits for it.
    fn fill(&self, pile: &mut Vec<Batch>) {
        let until = Instant::now() + QUIET_WAIT;
        let mut may_wait = true;
        while pile.len() < PILE_MAX
            && let Some(last) = pile.last().filter(|last| last.snapshot.is_none())
        {
            may_wait &= last.commands.is_empty();
            let wait = if may_wait { until.saturating_duration_since(Instant::now()) } else { Duration::ZERO };
            let Ok(next) = self.batches.recv_timeout(wait) else { break };
            pile.push(next);
        }
    }

    fn make_durable(&mut self, pile: &[Batch]) -> Result<(), JournalError> {
        let mut appended = false;
        for batch in pile.iter().filter(|batch| !batch.bytes.is_empty()) {
            self.wait_for_room(|journal| journal.append(&batch.bytes).map(drop))?;
            appended = true;
        }
        if !appended {
            return Ok(());
        }
        let began = Instant::now();
        self.wait_for_room(Journal::barrier)?;
        let meters = &self.performer.meters;
        meters.barrier_seconds.observe(began.elapsed().as_secs_f64());
        meters.journal_live_bytes.set(level(self.journal.stats().batch_bytes));
        Ok(())
    }

    /// A full disk is waited out: what runs goes on, nothing new begins, nothing is lost (E1).
    fn wait_for_room(
        &mut self,
        mut write: impl FnMut(&mut Journal) -> Result<(), JournalError>,
    ) -> Result<(), JournalError> {
        let mut told = false;
        loop {
            match write(&mut self.journal) {
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
