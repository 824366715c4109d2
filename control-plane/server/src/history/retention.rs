//! How long runs are kept.

use std::time::Duration;

use atoll_model::time::Timestamp;
use control_plane_core::view::RunView;
use serde::Deserialize;

use crate::api::views::parse_run_state;

const DAY: Duration = Duration::from_secs(24 * 3_600);

/// How long finished runs stay in the history.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Retention {
    /// Days after the end of a run that no rule is for; for ever unless given.
    pub keep_days: Option<u32>,
    /// The first that a run matches counts.
    pub rules: Vec<RetentionRule>,
}

/// How long some runs stay there; every part that is given must hold.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RetentionRule {
    pub project: Option<String>,
    pub workflow: Option<String>,
    /// `succeeded`, `failed` or `cancelled`.
    pub state: Option<String>,
    /// For ever unless given.
    pub keep_days: Option<u32>,
}

impl Retention {
    /// The state that a rule names and that no run ends in, if there is one.
    pub(crate) fn unknown_state(&self) -> Option<&str> {
        let states = self.rules.iter().filter_map(|rule| rule.state.as_deref());
        states.into_iter().find(|state| !matches!(*state, "succeeded" | "failed" | "cancelled"))
    }

    /// Whether anything is ever to go.
    pub fn is_bounded(&self) -> bool {
        self.keep_days.is_some() || self.rules.iter().any(|rule| rule.keep_days.is_some())
    }

    /// When a run is to go; never if nothing.
    pub fn ends(&self, run: &RunView) -> Option<Timestamp> {
        let rule = self.rules.iter().find(|rule| rule.is_for(run));
        let days = rule.map_or(self.keep_days, |rule| rule.keep_days)?;
        Some(run.finished_at? + DAY * days)
    }
}

impl RetentionRule {
    fn is_for(&self, run: &RunView) -> bool {
        self.project.as_ref().is_none_or(|project| *project == run.tags.project)
            && self.workflow.as_ref().is_none_or(|workflow| *workflow == run.workflow)
            && self.state.as_ref().is_none_or(|state| parse_run_state(state) == Some(run.state))
    }
}
