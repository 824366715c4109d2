//! Actions that are made ready ahead of need: a site is told of each that is certain to be wanted there later, so that its
//! bundle, its packages, its image or its component are there by then.
//!
//! It is certain where one site alone can take a step, or was given the whole of it, and nothing says that the step may be
//! skipped. What a site makes ready is its agent's affair, and so is when it lets go of it; here nothing waits for it.

use std::collections::BTreeSet;

use atoll_model::id::{ObjectId, RunId, SiteId, StepIndex};
use atoll_model::session::DeployedState;
use atoll_model::workflow::{Step, Work};

use super::place::requirement;
use crate::control_plane::ControlPlane;
use crate::fact::Fact;
use crate::placement::{Candidate, permanent_obstacle};
use crate::state::{Run, StepPhase};

impl ControlPlane {
    /// Looks at the steps of a run that has just begun: what comes first is given out at once.
    pub(crate) fn make_ready_for(&mut self, run_id: RunId) {
        let run = self.state.run(run_id);
        let later = |step: &&Step| !step.needs.is_empty() && bundle_of(step).is_some();
        if !run.workflow.steps.iter().any(|step| later(&step)) {
            return;
        }
        let uncertain = may_be_skipped(run);
        let steps = run.workflow.steps.iter().filter(later).map(|step| step.index);
        let steps = steps.filter(|step| !uncertain.contains(step)).collect();
        self.make_ready_where_certain(run_id, steps);
    }

    /// Looks at the steps that follow one that has just begun: more is certain now, and other sites may be there.
    pub(crate) fn make_ready_after(&mut self, run_id: RunId, step: StepIndex) {
        let run = self.state.run(run_id);
        let has_begun = |need: &StepIndex| {
            let need = &run.steps[need.index()];
            need.phase != StepPhase::Waiting && !need.is_skipped()
        };
        let follows = |step: &StepIndex| {
            let definition = run.workflow.step(*step);
            let waits = run.steps[step.index()].phase == StepPhase::Waiting;
            waits && bundle_of(definition).is_some() && !says_when(definition) && definition.needs.iter().all(has_begun)
        };
        let steps: Vec<StepIndex> = run.plan.steps[step.index()].successors.iter().copied().filter(follows).collect();
        if !steps.is_empty() {
            self.make_ready_where_certain(run_id, steps);
        }
    }

    /// Has the action of a step made ready at a site that will carry the whole of it out.
    pub(crate) fn make_ready_at(&mut self, run_id: RunId, step: StepIndex, site: SiteId) {
        let run = self.state.run(run_id);
        if self.may_be_made_ready(run, step) && !says_when(run.workflow.step(step)) {
            self.order_ready(run_id, step, site);
        }
    }

    fn make_ready_where_certain(&mut self, run_id: RunId, steps: Vec<StepIndex>) {
        let run = self.state.run(run_id);
        let candidates = self.candidates();
        let steps = steps.into_iter().filter(|step| self.may_be_made_ready(run, *step));
        let certain: Vec<_> = steps.filter_map(|step| Some((step, self.only_site(run, step, &candidates)?))).collect();
        for (step, site) in certain {
            self.order_ready(run_id, step, site);
        }
    }

    /// Nothing is ordered twice, for what may not run, or for what may take the result of another.
    fn may_be_made_ready(&self, run: &Run, step: StepIndex) -> bool {
        let definition = run.workflow.step(step);
        bundle_of(definition).is_some()
            && !self.state.is_ready_ordered(run.id, step)
            && !definition.cache.is_some_and(|cache| cache.takes)
            && self.state.poisonous(definition, run.plan.steps[step.index()].version, self.now).is_none()
    }

    /// The site of a step, if only one can take it, and it takes work.
    fn only_site(&self, run: &Run, step: StepIndex, candidates: &[Candidate<'_>]) -> Option<SiteId> {
        let definition = run.workflow.step(step);
        let wanted = requirement(definition, 0.0);
        let refused = self.state.refusals.get(&(run.id, step));
        let mut possible = candidates.iter().filter(|candidate| {
            let site = self.state.site(candidate.site);
            site.revoked.is_none()
                && !refused.is_some_and(|sites| sites.contains_key(&candidate.site))
                && permanent_obstacle(candidate, &wanted).is_none()
                && self.rule_obstacle(&run.plan, definition, candidate).is_none()
        });
        let only = possible.next()?;
        let is_open = only.closed.is_none() && self.state.site(only.site).lost.is_none();
        (possible.next().is_none() && is_open).then_some(only.site)
    }

    fn order_ready(&mut self, run: RunId, step: StepIndex, site: SiteId) {
        let bundle = bundle_of(self.state.run(run).workflow.step(step));
        let is_there = |told: &atoll_model::session::Deployed| {
            Some(told.bundle) == bundle && matches!(told.state, DeployedState::Ready | DeployedState::Deploying)
        };
        if self.sessions.deployed(site).iter().any(is_there) {
            return;
        }
        self.record(Fact::ReadyOrdered { site, run, step });
        self.agenda.touched.insert(site);
    }
}

/// The bundle of the action that a step runs.
fn bundle_of(step: &Step) -> Option<ObjectId> {
    step.work.action().and_then(|action| action.bundle)
}

/// Whether a step may be skipped for what it says itself.
fn says_when(step: &Step) -> bool {
    step.when.is_some() || matches!(step.work, Work::Export { .. })
}

/// Steps that may be skipped, for what they say or for what they follow.
fn may_be_skipped(run: &Run) -> BTreeSet<StepIndex> {
    let mut found = BTreeSet::new();
    let says = run.workflow.steps.iter().filter(|step| says_when(step));
    let mut next: Vec<StepIndex> = says.map(|step| step.index).collect();
    while let Some(step) = next.pop() {
        if found.insert(step) {
            next.extend(&run.plan.steps[step.index()].successors);
        }
    }
    found
}
