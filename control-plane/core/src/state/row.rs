//! What is kept of executions that have ended: a row of fixed size for each, and the rest only where there is any.

use std::sync::Arc;

use atoll_model::id::{Attempt, SiteId};
use atoll_model::session::{Logs, Usage};
use atoll_model::time::Timestamp;
use atoll_model::value::Value;
use serde::{Deserialize, Serialize};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum RowState {
    /// The element has not ended.
    Open,
    Succeeded,
    Failed,
    Cancelled,
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(crate) struct Row {
    pub(crate) state: RowState,
    pub(crate) attempt: Attempt,
    /// Zero if it was never placed.
    pub(crate) site: SiteId,
    pub(crate) placed_at: Timestamp,
    /// Zero if it never started.
    pub(crate) started_at: Timestamp,
    pub(crate) finished_at: Timestamp,
}

impl Row {
    pub(crate) const OPEN: Self = Self {
        state: RowState::Open,
        attempt: Attempt(0),
        site: SiteId(0),
        placed_at: Timestamp::ZERO,
        started_at: Timestamp::ZERO,
        finished_at: Timestamp::ZERO,
    };
}

/// Absent where all of it is empty.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Detail {
    pub(crate) outputs: Vec<Value>,
    pub(crate) usage: Usage,
    pub(crate) logs: Logs,
    pub(crate) exit_code: Option<i32>,
    pub(crate) error: Option<Arc<str>>,
}

impl Detail {
    pub(crate) fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}
