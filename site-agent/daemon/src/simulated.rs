//! Agents without work, many in one process: what a control plane has to do with a fleet can be measured with them.
//!
//! Each has an identity, a link and a core of its own, as any agent; all of them end with the process, so nothing is on a
//! disk. Work that is nothing is done; any other is refused.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use atoll_model::id::JournalId;
use atoll_model::resources::Capacity;
use atoll_model::session::{ControlBody, FailureReason};
use atoll_proto::JoinToken;
use bytes::Bytes;
use futures::StreamExt as _;
use futures::stream::{self, BoxStream};
use site_agent_core::event::Found;
use site_agent_core::{Agent, Boot, Command, Config, Event};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::clock::{Clock, wall_clock};
use crate::link::{EnrolError, Held, Link, LinkEnd, LinkEvent, LinkHandle, LogRequest, LogSource, Registrar};

/// Tokens that are redeemed at a time: enough to keep the server busy.
const JOINING_MAX: usize = 32;
/// Events of the link that wait for the core.
const EVENTS_MAX: usize = 16;
const CAPACITY: Capacity = Capacity {
    cpu_millis: 1_000,
    memory_bytes: 1 << 30,
    disk_free_bytes: 1 << 40,
    gpus: BTreeMap::new(),
    named: BTreeMap::new(),
};

/// How many of the agents of a process have a session that is ready.
#[derive(Debug, Default)]
pub struct Attendance {
    present: AtomicU64,
    sessions: AtomicU64,
}

impl Attendance {
    pub fn present(&self) -> u64 {
        self.present.load(Ordering::Relaxed)
    }

    /// Sessions that became ready so far.
    pub fn sessions(&self) -> u64 {
        self.sessions.load(Ordering::Relaxed)
    }
}

/// An agent that has joined.
#[derive(Debug)]
pub struct SimulatedAgent(Held);

/// Has an agent join with each of the tokens.
///
/// # Errors
/// When a token is refused, or the server cannot be reached.
pub async fn join(tokens: &[JoinToken]) -> Result<Vec<SimulatedAgent>, EnrolError> {
    let Some(first) = tokens.first() else { return Ok(Vec::new()) };
    let registrar = Registrar::open(first).await?;
    let mut joining = stream::iter(tokens).map(|token| registrar.join(token)).buffer_unordered(JOINING_MAX);
    let mut joined = Vec::with_capacity(tokens.len());
    while let Some(held) = joining.next().await {
        joined.push(SimulatedAgent(held?));
    }
    Ok(joined)
}

impl SimulatedAgent {
    /// Keeps the session with the control plane until `shutdown`, or until it is turned away for good.
    pub async fn run(self, attendance: Arc<Attendance>, shutdown: CancellationToken) -> LinkEnd {
        let clock = Clock::start();
        let config = Config {
            agent: self.0.agent(),
            new_journal: JournalId::from_bits(uuid::Uuid::now_v7().as_u128()),
            agent_version: env!("CARGO_PKG_VERSION").to_owned(),
            runtimes: Vec::new(),
            boot: Boot { id: 0, at: clock.booted_at() },
            capacity: CAPACITY,
            outbox_bytes_max: u64::MAX,
            disk_free_bytes_min: 0,
            disk_bytes: 0,
            policy: Default::default(),
            pilots: None,
        };
        let (sender, happened) = mpsc::channel(EVENTS_MAX);
        let (link, handle) = Link::of(self.0, sender, Arc::new(NoLogs));
        // Nothing is durable before or after, so facts are left where they arise.
        let (core, _) = Agent::recover(config, None, [], Found::default(), clock.read());
        let session = Session { core, clock, link: handle, attendance, is_present: false };
        tokio::select! {
            end = link.run(shutdown) => end,
            () = session.run(happened) => LinkEnd::Stopped,
        }
    }
}

/// The core and what it is told.
struct Session {
    core: Agent,
    clock: Clock,
    link: LinkHandle,
    attendance: Arc<Attendance>,
    is_present: bool,
}

impl Session {
    async fn run(mut self, mut happened: mpsc::Receiver<LinkEvent>) {
        let boot_nonce = uuid::Uuid::now_v7().as_u64_pair().1;
        loop {
            let due = self.core.next_timeout().map(|at| at.saturating_since(self.clock.read()));
            let event = tokio::select! {
                event = happened.recv() => match event {
                    Some(LinkEvent::Connected) => Event::Connected { boot_nonce, wall_clock: wall_clock() },
                    Some(LinkEvent::Frame(frame)) => {
                        if matches!(frame.body, ControlBody::Ready) {
                            self.attend(true);
                        }
                        Event::FrameReceived { frame }
                    }
                    Some(LinkEvent::Disconnected) => {
                        self.attend(false);
                        Event::Disconnected
                    }
                    None => return,
                },
                () = tokio::time::sleep(due.unwrap_or_default()), if due.is_some() => Event::TimeoutElapsed,
            };
            self.handle(event);
        }
    }

    fn attend(&mut self, present: bool) {
        if present && !self.is_present {
            self.attendance.present.fetch_add(1, Ordering::Relaxed);
            self.attendance.sessions.fetch_add(1, Ordering::Relaxed);
        } else if !present && self.is_present {
            self.attendance.present.fetch_sub(1, Ordering::Relaxed);
        }
        self.is_present = present;
    }

    fn handle(&mut self, event: Event) {
        let mut events = vec![event];
        while let Some(event) = events.pop() {
            let step = self.core.handle(event, self.clock.read());
            events.extend(step.commands.into_iter().filter_map(|command| self.perform(command)));
        }
    }

    /// What follows at once.
    fn perform(&self, command: Command) -> Option<Event> {
        match command {
            Command::Send { frame } => self.link.send(frame),
            Command::Disconnect { give_up } => self.link.disconnect(give_up),
            Command::StartNull { run, step, attempt, elements } => {
                return Some(Event::NullFinished { run, step, attempt, elements, at: wall_clock() });
            }
            Command::Start { execution, attempt, .. } => {
                let message = "a simulated agent does no work".to_owned();
                let reason = FailureReason::NotExecutable;
                return Some(Event::NotStarted { execution, attempt, reason, message });
            }
            Command::Locate { object } => return Some(Event::Located { object, present: false }),
            Command::Fetch { object, .. } => {
                let message = "a simulated agent has no store".to_owned();
                return Some(Event::FetchFailed { object, message, corrupt: false, permanent: true });
            }
            Command::FindEvictable { .. } => return Some(Event::EvictableFound { objects: Vec::new() }),
            Command::Evict { order, objects } => {
                return Some(Event::Evicted { order, gone: objects, kept: Vec::new() });
            }
            Command::Verify { order, .. } => {
                return Some(Event::Verified { order, files: 0, bytes: 0, damaged: 0 });
            }
            // Nothing is running, fetched or held.
            Command::ForgetArrival { .. }
            | Command::CancelFetch { .. }
            | Command::Push { .. }
            | Command::CancelPush { .. }
            | Command::WantPilots { .. }
            | Command::Kill { .. }
            | Command::Collect { .. }
            | Command::Release { .. }
            | Command::DropSealed { .. }
            | Command::MakeReady { .. } => {}
        }
        None
    }
}

struct NoLogs;

#[async_trait]
impl LogSource for NoLogs {
    async fn open(&self, _: LogRequest) -> Result<BoxStream<'static, std::io::Result<Bytes>>, String> {
        Err("a simulated agent has no logs".to_owned())
    }
}
