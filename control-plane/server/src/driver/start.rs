//! Starting the threads, and learning of their end.

use std::sync::Arc;
use std::thread;

use atoll_model::time::Timestamp;
use control_plane_core::{Config, ControlPlane};
use control_plane_postgres::{Ended, OpenError};
use storage_sync_journal::{BatchSeq, JournalError};
use tokio::runtime::Runtime;
use tokio::sync::{mpsc, oneshot, watch};

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
    #[error("this server leads no more; started again, it stands by")]
    Deposed(#[source] Ended),
    #[error("the journal cannot be followed")]
    Follow(#[from] OpenError),
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
    /// Hears why the journal may not be written any more, where another server can take its place.
    pub(crate) deposed: Option<oneshot::Receiver<Ended>>,
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
    ended: mpsc::Receiver<Result<(), DriverError>>,
}

impl Driver {
    /// Waits until the driver has ended.
    ///
    /// # Errors
    /// Why it did, if nobody asked for it.
    pub(crate) async fn ended(&mut self) -> Result<(), DriverError> {
        match self.ended.recv().await {
            Some(result) => result,
            None => Err(DriverError::Panicked { thread: WATCH, message: "it ended without a word".to_owned() }),
        }
    }
}

const CORE: &str = "core";
const JOURNAL: &str = "journal";
const DEPOSED: &str = "deposed";
const WATCH: &str = "driver";

/// Recovers the core and starts the threads.
///
/// # Errors
/// When the journal holds what cannot be read, or a thread cannot be started.
pub(crate) fn start(beginning: Beginning) -> Result<(Handle, Driver), DriverError> {
    let Beginning { config, log, deposed, checkpoint, batches, format, deletions, history, notices, meters } =
        beginning;
    let mut clock = Clock::start(Timestamp::ZERO);
    let checkpoint_bytes = checkpoint.as_ref().map_or(0, |(_, bytes)| bytes.len() as u64);
    let core = recover(config, format, checkpoint, &batches, clock.read())?;
    drop(batches);
    let (handle, inputs) = Handle::new(notices.clone(), watch::channel(None).1);
    let outside = Outside { inbox: handle.inbox.downgrade(), deletions, history, notices, meters };
    let lead = Lead { core, clock, log, deposed, checkpoint_bytes };
    let driver = spawn(move |runtime, ended| lead.run(outside, inputs, runtime, ended))?;
    Ok((handle, driver))
}

/// Whom the threads work for.
pub(super) struct Outside {
    pub(super) inbox: mpsc::WeakSender<Input>,
    pub(super) deletions: mpsc::UnboundedSender<BucketOrder>,
    pub(super) history: mpsc::UnboundedSender<Keep>,
    pub(super) notices: Notices,
    pub(super) meters: Arc<Meters>,
}

/// Says how the driver has ended; what is said first counts.
pub(super) type End = mpsc::Sender<Result<(), DriverError>>;

/// Starts the core's thread, and one that waits for its end.
pub(super) fn spawn(
    work: impl FnOnce(&Runtime, &End) -> Result<(), DriverError> + Send + 'static,
) -> Result<Driver, DriverError> {
    let start = |thread: &'static str| move |source| DriverError::Start { thread, source };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().map_err(start(CORE))?;
    let (end, ended) = mpsc::channel(1);
    let of_core = end.clone();
    let core = move || work(&runtime, &of_core);
    let running = thread::Builder::new().name(CORE.to_owned()).spawn(core).map_err(start(CORE))?;
    let watch = move || {
        let result = running.join().map_err(|panic| panicked(CORE, &*panic)).and_then(|result| result);
        // Nobody waits for the end of a process that is ending.
        let _ = end.try_send(result);
    };
    thread::Builder::new().name(WATCH.to_owned()).spawn(watch).map_err(start(WATCH))?;
    Ok(Driver { ended })
}

/// What there is to lead with.
pub(super) struct Lead {
    pub(super) core: ControlPlane,
    pub(super) clock: Clock,
    pub(super) log: Box<dyn Log>,
    pub(super) deposed: Option<oneshot::Receiver<Ended>>,
    pub(super) checkpoint_bytes: u64,
}

impl Lead {
    /// Decides, on the thread that it is called from, until nobody asks any more or the journal fails.
    pub(super) fn run(
        self,
        outside: Outside,
        inputs: mpsc::Receiver<Input>,
        runtime: &Runtime,
        end: &End,
    ) -> Result<(), DriverError> {
        let Self { core, clock, log, deposed, checkpoint_bytes } = self;
        let Outside { inbox, deletions, history, notices, meters } = outside;
        if let Some(deposed) = deposed {
            end_when_deposed(deposed, end.clone())?;
        }
        let (sender, receiver) = std::sync::mpsc::sync_channel(BATCHES_WAITING_MAX);
        let keeper = Keeper::new(log, receiver, deletions, history, notices, Arc::clone(&meters), checkpoint_bytes);
        let keep = move || {
            let _ending = Ending(inbox);
            keeper.run()
        };
        let start = |source| DriverError::Start { thread: JOURNAL, source };
        let keeping = thread::Builder::new().name(JOURNAL.to_owned()).spawn(keep).map_err(start)?;
        Pump::new(core, clock, inputs, sender, meters).run(runtime);
        keeping.join().map_err(|panic| panicked(JOURNAL, &*panic)).and_then(|result| result)
    }
}

/// The journal's thread ends after the core's, unless the journal fails: then that thread is to end too, busy or not.
struct Ending(mpsc::WeakSender<Input>);

impl Drop for Ending {
    fn drop(&mut self) {
        if let Some(inbox) = self.0.upgrade() {
            // If there is no room, it is busy, and notices by itself; if nobody is there, it has ended.
            let _ = inbox.try_send(Input::Shutdown);
        }
    }
}

/// What is being written may take long: whoever leads no more does not wait for it.
fn end_when_deposed(deposed: oneshot::Receiver<Ended>, end: End) -> Result<(), DriverError> {
    let wait = move || {
        if let Ok(reason) = deposed.blocking_recv() {
            // It may have ended for another reason already.
            let _ = end.try_send(Err(DriverError::Deposed(reason)));
        }
    };
    let start = |source| DriverError::Start { thread: DEPOSED, source };
    thread::Builder::new().name(DEPOSED.to_owned()).spawn(wait).map(drop).map_err(start)
}

pub(super) fn panicked(thread: &'static str, panic: &(dyn std::any::Any + Send)) -> DriverError {
    let message = panic
        .downcast_ref::<&str>()
        .map(|text| (*text).to_owned())
        .or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "no message".to_owned());
    DriverError::Panicked { thread, message }
}
