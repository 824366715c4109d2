//! The journal's thread: makes batches durable, several at a time when they have piled up, then does what they ask for.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

use atoll_model::id::{Epoch, ReportSeq};
use atoll_model::session::{ControlBody, ControlFrame, Goodbye};
use control_plane_core::{Command, ConnectionId, Rejection, RequestId, Response};
use control_plane_postgres::PostgresJournal;
use storage_sync_journal::{Journal, JournalError, JournalStats};
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{mpsc, oneshot};

use super::batch::{Batch, Effect};
use super::deletion::BucketOrder;
use super::notice::Notices;
use super::start::DriverError;
use crate::history::Keep;
use crate::telemetry::Meters;

/// What the keeper needs of a journal. A seam so that tests can hold a barrier of the real one back, or let it fail.
pub(crate) trait Log: Send {
    fn append(&mut self, batch: &[u8]) -> Result<(), JournalError>;
    fn barrier(&mut self) -> Result<(), JournalError>;
    fn checkpoint(&mut self, state: &[u8]) -> Result<(), JournalError>;
    fn compact_if_needed(&mut self) -> Result<bool, JournalError>;
    fn stats(&self) -> JournalStats;
    /// Whether what needs no append may be done.
    ///
    /// # Errors
    /// When another server may lead.
    fn may_act(&self) -> Result<(), JournalError>;
}

macro_rules! log {
    ($journal:ty, $may_act:expr) => {
        impl Log for $journal {
            fn append(&mut self, batch: &[u8]) -> Result<(), JournalError> {
                Self::append(self, batch).map(|_| ())
            }

            fn barrier(&mut self) -> Result<(), JournalError> {
                Self::barrier(self)
            }

            fn checkpoint(&mut self, state: &[u8]) -> Result<(), JournalError> {
                Self::checkpoint(self, state)
            }

            fn compact_if_needed(&mut self) -> Result<bool, JournalError> {
                Self::compact_if_needed(self)
            }

            fn stats(&self) -> JournalStats {
                Self::stats(self)
            }

            fn may_act(&self) -> Result<(), JournalError> {
                $may_act(self)
            }
        }
    };
}
// A journal in a directory is nobody else's.
log!(Journal, |_| Ok(()));
log!(PostgresJournal, PostgresJournal::may_act);

pub(super) struct Keeper {
    log: Box<dyn Log>,
    batches: Receiver<Batch>,
    expected: HashMap<RequestId, oneshot::Sender<Result<Response, Rejection>>>,
    connections: HashMap<ConnectionId, Stream>,
    /// Objects that are to leave the bucket.
    deletions: mpsc::UnboundedSender<BucketOrder>,
    /// Runs that are to be put into the history.
    history: mpsc::UnboundedSender<Keep>,
    notices: Notices,
    meters: Arc<Meters>,
    /// Bytes of the last checkpoint; 0 before the first.
    checkpoint_bytes: u64,
}

/// The sending side of a connection, and what a goodbye on it has to carry.
struct Stream {
    frames: mpsc::Sender<Box<ControlFrame>>,
    epoch: Epoch,
    acknowledged: ReportSeq,
}

/// Facts after the last checkpoint that are not worth a new one: recovering them takes well below a second.
const CHECKPOINT_BYTES_MIN: u64 = 16 << 20;
/// How long facts that nothing follows from wait for others.
const QUIET_WAIT: Duration = Duration::from_millis(20);
/// Batches that are made durable with one barrier at most: so that the first does not wait for ever behind a flood.
const PILE_MAX: usize = 256;

impl Keeper {
    pub(super) fn new(
        log: Box<dyn Log>,
        batches: Receiver<Batch>,
        deletions: mpsc::UnboundedSender<BucketOrder>,
        history: mpsc::UnboundedSender<Keep>,
        notices: Notices,
        meters: Arc<Meters>,
        checkpoint_bytes: u64,
    ) -> Self {
        Self {
            log,
            batches,
            expected: HashMap::new(),
            connections: HashMap::new(),
            deletions,
            history,
            notices,
            meters,
            checkpoint_bytes,
        }
    }

    /// Runs until the core's thread has ended.
    ///
    /// # Errors
    /// When the journal fails: nothing of what was not durable is ever carried out.
    pub(super) fn run(mut self) -> Result<(), DriverError> {
        let mut pile = Vec::new();
        while let Ok(first) = self.batches.recv() {
            pile.push(first);
            self.fill(&mut pile);
            self.make_durable(&pile)?;
            let mut state = None;
            for batch in pile.drain(..) {
                batch.effects.into_iter().for_each(|effect| self.perform(effect));
                self.notices.publish(batch.facts);
                state = batch.snapshot;
            }
            match state {
                Some(state) => self.checkpoint(&state)?,
                None => self.wish_for_snapshot(),
            }
        }
        self.notices.end();
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
            may_wait &= last.effects.is_empty();
            let wait = if may_wait { until.saturating_duration_since(Instant::now()) } else { Duration::ZERO };
            let Ok(next) = self.batches.recv_timeout(wait) else { break };
            pile.push(next);
        }
    }

    fn make_durable(&mut self, pile: &[Batch]) -> Result<(), DriverError> {
        let mut facts = 0;
        for batch in pile.iter().filter(|batch| !batch.bytes.is_empty()) {
            self.log.append(&batch.bytes)?;
            facts += batch.facts.len();
        }
        if facts > 0 {
            let began = Instant::now();
            self.log.barrier()?;
            self.meters.barrier_seconds.observe(began.elapsed().as_secs_f64());
            self.meters.barrier_facts.observe(facts as f64);
            return Ok(());
        }
        // A leader that was held up for long would grant leases that the next one knows nothing of.
        Ok(self.log.may_act()?)
    }

    fn perform(&mut self, effect: Effect) {
        match effect {
            Effect::Connect { connection, frames } => {
                let stream = Stream { frames, epoch: Epoch::default(), acknowledged: ReportSeq::default() };
                self.connections.insert(connection, stream);
            }
            Effect::Disconnect { connection } => {
                self.connections.remove(&connection);
            }
            Effect::Expect { request, reply } => {
                self.expected.insert(request, reply);
            }
            Effect::Answer(answer) => answer(),
            Effect::Command(command) => self.carry_out(command),
            Effect::Farewell => self.say_goodbye(),
        }
    }

    fn carry_out(&mut self, command: Command) {
        match command {
            Command::Reply { request, result } => {
                if let Some(reply) = self.expected.remove(&request) {
                    // Whoever asked may be gone.
                    let _ = reply.send(result);
                }
            }
            Command::Send { connection, frame } => self.send(connection, frame),
            Command::Close { connection } => {
                self.connections.remove(&connection);
            }
            // These receivers end only when the process does.
            Command::DeleteFromBucket { copy } => {
                let _ = self.deletions.send(BucketOrder::Delete(copy));
            }
            Command::LookInBucket { copy, transfer } => {
                let _ = self.deletions.send(BucketOrder::Look(copy, transfer));
            }
            Command::KeepRun { run, last } => {
                let _ = self.history.send(Keep { run, last });
            }
        }
    }

    fn send(&mut self, connection: ConnectionId, frame: ControlFrame) {
        let Entry::Occupied(mut entry) = self.connections.entry(connection) else { return };
        let stream = entry.get_mut();
        (stream.epoch, stream.acknowledged) = (frame.epoch, frame.acknowledged);
        match stream.frames.try_send(Box::new(frame)) {
            Ok(()) => {}
            Err(TrySendError::Closed(_)) => {
                entry.remove();
            }
            Err(TrySendError::Full(_)) => {
                tracing::warn!(
                    connection = connection.0,
                    "an agent does not read what it is sent: its stream is ended"
                );
                entry.remove();
            }
        }
    }

    fn say_goodbye(&mut self) {
        for (_, stream) in self.connections.drain() {
            let frame = ControlFrame {
                epoch: stream.epoch,
                acknowledged: stream.acknowledged,
                lease: None,
                body: ControlBody::Goodbye(Goodbye::ShuttingDown),
            };
            // A stream that takes nothing more learns of the end by its end.
            let _ = stream.frames.try_send(Box::new(frame));
        }
    }

    fn wish_for_snapshot(&self) {
        let stats = self.log.stats();
        self.meters.journal_live_bytes.set(i64::try_from(stats.live_bytes).unwrap_or(i64::MAX));
        self.meters.journal_disk_bytes.set(i64::try_from(stats.disk_bytes).unwrap_or(i64::MAX));
        if stats.batch_bytes > CHECKPOINT_BYTES_MIN.max(2 * self.checkpoint_bytes) {
            self.meters.wish_for_snapshot();
        }
    }

    fn checkpoint(&mut self, state: &control_plane_core::Snapshot) -> Result<(), DriverError> {
        let began = Instant::now();
        let bytes = postcard::to_stdvec(state).map_err(DriverError::Encode)?;
        match self.log.checkpoint(&bytes) {
            Ok(()) => {}
            // The journal is as it was; there may be room when the next one is due.
            Err(JournalError::NoSpace) => tracing::warn!("no space left for a checkpoint of the journal"),
            Err(error) => return Err(error.into()),
        }
        self.checkpoint_bytes = bytes.len() as u64;
        self.meters.checkpoints.inc();
        self.log.compact_if_needed()?;
        tracing::info!(bytes = bytes.len(), elapsed_ms = began.elapsed().as_millis() as u64, "wrote a checkpoint");
        Ok(())
    }
}
