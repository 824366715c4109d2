//! What an agent tells of its site as often as its lease says: figures of the moment, which nobody keeps.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::id::{AgentId, Attempt, ExecutionId, ObjectId};
use crate::resources::Capacity;
use crate::time::Timestamp;

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Heartbeat {
    pub sent_at: Timestamp,
    /// As in [`Hello`](super::Hello); zero while it is not known.
    pub wall_clock: Timestamp,
    pub capacity: Capacity,
    pub running: u32,
    /// Accepted and not started.
    pub queued: u32,
    pub store_objects: u64,
    pub store_bytes: u64,
    /// Load average of one minute, in thousandths.
    pub load_millis: u32,
    /// Whether the site takes new work at all: its administrator may have closed it, or its disk may be full.
    pub closed: Option<String>,
    /// Objects that are coming or going, at most [`MOVING_TOLD_MAX`](crate::limits::MOVING_TOLD_MAX) of them.
    pub moving: Vec<Moving>,
    /// How long work waits there for a batch system, as far as the agent has seen it.
    pub batch_wait: Option<Duration>,
    /// Executions that wait for a batch system, at most [`WAITING_TOLD_MAX`](crate::limits::WAITING_TOLD_MAX) of them.
    pub waiting: Vec<WaitingJob>,
    /// Actions that the agent has made ready, or tries to, by their bundles, at most
    /// [`DEPLOYED_TOLD_MAX`](crate::limits::DEPLOYED_TOLD_MAX) of them: those whose state changed last come first.
    pub deployed: Vec<Deployed>,
}

/// An action as it stands at a site.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Deployed {
    pub bundle: ObjectId,
    pub state: DeployedState,
    /// Since when, by the agent's clock.
    pub since: Timestamp,
}

/// How far an action is at a site. Where it is gone it is not told of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum DeployedState {
    /// Its bundle comes, or its packages, its image or its component are made.
    Deploying,
    Ready,
    /// Why it cannot be made ready, and where its log is.
    Failed(String),
    /// It is being let go.
    Draining,
}

/// An attempt that has not begun because a batch system has not begun its job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WaitingJob {
    pub execution: ExecutionId,
    pub attempt: Attempt,
    /// What it waits for, in the system's own words.
    pub why: String,
}

/// An object that comes to the site, or goes from it to the bucket.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Moving {
    pub object: ObjectId,
    /// From there, or to there.
    pub other: Other,
    /// Bytes that were to be moved when it began.
    pub bytes: u64,
    pub moved_bytes: u64,
    /// Of late.
    pub bytes_per_second: u64,
}

/// The other end of what moves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Other {
    FromBucket,
    ToBucket,
    FromAgent(AgentId),
}
