//! What goes from the core's thread to the journal's.

use std::fmt;

use atoll_model::session::ControlFrame;
use control_plane_core::Fact;
use control_plane_core::Snapshot;
use control_plane_core::{Command, ConnectionId, Rejection, RequestId, Response};
use tokio::sync::{mpsc, oneshot};

/// Facts that are made durable together, and everything that may happen only then.
#[derive(Default)]
pub(super) struct Batch {
    /// The facts, each encoded with postcard, one after the other.
    pub(super) bytes: Vec<u8>,
    pub(super) facts: Vec<Fact>,
    pub(super) effects: Vec<Effect>,
    /// The core's state after this batch, if the journal asked for it.
    pub(super) snapshot: Option<Box<Snapshot>>,
}

impl Batch {
    pub(super) fn is_empty(&self) -> bool {
        self.facts.is_empty() && self.effects.is_empty() && self.snapshot.is_none()
    }
}

/// What happens when the batch is durable, in this order.
pub(super) enum Effect {
    Connect {
        connection: ConnectionId,
        frames: mpsc::Sender<Box<ControlFrame>>,
    },
    Disconnect {
        connection: ConnectionId,
    },
    Expect {
        request: RequestId,
        reply: oneshot::Sender<Result<Response, Rejection>>,
    },
    Command(Command),
    Answer(Answer),
    /// Say goodbye to every agent; nothing comes after it.
    Farewell,
}

/// Hands what a query saw to whoever asked.
pub(super) type Answer = Box<dyn FnOnce() + Send>;

impl fmt::Debug for Batch {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Batch")
            .field("bytes", &self.bytes.len())
            .field("facts", &self.facts.len())
            .field("effects", &self.effects.len())
            .finish_non_exhaustive()
    }
}
