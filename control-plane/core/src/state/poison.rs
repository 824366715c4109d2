//! Actions whose executions take their agents down, whatever the run and wherever they are placed.

use std::collections::BTreeSet;

use atoll_model::id::{ExecutionId, ObjectId, RunId, SiteId, StepIndex};
use atoll_model::limits;
use atoll_model::time::Timestamp;
use atoll_model::workflow::{Action, Work, Workflow};
use serde::{Deserialize, Serialize};

use super::State;

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
    pub(crate) fn poisonous(&self, workflow: &Workflow, step: StepIndex, now: Timestamp) -> Option<String> {
        let (action, bundle) = action_of(workflow, step)?;
        let crashes = self.crashed_actions.get(&bundle).filter(|crashes| crashes.is_remembered(now))?;
        let sites = crashes.sites.len();
        let is_poisonous =
            crashes.count >= limits::POISON_VERSION_CRASHES_MAX && sites >= limits::POISON_VERSION_SITES_MIN;
        is_poisonous.then(|| {
            format!(
                "action {} {} is quarantined: {} of its executions were cut off at {sites} sites, and none has \
                 succeeded in between; change it, or wait for a day",
                action.name, action.version, crashes.count
            )
        })
    }

    /// Executions were interrupted where they are active now.
    pub(super) fn note_crashes(
        &mut self,
        run: RunId,
        step: StepIndex,
        elements: impl Iterator<Item = u32>,
        at: Timestamp,
    ) {
        let Some((_, bundle)) = action_of(&self.run(run).workflow, step) else { return };
        let sites: Vec<_> = elements
            .filter_map(|element| self.active(ExecutionId { run, step, element }))
            .map(|active| active.site)
            .collect();
        self.crashed_actions.retain(|_, crashes| crashes.is_remembered(at));
        let crashes = self.crashed_actions.entry(bundle).or_default();
        crashes.count = crashes.count.saturating_add(u32::try_from(sites.len()).unwrap_or(u32::MAX));
        crashes.sites.extend(sites);
        crashes.last_at = at;
    }

    /// One that succeeds shows that it was not the action.
    pub(super) fn note_success(&mut self, run: RunId, step: StepIndex) {
        if !self.crashed_actions.is_empty()
            && let Some((_, bundle)) = action_of(&self.run(run).workflow, step)
        {
            self.crashed_actions.remove(&bundle);
        }
    }
}

fn action_of(workflow: &Workflow, step: StepIndex) -> Option<(&Action, ObjectId)> {
    match &workflow.step(step).work {
        Work::Action(action) => Some((action, action.bundle?)),
        Work::Script(_) | Work::Import { .. } | Work::Null => None,
    }
}
