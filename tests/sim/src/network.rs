//! Streams between agents and the control plane. Within a stream nothing is overtaken; a stream that breaks loses what is
//! on its way, and either side may hear of it late, or only by silence.

use std::collections::{BTreeMap, VecDeque};

use atoll_model::session::{AgentFrame, ControlFrame};
use atoll_model::time::Timestamp;

/// A direction of a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Direction {
    ToServer,
    ToAgent,
}

/// The way between one site and the control plane.
#[derive(Debug, Default)]
pub(crate) struct Link {
    pub(crate) blocked_to_server: bool,
    pub(crate) blocked_to_agent: bool,
    pub(crate) slow: bool,
}

impl Link {
    pub(crate) fn is_blocked(&self, direction: Direction) -> bool {
        match direction {
            Direction::ToServer => self.blocked_to_server,
            Direction::ToAgent => self.blocked_to_agent,
        }
    }

    pub(crate) fn is_clear(&self) -> bool {
        !self.blocked_to_server && !self.blocked_to_agent
    }
}

#[derive(Debug)]
pub(crate) struct Stream {
    pub(crate) site: usize,
    /// The process of the agent that opened it, and the server that accepted it with its process; nothing once that side has closed.
    pub(crate) agent: Option<u64>,
    pub(crate) server: Option<(usize, u64)>,
    pub(crate) to_server: VecDeque<(Timestamp, AgentFrame)>,
    pub(crate) to_agent: VecDeque<(Timestamp, ControlFrame)>,
}

#[derive(Debug, Default)]
pub(crate) struct Network {
    pub(crate) links: Vec<Link>,
    pub(crate) streams: BTreeMap<u64, Stream>,
    pub(crate) next_stream: u64,
}

impl Network {
    /// Forgets streams of which nothing is left.
    pub(crate) fn sweep(&mut self) {
        self.streams.retain(|_, stream| stream.server.is_some() || (stream.agent.is_some()));
    }
}
