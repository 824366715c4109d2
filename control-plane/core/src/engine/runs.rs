//! The walk through a run's graph: which steps begin, when a run is over.

use std::collections::BTreeSet;
use std::time::Duration;

use atoll_model::expression::{Elements, Expression, Form, Scope, evaluate, evaluate_elements};
use atoll_model::id::{ExecutionId, RunId, SiteId, StepIndex};
use atoll_model::value::Value;
use atoll_model::workflow::{Step, Work};
use indexmap::IndexMap;

use super::bucket::sources_released_by;
use crate::agenda::Timer;
use crate::caches::value_bytes;
use crate::command::Command;
use crate::control_plane::ControlPlane;
use crate::fact::{Fact, Items};
use crate::state::{Phase, Run, StepPhase};
use crate::view::{RunError, RunState};

/// Before a run for which something is still on its way to the bucket is looked at again.
const RETIRE_AGAIN: Duration = Duration::from_secs(60);

impl ControlPlane {
    /// Finds out what the elements of a step are, now that all that it needs has ended.
    pub(crate) fn expand(&mut self, run_id: RunId, step: StepIndex) {
        let Some(run) = self.state.runs.get(&run_id) else { return };
        let state = &run.steps[step.index()];
        if state.phase != StepPhase::Waiting || state.needs_left > 0 {
            return;
        }
        // Of a run that is being stopped, only what an agent may have begun by itself.
        let has_begun = self.state.delegation(run_id, step).is_some()
            && run.workflow.step(step).needs.iter().all(|need| run.steps[need.index()].has_succeeded());
        if !(run.is_going_on() || run.is_live() && has_begun) {
            return;
        }
        match self.expansion(run, step) {
            Ok(Expansion::Skipped) => self.record(Fact::StepSkipped { run: run_id, step }),
            Ok(Expansion::Into { items, count }) => {
                let at = self.now;
                self.record(Fact::StepExpanded { run: run_id, step, items, count, at });
            }
            Err(message) => {
                let error = RunError { step: run.workflow.step(step).name.clone(), execution: None, message };
                return self.fail_run(run_id, error);
            }
        }
        if self.state.step(run_id, step).is_ended() {
            self.after_step_ended(run_id, step);
        } else {
            self.want_place(run_id, step);
            self.make_ready_after(run_id, step);
        }
    }

    fn expansion(&self, run: &Run, step: StepIndex) -> Result<Expansion, String> {
        let definition = run.workflow.step(step);
        if definition.needs.iter().any(|need| run.steps[need.index()].is_skipped()) {
            return Ok(Expansion::Skipped);
        }
        let scope = self.caches.scope(run);
        if let Some(when) = &definition.when
            && !is_true(evaluate(when, &scope).map_err(|error| at_place(&error))?, when)?
        {
            return Ok(Expansion::Skipped);
        }
        if publishes_nothing(definition, &scope)? {
            return Ok(Expansion::Skipped);
        }
        let Some(foreach) = &definition.foreach else {
            return Ok(Expansion::Into { items: Items::Single, count: 1 });
        };
        let elements = evaluate_elements(foreach, &scope).map_err(|error| at_place(&error))?;
        let count = elements.len();
        let items = match (elements, &foreach.form) {
            (Elements::Range { .. }, _) => Items::Range,
            (Elements::List(_), Form::Input(name)) if run.inputs.contains_key(name) => Items::Input(name.clone()),
            (Elements::List(values), _) => Items::List(values),
        };
        Ok(Expansion::Into { items, count })
    }

    /// What follows when elements of a step have ended: perhaps the step, perhaps the run.
    pub(crate) fn after_elements_ended(&mut self, run: RunId, step: StepIndex) {
        let Some(state) = self.state.runs.get(&run) else { return };
        if state.steps[step.index()].is_ended() && state.is_live() {
            self.after_step_ended(run, step);
        }
        let Some(state) = self.state.runs.get(&run) else { return };
        if state.steps_left == 0 || (!state.is_going_on() && state.active == 0) {
            self.agenda.ending.insert(run);
        }
    }

    fn after_step_ended(&mut self, run_id: RunId, step: StepIndex) {
        let run = self.state.run(run_id);
        for successor in &run.plan.steps[step.index()].successors {
            let state = &run.steps[successor.index()];
            if state.phase != StepPhase::Waiting {
                continue;
            }
            let queue = if state.needs_left == 0 { &mut self.agenda.expand } else { &mut self.agenda.chain };
            queue.push_back((run_id, *successor));
        }
        if !run.in_bucket.is_empty() {
            for source in sources_released_by(run, step) {
                self.agenda.sweep.extend(run.in_bucket.get(&source).into_iter().flatten());
            }
        }
        if run.steps_left == 0 {
            self.agenda.ending.insert(run_id);
        }
    }

    /// An execution has failed for good: so does its run.
    pub(crate) fn fail_for(&mut self, execution: ExecutionId, message: &str) {
        let run = self.state.run(execution.run);
        let step = run.workflow.step(execution.step).name.clone();
        let error = RunError { step, execution: Some(execution), message: message.to_owned() };
        self.fail_run(execution.run, error);
    }

    pub(crate) fn end_if_over(&mut self, run_id: RunId) {
        let Some(run) = self.state.runs.get(&run_id) else { return };
        let ended = match run.phase {
            Phase::Going if run.steps_left == 0 && run.active == 0 => match self.run_outputs(run) {
                Ok(outputs) => Some((RunState::Succeeded, outputs, None)),
                Err(error) => Some((RunState::Failed, IndexMap::new(), Some(error))),
            },
            _ if self.state.has_delegations(run_id) => None,
            Phase::Failing if run.active == 0 => Some((RunState::Failed, IndexMap::new(), run.error.clone())),
            Phase::Cancelling if run.active == 0 => Some((RunState::Cancelled, IndexMap::new(), run.error.clone())),
            Phase::Going | Phase::Failing | Phase::Cancelling | Phase::Ended(_) => None,
        };
        let Some((state, outputs, error)) = ended else { return };
        *self.counters.runs_ended.entry(state).or_default() += 1;
        self.record(Fact::RunEnded { run: run_id, state, outputs, error, at: self.now });
        self.source_ended(run_id);
        self.cancel_pushes_of(run_id);
        self.look_at_copies_of(run_id);
        self.look_at_expired_of(run_id);
        let prepared = self.state.sites.iter().filter(|(_, site)| site.log.prepared.contains_key(&run_id));
        let told = prepared.map(|(site, _)| *site).chain(self.state.told_to_make_ready(run_id));
        let told: BTreeSet<SiteId> = told.collect();
        for site in told {
            self.record(Fact::ForgetOrdered { site, run: run_id });
            self.agenda.touched.insert(site);
        }
        let in_bucket = self.state.run(run_id).in_bucket.values().flatten().copied();
        self.agenda.sweep.extend(in_bucket);
        self.agenda.forget_run(run_id);
        self.caches.forget(run_id);
        self.outlooks.forget(run_id);
        self.note_finished(run_id);
        let run = self.finished_run(run_id).expect("it has just ended");
        self.command(Command::KeepRun { run, last: false });
        self.retire_beyond_memory();
    }

    /// The run has ended, and stays in memory for a while.
    pub(crate) fn note_finished(&mut self, run_id: RunId) {
        let run = self.state.run(run_id);
        let finished_at = run.finished_at.unwrap_or(run.submitted_at);
        let bytes = run.memory_bytes();
        let before = self.agenda.finished.insert((finished_at, run_id), bytes).unwrap_or(0);
        self.agenda.finished_bytes = self.agenda.finished_bytes + bytes - before;
        self.agenda.set(finished_at + self.config.keep_finished, Timer::Retire(run_id));
        self.look_when_expired(run_id);
    }

    /// The oldest runs go first, and one that is larger than all that may stay goes at once. A run stays here for which
    /// something is still sent: it is looked at again a little later.
    pub(crate) fn retire_beyond_memory(&mut self) {
        let mut excess = self.agenda.finished_bytes.saturating_sub(self.config.keep_finished_bytes);
        let (mut leaving, mut is_waited_for) = (Vec::new(), false);
        for ((_, run), bytes) in &self.agenda.finished {
            if excess == 0 {
                break;
            }
            if self.is_pushed_for(*run) {
                is_waited_for = true;
            } else {
                leaving.push(*run);
                excess = excess.saturating_sub(*bytes);
            }
        }
        if is_waited_for && excess > 0 {
            self.agenda.set(self.now + RETIRE_AGAIN, Timer::Wake);
        }
        leaving.into_iter().for_each(|run| self.keep_for_the_last_time(run));
    }

    fn run_outputs(&self, run: &Run) -> Result<IndexMap<String, Value>, RunError> {
        let scope = self.caches.scope(run);
        let mut outputs = IndexMap::new();
        let failed = |message| RunError { step: String::new(), execution: None, message };
        for (name, expression) in &run.workflow.outputs {
            let value = evaluate(expression, &scope)
                .map_err(|error| failed(format!("output {name} of the run: {}", at_place(&error))))?;
            outputs.insert(name.clone(), value);
        }
        Ok(outputs)
    }

    /// A run that ended long ago goes into the history.
    pub(crate) fn retire(&mut self, run_id: RunId) {
        let Some(run) = self.state.runs.get(&run_id) else { return };
        let Some(finished_at) = run.finished_at else { return };
        let due = finished_at + self.config.keep_finished;
        if due > self.now {
            return self.agenda.set(due, Timer::Retire(run_id));
        }
        if self.is_pushed_for(run_id) {
            // What is still sent for it would come to the bucket, and nobody would know what it is.
            self.agenda.set(self.now + RETIRE_AGAIN, Timer::Retire(run_id));
        } else if !self.agenda.retiring.contains_key(&run_id) {
            self.keep_for_the_last_time(run_id);
        }
    }

    fn is_pushed_for(&self, run: RunId) -> bool {
        self.state.transfers.values().any(|transfer| transfer.run == Some(run)) || self.owes_pushes(run)
    }

    fn keep_for_the_last_time(&mut self, run_id: RunId) {
        let Some(run) = self.finished_run(run_id) else { return };
        if let Some(bytes) = self.agenda.finished.remove(&(run.finished_at(), run_id)) {
            self.agenda.finished_bytes -= bytes;
        }
        self.agenda.retiring.insert(run_id, run.clone());
        self.command(Command::KeepRun { run, last: true });
    }

    /// The history holds the run, which is forgotten here.
    pub(crate) fn run_kept(&mut self, run_id: RunId) {
        // A repeat, or an answer to the process before this one.
        let Some(kept) = self.agenda.retiring.remove(&run_id) else { return };
        if !self.finished_run(run_id).is_some_and(|run| run.is_same(&kept)) {
            // Somebody has taken an output of it out meanwhile.
            return self.keep_for_the_last_time(run_id);
        }
        if self.is_pushed_for(run_id) {
            self.note_finished(run_id);
            return self.agenda.set(self.now + RETIRE_AGAIN, Timer::Retire(run_id));
        }
        self.leave_claims(run_id);
        // What a rule kept there for as long as the run was remembered may go.
        let in_bucket: Vec<_> = self.state.run(run_id).in_bucket.values().flatten().copied().collect();
        self.record(Fact::RunRemoved { run: run_id });
        self.agenda.sweep.extend(in_bucket);
    }
}

enum Expansion {
    Skipped,
    Into { items: Items, count: u32 },
}

/// Whether there is nothing for it to publish: an optional output may be missing, an expression may give nothing.
fn publishes_nothing(step: &Step, scope: &dyn Scope) -> Result<bool, String> {
    if !matches!(step.work, Work::Export { .. }) {
        return Ok(false);
    }
    for value in step.bindings.values() {
        if evaluate(value, scope).map_err(|error| at_place(&error))? != Value::Null {
            return Ok(false);
        }
    }
    Ok(true)
}

fn is_true(value: Value, when: &Expression) -> Result<bool, String> {
    let Value::Boolean(value) = value else {
        return Err(format!("{}:{}: `when` gives {value:?}, not true or false", when.place.line, when.place.column));
    };
    Ok(value)
}

pub(crate) fn at_place(error: &atoll_model::expression::EvaluationError) -> String {
    format!("{}:{}: {}", error.place.line, error.place.column, error.message)
}

/// The message for an output that is too large to be journaled, if one is.
pub(crate) fn oversized_output<'a>(outputs: impl Iterator<Item = (&'a String, &'a Value)>) -> Option<String> {
    let limit = atoll_model::limits::VALUE_BYTES_MAX;
    let mut oversized = outputs.filter(|(_, value)| value.is_too_large());
    oversized.next().map(|(name, value)| {
        let bytes = value_bytes(value);
        format!("output {name} has {bytes} bytes; a value may have {limit}, anything larger must be a file")
    })
}
