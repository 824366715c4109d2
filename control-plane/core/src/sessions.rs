//! Who is connected, and when each agent was last heard. Lost with the process: agents come back by themselves.

use std::collections::{BTreeMap, VecDeque};

use atoll_model::id::{AgentId, CommandSeq, Epoch, ReportSeq, SiteId};
use atoll_model::session::Heartbeat;
use atoll_model::time::Timestamp;

use crate::event::ConnectionId;

#[derive(Debug, Default)]
pub(crate) struct Sessions {
    pub(crate) by_site: BTreeMap<SiteId, Session>,
    pub(crate) by_connection: BTreeMap<ConnectionId, SiteId>,
    pub(crate) presence: BTreeMap<SiteId, Presence>,
}

#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) connection: ConnectionId,
    pub(crate) agent: AgentId,
    pub(crate) epoch: Epoch,
    pub(crate) phase: SessionPhase,
    /// The last report in the agent's outbox when it said hello: with it the session is ready.
    pub(crate) drained_at: ReportSeq,
    /// Whether the agent's journal is new, so that it lacks what it had been sent.
    pub(crate) restarted: bool,
    /// The last command that was sent in this session, or is in the agent's journal anyway.
    pub(crate) sent: CommandSeq,
    pub(crate) since: Timestamp,
    /// An acknowledgement is owed, with a lease if a heartbeat is answered.
    pub(crate) acknowledge: bool,
    pub(crate) answers: Option<Timestamp>,
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
}

impl Presence {
    pub(crate) fn new(heard_at: Timestamp, sent: CommandSeq) -> Self {
        Self { heard_at, sent, heartbeat: None, takeovers: VecDeque::new() }
    }
}
