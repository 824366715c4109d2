//! Outcomes: which count, which are followed by another attempt, which come too late.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use atoll_model::elements::ElementSet;
use atoll_model::id::{ExecutionId, ObjectId, RunId, SiteId, StepIndex};
use atoll_model::limits;
use atoll_model::session::{FailureReason, FinishedElement, NotStartedReason, Outcome};
use atoll_model::workflow::StartMode;

use super::reuse::succeeded;
use super::runs::oversized_output;
use crate::command::{Rejection, Response};
use crate::control_plane::ControlPlane;
use crate::fact::{Fact, ReturnCause};
use crate::state::{Active, ActivePhase, RowState, Run, Tries};
use crate::view::ExecutionState;

/// Times that agents may hand an execution back before it is given up: its next site would do no better.
const NOT_STARTED_MAX: u32 = 20;
/// Before an execution that an agent handed back is given out again; doubled each time.
const NOT_STARTED_BACKOFF: Duration = Duration::from_secs(1);

/// What becomes of the current attempt.
enum Judgement {
    Final,
    Again { cause: ReturnCause, not_before: Duration, message: String },
    Unknown { message: String },
}

impl ControlPlane {
    pub(crate) fn finished(&mut self, site: SiteId, run_id: RunId, step: StepIndex, elements: Vec<FinishedElement>) {
        // Of a run that is forgotten, or was never known: there is nobody to tell.
        let Some(run) = self.state.runs.get(&run_id) else { return };
        if step.index() >= run.steps.len() {
            return;
        }
        self.give_away_if_waiting(site, run_id, step);
        self.take_reported(site, run_id, step, elements.iter().map(|finished| (finished.element, finished.attempt)));
        let run = self.state.run(run_id);
        let state = &run.steps[step.index()];
        let (mut current, mut late) = (Vec::with_capacity(elements.len()), Vec::new());
        for finished in elements {
            let is_current = |active: &Active| active.attempt == finished.attempt && active.site == site;
            let known = state.active.get(&finished.element).is_some_and(is_current)
                || (run.is_live() && state.unknown.get(&finished.element).is_some_and(is_current));
            if known { current.push(finished) } else { late.push(finished) }
        }
        if !current.is_sorted_by(|one, next| one.element < next.element) {
            // An attempt ends once, whatever an agent says.
            let mut ended = BTreeSet::new();
            let (first, again): (Vec<_>, Vec<_>) = current.into_iter().partition(|one| ended.insert(one.element));
            current = first;
            late.extend(again);
        }
        self.current_outcomes(site, run_id, step, current);
        for finished in late {
            self.late_outcome(site, run_id, step, finished);
        }
    }

    fn current_outcomes(&mut self, site: SiteId, run_id: RunId, step: StepIndex, elements: Vec<FinishedElement>) {
        for finished in &elements {
            self.note_crash(site, ExecutionId { run: run_id, step, element: finished.element }, finished);
        }
        let run = self.state.run(run_id);
        let state = &run.steps[step.index()];
        let is_source = self.state.deployments.of_run(run_id).is_some();
        let (mut ended, mut again, mut unknown) = (Vec::with_capacity(elements.len()), Vec::new(), Vec::new());
        for mut finished in elements {
            check_outputs(run, step, &mut finished);
            match self.judge_with_memory(run, step, is_source, &mut finished) {
                Judgement::Final => ended.push(finished),
                Judgement::Again { cause, not_before, message } => {
                    again.push((finished.element, cause, not_before, message));
                }
                Judgement::Unknown { message } => {
                    // Its fate may have been unknown before.
                    if state.active.contains_key(&finished.element) {
                        unknown.push((finished.element, message));
                    }
                }
            }
        }
        for (element, message) in unknown {
            let elements = std::iter::once(element).collect();
            self.agenda.unwant(ExecutionId { run: run_id, step, element });
            let message: Arc<str> = Arc::from(message);
            self.record(Fact::ExecutionsUnknown { run: run_id, step, elements, message });
        }
        for (element, cause, delay, message) in again {
            let elements = std::iter::once(element).collect();
            self.agenda.unwant(ExecutionId { run: run_id, step, element });
            self.counters.executions_returned += 1;
            let (message, not_before) = (Arc::from(message), self.now + delay);
            self.record(Fact::ExecutionsReturned { run: run_id, step, elements, cause, message, not_before });
            if cause == ReturnCause::Interrupted {
                self.withdraw_poisonous();
            }
            self.after_return(run_id, step);
        }
        self.agenda.has_room(site);
        if !ended.is_empty() {
            self.end_executions(site, run_id, step, ended);
        }
    }

    fn judge_with_memory(
        &self,
        run: &Run,
        step: StepIndex,
        is_source: bool,
        finished: &mut FinishedElement,
    ) -> Judgement {
        let judgement = judge(run, step, is_source, finished);
        let Judgement::Again { cause: cause @ ReturnCause::OutOfMemory, not_before, message } = judgement else {
            return judgement;
        };
        match (self.next_with_more(run, step, finished.element, &message), &mut finished.outcome) {
            (Ok(message), _) => return Judgement::Again { cause, not_before, message },
            (Err(whole), Outcome::Failed { message, .. }) => *message = whole,
            (Err(_), _) => {}
        }
        Judgement::Final
    }

    /// Keeps what is known of an attempt during which something went down. What was stopped on purpose is none.
    fn note_crash(&mut self, site: SiteId, execution: ExecutionId, finished: &FinishedElement) {
        if let Outcome::Interrupted { message } = &finished.outcome
            && self.state.run(execution.run).is_going_on()
        {
            let incarnation = self.state.site(site).log.incarnation;
            let (attempt, logs, at) = (finished.attempt, finished.logs, finished.finished_at);
            let message = Arc::from(message.as_str());
            self.record(Fact::ExecutionCrashed { execution, attempt, site, incarnation, message, logs, at });
        }
    }

    /// Takes in outcomes that are final.
    fn end_executions(&mut self, site: SiteId, run_id: RunId, step: StepIndex, elements: Vec<FinishedElement>) {
        let run = self.state.run(run_id);
        let definition = run.workflow.step(step);
        self.estimates.learn(&run.workflow, definition, &elements);
        if definition.foreach.is_some() {
            let kind = run.plan.steps[step.index()].load.kind;
            self.estimates.learn_count(kind, run.steps[step.index()].count);
        }
        let failed = elements.iter().find_map(|finished| match &finished.outcome {
            Outcome::Failed { message, .. } | Outcome::Interrupted { message } => {
                Some((finished.element, message.clone()))
            }
            Outcome::Succeeded | Outcome::Cancelled | Outcome::NotStarted { .. } => None,
        });
        let made = if run.plan.rules.want_copies() { objects_among(&elements) } else { Vec::new() };
        let recomputed = !run.steps[step.index()].recomputing.is_empty();
        let names: Vec<u32> = elements.iter().map(|finished| finished.element).collect();
        for finished in &elements {
            let state = match finished.outcome {
                Outcome::Succeeded => ExecutionState::Succeeded,
                Outcome::Failed { .. } | Outcome::Interrupted { .. } => ExecutionState::Failed,
                Outcome::Cancelled | Outcome::NotStarted { .. } => ExecutionState::Cancelled,
            };
            *self.counters.executions_ended.entry(state).or_default() += 1;
            self.agenda.unwant(ExecutionId { run: run_id, step, element: finished.element });
        }
        let reusable = if definition.cache.is_some() { succeeded(&elements) } else { Vec::new() };
        let copied = self.makes_what_is_known(&elements);
        let wanted = self.wanted_among(&elements);
        self.record(Fact::ExecutionsFinished { run: run_id, step, site, elements });
        self.keep_results(run_id, step, &reusable);
        if recomputed {
            self.caches.outputs_changed(run_id);
            self.want_anew(run_id, step);
        }
        if recomputed || copied {
            self.wake_data();
        }
        self.came_to_be(wanted);
        self.agenda.to_copy.extend(made);
        self.cancel_formers(run_id, step, &names);
        self.withdraw_elsewhere(run_id, step, site);
        if let Some((element, message)) = failed {
            self.fail_for(ExecutionId { run: run_id, step, element }, &message);
        }
        self.after_elements_ended(run_id, step);
        self.continue_frontier(run_id);
    }

    /// Placed executions that wait for outputs of this step wait for those that were made now: they may be others.
    fn want_anew(&mut self, run_id: RunId, step: StepIndex) {
        let run = self.state.run(run_id);
        let mut waiting = Vec::new();
        for successor in &run.plan.steps[step.index()].successors {
            let active = run.steps[successor.index()].active.iter();
            let placed = active.filter(|(_, active)| active.phase == ActivePhase::Placed);
            let execution = |element| ExecutionId { run: run_id, step: *successor, element };
            waiting.extend(placed.map(|(element, active)| (active.site, execution(*element))));
        }
        for (site, execution) in waiting {
            self.agenda.unwant(execution);
            let objects = self.want(site, execution);
            self.agenda.replan.extend(objects.iter().map(|object| object.id));
            self.agenda.arrived.insert(execution);
        }
    }

    /// Whether an object of which there are copies has one more now, for which somebody may be waiting.
    fn makes_what_is_known(&self, elements: &[FinishedElement]) -> bool {
        if self.agenda.stuck.is_empty() {
            return false;
        }
        let mut known = false;
        for value in elements.iter().flat_map(|finished| &finished.outputs) {
            value.visit_objects(&mut |object| known |= self.state.objects.contains_key(&object.id));
        }
        known
    }

    /// Attempts that were given away are not needed once another has ended.
    fn cancel_formers(&mut self, run: RunId, step: StepIndex, elements: &[u32]) {
        let formers = &self.state.step(run, step).formers;
        if formers.is_empty() {
            return;
        }
        let mut orders = Vec::new();
        for element in elements {
            for former in formers.get(element).into_iter().flatten() {
                let may_run_there =
                    self.state.sites.get(&former.site).is_some_and(|s| s.lost.is_none() && s.revoked.is_none());
                if may_run_there {
                    orders.push((former.site, *element));
                }
            }
        }
        let reason: Arc<str> = Arc::from("another attempt has ended");
        for (site, element) in orders {
            self.order_cancel(site, run, step, std::iter::once(element).collect(), &reason);
        }
    }

    /// C4: the outcome of an attempt that was given to another.
    fn late_outcome(&mut self, site: SiteId, run_id: RunId, step: StepIndex, finished: FinishedElement) {
        let run = self.state.run(run_id);
        let state = &run.steps[step.index()];
        let execution = ExecutionId { run: run_id, step, element: finished.element };
        let attempt = finished.attempt;
        if !self.is_former(execution, attempt, site) {
            let counts = finished.outcome == Outcome::Succeeded || self.is_ahead(execution, attempt);
            if counts && self.is_news(site, execution, attempt) {
                self.take_in_news(site, execution, attempt, finished.started_at);
                return self.current_outcomes(site, run_id, step, vec![finished]);
            }
            // A repetition of what was taken in, or of an attempt that was taken back.
            return;
        }
        self.counters.late_outcomes += 1;
        let succeeded = finished.outcome == Outcome::Succeeded;
        let is_open = state.row(finished.element).is_none() && run.is_live();
        if succeeded && is_open && run.is_going_on() && self.is_adoptable(execution, attempt, site) {
            let started_at = finished.started_at;
            self.adopt_attempt(execution, attempt, site, started_at);
            return self.current_outcomes(site, run_id, step, vec![finished]);
        }
        let same_outputs = !succeeded || is_open || run.has_outputs(execution, &finished.outputs);
        self.record(Fact::OutcomeSuperseded { execution, attempt, site, succeeded, same_outputs });
        let wanted = self.wanted_among(std::slice::from_ref(&finished));
        self.came_to_be(wanted);
    }

    pub(crate) fn resolve_unknown(&mut self, execution: ExecutionId, run_again: bool) -> Result<Response, Rejection> {
        let ExecutionId { run, step, element } = execution;
        let known = self.state.runs.get(&run).and_then(|run| run.steps.get(step.index()));
        let Some(state) = known else { return Err(Rejection::NotFound(format!("there is no {execution}"))) };
        if !state.unknown.contains_key(&element) {
            return Err(Rejection::Conflict(format!("the fate of {execution} is not unknown")));
        }
        if !self.state.run(run).is_going_on() {
            return Err(Rejection::Conflict(format!("{run} is over, or is being stopped")));
        }
        let message: Arc<str> = Arc::from("its fate was unknown; somebody decided");
        let elements: ElementSet = std::iter::once(element).collect();
        if run_again {
            let former = state.unknown[&element].site;
            let (cause, not_before) = (ReturnCause::Resolved, self.now);
            let fact = Fact::ExecutionsReturned {
                run,
                step,
                elements: elements.clone(),
                cause,
                message: Arc::clone(&message),
                not_before,
            };
            self.record(fact);
            // What the site has not heard of yet, or has not begun, it does not begin any more.
            if self.state.sites.get(&former).is_some_and(|site| site.revoked.is_none()) {
                self.order_cancel(former, run, step, elements, &message);
            }
            self.after_return(run, step);
        } else {
            let active = state.unknown[&element].clone();
            let failed = FinishedElement {
                element,
                attempt: active.attempt,
                started_at: Some(active.started_at).filter(|at| *at != Default::default()),
                finished_at: self.now,
                outcome: Outcome::Failed {
                    reason: FailureReason::Agent,
                    exit_code: None,
                    message: "its fate is unknown, and somebody decided that it failed".to_owned(),
                },
                outputs: Vec::new(),
                usage: Default::default(),
                logs: Default::default(),
            };
            self.end_executions(active.site, run, step, vec![failed]);
        }
        Ok(Response::Done)
    }
}

/// Whether what a fragment's attempt was bound to is what was accepted.
pub(crate) fn is_bound_to_accepted(run: &Run, step: StepIndex, attempt: atoll_model::id::Attempt) -> bool {
    let bound = run.steps[step.index()].bound.get(&attempt);
    bound.is_none_or(|bound| {
        bound.iter().all(|(need, attempt)| {
            let row = run.steps[need.index()].row(0);
            row.is_some_and(|row| row.state == RowState::Succeeded && row.attempt == *attempt)
        })
    })
}

/// Turns a success whose outputs cannot be taken in into a failure.
fn check_outputs(run: &Run, step: StepIndex, finished: &mut FinishedElement) {
    if finished.outcome != Outcome::Succeeded {
        return;
    }
    let declared = &run.workflow.step(step).outputs;
    let message = if finished.outputs.len() == declared.len() {
        oversized_output(declared.keys().zip(&finished.outputs))
    } else {
        Some(format!("it has {} outputs, and {} are declared", finished.outputs.len(), declared.len()))
    };
    if let Some(message) = message {
        finished.outcome = Outcome::Failed { reason: FailureReason::InvalidOutput, exit_code: None, message };
        finished.outputs.clear();
    }
}

/// A source is begun again whatever goes down with it, after growing pauses.
fn judge(run: &Run, step: StepIndex, is_source: bool, finished: &mut FinishedElement) -> Judgement {
    let state = &run.steps[step.index()];
    let active = state.active.get(&finished.element).or_else(|| state.unknown.get(&finished.element));
    let active = active.expect("only current attempts are judged");
    let fresh = Tries::default();
    let tries = state.tries.get(&finished.element).unwrap_or(&fresh);
    let definition = run.workflow.step(step);
    let at_most_once = definition.start == StartMode::AtMostOnce;
    if finished.outcome == Outcome::Succeeded {
        return Judgement::Final;
    }
    if !run.is_going_on() {
        // Nothing is tried again; what did not fail by itself was stopped.
        if !matches!(finished.outcome, Outcome::Failed { .. }) {
            finished.outcome = Outcome::Cancelled;
        }
        return Judgement::Final;
    }
    match finished.outcome.clone() {
        Outcome::Succeeded => Judgement::Final,
        Outcome::Failed { reason, message, .. } => match definition.retry.after_failure(tries.failures) {
            Some(not_before) => {
                let grows = reason == FailureReason::OutOfMemory && definition.retry.memory.is_some();
                let cause = if grows { ReturnCause::OutOfMemory } else { ReturnCause::Failed };
                Judgement::Again { cause, not_before, message }
            }
            None => Judgement::Final,
        },
        Outcome::Cancelled if active.cancelling => Judgement::Final,
        Outcome::Cancelled => stopped(finished, active, at_most_once),
        Outcome::Interrupted { message } if at_most_once => Judgement::Unknown { message },
        Outcome::Interrupted { message } if is_source => {
            let not_before = definition.retry.after_failure(tries.crashes).unwrap_or_default();
            Judgement::Again { cause: ReturnCause::Interrupted, not_before, message }
        }
        Outcome::Interrupted { message } => {
            if tries.crashes + 1 >= limits::POISON_CRASHES_MAX {
                let times = limits::POISON_CRASHES_MAX;
                let message = format!("given up: its site went down {times} times while it ran ({message})");
                finished.outcome = Outcome::Failed { reason: FailureReason::Agent, exit_code: None, message };
                Judgement::Final
            } else {
                Judgement::Again { cause: ReturnCause::Interrupted, not_before: Duration::ZERO, message }
            }
        }
        Outcome::NotStarted { reason: NotStartedReason::Cancelled, .. } if active.cancelling => Judgement::Final,
        Outcome::NotStarted {
            reason: NotStartedReason::PredecessorFailed | NotStartedReason::AttemptKnown,
            message,
        } => Judgement::Again { cause: ReturnCause::Withdrawn, not_before: Duration::ZERO, message },
        // Others may run it; if none can, it is given up when it is placed again.
        Outcome::NotStarted { reason: NotStartedReason::Refused, message } => {
            Judgement::Again { cause: ReturnCause::Refused, not_before: Duration::ZERO, message }
        }
        Outcome::NotStarted { reason, message } => {
            // Of an input nothing is lost as long as there is a copy: the bucket or the link comes back.
            let is_in_vain = reason != NotStartedReason::InputUnavailable;
            if is_in_vain && tries.not_started + 1 >= NOT_STARTED_MAX {
                let message = format!("it could not be started in {NOT_STARTED_MAX} attempts: {message}");
                finished.outcome = Outcome::Failed { reason: FailureReason::Agent, exit_code: None, message };
                return Judgement::Final;
            }
            let doubled = NOT_STARTED_BACKOFF.saturating_mul(1 << tries.not_started.min(16));
            let not_before = doubled.min(limits::RETRY_BACKOFF_MAX);
            Judgement::Again { cause: ReturnCause::NotStarted, not_before, message }
        }
    }
}

/// The agent stopped it without being asked: `on_disconnect: stop`, or a verdict of an earlier session.
fn stopped(finished: &mut FinishedElement, active: &Active, at_most_once: bool) -> Judgement {
    let message = "the agent stopped it while it was cut off".to_owned();
    let has_started = finished.started_at.is_some() || active.phase == ActivePhase::Running;
    if at_most_once && has_started {
        finished.outcome = Outcome::Failed { reason: FailureReason::Agent, exit_code: None, message };
        return Judgement::Final;
    }
    Judgement::Again { cause: ReturnCause::Stopped, not_before: Duration::ZERO, message }
}

fn objects_among(elements: &[FinishedElement]) -> Vec<ObjectId> {
    let mut objects = Vec::new();
    for value in elements.iter().flat_map(|finished| &finished.outputs) {
        value.visit_objects(&mut |object| objects.push(object.id));
    }
    objects
}
