//! What became of executions and of objects, as an agent reports it.

use serde::{Deserialize, Serialize};

use crate::id::Attempt;
use crate::time::Timestamp;
use crate::value::{ObjectRef, Value};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct StartedElement {
    pub element: u32,
    pub attempt: Attempt,
    pub at: Timestamp,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FinishedElement {
    pub element: u32,
    pub attempt: Attempt,
    /// Nothing if it never started.
    pub started_at: Option<Timestamp>,
    pub finished_at: Timestamp,
    pub outcome: Outcome,
    /// In the order of [`super::StepTemplate::outputs`]; empty unless it succeeded.
    pub outputs: Vec<Value>,
    pub usage: Usage,
    pub logs: Logs,
}

/// How an attempt ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    Succeeded,
    Failed {
        reason: FailureReason,
        exit_code: Option<i32>,
        message: String,
    },
    Cancelled,
    /// The machine, or what watched over the process, went down while it ran: its fate is not known to the work itself.
    Interrupted {
        message: String,
    },
    /// It was never started, and never will be.
    NotStarted {
        reason: NotStartedReason,
        message: String,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum FailureReason {
    ExitCode,
    Signal,
    TimedOut,
    OutOfMemory,
    MissingOutput,
    InvalidOutput,
    /// The site has no room left for work or outputs.
    NoSpace,
    /// The program could not be started.
    NotExecutable,
    /// A file that the site was to hold is not there, or may not be read.
    ImportFailed,
    /// The agent itself failed; the message says how.
    Agent,
    /// A file or directory could not be published, or may not be.
    ExportFailed,
    /// The action itself says that it failed, and why; or the process that it was called in ended without an answer.
    ActionFailed,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum NotStartedReason {
    /// The lease or the dispatch had run out.
    Expired,
    Cancelled,
    /// An input could not be had.
    InputUnavailable,
    /// The execution whose output it waits for did not succeed.
    PredecessorFailed,
    /// The site is closed or full.
    Closed,
    /// The site cannot ever run it: more memory than it has, an unknown runtime.
    Impossible,
    /// This attempt, or a later one, was made here before: a control plane that was restored from a backup gave it out
    /// again.
    AttemptKnown,
    /// The policy of the site's own administrator does not let the step run there, and will not.
    Refused,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    pub cpu_micros: u64,
    pub max_rss_bytes: u64,
    /// Bytes of inputs that were materialised, and of outputs that were taken in.
    pub bytes_in: u64,
    pub bytes_out: u64,
    /// Bytes that were read from disks and are to be written to them. What was in memory already is not among them.
    pub disk_read_bytes: u64,
    pub disk_written_bytes: u64,
}

/// Where the two logs of an attempt are: objects of the site's store; nothing where nothing was written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Logs {
    pub stdout: Option<ObjectRef>,
    pub stderr: Option<ObjectRef>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum PushFailure {
    /// The object is not in the store (any more), or its copy is damaged.
    Unavailable,
    /// The bucket or the link refuses; tried for long enough.
    Refused,
    Cancelled,
    /// The policy of the site's own administrator does not let the object leave, and will not.
    Forbidden,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum FaultLocation {
    SiteStore,
    Bucket,
}
