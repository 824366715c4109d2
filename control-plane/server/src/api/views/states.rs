//! The names of states and kinds.

use atoll_model::value::ObjectKind;
use control_plane_core::view::{ExecutionState, RunState, SiteState};

pub(crate) const fn run_state(state: RunState) -> &'static str {
    match state {
        RunState::Submitted => "submitted",
        RunState::Running => "running",
        RunState::Cancelling => "cancelling",
        RunState::Succeeded => "succeeded",
        RunState::Failed => "failed",
        RunState::Cancelled => "cancelled",
    }
}

pub(crate) fn parse_run_state(text: &str) -> Option<RunState> {
    let states = [
        RunState::Submitted,
        RunState::Running,
        RunState::Cancelling,
        RunState::Succeeded,
        RunState::Failed,
        RunState::Cancelled,
    ];
    states.into_iter().find(|state| run_state(*state) == text)
}

pub(crate) const fn has_ended(state: RunState) -> bool {
    match state {
        RunState::Submitted | RunState::Running | RunState::Cancelling => false,
        RunState::Succeeded | RunState::Failed | RunState::Cancelled => true,
    }
}

pub(crate) const fn execution_state(state: ExecutionState) -> &'static str {
    match state {
        ExecutionState::Waiting => "waiting",
        ExecutionState::Ready => "ready",
        ExecutionState::Placed => "placed",
        ExecutionState::Dispatched => "dispatched",
        ExecutionState::Running => "running",
        ExecutionState::Succeeded => "succeeded",
        ExecutionState::Failed => "failed",
        ExecutionState::Cancelled => "cancelled",
        ExecutionState::Skipped => "skipped",
        ExecutionState::Unknown => "unknown",
    }
}

pub(crate) const fn execution_has_ended(state: ExecutionState) -> bool {
    match state {
        ExecutionState::Waiting
        | ExecutionState::Ready
        | ExecutionState::Placed
        | ExecutionState::Dispatched
        | ExecutionState::Running
        | ExecutionState::Unknown => false,
        ExecutionState::Succeeded | ExecutionState::Failed | ExecutionState::Cancelled | ExecutionState::Skipped => {
            true
        }
    }
}

pub(crate) const fn site_state(state: SiteState) -> &'static str {
    match state {
        SiteState::Expected => "expected",
        SiteState::Ready => "ready",
        SiteState::Syncing => "syncing",
        SiteState::Suspect => "suspect",
        SiteState::Disconnected => "disconnected",
        SiteState::Lost => "lost",
        SiteState::Draining => "draining",
        SiteState::Revoked => "revoked",
        SiteState::Quarantined => "quarantined",
    }
}

pub(crate) const fn object_kind(kind: ObjectKind) -> &'static str {
    match kind {
        ObjectKind::File => "file",
        ObjectKind::Tree => "tree",
    }
}
