//! The driver: one thread owns the agent's core, another its journal, as in the control plane.
//!
//! The core's thread drains everything that has arrived, handles it, and has facts and commands kept as one batch. While
//! the journal's thread is at work it hands the batch over: that thread appends as many as have piled up, makes them durable
//! with one barrier, and only then carries out what they ask for, in order. Otherwise the core's thread does so itself, since
//! a process that waits to be started waits for each change of threads too.

mod keeper;
mod perform;
mod store;

use std::collections::VecDeque;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use site_agent_core::{Agent, Command, Event, Fact, Snapshot, Step};
use storage_sync_journal::{Backend, Journal, OpenError, Options, open, set_aside};

use crate::clock::{Clock, wall_clock};
use crate::config::JournalBackend;
use crate::withheld::Withheld;

pub(crate) use perform::{Performer, Running, direct_share};

/// An agent is to be small.
const CACHE_BYTES: u64 = 4 << 20;
/// Batches on their way to the journal; beyond it the core waits.
const BATCHES_MAX: usize = 64;
/// Events that are handled in one batch at most.
const EVENTS_MAX: usize = 1_024;
/// How long facts that nothing follows from wait for others.
const QUIET_WAIT: Duration = Duration::from_millis(20);
/// Without anything to wait for.
const LONG: Duration = Duration::from_secs(3_600);

/// What arrives at the core's thread.
pub(crate) enum Input {
    Events(Vec<Event>),
    /// Ends the driver after everything that was sent before.
    Shutdown,
}

/// The way to the core. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Inbox(Sender<Input>);

impl Inbox {
    pub(crate) fn new() -> (Self, Receiver<Input>) {
        let (sender, inputs) = channel();
        (Self(sender), inputs)
    }

    pub(crate) fn tell(&self, events: Vec<Event>) {
        // A driver that has ended hears nothing; the next one is told again.
        let _ = self.0.send(Input::Events(events));
    }

    pub(crate) fn shut_down(&self) {
        let _ = self.0.send(Input::Shutdown);
    }
}

/// Facts that are made durable together, and what follows from them.
#[derive(Default)]
struct Batch {
    bytes: Vec<u8>,
    commands: Vec<Command>,
    snapshot: Option<Box<Snapshot>>,
}

impl Batch {
    fn is_empty(&self) -> bool {
        self.bytes.is_empty() && self.is_quiet()
    }

    /// Nothing follows from its facts (that an acknowledgement was heard, say): nobody waits for them.
    fn is_quiet(&self) -> bool {
        self.commands.is_empty() && self.snapshot.is_none()
    }
}

/// How long facts that nothing follows from wait for others.
#[derive(Default)]
struct Quiet {
    until: Option<Instant>,
}

impl Quiet {
    /// Whether a batch is to be kept now. The last one waits for nothing.
    fn is_over(&mut self, batch: &Batch, is_last: bool) -> bool {
        if batch.is_empty() {
            self.until = None;
            return false;
        }
        let now = Instant::now();
        let is_over = is_last || !batch.is_quiet() || *self.until.get_or_insert(now + QUIET_WAIT) <= now;
        if is_over {
            self.until = None;
        }
        is_over
    }

    fn left(&self) -> Duration {
        self.until.map_or(LONG, |until| until.saturating_duration_since(Instant::now()))
    }
}

/// What the journal holds.
pub(crate) struct Recovered {
    pub(crate) journal: Journal,
    pub(crate) snapshot: Option<Snapshot>,
    pub(crate) facts: Vec<Fact>,
    checkpoint_bytes: u64,
}

/// Opens the journal. One that is damaged is set aside, and a new one begun: what it held is found again in the slots and
/// the store, and the control plane says the rest (A16).
///
/// # Errors
/// When it is in use, of a newer version, or cannot be begun anew.
pub(crate) fn open_journal(directory: &Path, backend: JournalBackend) -> anyhow::Result<Recovered> {
    let backend = match backend {
        JournalBackend::Sled => Backend::Sled,
        JournalBackend::Redb => Backend::Redb,
    };
    let options = Options { cache_bytes: CACHE_BYTES, ..Options::new(directory, backend, Snapshot::FORMAT) };
    let problem = match open(options.clone()) {
        Ok(opened) => {
            for repair in &opened.repaired {
                tracing::warn!(%repair, "the journal was put right");
            }
            match read(opened) {
                Ok(recovered) => return Ok(recovered),
                Err(error) => format!("its records cannot be read: {error}"),
            }
        }
        Err(error @ OpenError::Damaged { .. }) => {
            let cause = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
            format!("{error}: {cause}")
        }
        Err(error) => return Err(error.into()),
    };
    let aside = set_aside(directory)?;
    tracing::error!(problem, kept = %aside.display(), "the journal is lost; a new one is begun, and what runs is found again");
    Ok(read(open(options)?)?)
}

fn read(opened: storage_sync_journal::Opened) -> Result<Recovered, postcard::Error> {
    let checkpoint_bytes = opened.checkpoint.as_ref().map_or(0, |(_, bytes)| bytes.len() as u64);
    let snapshot = |(_, mut bytes): (_, Vec<u8>)| {
        Snapshot::upgrade(opened.format, &mut bytes);
        postcard::from_bytes(&bytes)
    };
    let snapshot = opened.checkpoint.map(snapshot).transpose()?;
    let mut facts = Vec::new();
    for (_, batch) in &opened.batches {
        let mut rest = batch.as_slice();
        while !rest.is_empty() {
            let (fact, after) = postcard::take_from_bytes(rest)?;
            facts.push(fact);
            rest = after;
        }
    }
    Ok(Recovered { journal: opened.journal, snapshot, facts, checkpoint_bytes })
}

/// The two threads of a running driver.
pub(crate) struct Driver {
    core: JoinHandle<()>,
    keeper: JoinHandle<anyhow::Result<()>>,
}

/// What the core's thread begins with.
pub(crate) struct Beginning {
    pub(crate) agent: Agent,
    /// What recovery has decided.
    pub(crate) step: Step,
    pub(crate) clock: Clock,
    pub(crate) withheld: Withheld,
}

impl Driver {
    /// Starts both threads.
    ///
    /// # Errors
    /// When the system gives no threads.
    pub(crate) fn start(
        beginning: Beginning,
        inputs: Receiver<Input>,
        journal: Journal,
        checkpoint_bytes: u64,
        performer: Performer,
    ) -> std::io::Result<Self> {
        let (sender, batches) = sync_channel(BATCHES_MAX);
        let wanted = Arc::new(AtomicBool::new(false));
        let keeper = keeper::Keeper::new(journal, performer, Arc::clone(&wanted), checkpoint_bytes);
        let keeping = keeper::Keeping::new(keeper, sender);
        let shared = keeping.shared();
        let keeper =
            std::thread::Builder::new().name("atoll-journal".to_owned()).spawn(move || shared.keep_all(&batches))?;
        let core = std::thread::Builder::new()
            .name("atoll-core".to_owned())
            .spawn(move || run(beginning, &inputs, &keeping, &wanted))?;
        Ok(Self { core, keeper })
    }

    /// Waits for the end of both threads.
    ///
    /// # Errors
    /// When the journal failed, or a thread panicked.
    pub(crate) fn join(self) -> anyhow::Result<()> {
        let core = self.core.join();
        let kept = self.keeper.join().map_err(|_| anyhow::anyhow!("the journal's thread has panicked"))?;
        core.map_err(|_| anyhow::anyhow!("the core's thread has panicked"))?;
        kept
    }
}

impl Recovered {
    pub(crate) fn into_parts(self) -> (Journal, Option<Snapshot>, Vec<Fact>, u64) {
        (self.journal, self.snapshot, self.facts, self.checkpoint_bytes)
    }
}

fn run(beginning: Beginning, inputs: &Receiver<Input>, keeping: &keeper::Keeping, wanted: &AtomicBool) {
    let Beginning { mut agent, step, clock, withheld } = beginning;
    withheld.recover(&agent);
    withheld.hear(&agent, &step);
    let mut batch = Batch::default();
    let mut finished = VecDeque::new();
    add(step, &mut batch, &mut finished);
    let mut ending = false;
    let mut quiet = Quiet::default();
    loop {
        for _ in 0..EVENTS_MAX {
            let Some(event) = finished.pop_front() else { break };
            let step = agent.handle(event, clock.read());
            withheld.hear(&agent, &step);
            add(step, &mut batch, &mut finished);
        }
        if wanted.swap(false, Ordering::Relaxed) {
            batch.snapshot = Some(Box::new(agent.snapshot()));
        }
        // The journal's thread says how the journal has failed.
        if quiet.is_over(&batch, ending) && keeping.keep(std::mem::take(&mut batch)).is_err() {
            return;
        }
        if ending {
            return;
        }
        let now = clock.read();
        let wait = agent.next_timeout().map_or(LONG, |at| at.saturating_since(now));
        let quiet_left = quiet.left();
        let wait = if finished.is_empty() { wait.min(quiet_left) } else { Duration::ZERO };
        let mut next = match inputs.recv_timeout(wait) {
            Ok(input) => Some(input),
            Err(RecvTimeoutError::Timeout) if quiet_left <= wait => None,
            Err(RecvTimeoutError::Timeout) => {
                let step = agent.handle(Event::TimeoutElapsed, clock.read());
                withheld.hear(&agent, &step);
                add(step, &mut batch, &mut finished);
                None
            }
            Err(RecvTimeoutError::Disconnected) => return,
        };
        let mut handled = 0;
        while let Some(input) = next.take() {
            match input {
                Input::Events(events) => {
                    handled += events.len();
                    for event in events {
                        let step = agent.handle(event, clock.read());
                        withheld.hear(&agent, &step);
                        add(step, &mut batch, &mut finished);
                    }
                }
                Input::Shutdown => {
                    ending = true;
                    break;
                }
            }
            if handled < EVENTS_MAX {
                next = inputs.try_recv().ok();
            }
        }
    }
}

/// An execution of the null executor does nothing, and nothing follows from its start: it has finished as soon as it is
/// asked for. That it has is told, like everything, once it is durable.
fn add(step: Step, batch: &mut Batch, finished: &mut VecDeque<Event>) {
    for fact in &step.facts {
        let taken = std::mem::take(&mut batch.bytes);
        batch.bytes = postcard::to_extend(fact, taken).expect("facts hold nothing that postcard cannot encode");
    }
    for command in step.commands {
        if let Command::StartNull { run, step, attempt, elements } = command {
            finished.push_back(Event::NullFinished { run, step, attempt, elements, at: wall_clock() });
        } else {
            batch.commands.push(command);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_facts_that_nothing_follows_from_wait_for_others() {
        let mut quiet = Quiet::default();
        let nothing = Batch::default();
        assert!(!quiet.is_over(&nothing, false) && !quiet.is_over(&nothing, true));
        assert_eq!(quiet.left(), LONG);
        let noted = Batch { bytes: vec![1], ..Batch::default() };
        assert!(!quiet.is_over(&noted, false));
        assert!(quiet.left() <= QUIET_WAIT);
        let told = Batch { bytes: vec![1], commands: vec![Command::Disconnect { give_up: None }], snapshot: None };
        assert!(quiet.is_over(&told, false));
        assert_eq!(quiet.left(), LONG);
        // What has waited long enough waits no longer, nor does the last one.
        assert!(!quiet.is_over(&noted, false));
        std::thread::sleep(QUIET_WAIT);
        assert_eq!(quiet.left(), Duration::ZERO);
        assert!(quiet.is_over(&noted, false));
        assert!(quiet.is_over(&noted, true));
    }
}
