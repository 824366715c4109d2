//! Fragments: steps that go along with what they wait for, so that hops inside a site cost no round trip.

use std::sync::Arc;

use atoll_model::elements::ElementSet;
use atoll_model::id::{RunId, SiteId, StepIndex};
use atoll_model::workflow::StartMode;

use super::dispatch::Assignment;
use crate::control_plane::ControlPlane;
use crate::fact::{Fact, ReturnCause};
use crate::state::{ActivePhase, Run, Source, StepPhase};

/// Steps of one run that may be out before what they read has ended: a site that is cut off has that much to go on with,
/// and no more is to be taken back if one fails.
pub(super) const AHEAD_MAX: u32 = 256;

impl ControlPlane {
    /// Hands over a step before what it needs has ended: dispatched, or else delegated as a whole.
    pub(crate) fn dispatch_ahead(&mut self, run_id: RunId, step: StepIndex) {
        self.refresh_outlook(run_id);
        let Some(run) = self.state.runs.get(&run_id) else { return };
        let state = &run.steps[step.index()];
        if !run.is_going_on() || state.phase != StepPhase::Waiting || state.needs_left == 0 {
            return;
        }
        if self.state.delegation(run_id, step).is_some() {
            return;
        }
        self.dispatch_fragment_ahead(run_id, step);
        if self.state.step(run_id, step).phase == StepPhase::Waiting {
            self.delegate(run_id, step);
        } else {
            self.make_ready_after(run_id, step);
        }
    }

    /// Dispatches a step to the site where everything it waits for is, if it is certain to be placed there.
    fn dispatch_fragment_ahead(&mut self, run_id: RunId, step: StepIndex) {
        let Some(run) = self.state.runs.get(&run_id) else { return };
        let state = &run.steps[step.index()];
        let planned = &run.plan.steps[step.index()];
        let delayed = state.again.get(&0).is_some_and(|not_before| *not_before > self.now);
        if !planned.chainable || !state.unknown.is_empty() || delayed {
            return;
        }
        if self.allowance(run, step).0 == 0 {
            // It gets its turn when what it needs has ended.
            return;
        }
        let Some(site) = site_of_needs(run, step) else { return };
        if run.ahead >= AHEAD_MAX {
            self.agenda.frontier.entry(run_id).or_default().insert(step);
            return;
        }
        if self.is_certain_at(run_id, step, site) {
            self.dispatch_fragment(run_id, step, site);
        }
    }

    /// Goes on where a run had enough out.
    pub(crate) fn continue_frontier(&mut self, run: RunId) {
        let ahead = self.state.runs.get(&run).map_or(0, |run| run.ahead);
        if ahead <= AHEAD_MAX / 2
            && let Some(steps) = self.agenda.frontier.remove(&run)
        {
            self.agenda.chain.extend(steps.into_iter().map(|step| (run, step)));
        }
    }

    /// Takes back what was dispatched to start on outputs that will not come, at least not from there.
    pub(crate) fn withdraw_successors(&mut self, run_id: RunId, step: StepIndex) {
        let mut failed = vec![step];
        while let Some(step) = failed.pop() {
            let run = self.state.run(run_id);
            let successors = run.plan.steps[step.index()].successors.clone();
            for successor in successors {
                let state = self.state.step(run_id, successor);
                let Some(active) = state.active.get(&0) else { continue };
                let waits = state.bound.get(&active.attempt).is_some_and(|bound| bound.iter().any(|(s, _)| *s == step));
                if !active.fragment || active.phase != ActivePhase::Dispatched || !waits {
                    continue;
                }
                let (site, elements) = (active.site, ElementSet::from_range(0..1));
                let message: Arc<str> = Arc::from("what it waits for did not succeed there");
                self.agenda.unwant(atoll_model::id::ExecutionId { run: run_id, step: successor, element: 0 });
                let run = run_id;
                if self.state.run(run).workflow.step(successor).start == StartMode::AtMostOnce {
                    // It may have begun a moment ago: what it was is told by its agent, which ends it.
                    let (elements, message) = (elements.clone(), Arc::clone(&message));
                    self.record(Fact::ExecutionsUnknown { run, step: successor, elements, message });
                    let elements = ElementSet::from_range(0..1);
                    let reason: Arc<str> = Arc::from("what it waits for did not succeed there");
                    self.order_cancel(site, run, successor, elements, &reason);
                } else {
                    self.order_cancel(site, run, successor, elements.clone(), &message);
                    let (cause, not_before) = (ReturnCause::Withdrawn, self.now);
                    self.record(Fact::ExecutionsReturned {
                        run,
                        step: successor,
                        elements,
                        cause,
                        message,
                        not_before,
                    });
                }
                self.agenda.has_room(site);
                self.agenda.chain.push_back((run_id, successor));
                failed.push(successor);
            }
        }
    }

    /// Whether placement would choose the site, and everything else that the step reads can be had there without waiting.
    fn is_certain_at(&self, run_id: RunId, step: StepIndex, site: SiteId) -> bool {
        if self.site_closed(site).is_some() {
            return false;
        }
        let run = self.state.run(run_id);
        let known = self.known_objects(run, step);
        let ready = known.iter().all(|object| self.is_at_hand(*object, site));
        if !ready {
            return false;
        }
        let assessments = self.assess_ahead(run, step, site, &known);
        crate::placement::best(&assessments, (run_id, step, 0)) == Some(site)
    }

    fn dispatch_fragment(&mut self, run_id: RunId, step: StepIndex, site: SiteId) {
        let run = self.state.run(run_id);
        let known = self.known_objects(run, step);
        let assessments = self.assess_ahead(run, step, site, &known);
        let decision = self.decide(run_id, step, &assessments);
        let attempt = self.state.step(run_id, step).next_attempt(0);
        let assignment = Assignment { run: run_id, step, attempt, site, decision };
        self.dispatch(assignment, ElementSet::from_range(0..1), true);
    }
}

/// The site where all that a step waits for is or was, if it is one site.
fn site_of_needs(run: &Run, step: StepIndex) -> Option<SiteId> {
    let mut site = None;
    for need in &run.workflow.step(step).needs {
        let state = &run.steps[need.index()];
        if state.is_ended() {
            if state.is_skipped() || state.failed > 0 {
                return None;
            }
            continue;
        }
        let active = state.active.get(&0).filter(|active| active.phase != ActivePhase::Placed && !active.cancelling)?;
        if site.is_some_and(|known| known != active.site) {
            return None;
        }
        site = Some(active.site);
    }
    site
}

impl ControlPlane {
    /// Objects that a step reads and that exist already.
    fn known_objects(&self, run: &Run, step: StepIndex) -> Vec<atoll_model::value::ObjectRef> {
        let mut objects = Vec::new();
        if let Ok(shared) = self.caches.shared(run, step) {
            objects.extend(&shared.objects);
        }
        for source in &run.plan.steps[step.index()].reads {
            if let Source::Step(need) = source
                && run.steps[need.index()].is_ended()
                && let Some(detail) = run.steps[need.index()].details.get(&0)
            {
                detail.outputs.iter().for_each(|value| value.visit_objects(&mut |object| objects.push(object)));
            }
        }
        objects
    }
}
