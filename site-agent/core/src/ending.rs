//! From a start to its end: what ran, what it left behind, what is reported of it.

use atoll_model::session::{FailureReason, FinishedElement, Logs, NotStartedReason, Outcome, Usage};
use atoll_model::time::Timestamp;
use atoll_model::workflow::OnDisconnect;

use crate::agent::{Agent, Step};
use crate::command::Command;
use crate::delegation::AfterFailure;
use crate::event::{Exit, ExitKind, FoundState, NodeId, OutputFailure, SealedOutput, StoredOutputs};
use crate::fact::Fact;
use crate::readiness::visit_stored;
use crate::room::Kind;
use crate::state::{Active, AttemptKey, Ending};

/// What this process knows of an active attempt.
#[derive(Debug, Default)]
pub(crate) struct Launch {
    /// The node where it holds room, or a place behind one that does, and as what.
    pub(crate) room: Option<(NodeId, Kind)>,
    pub(crate) started_at: Option<Timestamp>,
    pub(crate) sealed: Option<Vec<SealedOutput>>,
    /// Whether those whose outputs it reads know of it.
    pub(crate) follows: bool,
    killed: Option<Killed>,
    exit: Option<Exit>,
    collecting: bool,
    stored: Option<Result<StoredOutputs, OutputFailure>>,
}

/// Why it was killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Killed {
    Unwanted,
    /// The link was lost, and its step says that it must not go on without.
    Disconnected,
    /// It ran on outputs that came to nothing.
    Invalid,
}

impl Launch {
    pub(crate) fn in_room(node: NodeId, kind: Kind) -> Self {
        Self { room: Some((node, kind)), ..Self::default() }
    }

    /// Whether something may have come that it lacked: found by a new journal, its step was not prepared and its inputs
    /// not known.
    pub(crate) fn is_stuck(&self) -> bool {
        !self.follows || (self.exit.is_some() && !self.collecting)
    }
}

impl Agent {
    /// Takes in an attempt that was found after a restart.
    pub(crate) fn take_in(&mut self, key: AttemptKey, node: NodeId, found: FoundState) {
        let step = (key.0.run, key.0.step);
        let terms = self.state.active[&key].terms.as_ref();
        let template = terms.and_then(|terms| self.state.template(step, terms.template));
        let mut launch = match found {
            FoundState::Queued => Launch::default(),
            FoundState::Running { since } => Launch { started_at: Some(since), ..Launch::default() },
            FoundState::Exited(exit) => Launch { exit: Some(exit), ..Launch::default() },
        };
        // Of what a new journal knows nothing, it does not know the size either.
        if let (None, Some(template)) = (&launch.exit, template) {
            self.room.take_in(step, node, &template.resources);
            launch.room = Some((node, Kind::new(step, &template.resources)));
        }
        let active = &self.state.active[&key];
        // The process before this one may have been killed before it had said so (A5).
        if let Some(at) = launch.started_at.filter(|_| active.terms.is_some() && !active.start_reported) {
            self.unreported.insert(key, at);
        }
        self.launches.insert(key, launch);
    }

    pub(crate) fn exited(&mut self, key: AttemptKey, exit: Exit, stored: Option<StoredOutputs>, step: &mut Step) {
        let Some(launch) = self.launches.get_mut(&key) else {
            // Over and reported, or forgotten, before the agent began: the shell still holds its remains.
            step.commands.push(Command::Release { execution: key.0, attempt: key.1 });
            return;
        };
        if launch.exit.is_some() {
            return;
        }
        let ran = exit.finished_at.saturating_since(exit.started_at);
        launch.exit = Some(exit);
        launch.collecting = stored.is_some();
        self.leave_room(key, Some(ran));
        self.unsettled.insert(key);
        if let Some(stored) = stored {
            self.stored(key, Ok(stored));
        }
    }

    pub(crate) fn not_started(
        &mut self,
        key: AttemptKey,
        reason: FailureReason,
        message: String,
        now: Timestamp,
        step: &mut Step,
    ) {
        // Repeated for an attempt that is over.
        let (Some(active), Some(launch)) = (self.state.active.get(&key), self.launches.get(&key)) else { return };
        let (forgotten, ending, started_at) = (active.forgotten, active.ending, launch.started_at);
        let step_key = (key.0.run, key.0.step);
        let invalid = active.terms.as_ref().is_some_and(|terms| self.uncommitted(step_key, terms).is_err());
        self.leave_room(key, None);
        if forgotten {
            self.drop_attempt(key, step);
            return;
        }
        let outcome = match ending {
            None if invalid => invalid_input(),
            Some(_) => Outcome::NotStarted { reason: NotStartedReason::Cancelled, message: "cancelled".to_owned() },
            None => Outcome::Failed { reason, exit_code: None, message },
        };
        self.finish(key, Ended { started_at, ..Ended::at(now, outcome) }, step);
    }

    pub(crate) fn sealed(&mut self, key: AttemptKey, outputs: Vec<SealedOutput>) {
        let Some(launch) = self.launches.get_mut(&key) else { return };
        launch.sealed = Some(outputs);
        self.wake.extend(self.waiting.for_attempt(key));
    }

    pub(crate) fn stored(&mut self, key: AttemptKey, result: Result<StoredOutputs, OutputFailure>) {
        if !self.launches.contains_key(&key) {
            return;
        }
        let mut objects = Vec::new();
        if let Ok(stored) = &result {
            visit_stored(&stored.outputs, &mut |object| {
                self.stage.set_present(object);
                self.wake.extend(self.waiting.for_object(object));
                objects.push(object);
            });
            objects.extend([stored.logs.stdout, stored.logs.stderr].into_iter().flatten().map(|log| log.id));
        }
        objects.into_iter().for_each(|object| self.note_stored(object));
        let Some(launch) = self.launches.get_mut(&key) else { return };
        launch.stored = Some(result);
        self.unsettled.insert(key);
    }

    /// Goes on with an attempt as far as it goes.
    pub(crate) fn settle(&mut self, key: AttemptKey, now: Timestamp, step: &mut Step) {
        self.follow(key);
        let (Some(active), Some(launch)) = (self.state.active.get(&key), self.launches.get(&key)) else { return };
        let (execution, attempt) = key;
        if launch.exit.is_none() {
            if launch.killed.is_none()
                && let Some(killed) = self.must_kill(key, active)
            {
                step.commands.push(Command::Kill { execution, attempt });
                if let Some(launch) = self.launches.get_mut(&key) {
                    launch.killed = Some(killed);
                }
            }
            return;
        }
        let Some(terms) = active.terms.as_ref().filter(|_| !active.forgotten) else {
            // What a new journal found waits to be dispatched again, or for a verdict; what is to end ends as it is.
            if active.forgotten {
                self.drop_attempt(key, step);
            } else if active.ending.is_some() {
                let started_at = launch.exit.as_ref().map(|exit| exit.started_at);
                self.finish(key, Ended { started_at, ..Ended::at(now, Outcome::Cancelled) }, step);
            }
            return;
        };
        let producers = self.uncommitted((execution.run, execution.step), terms);
        if producers.is_err() && (launch.stored.is_some() || !launch.collecting) {
            self.finish(key, Ended::at(now, invalid_input()), step);
        } else if !launch.collecting {
            self.collect(key, step);
        } else if launch.stored.is_some() && producers.is_ok_and(|pending| pending.is_empty()) {
            self.finish_collected(key, step);
        }
    }

    /// Whatever waited for this attempt to end, or ran on its outputs, is looked at again.
    pub(crate) fn attempt_ended(&mut self, key: AttemptKey) {
        self.wake.extend(self.waiting.for_attempt(key));
        if let Some(followers) = self.followers.remove(&key) {
            self.unsettled.extend(followers);
        }
    }

    fn stops_on_disconnect(&self, (execution, _): &AttemptKey, active: &Active) -> bool {
        let template = active
            .terms
            .as_ref()
            .and_then(|terms| self.state.template((execution.run, execution.step), terms.template));
        template.is_some_and(|template| template.on_disconnect == OnDisconnect::Stop)
    }

    /// Has itself looked at again when those end whose outputs the attempt reads.
    fn follow(&mut self, key: AttemptKey) {
        if self.launches.get(&key).is_none_or(|launch| launch.follows) {
            return;
        }
        let Some(terms) = self.state.active.get(&key).and_then(|active| active.terms.as_ref()) else { return };
        for producer in self.uncommitted((key.0.run, key.0.step), terms).unwrap_or_default() {
            self.followers.entry(producer).or_default().insert(key);
        }
        if let Some(launch) = self.launches.get_mut(&key) {
            launch.follows = true;
        }
    }

    fn must_kill(&self, key: AttemptKey, active: &Active) -> Option<Killed> {
        if active.ending.is_some() || active.forgotten {
            return Some(Killed::Unwanted);
        }
        let terms = active.terms.as_ref()?;
        if self.uncommitted((key.0.run, key.0.step), terms).is_err() {
            return Some(Killed::Invalid);
        }
        (self.session.is_stopped() && self.stops_on_disconnect(&key, active)).then_some(Killed::Disconnected)
    }

    fn collect(&mut self, key: AttemptKey, step: &mut Step) {
        let (execution, attempt) = key;
        let active = &self.state.active[&key];
        let Some(terms) = &active.terms else { return };
        // Dispatched without its step having been prepared: nothing says what its outputs are.
        let Some(template) = self.state.template((execution.run, execution.step), terms.template).cloned() else {
            return;
        };
        let Some(launch) = self.launches.get_mut(&key) else { return };
        launch.collecting = true;
        let outputs = launch.exit.as_ref().is_some_and(|exit| exit.how == ExitKind::Code(0));
        step.commands.push(Command::Collect { execution, attempt, template, outputs });
    }

    fn finish_collected(&mut self, key: AttemptKey, step: &mut Step) {
        let ending = self.state.active[&key].ending;
        let Some(launch) = self.launches.get_mut(&key) else { return };
        let (Some(exit), Some(stored)) = (launch.exit.clone(), launch.stored.take()) else { return };
        let (logs, bytes_out) = match &stored {
            Ok(stored) => (stored.logs, stored.bytes_out),
            Err(failure) => (failure.logs, 0),
        };
        let (outcome, outputs) = match (stored, &exit.how) {
            (Ok(stored), ExitKind::Code(0)) => (Outcome::Succeeded, stored.outputs),
            (Err(failure), ExitKind::Code(0)) => {
                let (reason, message) = (failure.reason, failure.message);
                (Outcome::Failed { reason, exit_code: Some(0), message }, Vec::new())
            }
            (_, how) => (outcome_of(how, ending), Vec::new()),
        };
        let usage = Usage { bytes_out, ..exit.usage };
        let started_at = Some(exit.started_at);
        self.finish(key, Ended { started_at, finished_at: exit.finished_at, outcome, outputs, usage, logs }, step);
    }

    fn finish(&mut self, key: AttemptKey, ended: Ended, step: &mut Step) {
        let (execution, attempt) = key;
        let seals: Vec<_> = match &ended.outcome {
            Outcome::Succeeded => Vec::new(),
            Outcome::Failed { .. } | Outcome::Cancelled | Outcome::Interrupted { .. } | Outcome::NotStarted { .. } => {
                let sealed = self.launches.get(&key).and_then(|launch| launch.sealed.as_ref());
                sealed.into_iter().flatten().filter_map(|output| output.seal).collect()
            }
        };
        if !seals.is_empty() {
            step.commands.push(Command::DropSealed { seals });
        }
        self.withhold(key, &ended.outputs, ended.logs, step);
        let Ended { started_at, finished_at, outcome, outputs, usage, logs } = ended;
        let element = Box::new(FinishedElement {
            element: execution.element,
            attempt,
            started_at,
            finished_at,
            outcome,
            outputs,
            usage,
            logs,
        });
        let (run, index) = (execution.run, execution.step);
        let next = self.after_failure(key, &element);
        let fails = next == AfterFailure::Fails;
        if let AfterFailure::Again(not_before) = next {
            self.decide(step, Fact::Retried { run, step: index, element, not_before });
            self.retries.insert((not_before, (run, index)));
        } else {
            self.decide(step, Fact::Finished { run, step: index, element });
        }
        self.let_go(key, step);
        if fails {
            self.end_delegations(run, "an execution of its run has failed", step);
        } else {
            self.step_progressed((run, index), step);
        }
    }

    fn drop_attempt(&mut self, key: AttemptKey, step: &mut Step) {
        self.decide(step, Fact::Dropped { attempts: vec![key] });
        self.let_go(key, step);
    }

    fn let_go(&mut self, key: AttemptKey, step: &mut Step) {
        self.launches.remove(&key);
        self.unreported.remove(&key);
        self.attempt_ended(key);
        step.commands.push(Command::Release { execution: key.0, attempt: key.1 });
    }

    fn leave_room(&mut self, key: AttemptKey, ran: Option<std::time::Duration>) {
        if let Some(launch) = self.launches.get_mut(&key)
            && let Some((node, kind)) = launch.room.take()
        {
            self.room.release(kind, node, ran);
        }
    }
}

/// How an attempt ended, and what it left.
struct Ended {
    started_at: Option<Timestamp>,
    finished_at: Timestamp,
    outcome: Outcome,
    outputs: Vec<atoll_model::value::Value>,
    usage: Usage,
    logs: Logs,
}

impl Ended {
    fn at(finished_at: Timestamp, outcome: Outcome) -> Self {
        Self {
            started_at: None,
            finished_at,
            outcome,
            outputs: Vec::new(),
            usage: Usage::default(),
            logs: Logs::default(),
        }
    }
}

/// What ran on outputs that came to nothing counts as never started.
fn invalid_input() -> Outcome {
    let message = "an output that it read came to nothing".to_owned();
    Outcome::NotStarted { reason: NotStartedReason::PredecessorFailed, message }
}

fn outcome_of(how: &ExitKind, ending: Option<Ending>) -> Outcome {
    let failed = |reason, exit_code, message: String| Outcome::Failed { reason, exit_code, message };
    match how {
        ExitKind::Code(code) => failed(FailureReason::ExitCode, Some(*code), format!("exit code {code}")),
        ExitKind::Signal(signal) => failed(FailureReason::Signal, None, format!("killed by signal {signal}")),
        ExitKind::TimedOut => failed(FailureReason::TimedOut, None, "it ran for longer than its time limit".to_owned()),
        ExitKind::OutOfMemory => failed(FailureReason::OutOfMemory, None, "it used more memory than it may".to_owned()),
        ExitKind::Killed | ExitKind::Interrupted(_) if ending.is_some() => Outcome::Cancelled,
        // Stopped on purpose: since the link was lost, or by a process before this one, with which the reason was lost.
        // Nothing went down.
        ExitKind::Killed => Outcome::Cancelled,
        ExitKind::Interrupted(message) => Outcome::Interrupted { message: message.clone() },
        ExitKind::Failed { reason, message } => failed(*reason, None, message.clone()),
    }
}
