//! What facts are made of.

use std::sync::Arc;

use atoll_model::id::{CommandSeq, ReportSeq, SiteId};
use atoll_model::value::Value;
use serde::{Deserialize, Serialize};

/// Where a person wants a copy of an object to stay.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum PinnedAt {
    /// One copy at least, wherever it is.
    Anywhere,
    Bucket,
    Site(SiteId),
}

/// Where the logs of an agent's new journal begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogPositions {
    pub last_report: ReportSeq,
    pub last_command: CommandSeq,
}

/// What the elements of a step are.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Items {
    /// The step does not fan out.
    Single,
    /// The integers from 0.
    Range,
    List(Arc<Vec<Value>>),
    /// The list that was given for this input of the workflow.
    Input(String),
}

/// Why an execution waits again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum ReturnCause {
    /// The attempt failed, and its author allows another.
    Failed,
    /// What watched over it went down while it ran.
    Interrupted,
    /// The agent never started it.
    NotStarted,
    /// Its site was lost, or has no trace of it.
    Lost,
    /// It was never sent: the same attempt is still to be given out.
    NeverSent,
    /// The execution that its fragment waits for did not succeed there.
    Withdrawn,
    /// The copy of an input that it waited for can not be had.
    InputUnavailable,
    /// A person decided so.
    Resolved,
    /// The agent stopped it on purpose, without being asked: it was cut off.
    Stopped,
    /// The site's own policy does not let the step run there: it goes there no more.
    Refused,
    /// The attempt failed for want of memory, and the next one asks for more.
    OutOfMemory,
}

/// Which rule asked for a transfer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum RuleText {
    WhenNeeded,
    /// Rule number (from 1) and line of the workflow file.
    Rule {
        number: u32,
        line: u32,
    },
    /// A person asked for it.
    Client,
    /// A rule of the project's policy.
    Line {
        file: Arc<str>,
        line: u32,
    },
}

impl std::fmt::Display for RuleText {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::WhenNeeded => formatter.write_str("when-needed"),
            Self::Rule { number, line } => write!(formatter, "rule {number} (line {line})"),
            Self::Client => formatter.write_str("client"),
            Self::Line { file, line } => write!(formatter, "{file}:{line}"),
        }
    }
}
