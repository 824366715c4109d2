//! Delegation of whole steps: to which site, what its agent says of them, when they are taken back.
//!
//! A step is delegated to the site where all that it needs has gone, if it is certain to be placed there. Its executions
//! wait here as before, but nobody places them: the agent gives out their attempts by itself, and what it reports of them
//! moves the same rows as if they had been dispatched. When the step's needs have ended here, its elements are found out
//! here too, from the same values with the same evaluator. An attempt that the agent gave out and one that is given out
//! here never have the same number: a delegation ends when the agent has said what it kept, or, if the agent cannot be
//! asked, with all the attempts used up that it may have given out.

use std::collections::BTreeMap;
use std::sync::Arc;

use atoll_model::elements::ElementSet;
use atoll_model::id::{Attempt, ExecutionId, RunId, SiteId, StepIndex};
use atoll_model::limits::DELEGATED_BYTES_MAX;
use atoll_model::session::{FinishedElement, PROTOCOL_VERSION_DELEGATION};
use atoll_model::value::ObjectRef;
use atoll_model::workflow::{StartMode, Work};

use super::fragments::AHEAD_MAX;
use crate::control_plane::ControlPlane;
use crate::fact::Fact;
use crate::sessions::SessionPhase;
use crate::state::{ActivePhase, Row, RowState, Run, State, StepPhase};

impl ControlPlane {
    /// Delegates a step to the site where all that it needs is, or goes on, if it is certain to be placed there.
    pub(crate) fn delegate(&mut self, run_id: RunId, step: StepIndex) {
        let run = self.state.run(run_id);
        let known = &run.steps[step.index()];
        let definition = run.workflow.step(step);
        let was_delegated = self.state.delegations.get(&run_id).is_some_and(|steps| steps.is_or_was_delegated(step));
        if was_delegated
            || !known.tries.is_empty()
            || !known.unknown.is_empty()
            || definition.start == StartMode::AtMostOnce
            // What is published is to have ended here before, and what is nothing is not published at all.
            || matches!(definition.work, Work::Import { .. } | Work::Export { .. })
            // An agent knows no results of others.
            || definition.cache.is_some()
            || self.is_poisonous(run, step)
            // An agent gives all attempts the memory that the step asks for.
            || definition.retry.memory.is_some()
            // An agent knows nothing of limits.
            || self.is_limited(run, step)
        {
            return;
        }
        let Some(site) = self.site_of_all_needs(run, step) else { return };
        let speaks = self.sessions.by_site.get(&site).is_some_and(|session| {
            session.phase == SessionPhase::Ready && session.protocol >= PROTOCOL_VERSION_DELEGATION
        });
        if !speaks || self.site_closed(site).is_some() {
            return;
        }
        let Some(objects) = self.delegated_objects(run, step) else { return };
        let is_there = |object: &ObjectRef| self.state.objects.get(&object.id).is_some_and(|known| known.is_at(site));
        if !objects.iter().all(is_there) {
            return;
        }
        let assessments = self.assess_ahead(run, step, site, &objects);
        let feasible = assessments.iter().filter(|assessment| assessment.obstacle.is_none()).count();
        if crate::placement::best(&assessments, (run_id, step, 0)) != Some(site)
            || (definition.foreach.is_some() && feasible > 1)
        {
            return;
        }
        let ahead = run.ahead as usize + self.state.delegated_steps(run_id).count();
        if ahead >= AHEAD_MAX as usize {
            self.agenda.frontier.entry(run_id).or_default().insert(step);
            return;
        }
        let successors = run.plan.steps[step.index()].successors.clone();
        let decision = self.decide(run_id, step, &assessments);
        let (run, attempt, at) = (run_id, Attempt::FIRST, self.now);
        self.record(Fact::StepDelegated { run, step, site, attempt, decision, at });
        self.agenda.touched.insert(site);
        self.make_ready_at(run, step, site);
        self.agenda.chain.extend(successors.into_iter().map(|successor| (run_id, successor)));
    }

    /// The site that has, or will have, everything that a step needs, if it is one site and its agent knows of all of it.
    fn site_of_all_needs(&self, run: &Run, step: StepIndex) -> Option<SiteId> {
        let mut sites = std::collections::BTreeSet::new();
        for need in &run.workflow.step(step).needs {
            let state = &run.steps[need.index()];
            if let Some(delegated) = self.state.delegation(run.id, *need) {
                let whole = delegated.withdrawing.is_none() && delegated.back.is_empty();
                sites.insert(Some(delegated.site).filter(|_| whole)?);
            } else if state.is_ended() {
                if !state.has_succeeded() || !state.recomputing.is_empty() {
                    return None;
                }
            } else if state.phase == StepPhase::Expanded && !state.has_waiting() && state.unknown.is_empty() {
                let site = state.active.values().next()?.site;
                let goes_on_there = state
                    .active
                    .values()
                    .all(|active| active.site == site && active.phase != ActivePhase::Placed && !active.cancelling);
                let ended_there = |row: &Row| row.state == RowState::Open || row.site == site;
                if !goes_on_there || !state.rows.iter().all(ended_there) {
                    return None;
                }
                sites.insert(site);
            } else {
                return None;
            }
            if sites.len() > 1 {
                return None;
            }
        }
        sites.pop_first()
    }

    /// The objects among all that is known already of what a delegated step reads; nothing if that is too much to send.
    fn delegated_objects(&self, run: &Run, step: StepIndex) -> Option<Vec<ObjectRef>> {
        let mut objects = Vec::new();
        let mut bytes = 0;
        let definition = run.workflow.step(step);
        if let Some(action) = definition.work.action() {
            let kind = atoll_model::value::ObjectKind::Tree;
            objects.extend(action.bundle.map(|id| ObjectRef { id, kind, bytes: action.bundle_bytes }));
        }
        let (needs, inputs) = self.delegated_values(run, step);
        let outputs = needs.iter().filter_map(|need| match &need.state {
            atoll_model::session::NeedState::Ended { outputs } => Some(outputs.iter().map(|(_, value)| value)),
            atoll_model::session::NeedState::Dispatched { .. } | atoll_model::session::NeedState::Delegated => None,
        });
        let inputs = inputs.iter().filter_map(|(_, input)| match input {
            atoll_model::session::GivenInput::Value(value) => Some(value),
            atoll_model::session::GivenInput::Output { .. } => None,
        });
        for value in outputs.flatten().chain(inputs) {
            bytes += value.stored_bytes();
            value.visit_objects(&mut |object| objects.push(object));
        }
        (bytes <= DELEGATED_BYTES_MAX).then_some(objects)
    }

    /// Attempts that an agent tells of and gave out by itself become the current ones.
    pub(crate) fn take_reported(
        &mut self,
        site: SiteId,
        run: RunId,
        step: StepIndex,
        attempts: impl Iterator<Item = (u32, Attempt)>,
    ) {
        if self.state.delegation(run, step).is_none_or(|delegated| delegated.site != site) {
            return;
        }
        // The ends of what the step needs may have come in the same frame.
        self.expand(run, step);
        let mut taken: BTreeMap<Attempt, ElementSet> = BTreeMap::new();
        for (element, attempt) in attempts {
            if self.state.is_takeable(ExecutionId { run, step, element }, attempt, site) {
                taken.entry(attempt).or_default().insert(element);
            }
        }
        let reads = !self.state.run(run).plan.steps[step.index()].reads.is_empty();
        for (attempt, elements) in taken {
            self.counters.executions_dispatched += u64::from(elements.len());
            let (at, given) = (self.now, elements.clone());
            self.record(Fact::ExecutionsTaken { run, step, attempt, elements, site, at });
            for element in given.iter().filter(|_| reads) {
                self.want(site, ExecutionId { run, step, element });
            }
            // A limit may have been set since the step was delegated.
            self.tolerate(run, step);
        }
    }

    /// What of a step ended for which the control plane still waits: unless that follows from what came before in the same
    /// frame, its agent has gone on with what nobody else takes for the end of what the step needs.
    pub(crate) fn give_away_if_waiting(&mut self, site: SiteId, run: RunId, step: StepIndex) {
        let is_waiting = |state: &State| {
            state.delegation(run, step).is_some_and(|delegated| delegated.site == site)
                && state.step(run, step).phase == StepPhase::Waiting
        };
        while is_waiting(&self.state) {
            let Some((run, step)) = self.agenda.expand.pop_front() else {
                return self.end_delegation(run, step, true);
            };
            self.expand(run, step);
        }
    }

    /// Attempts ended that the agent lets others follow by itself.
    pub(crate) fn retried(&mut self, site: SiteId, run: RunId, step: StepIndex, elements: Vec<FinishedElement>) {
        let ended: ElementSet = elements.iter().map(|finished| finished.element).collect();
        self.finished(site, run, step, elements);
        let Some(known) = self.state.runs.get(&run).filter(|run| run.is_live()) else { return };
        let Some(state) = known.steps.get(step.index()) else { return };
        let delegated = self.state.delegation(run, step).filter(|delegated| delegated.site == site);
        // What was judged as the agent did waits for its next attempt; of all else the agent is told that it is over.
        let waits = |element: &u32| {
            state.again.contains_key(element) && delegated.is_some_and(|delegated| delegated.back.contains(*element))
        };
        let kept: ElementSet = ended.iter().filter(|element| known.is_going_on() && waits(element)).collect();
        let over: ElementSet =
            ended.iter().filter(|element| state.row(*element).is_some() || !known.is_going_on()).collect();
        if !kept.is_empty() {
            self.record(Fact::ExecutionsKept { run, step, elements: kept });
        }
        if !over.is_empty() {
            let reason: Arc<str> = Arc::from("it is not tried again");
            self.order_cancel(site, run, step, over, &reason);
        }
    }

    /// An agent starts nothing more of a step that was delegated to it.
    pub(crate) fn delegation_ended(
        &mut self,
        site: SiteId,
        run: RunId,
        step: StepIndex,
        kept: Vec<(Attempt, ElementSet)>,
    ) {
        // The step has ended, or was given away before; or the run has.
        if self.state.delegation(run, step).is_none_or(|delegated| delegated.site != site) {
            return;
        }
        let attempts = kept.iter().flat_map(|(attempt, elements)| elements.iter().map(|element| (element, *attempt)));
        self.take_reported(site, run, step, attempts);
        self.end_delegation(run, step, false);
    }

    /// The step is not the agent's any more. It says what it keeps; one that cannot be asked counts as having used up every
    /// attempt that it may have given out.
    pub(crate) fn withdraw(&mut self, run: RunId, step: StepIndex, stop: bool) {
        let Some(delegated) = self.state.delegation(run, step) else { return };
        let site = delegated.site;
        if self.is_out_of_reach(site) {
            return self.end_delegation(run, step, true);
        }
        if delegated.withdrawing.is_some_and(|stopping| stopping || !stop) {
            return;
        }
        self.record(Fact::DelegationWithdrawn { run, step, site, stop });
        self.agenda.touched.insert(site);
    }

    /// Whether nothing is expected of the site's agent any more.
    pub(crate) fn is_out_of_reach(&self, site: SiteId) -> bool {
        self.state.sites.get(&site).is_none_or(|site| site.lost.is_some() || site.revoked.is_some())
    }

    pub(crate) fn end_delegation(&mut self, run: RunId, step: StepIndex, given_away: bool) {
        if given_away && let Some(delegated) = self.state.delegation(run, step) {
            self.agenda.touched.insert(delegated.site);
        }
        self.record(Fact::DelegationEnded { run, step, given_away });
        let known = self.state.run(run);
        if !known.is_going_on() {
            return self.after_elements_ended(run, step);
        }
        let is_to_expand =
            known.steps[step.index()].phase == StepPhase::Waiting && known.steps[step.index()].needs_left == 0;
        self.want_place(run, step);
        if is_to_expand {
            self.agenda.expand.push_back((run, step));
        }
    }

    /// Steps that read this one were delegated to sites that do not have what was made here.
    pub(crate) fn withdraw_elsewhere(&mut self, run: RunId, step: StepIndex, site: SiteId) {
        if !self.state.has_delegations(run) {
            return;
        }
        let successors = self.state.run(run).plan.steps[step.index()].successors.clone();
        for successor in successors {
            if self.state.delegation(run, successor).is_some_and(|delegated| delegated.site != site) {
                self.withdraw(run, successor, false);
            }
        }
    }

    /// All steps of a run are taken back: it is being stopped.
    pub(crate) fn withdraw_all(&mut self, run: RunId, stop: bool) {
        let steps: Vec<_> = self.state.delegated_steps(run).map(|(step, _)| step).collect();
        for step in steps {
            self.withdraw(run, step, stop);
        }
    }

    /// The site takes nothing new: what of its delegations has not begun is taken back.
    pub(crate) fn withdraw_from(&mut self, site: SiteId) {
        for (run, step) in self.state.delegations_at(site) {
            self.withdraw(run, step, false);
        }
    }

    /// Agents know of no limit: steps that one bears on now are taken back, and what is not begun is placed under it. Those
    /// of a site that is lost are when it is heard again.
    pub(crate) fn withdraw_limited(&mut self) {
        self.withdraw_where(Self::is_limited);
    }

    /// What has taken agents down is not started any more, by an agent that has it no more than by others.
    pub(crate) fn withdraw_poisonous(&mut self) {
        self.withdraw_where(Self::is_poisonous);
    }

    /// Steps are taken back from sites that a rule rules out now.
    pub(crate) fn withdraw_ruled_out(&mut self) {
        self.withdraw_where(Self::is_ruled_out);
    }

    fn is_ruled_out(&self, run: &Run, step: StepIndex) -> bool {
        let site = self.state.delegation(run.id, step).map(|delegated| delegated.site);
        let candidate = self.candidates().into_iter().find(|candidate| Some(candidate.site) == site);
        candidate.is_some_and(|candidate| self.rule_obstacle(&run.plan, run.workflow.step(step), &candidate).is_some())
    }

    fn is_poisonous(&self, run: &Run, step: StepIndex) -> bool {
        let version = run.plan.steps[step.index()].version;
        self.state.poisonous(run.workflow.step(step), version, self.now).is_some()
    }

    fn withdraw_where(&mut self, is_over: impl Fn(&Self, &Run, StepIndex) -> bool) {
        let mut over = Vec::new();
        for run in self.state.delegations.keys() {
            let steps = self.state.delegated_steps(*run);
            let known = self.state.run(*run);
            let steps =
                steps.filter(|(step, delegated)| !self.is_out_of_reach(delegated.site) && is_over(self, known, *step));
            over.extend(steps.map(|(step, _)| (*run, step)));
        }
        over.into_iter().for_each(|(run, step)| self.withdraw(run, step, false));
    }

    /// The site was lost: its delegations are given away where others can go on with them, at the latest when an execution
    /// finds another site. From one that does not come back, and where nobody is to go on, they are taken at once.
    pub(crate) fn give_away_delegations(&mut self, site: SiteId, for_good: bool) {
        for (run, step) in self.state.delegations_at(site) {
            if for_good || !self.state.run(run).is_going_on() {
                self.end_delegation(run, step, true);
            } else {
                self.want_place(run, step);
            }
        }
    }

    /// Takes a step from a site that is lost, if another site can have it; whether its waiting executions may be placed.
    pub(crate) fn take_from_lost(&mut self, run: RunId, step: StepIndex) -> bool {
        let Some(delegated) = self.state.delegation(run, step) else { return true };
        if !self.is_out_of_reach(delegated.site) {
            return true;
        }
        let known = self.state.run(run);
        let objects = self.caches.shared(known, step).map(|shared| shared.objects.clone()).unwrap_or_default();
        let assessments = self.assess(known, known.workflow.step(step), &self.candidates(), &objects, None);
        if assessments.iter().all(|assessment| assessment.obstacle.is_some()) {
            self.agenda.stuck.insert((run, step), true);
            return false;
        }
        self.end_delegation(run, step, true);
        true
    }
}
