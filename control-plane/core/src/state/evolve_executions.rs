//! How facts about executions change the state.

use std::collections::BTreeMap;
use std::sync::Arc;

use atoll_model::elements::ElementSet;
use atoll_model::id::{Attempt, CommandSeq, ExecutionId, RunId, SiteId, StepIndex};
use atoll_model::session::{FinishedElement, Outcome};
use atoll_model::time::Timestamp;

use super::evolve_runs::visit_with_parts;
use super::{Active, ActivePhase, Crash, Decision, Detail, Outgoing, Row, RowState, Source, State, StepPhase, Use};
use crate::fact::{Fact, Items};
use crate::plan::Load;

/// Crashes kept of one execution: it is given up before there are so many, unless it is run anew.
const CRASHES_KEPT: usize = 2 * atoll_model::limits::POISON_CRASHES_MAX as usize;

impl State {
    #[expect(clippy::wildcard_enum_match_arm, reason = "`evolve` names every fact once")]
    pub(super) fn evolve_execution(&mut self, fact: &Fact) {
        match fact {
            Fact::PlacementDecided { run, step, sites, at } => {
                let decision = Decision { sites: sites.clone(), at: *at, chosen: Default::default() };
                self.run_mut(*run).steps[step.index()].decisions.push(decision);
            }
            Fact::ExecutionsPlaced { run, step, attempt, elements, site, decision, at } => {
                let placed = Active {
                    attempt: *attempt,
                    site: *site,
                    phase: ActivePhase::Placed,
                    fragment: false,
                    cancelling: false,
                    command: CommandSeq(0),
                    decision: *decision,
                    placed_at: *at,
                    started_at: Timestamp::ZERO,
                };
                self.activate(*run, *step, elements, &placed);
            }
            Fact::ExecutionsDispatched { run, step, attempt, elements, site, decision, fragment, at } => {
                let command = self.site_mut(*site).log.push(Outgoing::Dispatch {
                    run: *run,
                    step: *step,
                    attempt: *attempt,
                    elements: elements.clone(),
                    fragment: *fragment,
                });
                let dispatched = Active {
                    attempt: *attempt,
                    site: *site,
                    phase: ActivePhase::Dispatched,
                    fragment: *fragment,
                    cancelling: false,
                    command,
                    decision: *decision,
                    placed_at: *at,
                    started_at: Timestamp::ZERO,
                };
                self.activate(*run, *step, elements, &dispatched);
            }
            Fact::ExecutionsStarted { run, step, elements } => {
                let step = &mut self.run_mut(*run).steps[step.index()];
                for started in elements {
                    if let Some(active) = step.active.get_mut(&started.element) {
                        active.phase = ActivePhase::Running;
                        active.started_at = started.at;
                    }
                }
            }
            Fact::ExecutionsFinished { run, step, site, elements } => {
                if elements.iter().any(|finished| finished.outcome == Outcome::Succeeded) {
                    self.note_success(*run, *step);
                }
                self.finish(*run, *step, *site, elements);
            }
            Fact::ExecutionsGivenUp { run, step, elements, cancelled, message, at } => {
                for element in elements.iter() {
                    self.give_up(ExecutionId { run: *run, step: *step, element }, *cancelled, message, *at);
                }
            }
            Fact::ExecutionsReturned { run, step, elements, cause, message, not_before } => {
                self.note_return(*cause, (*run, *step), elements, (message, *not_before));
                for element in elements.iter() {
                    self.return_one(ExecutionId { run: *run, step: *step, element }, *cause, message, *not_before);
                }
            }
            Fact::ExecutionsUnknown { run, step, elements, message } => {
                for element in elements.iter() {
                    let execution = ExecutionId { run: *run, step: *step, element };
                    let active = self.deactivate(execution).expect("only what is active can become unknown");
                    let run = self.run_mut(*run);
                    run.unknown += 1;
                    let step = &mut run.steps[step.index()];
                    step.tries.entry(element).or_default().last_error = Some(Arc::clone(message));
                    step.unknown.insert(element, active);
                }
            }
            Fact::AttemptAdopted { execution, attempt, site, started_at, at } => {
                self.adopt(*execution, *attempt, *site, *started_at, *at);
            }
            Fact::OutcomeSuperseded { execution, attempt, site, succeeded, same_outputs } => {
                let step = &mut self.run_mut(execution.run).steps[execution.step.index()];
                step.remove_former(execution.element, *attempt, *site);
                step.superseded += 1;
                step.diverged += u32::from(!same_outputs);
                if *succeeded && *same_outputs {
                    self.also_made(*execution, *site);
                }
            }
            Fact::ExecutionCrashed { execution, attempt, site, incarnation, message, logs, at } => {
                let step = &mut self.run_mut(execution.run).steps[execution.step.index()];
                let crashes = step.crashes.entry(execution.element).or_default();
                if crashes.len() >= CRASHES_KEPT {
                    crashes.remove(0);
                }
                let (message, logs) = (Arc::clone(message), *logs);
                let (attempt, site, incarnation) = (*attempt, *site, *incarnation);
                crashes.push(Crash { at: *at, attempt, site, incarnation, message, logs });
            }
            Fact::RecomputeOrdered { execution } => {
                self.results.forget_taken(*execution);
                let step = &mut self.run_mut(execution.run).steps[execution.step.index()];
                let attempt = step.row(execution.element).expect("only what has ended is recomputed").attempt;
                let tries = step.tries.entry(execution.element).or_default();
                tries.highest = tries.highest.max(attempt).next();
                tries.recomputed += 1;
                step.recomputing.insert(execution.element);
                step.again.insert(execution.element, Timestamp::ZERO);
            }
            Fact::CancelOrdered { site, run, step, elements, reason } => {
                let state = &mut self.run_mut(*run).steps[step.index()];
                for element in elements.iter() {
                    if let Some(active) = state.active.get_mut(&element).filter(|active| active.site == *site) {
                        active.cancelling = true;
                    }
                }
                let (run, step, elements) = (*run, *step, elements.clone());
                self.site_mut(*site).log.push(Outgoing::Cancel { run, step, elements, reason: Arc::clone(reason) });
            }
            _ => unreachable!("evolve hands over facts about executions only"),
        }
    }

    /// Makes elements active at a site; those that are already get the new phase and command.
    pub(super) fn activate(&mut self, run_id: RunId, step_index: StepIndex, elements: &ElementSet, as_this: &Active) {
        let run = Arc::make_mut(self.runs.get_mut(&run_id).expect("facts name runs that exist"));
        if as_this.phase == ActivePhase::Dispatched {
            run.started_at.get_or_insert(as_this.placed_at);
        }
        if as_this.fragment {
            let bound = run.bound_to(step_index);
            run.steps[step_index.index()].bound.insert(as_this.attempt, bound);
        }
        let step = &mut run.steps[step_index.index()];
        if step.phase == StepPhase::Waiting {
            // It goes along with what it waits for.
            step.phase = StepPhase::Expanded;
            step.items = Some(Items::Single);
            step.count = 1;
        }
        let mut added = 0;
        let (mut loads, mut grown) = (0, Vec::new());
        if as_this.attempt == Attempt::FIRST {
            step.ready.remove_all(elements);
        }
        for element in elements.iter() {
            if !step.again.is_empty() {
                step.again.remove(&element);
            }
            let becomes_load = match step.active.get_mut(&element) {
                Some(active) => {
                    let was_load = active.is_load();
                    active.phase = active.phase.max(as_this.phase);
                    active.command = as_this.command;
                    active.fragment = as_this.fragment;
                    active.is_load() && !was_load
                }
                None => {
                    step.active.insert(element, as_this.clone());
                    added += 1;
                    as_this.is_load()
                }
            };
            match step.grown(element) {
                0 => loads += u32::from(becomes_load),
                times if becomes_load => grown.push(times),
                _ => {}
            }
        }
        step.decisions[as_this.decision as usize].chosen.entry(as_this.site).or_default().insert_all(elements);
        run.active += u64::from(added);
        if as_this.fragment {
            run.ahead += added;
        }
        let site = self.sites.get_mut(&as_this.site).expect("facts name sites that exist");
        site.add_busy(run_id, step_index, added);
        site.add_load(run.grown_load(step_index, 0), loads);
        grown.into_iter().for_each(|times| site.add_load(run.grown_load(step_index, times), 1));
    }

    /// Takes an execution from where it is.
    pub(super) fn deactivate(&mut self, execution: ExecutionId) -> Option<Active> {
        let run = Arc::make_mut(self.runs.get_mut(&execution.run).expect("facts name runs that exist"));
        let active = run.steps[execution.step.index()].active.remove(&execution.element)?;
        run.active -= 1;
        run.ahead -= u32::from(active.fragment);
        let site = self.sites.get_mut(&active.site).expect("what is active is at a site that exists");
        site.remove_busy(execution.run, execution.step, 1);
        site.remove_load(run.load_of(execution.step, execution.element), u32::from(active.is_load()));
        Some(active)
    }

    fn finish(&mut self, run_id: RunId, step_index: StepIndex, site: SiteId, elements: &[FinishedElement]) {
        let run = Arc::make_mut(self.runs.get_mut(&run_id).expect("facts name runs that exist"));
        let was_ended = run.steps[step_index.index()].is_ended();
        let mut deactivated = 0;
        let mut loads: BTreeMap<Load, u32> = BTreeMap::new();
        let (mut made, mut made_otherwise) = (Vec::new(), false);
        for finished in elements {
            let load = run.load_of(step_index, finished.element);
            let step = &mut run.steps[step_index.index()];
            made_otherwise |= step.makes_otherwise(finished);
            let active = match step.active.remove(&finished.element) {
                Some(active) => {
                    deactivated += 1;
                    *loads.entry(load).or_default() += u32::from(active.is_load());
                    run.ahead -= u32::from(active.fragment);
                    active
                }
                None => {
                    run.unknown -= 1;
                    step.unknown.remove(&finished.element).expect("what ends was active, or its fate was unknown")
                }
            };
            step.end_element(finished, &active);
            if finished.outputs.is_empty() {
                continue;
            }
            for (output, value) in (0..u16::MAX).zip(&finished.outputs) {
                visit_with_parts(value, &mut |object, parts| {
                    let usage = Use { run: run_id, source: Source::Step(step_index), output };
                    made.push((object, usage, parts, finished.element));
                });
            }
        }
        run.active -= u64::from(deactivated);
        if !was_ended && run.steps[step_index.index()].is_ended() {
            run.end_step(step_index);
        }
        // What a person decided on ended nowhere: its site may be removed.
        if deactivated > 0 {
            let site = self.site_mut(site);
            site.remove_busy(run_id, step_index, deactivated);
            loads.into_iter().for_each(|(load, count)| site.remove_load(load, count));
        }
        for (object, usage, parts, element) in made {
            self.note_object(object, usage, &parts);
            let producer = Some(ExecutionId { run: run_id, step: step_index, element });
            for made in parts.iter().chain([&object]) {
                let known = self.objects.get_mut(&made.id).expect("just noted");
                known.producer = known.producer.or(producer);
            }
            self.add_replica(object, site);
        }
        if made_otherwise {
            self.forget_prepared_after(run_id, step_index);
        }
    }

    /// What was sent to sites of the steps that read this one names outputs that are not its outputs any more.
    fn forget_prepared_after(&mut self, run: RunId, step: StepIndex) {
        let successors = &self.runs[&run].plan.steps[step.index()].successors;
        for site in self.sites.values_mut() {
            if let Some(prepared) = site.log.prepared.get_mut(&run) {
                prepared.retain(|prepared| !successors.contains(prepared));
            }
        }
    }

    fn give_up(&mut self, execution: ExecutionId, cancelled: bool, message: &Arc<str>, at: Timestamp) {
        let active = self.deactivate(execution);
        let run = self.run_mut(execution.run);
        let step = &mut run.steps[execution.step.index()];
        let was_ended = step.is_ended();
        step.ready.remove(execution.element);
        step.again.remove(&execution.element);
        let recomputing = step.recomputing.remove(execution.element);
        if recomputing {
            // It has an outcome, which stands.
            return;
        }
        step.ended += 1;
        if cancelled && active.is_none() {
            step.cancelled.insert(execution.element);
        } else {
            let attempt = active.as_ref().map_or(step.next_attempt(execution.element), |active| active.attempt);
            let row = Row {
                state: if cancelled { RowState::Cancelled } else { RowState::Failed },
                attempt,
                site: active.as_ref().map_or(SiteId(0), |active| active.site),
                placed_at: active.as_ref().map_or(Timestamp::ZERO, |active| active.placed_at),
                started_at: active.as_ref().map_or(Timestamp::ZERO, |active| active.started_at),
                finished_at: at,
            };
            step.cancelled_rows += u32::from(cancelled);
            step.failed += u32::from(!cancelled);
            step.set_row(execution.element, row);
            let detail = Detail { error: Some(Arc::clone(message)), ..Detail::default() };
            step.details.insert(execution.element, Box::new(detail));
        }
        if !was_ended && step.is_ended() {
            run.end_step(execution.step);
        }
    }
}
