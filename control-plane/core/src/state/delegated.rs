//! Steps that were delegated whole to the agent of a site.

use std::collections::BTreeMap;

use atoll_model::elements::ElementSet;
use atoll_model::id::{Attempt, ExecutionId, RunId, SiteId, StepIndex};
use serde::{Deserialize, Serialize};

use super::{Active, ActivePhase, Outgoing, Phase, State, StepPhase};
use crate::fact::{Fact, ReturnCause};

/// Steps of a run that are, or were, delegated. Those that are stand apart: a long chain has many that were.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct RunDelegations {
    current: BTreeMap<StepIndex, Delegated>,
    past: BTreeMap<StepIndex, PastDelegations>,
}

impl RunDelegations {
    pub(crate) fn is_or_was_delegated(&self, step: StepIndex) -> bool {
        self.current.contains_key(&step) || self.past.contains_key(&step)
    }
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
struct PastDelegations {
    /// Those that were given away while their agents may still go on with them.
    formers: Vec<FormerDelegation>,
    /// Attempts that those agents may have given out.
    used: u32,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Delegated {
    pub(crate) site: SiteId,
    /// Of the first attempts that the agent gives out.
    pub(crate) attempt: Attempt,
    pub(crate) decision: u32,
    /// A withdrawal was sent; whether it stops what runs.
    pub(crate) withdrawing: Option<bool>,
    /// Elements that the agent has handed back: they are placed like any other.
    pub(crate) back: ElementSet,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct FormerDelegation {
    pub(crate) site: SiteId,
    attempts: std::ops::Range<u32>,
    /// Whether all that the step needs had ended by then, so that the agent read what everybody reads.
    pub(crate) is_adoptable: bool,
}

impl FormerDelegation {
    pub(crate) fn holds(&self, attempt: Attempt, site: SiteId) -> bool {
        self.site == site && self.attempts.contains(&attempt.0)
    }
}

impl State {
    pub(crate) fn delegation(&self, run: RunId, step: StepIndex) -> Option<&Delegated> {
        self.delegations.get(&run)?.current.get(&step)
    }

    fn delegation_mut(&mut self, run: RunId, step: StepIndex) -> Option<&mut Delegated> {
        self.delegations.get_mut(&run)?.current.get_mut(&step)
    }

    /// Steps of a run that are delegated now.
    pub(crate) fn delegated_steps(&self, run: RunId) -> impl Iterator<Item = (StepIndex, &Delegated)> {
        let steps = self.delegations.get(&run).into_iter().flat_map(|steps| &steps.current);
        steps.map(|(step, delegated)| (*step, delegated))
    }

    /// The delegation that this attempt was part of, if it was given away.
    pub(crate) fn former_delegation(
        &self,
        execution: ExecutionId,
        attempt: Attempt,
        site: SiteId,
    ) -> Option<&FormerDelegation> {
        let formers = &self.delegations.get(&execution.run)?.past.get(&execution.step)?.formers;
        formers.iter().find(|former| former.holds(attempt, site))
    }

    /// From which attempt on those count as used up that an agent may have given out to which the step was delegated.
    pub(crate) fn given_away_from(&self, run: RunId, step: StepIndex) -> Option<Attempt> {
        let formers = &self.delegations.get(&run)?.past.get(&step)?.formers;
        formers.iter().map(|former| Attempt(former.attempts.start)).min()
    }

    /// Whether this attempt, which nothing was heard of before, may be one that the step's agent gave out itself.
    pub(crate) fn is_takeable(&self, execution: ExecutionId, attempt: Attempt, site: SiteId) -> bool {
        let ExecutionId { run, step, element } = execution;
        let Some(delegated) = self.delegation(run, step).filter(|delegated| delegated.site == site) else {
            return false;
        };
        let Some(run) = self.runs.get(&run).filter(|run| run.is_live()) else { return false };
        let state = &run.steps[step.index()];
        state.phase == StepPhase::Expanded
            && attempt >= delegated.attempt
            && !delegated.back.contains(element)
            && (state.ready.contains(element) || state.again.contains_key(&element))
    }

    /// Whether the control plane itself looks for a site for this waiting execution.
    pub(crate) fn is_placeable(&self, run: RunId, step: StepIndex, element: u32) -> bool {
        self.delegation(run, step).is_none_or(|delegated| delegated.back.contains(element))
    }

    #[expect(clippy::wildcard_enum_match_arm, reason = "`evolve` names every fact once")]
    pub(super) fn evolve_delegation(&mut self, fact: &Fact) {
        match fact {
            Fact::StepDelegated { run, step, site, attempt, decision, at: _ } => {
                let (back, withdrawing) = (ElementSet::new(), None);
                let made = Delegated { site: *site, attempt: *attempt, decision: *decision, withdrawing, back };
                self.delegations.entry(*run).or_default().current.insert(*step, made);
                let log = &mut self.site_mut(*site).log;
                // So that the agent is told when the run has ended.
                log.prepared.entry(*run).or_default();
                log.push(Outgoing::Delegate { run: *run, step: *step });
            }
            Fact::ExecutionsTaken { run, step, attempt, elements, site, at } => {
                let decision = self.delegation(*run, *step).map_or(0, |delegated| delegated.decision);
                let taken = Active {
                    attempt: *attempt,
                    site: *site,
                    phase: ActivePhase::Dispatched,
                    fragment: false,
                    cancelling: false,
                    command: atoll_model::id::CommandSeq(0),
                    decision,
                    placed_at: *at,
                    started_at: Default::default(),
                };
                let state = &mut self.run_mut(*run).steps[step.index()];
                state.ready.remove_all(elements);
                for element in elements.iter() {
                    if *attempt > Attempt::FIRST {
                        let tries = state.tries.entry(element).or_default();
                        tries.highest = tries.highest.max(*attempt);
                    }
                    state.remove_former(element, *attempt, *site);
                }
                self.activate(*run, *step, elements, &taken);
            }
            Fact::ExecutionsKept { run, step, elements } => {
                if let Some(delegated) = self.delegation_mut(*run, *step) {
                    delegated.back.remove_all(elements);
                }
            }
            Fact::DelegationWithdrawn { run, step, site, stop } => {
                if let Some(delegated) = self.delegation_mut(*run, *step) {
                    delegated.withdrawing = Some(*stop);
                }
                let (run, step, stop) = (*run, *step, *stop);
                self.site_mut(*site).log.push(Outgoing::Withdraw { run, step, stop });
            }
            Fact::DelegationEnded { run, step, given_away } => self.end_delegation(*run, *step, *given_away),
            _ => unreachable!("evolve hands over facts about delegations only"),
        }
    }

    fn end_delegation(&mut self, run_id: RunId, step: StepIndex, given_away: bool) {
        let run = self.runs.get(&run_id).expect("facts name runs that exist");
        let is_expanded = run.steps[step.index()].phase == StepPhase::Expanded;
        let stops = !run.is_going_on();
        let attempts = run.workflow.step(step).retry.attempts;
        let Some(delegations) = self.delegations.get_mut(&run_id) else { return };
        let Some(ended) = delegations.current.remove(&step) else { return };
        let past = delegations.past.entry(step).or_default();
        if given_away {
            let until = ended.attempt.0.saturating_add(attempts);
            let attempts = ended.attempt.0..until;
            past.formers.push(FormerDelegation { site: ended.site, attempts, is_adoptable: is_expanded });
            past.used = until - Attempt::FIRST.0;
            let log = self.sites.get_mut(&ended.site).map(|site| &mut site.log);
            if let Some(log) = log.filter(|log| log.journal.is_some()) {
                log.push(Outgoing::Withdraw { run: run_id, step, stop: false });
            }
        }
        if stops {
            self.cancel_waiting_step(run_id, step);
        } else if given_away {
            self.skip_used_attempts(run_id, step);
        }
    }

    /// No attempt is given out twice: those of the step's elements begin after all that an agent may have given out.
    pub(super) fn skip_used_attempts(&mut self, run_id: RunId, step: StepIndex) {
        let used = self.delegations.get(&run_id).and_then(|steps| steps.past.get(&step)).map_or(0, |past| past.used);
        if used == 0 {
            return;
        }
        let next = Attempt(Attempt::FIRST.0 + used);
        let run = self.run_mut(run_id);
        // One that may go along with what it needs is given out while it waits.
        let is_one = run.plan.steps[step.index()].chainable;
        let state = &mut run.steps[step.index()];
        if state.phase == StepPhase::Waiting && is_one {
            let tries = state.tries.entry(0).or_default();
            tries.highest = tries.highest.max(next);
        }
        let waiting = std::mem::take(&mut state.ready);
        for element in waiting.iter() {
            state.again.insert(element, Default::default());
        }
        for element in state.again.keys() {
            let tries = state.tries.entry(*element).or_default();
            tries.highest = tries.highest.max(next);
        }
    }

    /// What becomes of delegations after a fact about executions or runs.
    pub(super) fn follow_delegations(&mut self, fact: &Fact) {
        if self.delegations.is_empty() {
            return;
        }
        #[expect(clippy::wildcard_enum_match_arm, reason = "all other facts leave delegations as they are")]
        match fact {
            Fact::ExecutionsReturned { run, step, elements, cause, .. } if *cause != ReturnCause::Lost => {
                if let Some(delegated) = self.delegation_mut(*run, *step) {
                    delegated.back.insert_all(elements);
                }
            }
            Fact::RecomputeOrdered { execution } => {
                if let Some(delegated) = self.delegation_mut(execution.run, execution.step) {
                    delegated.back.insert(execution.element);
                }
            }
            Fact::StepExpanded { run, step, .. } => {
                self.skip_used_attempts(*run, *step);
                self.drop_ended_delegation(*run, *step);
            }
            Fact::StepSkipped { run, step }
            | Fact::ExecutionsFinished { run, step, .. }
            | Fact::ExecutionsGivenUp { run, step, .. } => self.drop_ended_delegation(*run, *step),
            Fact::RunEnded { run, .. } => {
                self.delegations.remove(run);
            }
            _ => {}
        }
    }

    fn drop_ended_delegation(&mut self, run: RunId, step: StepIndex) {
        let is_ended = self.runs.get(&run).is_some_and(|run| run.steps[step.index()].is_ended());
        if is_ended
            && let Some(delegations) = self.delegations.get_mut(&run)
            && delegations.current.remove(&step).is_some()
        {
            delegations.past.entry(step).or_default();
        }
    }

    /// Every delegation to a site.
    pub(crate) fn delegations_at(&self, site: SiteId) -> Vec<(RunId, StepIndex)> {
        let all = self.delegations.iter().flat_map(|(run, steps)| steps.current.iter().map(move |known| (run, known)));
        all.filter(|(_, (_, delegated))| delegated.site == site).map(|(run, (step, _))| (*run, *step)).collect()
    }

    /// Whether the run is being stopped while agents have steps of it: it ends when they have said what they kept.
    pub(crate) fn has_delegations(&self, run: RunId) -> bool {
        self.delegated_steps(run).next().is_some()
    }

    pub(crate) fn check_delegations(&self) {
        for (run_id, steps) in &self.delegations {
            let run = self.run(*run_id);
            assert!(!matches!(run.phase, Phase::Ended(_)), "{run_id} has ended and is delegated");
            for (step, delegated) in &steps.current {
                let name = &run.workflow.step(*step).name;
                assert!(!run.steps[step.index()].is_ended(), "{name} of {run_id} has ended and is delegated");
                assert!(self.sites.contains_key(&delegated.site), "{name} of {run_id} is nowhere");
            }
        }
    }
}

pub(crate) type Delegations = BTreeMap<RunId, RunDelegations>;
