//! Executions that a worker is called for.

use std::io;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::rc::Rc;
use std::time::{Duration, Instant};

use atoll_model::session::FailureReason;
use serde_json::{Map, Value as Json};
use site_agent_spawn::Child;

use super::{Current, Process, Rounds, Runner, now_timestamp};
use crate::shim::directory::SlotDirectory;
use crate::shim::outputs::BYTES_MAX;
use crate::shim::protocol::{Common, EndKind, Key, Order, Outputs, Record, Taken};
use crate::shim::spent::Counted;
use crate::shim::tree;
use crate::shim::worker::{Answer, Worker};

/// How long what is cancelled may take to give up by itself.
const CANCEL_GRACE: Duration = Duration::from_secs(2);
/// How long a worker may take to end that is not needed any more.
const SHUTDOWN_GRACE: Duration = Duration::from_secs(1);
/// How long a worker may live on that says nothing more.
const CLOSED_GRACE: Duration = Duration::from_secs(1);

/// A worker that was asked to end.
#[derive(Debug)]
pub(super) struct Leaving {
    child: Child,
    has_ended: bool,
    rounds: Rounds,
}

impl Leaving {
    /// What becomes readable when it ends, as long as it has not.
    pub(super) fn child(&self) -> Option<&Child> {
        (!self.has_ended).then_some(&self.child)
    }

    pub(super) const fn next(&self) -> Instant {
        self.rounds.next
    }
}

impl Current {
    /// Ends it: a worker is asked to give up first, so that it can be called again.
    pub(super) fn cancel(&mut self, now: Instant) {
        self.ask_to_end(now);
        match &mut self.process {
            Process::Own(_) | Process::Contained(_) if self.keeping.is_some() => {}
            Process::Own(_) | Process::Contained(_) | Process::Resting => self.stop(EndKind::Killed),
            Process::Called(worker) if self.clearing.is_none() => {
                worker.cancel();
                let at = self.deadline.as_ref().map_or(now + CANCEL_GRACE, |(at, _)| (*at).min(now + CANCEL_GRACE));
                self.deadline = Some((at, EndKind::Killed));
            }
            Process::Called(_) => {}
        }
    }
}

impl Runner {
    /// Whether what is next in the queue can be started: its worker waits for it, or nothing is there any more of another.
    pub(super) fn is_free_for_next(&mut self, now: Instant) -> bool {
        if let Some(worker) = &mut self.worker {
            let has_ended = worker.child.try_wait().is_ok_and(|ended| ended.is_some());
            let is_next = |(common, _): &(Rc<Common>, Order)| worker.serves(common, &self.slot);
            if has_ended || !self.queue.front().is_none_or(is_next) {
                self.part_with_worker(now);
            }
        }
        let Some(leaving) = &mut self.leaving else { return true };
        if !leaving.has_ended && leaving.child.try_wait().map_or(true, |ended| ended.is_some()) {
            leaving.has_ended = true;
            // Whatever is left of it needs no more time.
            leaving.rounds.next = now;
        }
        let is_over = (leaving.has_ended && tree::reap(None)) || leaving.rounds.advance(&self.limits, now);
        if is_over {
            self.leaving = None;
            self.children = Counted::of_children();
        }
        is_over
    }

    fn part_with_worker(&mut self, now: Instant) {
        self.leaving = self.worker.take().map(|worker| Leaving {
            child: worker.shut_down(),
            has_ended: false,
            rounds: Rounds { count: 0, next: now + SHUTDOWN_GRACE },
        });
    }

    /// Calls the worker that waits, or a new one.
    pub(super) fn call(&mut self, common: &Rc<Common>, order: &Order) -> io::Result<Process> {
        let mut worker = match self.worker.take() {
            Some(worker) => worker,
            None => {
                self.limits.apply(common)?;
                let started = Worker::start(common, &self.slot, &mut self.spawner, &self.own_tmp, Some(order.key));
                self.limits.started();
                started?
            }
        };
        worker.call(common, order, &self.slot);
        Ok(Process::Called(Box::new(worker)))
    }

    /// Has a worker wait for its first call, unless there is something to do or to wait for.
    pub(crate) fn warm_up(&mut self, common: Common) {
        let is_free = self.current.is_none() && self.queue.is_empty();
        if is_free && self.worker.is_none() && self.leaving.is_none() {
            // Where none can be started the first call meets the same, and says why.
            self.worker = self.start_waiting(&Rc::new(common)).ok();
        }
    }

    fn start_waiting(&mut self, common: &Rc<Common>) -> io::Result<Worker> {
        if std::mem::replace(&mut self.dirty, true) {
            self.slot.clean()?;
        }
        self.slot.belong_to(common.account.as_ref())?;
        self.limits.apply(common)?;
        let started = Worker::start(common, &self.slot, &mut self.spawner, &self.own_tmp, None);
        self.limits.started();
        let mut worker = started?;
        worker.send();
        Ok(worker)
    }

    /// What is called now has emitted these, and nobody was told of it yet.
    pub(crate) fn take_emitted(&mut self) -> Option<(Key, Vec<Record>)> {
        let (key, worker) = self.called()?;
        Some((key, worker.take_emitted()?))
    }

    /// There is another agent, which has heard of nothing.
    pub(crate) fn emit_again(&mut self) {
        if let Some((_, worker)) = self.called() {
            worker.emit_again();
        }
    }

    /// Of an attempt that is over nobody waits for an answer.
    pub(crate) fn taken(&mut self, key: Key, taken: &Taken) {
        if let Some((_, worker)) = self.called().filter(|(called, _)| *called == key) {
            worker.taken(taken);
        }
    }

    fn called(&mut self) -> Option<(Key, &mut Worker)> {
        let current = self.current.as_mut().filter(|current| current.stopped.is_none())?;
        match &mut current.process {
            Process::Own(_) | Process::Contained(_) | Process::Resting => None,
            Process::Called(worker) => Some((current.key, worker)),
        }
    }

    /// Hears what the worker says that is called, if one is. Whether the execution is over with it.
    pub(super) fn hear_worker(&mut self, now: Instant) -> bool {
        let Some(current) = &mut self.current else { return false };
        let Process::Called(worker) = &mut current.process else { return false };
        if current.stopped.is_some() {
            return false;
        }
        match worker.exchange() {
            Ok(None) => false,
            Ok(Some(Answer::Outputs(outputs))) => self.answered(Ok(outputs), now),
            Ok(Some(Answer::Failed(how))) => self.answered(Err(how), now),
            Ok(Some(Answer::Unusable(how))) => {
                current.stop(how);
                false
            }
            Ok(Some(Answer::Closed)) => {
                // Most often because it has ended, of which more is known in a moment.
                let message = "the process of the action no longer answers: it has closed its end".to_owned();
                let how = EndKind::Failed { reason: FailureReason::ActionFailed, message };
                current.deadline = Some((now + CLOSED_GRACE, how));
                false
            }
            Err(what) => {
                let message = format!("the process of the action breaks the action protocol: {what}");
                current.stop(EndKind::Failed { reason: FailureReason::ActionFailed, message });
                false
            }
        }
    }

    /// Takes note of an answer. The worker waits for the next call, unless something is left beside it.
    fn answered(&mut self, answer: Result<Map<String, Json>, EndKind>, now: Instant) -> bool {
        let Some(mut current) = self.current.take() else { return false };
        let Process::Called(worker) = &mut current.process else { return false };
        let (state, counted) = (worker.state(), worker.take_counted());
        // G11: what it could still change is not taken in while it lives.
        let lets_go = current.common.outputs != Outputs::Kept || !worker.holds(self.slot.own_folders()[2]);
        self.slot.bound_logs(current.common.log_bytes_max);
        let how = match answer {
            Err(_) if self.limits.ran_out_of_memory() => EndKind::OutOfMemory,
            Err(EndKind::Killed) if !matches!(current.deadline, Some((_, EndKind::Killed))) => EndKind::Failed {
                reason: FailureReason::ActionFailed,
                message: "it says that it was cancelled, and it was not".to_owned(),
            },
            Err(how) => how,
            Ok(outputs) => returned(&mut self.slot, &outputs, state.is_alone).unwrap_or_else(|error| EndKind::Failed {
                reason: FailureReason::InvalidOutput,
                message: format!("the outputs cannot be written: {error}"),
            }),
        };
        if !(state.is_alone && lets_go) || current.keeping.is_some() {
            // What it has started ends with the execution, and with that the worker, which may count on it. A service ends with
            // its call.
            current.stop(how);
            self.current = Some(current);
            return false;
        }
        let is_large = current.common.memory_bytes.is_some_and(|limit| state.now_bytes > limit / 2);
        // One that is kept from everything else would bring to the next what it saw.
        let is_spent = is_large || how == EndKind::OutOfMemory || current.common.terms.enclosed.is_some();
        self.conclude(&current, how, now_timestamp(), counted.with_memory(state.most_bytes));
        if let Process::Called(worker) = current.process {
            self.worker = Some(*worker);
        }
        if is_spent {
            self.part_with_worker(now);
        }
        true
    }
}

/// How an execution ended whose outputs are these, but for those that are files. Only where it was `quick` to end, nothing is
/// left of it that could still be written to a log.
fn returned(slot: &mut SlotDirectory, outputs: &Map<String, Json>, quick: bool) -> io::Result<EndKind> {
    if outputs.is_empty() {
        return Ok(EndKind::Code(0));
    }
    if quick && slot.is_bare() {
        let outputs = serde_json::to_vec(outputs)?;
        // Longer ones are files, as those of a command.
        if outputs.len() <= BYTES_MAX {
            return Ok(EndKind::Returned { outputs });
        }
    }
    slot.write_values(outputs)?;
    Ok(EndKind::Code(0))
}

/// How an execution ended whose worker did while it was called.
pub(super) fn ended_without_answer(status: ExitStatus) -> EndKind {
    let how = match (status.code(), status.signal()) {
        (Some(code), _) => format!("exited with code {code}"),
        (None, signal) => format!("was killed by signal {}", signal.unwrap_or_default()),
    };
    let message = format!("the process of the action {how} before it answered");
    EndKind::Failed { reason: FailureReason::ActionFailed, message }
}
