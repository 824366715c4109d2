//! What happens to an agent.

use std::collections::BTreeMap;

use atoll_model::elements::ElementSet;
use atoll_model::id::{Attempt, CommandSeq, ExecutionId, ObjectId, RunId, StepIndex, TransferId};
use atoll_model::resources::Capacity;
use atoll_model::session::{ControlFrame, DirectShare, FailureReason, Heartbeat, Logs, PushFailure, Usage};
use atoll_model::time::Timestamp;
use atoll_model::value::{ObjectKind, ObjectRef, Value};

#[derive(Debug, Clone)]
pub enum Event {
    /// The stream to the control plane is open: say `Hello`.
    Connected {
        boot_nonce: u64,
        /// The wall clock of the machine, which may be another than that of leases.
        wall_clock: Timestamp,
    },
    Disconnected,
    FrameReceived {
        frame: ControlFrame,
    },

    /// What [`crate::Command::Locate`] asked for.
    Located {
        object: ObjectRef,
        present: bool,
    },
    /// What [`crate::Command::Fetch`] asked for. `wire_bytes` is 0 if it was there already.
    Fetched {
        object: ObjectRef,
        wire_bytes: u64,
        direct: Option<DirectShare>,
        at: Timestamp,
    },
    FetchFailed {
        object: ObjectRef,
        message: String,
        corrupt: bool,
        permanent: bool,
    },

    /// The work of [`crate::Command::Start`] runs, or was found running after a restart of the agent.
    Started {
        execution: ExecutionId,
        attempt: Attempt,
        at: Timestamp,
    },
    /// It could not be started, or ended without a result of its own.
    NotStarted {
        execution: ExecutionId,
        attempt: Attempt,
        reason: FailureReason,
        message: String,
    },
    /// Its process has ended and nothing that it started is left. Also found after a restart of the agent.
    Exited {
        execution: ExecutionId,
        attempt: Attempt,
        exit: Exit,
        /// What it left, if that is taken in already: then it is not asked for.
        stored: Option<StoredOutputs>,
    },
    /// Its outputs are safe from change and may be handed to executions of this site; their digests are being computed.
    OutputsSealed {
        execution: ExecutionId,
        attempt: Attempt,
        outputs: Vec<SealedOutput>,
    },
    /// Its outputs are in the store, verified, in the order of the template; or they could not be taken in.
    OutputsStored {
        execution: ExecutionId,
        attempt: Attempt,
        result: Result<StoredOutputs, OutputFailure>,
    },
    /// What [`crate::Command::StartNull`] asked for.
    NullFinished {
        run: RunId,
        step: StepIndex,
        attempt: Attempt,
        elements: ElementSet,
        at: Timestamp,
    },

    Pushed {
        transfer: TransferId,
        object: ObjectRef,
        wire_bytes: u64,
        at: Timestamp,
    },
    PushFailed {
        transfer: TransferId,
        object: ObjectRef,
        reason: PushFailure,
        message: String,
    },
    /// A copy in the site's store was found damaged, and is out of use.
    Damaged {
        object: ObjectId,
        kind: ObjectKind,
        message: String,
    },

    /// What [`crate::Command::FindEvictable`] asked for: objects that nothing in the store is made of and no execution holds,
    /// the least recently used first.
    EvictableFound {
        objects: Vec<ObjectRef>,
    },
    /// What [`crate::Command::Evict`] asked for.
    Evicted {
        order: CommandSeq,
        gone: Vec<ObjectRef>,
        kept: Vec<ObjectRef>,
    },
    /// What [`crate::Command::Verify`] asked for. What was damaged came before, as [`Event::Damaged`].
    Verified {
        order: CommandSeq,
        files: u64,
        bytes: u64,
        damaged: u64,
    },

    /// Load and room, measured by the shell; sent with the next heartbeat.
    Measured {
        heartbeat: Heartbeat,
    },
    /// These are the nodes that the site has now beside the agent's own machine.
    NodesChanged {
        nodes: BTreeMap<NodeId, Node>,
    },
    TimeoutElapsed,
    /// Whether pilots are not to be had for the time being: then nothing waits for any.
    PilotsBarred {
        barred: bool,
    },
}

/// A machine of the site, for as long as it is one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(pub u32);

impl NodeId {
    /// The machine of the agent.
    pub const HOME: Self = Self(0);
}

/// A machine of the site beside that of the agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// What it offers to work.
    pub capacity: Capacity,
    /// Whether anything new may be started there.
    pub is_open: bool,
}

/// How a process ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exit {
    pub started_at: Timestamp,
    pub finished_at: Timestamp,
    pub how: ExitKind,
    pub usage: Usage,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ExitKind {
    Code(i32),
    Signal(i32),
    TimedOut,
    OutOfMemory,
    /// Killed because the core asked for it.
    Killed,
    /// The machine went down, or the shim died: nobody saw the end.
    Interrupted(String),
    /// The action said so itself, or the process that it was called in ended without an answer.
    Failed {
        reason: FailureReason,
        message: String,
    },
}

/// An output that may be handed over before its digest is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SealedOutput {
    pub name: String,
    /// Nothing if it is a value, not a file or directory, or an optional one that is not there.
    pub seal: Option<Seal>,
    pub value: Option<SealedValue>,
}

/// Names a sealed file or tree in the site's store until its digest is known; never used twice by one store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
pub struct Seal(pub u64);

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SealedValue {
    File {
        name: Vec<u8>,
        bytes: u64,
    },
    Directory {
        name: Vec<u8>,
    },
    /// A value that is already whole: it travels as it is.
    Whole(Box<WholeValue>),
}

/// A value without files. (A wrapper, because floating-point numbers have no total equality.)
#[derive(Debug, Clone)]
pub struct WholeValue(pub Value);

impl PartialEq for WholeValue {
    fn eq(&self, other: &Self) -> bool {
        self.0 == other.0
    }
}

impl Eq for WholeValue {}

#[derive(Debug, Clone, PartialEq)]
pub struct StoredOutputs {
    pub outputs: Vec<Value>,
    pub logs: Logs,
    pub bytes_out: u64,
}

/// Outputs that could not be taken in; the logs could.
#[derive(Debug, Clone, PartialEq)]
pub struct OutputFailure {
    pub reason: FailureReason,
    pub message: String,
    pub logs: Logs,
}

/// What a shell finds after a restart: all that outlives an agent's process.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Found {
    pub attempts: Vec<FoundAttempt>,
    pub arrivals: Vec<Arrival>,
    pub nodes: BTreeMap<NodeId, Node>,
}

/// A fetch whose bytes have all come. Kept from before the object is in the store until the core says that it is on
/// record, so that the ledger has it exactly once whatever happens in between.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Arrival {
    pub object: ObjectRef,
    /// That of [`crate::Command::Fetch`].
    pub intent: u64,
    pub wire_bytes: u64,
    pub direct: Option<DirectShare>,
    pub at: Timestamp,
}

/// An attempt that a shell found after a restart: what its shims and outcome records say. An attempt that is not found
/// has no claim, and whatever was asked for it by the process before will not be done any more.
#[derive(Debug, Clone, PartialEq)]
pub struct FoundAttempt {
    pub execution: ExecutionId,
    pub attempt: Attempt,
    pub node: NodeId,
    pub state: FoundState,
}

#[derive(Debug, Clone, PartialEq)]
pub enum FoundState {
    /// A live shim has it in its queue, not started.
    Queued,
    Running {
        since: Timestamp,
    },
    Exited(Exit),
}
