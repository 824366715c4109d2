//! Stopping work: of runs that a person cancels, of runs that fail, of attempts that are not needed any more.

use std::collections::BTreeMap;
use std::sync::Arc;

use atoll_model::elements::ElementSet;
use atoll_model::id::{RunId, SiteId, StepIndex};

use crate::command::{Rejection, Response};
use crate::control_plane::ControlPlane;
use crate::fact::Fact;
use crate::state::{Active, ActivePhase, Phase};
use crate::view::{RunError, RunState};

impl ControlPlane {
    pub(crate) fn cancel_run(&mut self, run: RunId, reason: String) -> Result<Response, Rejection> {
        let Some(known) = self.state.runs.get(&run) else {
            return Err(Rejection::NotFound(format!("there is no run {run}")));
        };
        match known.phase {
            Phase::Cancelling | Phase::Ended(RunState::Cancelled) => Ok(Response::Done),
            Phase::Ended(RunState::Succeeded) => Err(Rejection::Conflict(format!("{run} has already succeeded"))),
            Phase::Ended(_) => Err(Rejection::Conflict(format!("{run} has already failed"))),
            Phase::Going | Phase::Failing => {
                self.record(Fact::RunCancelling { run, reason: reason.clone() });
                let reason = if reason.is_empty() { "the run was cancelled".to_owned() } else { reason };
                self.stop_active(run, &reason, |_| true);
                self.withdraw_all(run, true);
                Ok(Response::Done)
            }
        }
    }

    /// The run cannot succeed any more. What waits is cancelled, what has been handed to an agent and not started too;
    /// what runs may end.
    pub(crate) fn fail_run(&mut self, run: RunId, error: RunError) {
        if !self.state.run(run).is_going_on() {
            return;
        }
        let reason = format!("step {} failed", error.step);
        self.record(Fact::RunFailing { run, error });
        self.stop_active(run, &reason, |active| active.phase == ActivePhase::Dispatched);
        self.withdraw_all(run, false);
    }

    fn stop_active(&mut self, run_id: RunId, reason: &str, which: impl Fn(&Active) -> bool) {
        let reason: Arc<str> = Arc::from(reason);
        let mut orders: BTreeMap<(StepIndex, SiteId), ElementSet> = BTreeMap::new();
        for (index, step) in (0..=u16::MAX).map(StepIndex).zip(&self.state.run(run_id).steps) {
            for (element, active) in step.active.iter().filter(|(_, active)| !active.cancelling && which(active)) {
                orders.entry((index, active.site)).or_default().insert(*element);
            }
        }
        for ((step, site), elements) in orders {
            self.order_cancel(site, run_id, step, elements, &reason);
        }
        self.cancel_pushes_of(run_id);
        self.agenda.forget_run(run_id);
        self.agenda.ending.insert(run_id);
    }

    pub(crate) fn order_cancel(
        &mut self,
        site: SiteId,
        run: RunId,
        step: StepIndex,
        elements: ElementSet,
        reason: &Arc<str>,
    ) {
        self.record(Fact::CancelOrdered { site, run, step, elements, reason: Arc::clone(reason) });
        self.agenda.touched.insert(site);
    }
}
