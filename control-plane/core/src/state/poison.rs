//! What takes agents down: executions one by one, with what is known of each time, and versions of actions, scripts and
//! commands, whatever the run and wherever they are placed; and what sites do not let run.

use std::collections::BTreeSet;
use std::sync::Arc;

use atoll_model::elements::ElementSet;
use atoll_model::id::{Attempt, ExecutionId, ObjectId, RunId, SiteId, StepIndex};
use atoll_model::limits;
use atoll_model::session::Logs;
use atoll_model::time::Timestamp;
use atoll_model::workflow::{Step, Work};
use serde::{Deserialize, Serialize};

use super::State;
use crate::fact::ReturnCause;

/// What watched over an attempt went down while it ran.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Crash {
    pub(crate) at: Timestamp,
    pub(crate) attempt: Attempt,
    pub(crate) site: SiteId,
    /// Of the site's agent: which of its processes has told of it.
    pub(crate) incarnation: u64,
    pub(crate) message: Arc<str>,
    /// What it had written, where the site has it.
    pub(crate) logs: Logs,
}

/// What one version of an action has done since one of its executions last succeeded.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Crashes {
    count: u32,
    sites: BTreeSet<SiteId>,
    last_at: Timestamp,
}

impl Crashes {
    fn is_remembered(&self, now: Timestamp) -> bool {
        now.saturating_since(self.last_at) < limits::POISON_MEMORY
    }
}

impl State {
    /// Why no execution of the step is to be started, if the version of the action that it uses is poisonous.
    pub(crate) fn poisonous(&self, step: &Step, version: Option<ObjectId>, now: Timestamp) -> Option<String> {
        let crashes = self.crashed_actions.get(&version?).filter(|crashes| crashes.is_remembered(now))?;
        let sites = crashes.sites.len();
        let is_poisonous =
            crashes.count >= limits::POISON_VERSION_CRASHES_MAX && sites >= limits::POISON_VERSION_SITES_MIN;
        is_poisonous.then(|| {
            let what = match &step.work {
                Work::Action(action) if action.bundle.is_some() => format!("action {} {}", action.name, action.version),
                Work::Python(action) | Work::Container(action) | Work::Wasm(action) => {
                    format!("action {} {}", action.name, action.version)
                }
                Work::Action(action) => format!("the command {} of step {}", action.name, step.name),
                Work::Script(_) | Work::Import { .. } | Work::Null | Work::Export { .. } => {
                    format!("the script of step {}", step.name)
                }
            };
            format!(
                "{what} is quarantined: {} of its executions were cut off at {sites} sites, and none has succeeded in \
                 between; change it, or wait for a day",
                crashes.count
            )
        })
    }

    /// Executions are going to return from where they are active now: what that says of their version, and of the sites.
    pub(super) fn note_return(
        &mut self,
        cause: ReturnCause,
        (run, step): (RunId, StepIndex),
        elements: &ElementSet,
        (message, at): (&Arc<str>, Timestamp),
    ) {
        let active = elements.iter().filter_map(|element| self.active(ExecutionId { run, step, element }));
        let sites: Vec<SiteId> = match cause {
            ReturnCause::Interrupted | ReturnCause::Refused => active.map(|active| active.site).collect(),
            ReturnCause::Failed
            | ReturnCause::NotStarted
            | ReturnCause::Lost
            | ReturnCause::NeverSent
            | ReturnCause::Withdrawn
            | ReturnCause::InputUnavailable
            | ReturnCause::Resolved
            | ReturnCause::Stopped
            | ReturnCause::OutOfMemory => return,
        };
        if cause == ReturnCause::Refused {
            let by_site = self.refusals.entry((run, step)).or_default();
            return by_site.extend(sites.into_iter().map(|site| (site, Arc::clone(message))));
        }
        let Some(version) = self.run(run).plan.steps[step.index()].version else { return };
        self.crashed_actions.retain(|_, crashes| crashes.is_remembered(at));
        let crashes = self.crashed_actions.entry(version).or_default();
        crashes.count = crashes.count.saturating_add(u32::try_from(sites.len()).unwrap_or(u32::MAX));
        crashes.sites.extend(sites);
        crashes.last_at = at;
    }

    /// One that succeeds shows that it was not the action.
    pub(super) fn note_success(&mut self, run: RunId, step: StepIndex) {
        if !self.crashed_actions.is_empty()
            && let Some(version) = self.run(run).plan.steps[step.index()].version
        {
            self.crashed_actions.remove(&version);
        }
    }
}
