//! Starting the two threads, and learning of their end.

use std::sync::Arc;
use std::thread;

use atoll_model::time::Timestamp;
use control_plane_core::Config;
use storage_sync_journal::{BatchSeq, JournalError};
use tokio::sync::{mpsc, oneshot};

use super::clock::Clock;
use super::deletion::BucketOrder;
use super::keeper::{Keeper, Log};
use super::pump::Pump;
use super::recovery::recover;
use super::{Handle, Input, Notices};
use crate::history::Keep;
use crate::telemetry::Meters;

/// Batches that wait for the journal's thread. When it is behind by so many, the core's thread waits for it.
const BATCHES_WAITING_MAX: usize = 64;

/// Why the driver ended. The process must end too: what was not durable has not happened.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DriverError {
    #[error(
        "the journal cannot be written: nothing more can be accepted; free space or repair the disk and start again"
    )]
    Journal(#[from] JournalError),
    #[error("the state of the control plane cannot be encoded")]
    Encode(#[source] postcard::Error),
    #[error("{what} of the journal cannot be read by this version of the program")]
    Decode {
        what: String,
        #[source]
        source: postcard::Error,
    },
    #[error("the thread {thread:?} could not be started")]
    Start {
        thread: &'static str,
        #[source]
        source: std::io::Error,
    },
    #[error("the thread {thread:?} has failed: {message}")]
    Panicked { thread: &'static str, message: String },
}

/// What the driver begins with.
pub(crate) struct Beginning {
    pub(crate) config: Config,
    pub(crate) log: Box<dyn Log>,
    /// The last batch that it stands for, and the state.
    pub(crate) checkpoint: Option<(BatchSeq, Vec<u8>)>,
    pub(crate) batches: Vec<(BatchSeq, Vec<u8>)>,
    /// Format of what the journal holds.
    pub(crate) format: u16,
    pub(crate) deletions: mpsc::UnboundedSender<BucketOrder>,
    pub(crate) history: mpsc::UnboundedSender<Keep>,
    pub(crate) notices: Notices,
    pub(crate) meters: Arc<Meters>,
}

/// The running threads.
#[derive(Debug)]
pub(crate) struct Driver {
    ended: oneshot::Receiver<Result<(), DriverError>>,
}

impl Driver {
    /// Waits until both threads have ended.
    ///
    /// # Errors
    /// Why they did, if nobody asked for it.
    pub(crate) async fn ended(&mut self) -> Result<(), DriverError> {
        match (&mut self.ended).await {
            Ok(result) => result,
            Err(_) => Err(DriverError::Panicked { thread: WATCH, message: "it ended without a word".to_owned() }),
        }
    }
}

const CORE: &str = "core";
const JOURNAL: &str = "journal";
const WATCH: &str = "driver";

/// Recovers the core and starts both threads.
///
/// # Errors
/// When the journal holds what cannot be read, or a thread cannot be started.
pub(crate) fn start(beginning: Beginning) -> Result<(Handle, Driver), DriverError> {
    let Beginning { config, log, checkpoint, batches, format, deletions, history, notices, meters } = beginning;
    let mut clock = Clock::start(Timestamp::ZERO);
    let checkpoint_bytes = checkpoint.as_ref().map_or(0, |(_, bytes)| bytes.len() as u64);
    let core = recover(config, format, checkpoint, &batches, clock.read())?;
    drop(batches);

    let (handle, inputs) = Handle::new(notices.clone());
    let (sender, receiver) = std::sync::mpsc::sync_channel(BATCHES_WAITING_MAX);
    let pump = Pump::new(core, clock, inputs, sender, Arc::clone(&meters));
    let keeper = Keeper::new(log, receiver, deletions, history, notices, meters, checkpoint_bytes);

    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .map_err(|source| DriverError::Start { thread: CORE, source })?;
    let spawn = |thread: &'static str| move |source| DriverError::Start { thread, source };
    let keeping = thread::Builder::new().name(JOURNAL.to_owned()).spawn(|| keeper.run()).map_err(spawn(JOURNAL))?;
    let pumping =
        thread::Builder::new().name(CORE.to_owned()).spawn(move || pump.run(&runtime)).map_err(spawn(CORE))?;
    let (end, ended) = oneshot::channel();
    let inbox = handle.inbox.downgrade();
    let watch = move || {
        // It ends after the core's thread, unless the journal fails: then that thread is to end too, busy or not.
        let kept = keeping.join().map_err(|panic| panicked(JOURNAL, &*panic)).and_then(|result| result);
        if kept.is_err()
            && let Some(inbox) = inbox.upgrade()
        {
            // If there is no room, it is busy, and notices by itself.
            let _ = inbox.try_send(Input::Shutdown);
        }
        let pumped = pumping.join().map_err(|panic| panicked(CORE, &*panic));
        // Nobody waits for the end of a process that is ending.
        let _ = end.send(kept.and(pumped));
    };
    thread::Builder::new().name(WATCH.to_owned()).spawn(watch).map_err(spawn(WATCH))?;
    Ok((handle, Driver { ended }))
}

fn panicked(thread: &'static str, panic: &(dyn std::any::Any + Send)) -> DriverError {
    let message = panic
        .downcast_ref::<&str>()
        .map(|text| (*text).to_owned())
        .or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "no message".to_owned());
    DriverError::Panicked { thread, message }
}
