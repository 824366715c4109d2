//! Who is connected, and when each agent was last heard. Lost with the process: agents come back by themselves.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use atoll_model::id::{AgentId, Attempt, CommandSeq, Epoch, ExecutionId, ReportSeq, SiteId};
use atoll_model::limits;
use atoll_model::session::{Deployed, Heartbeat, InventoryItem};
use atoll_model::time::Timestamp;

use crate::event::ConnectionId;

#[derive(Debug, Default)]
pub(crate) struct Sessions {
    pub(crate) by_site: BTreeMap<SiteId, Session>,
    pub(crate) by_connection: BTreeMap<ConnectionId, SiteId>,
    pub(crate) presence: BTreeMap<SiteId, Presence>,
    /// Sites that nobody declares lost, because too many fell silent together.
    pub(crate) held: BTreeSet<SiteId>,
    /// Sites that have nothing to tell, after a backup was restored, before others have told more than by now.
    pub(crate) put_off: BTreeSet<SiteId>,
    pub(crate) silence: Option<Silence>,
}

/// The sites that were silent at some time.
#[derive(Debug)]
pub(crate) struct Silence {
    pub(crate) at: Timestamp,
    /// Of so many.
    pub(crate) total: usize,
    /// When each of them was last heard, in order.
    pub(crate) since: Vec<Timestamp>,
}

#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) connection: ConnectionId,
    pub(crate) agent: AgentId,
    pub(crate) epoch: Epoch,
    pub(crate) phase: SessionPhase,
    /// The last report that may tell of what was before the session: with it the session is ready.
    pub(crate) drained_at: ReportSeq,
    /// Whether the agent's journal is new, so that it lacks what it had been sent.
    pub(crate) restarted: bool,
    /// The last command that was sent in this session, or is in the agent's journal anyway.
    pub(crate) sent: CommandSeq,
    pub(crate) since: Timestamp,
    /// What the agent has of steps that were not known to have begun.
    pub(crate) judged_later: Vec<InventoryItem>,
    /// An acknowledgement is owed, with a lease if a heartbeat is answered.
    pub(crate) acknowledge: bool,
    pub(crate) answers: Option<Timestamp>,
    /// The version of the protocol that both speak.
    pub(crate) protocol: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SessionPhase {
    AwaitingInventory,
    Draining,
    Ready,
}

#[derive(Debug)]
pub(crate) struct Presence {
    pub(crate) heard_at: Timestamp,
    /// Commands up to this one may have reached the agent.
    pub(crate) sent: CommandSeq,
    pub(crate) heartbeat: Option<Heartbeat>,
    /// Processes that took the session over, with the time.
    pub(crate) takeovers: VecDeque<(Timestamp, u64)>,
    /// The session lease that it was granted last, and the one before: it goes by that one until it hears.
    leases: [Duration; 2],
    /// How far the clock of its machine is from this one's, and whether it is ahead.
    pub(crate) clock_offset: (Duration, bool),
}

impl Sessions {
    /// What an attempt waits for at a batch system of its site, as the agent has told last.
    pub(crate) fn told_waiting(&self, site: SiteId, execution: ExecutionId, attempt: Attempt) -> Option<String> {
        let told = &self.presence.get(&site)?.heartbeat.as_ref()?.waiting;
        let of_it = told.iter().find(|told| (told.execution, told.attempt) == (execution, attempt))?;
        Some(of_it.why.clone())
    }

    /// How far actions are at a site, as its agent has told last; nothing if it is not connected.
    pub(crate) fn deployed(&self, site: SiteId) -> &[Deployed] {
        let heartbeat = self.presence.get(&site).and_then(|presence| presence.heartbeat.as_ref());
        heartbeat.filter(|_| self.by_site.contains_key(&site)).map_or(&[], |heartbeat| &heartbeat.deployed)
    }

    /// How long work waits at a site for a batch system, as its agent has seen it.
    pub(crate) fn batch_wait(&self, site: SiteId) -> Option<Duration> {
        self.presence.get(&site)?.heartbeat.as_ref()?.batch_wait
    }
}

impl Presence {
    pub(crate) fn new(heard_at: Timestamp, sent: CommandSeq, lease: Duration) -> Self {
        Self {
            heard_at,
            sent,
            heartbeat: None,
            takeovers: VecDeque::new(),
            leases: [lease; 2],
            clock_offset: (Duration::ZERO, false),
        }
    }

    /// Whether its clock is so far off that it gets no new work.
    pub(crate) fn is_far_off(&self) -> bool {
        self.clock_offset.0 > limits::CLOCK_OFFSET_MAX
    }

    pub(crate) fn granted(&mut self, lease: Duration) {
        self.leases = [lease, self.leases[0]];
    }

    /// How long it may be unheard.
    pub(crate) fn lease(&self) -> Duration {
        self.leases[0].max(self.leases[1])
    }
}
