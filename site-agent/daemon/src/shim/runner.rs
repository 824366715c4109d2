//! Runs what a shim was handed, one after the other: claims it, starts it, waits for it, ends everything it started, and
//! notes how it ended.

mod called;
mod contained;
mod kept;
mod process;
mod starting;

use std::collections::{BTreeMap, VecDeque};
use std::os::unix::process::ExitStatusExt;
use std::rc::Rc;
use std::time::{Duration, Instant, SystemTime};

use atoll_model::time::Timestamp;
use rustix::event::{PollFd, PollFlags};
use rustix::process::{Pid, Signal, pidfd_send_signal};
use site_agent_spawn::{Ended, Spawner};

use super::container;
use super::directory::SlotDirectory;
use super::limits::Limits;
use super::log::SlotLog;
use super::own_tmp::OwnTmp;
use super::prepared::Prepared;
use super::protocol::{Common, End, EndKind, Key, Left, Notice, Order, Outputs};
use super::scratch::Scratch;
use super::spent::{Counted, Spent};
use super::tree;
use super::worker::Worker;
use called::Leaving;
use kept::Keeping;
use process::Process;

/// How often a running execution is looked at though nothing has happened: orphans are reaped and logs bounded.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// What runs this long has its process noted in the log. If the shim of a shorter one is killed the agent finds its
/// process by other marks: it has the slot as its work directory, and in its environment.
const NOTE_AFTER: Duration = Duration::from_millis(20);
/// Between two rounds of killing what does not end at once.
const CLEARING_INTERVAL_MAX: Duration = Duration::from_millis(50);

#[derive(Debug)]
pub(crate) struct Runner {
    slot: SlotDirectory,
    log: SlotLog,
    limits: Limits,
    queue: VecDeque<(Rc<Common>, Order)>,
    current: Option<Current>,
    /// Ends that the agent has not said to forget.
    ended: BTreeMap<Key, End>,
    /// What the agent has to be told, once the log is on the disk.
    notices: Vec<Notice>,
    children: Counted,
    /// Whether the slot may hold what an execution left.
    dirty: bool,
    prepared: Prepared,
    spawner: Spawner,
    /// What waits to be called again.
    worker: Option<Worker>,
    /// What was asked to end, since something else is to run here.
    leaving: Option<Leaving>,
    own_tmp: OwnTmp,
    /// Whether a container may be noted in the slot that is to be removed.
    contained: bool,
    /// What the kernel had ended for its memory when the last container was started.
    oom_kills_of_machine: u64,
}

#[derive(Debug)]
struct Current {
    key: Key,
    common: Rc<Common>,
    process: Process,
    started_at: Timestamp,
    /// When it is ended, and as what.
    deadline: Option<(Instant, EndKind)>,
    look_at: Instant,
    /// Its process stands in the log.
    noted: bool,
    stopped: Option<EndKind>,
    clearing: Option<Clearing>,
    scratch: Option<Scratch>,
    /// What keeps it alive, if it is a service.
    keeping: Option<Box<Keeping>>,
}

/// The main process has ended, and something that it started has not.
#[derive(Debug)]
struct Clearing {
    ended: Ended,
    rounds: Rounds,
}

/// Rounds of killing everything that is left.
#[derive(Debug)]
struct Rounds {
    count: u32,
    next: Instant,
}

impl Rounds {
    /// Whether nothing is left.
    fn advance(&mut self, limits: &Limits, now: Instant) -> bool {
        if now >= self.next {
            self.count += 1;
            if self.count == 2 {
                limits.forbid_forks(true);
            }
            tree::kill_all_below();
            self.next = now + CLEARING_INTERVAL_MAX.min(Duration::from_millis(1) * self.count);
        }
        let is_over = tree::reap(None);
        if is_over && self.count >= 2 {
            limits.forbid_forks(false);
        }
        is_over
    }
}

impl Runner {
    pub(crate) fn new(
        slot: SlotDirectory,
        log: SlotLog,
        limits: Limits,
        ended: BTreeMap<Key, End>,
        own_tmp: OwnTmp,
    ) -> Self {
        Self {
            slot,
            log,
            limits,
            queue: VecDeque::new(),
            current: None,
            ended,
            notices: Vec::new(),
            children: Counted::of_children(),
            dirty: false,
            prepared: Prepared::default(),
            spawner: Spawner::new(),
            worker: None,
            leaving: None,
            own_tmp,
            contained: false,
            oom_kills_of_machine: 0,
        }
    }

    pub(crate) fn enqueue(&mut self, common: Common, orders: Vec<Order>) {
        let common = Rc::new(common);
        for order in orders {
            // An agent repeats an order when it does not know whether it was heard.
            if !self.knows(order.key) {
                self.queue.push_back((Rc::clone(&common), order));
            }
        }
    }

    fn knows(&self, key: Key) -> bool {
        self.ended.contains_key(&key)
            || self.current.as_ref().is_some_and(|current| current.key == key)
            || self.queue.iter().any(|(_, order)| order.key == key)
    }

    /// Ends an attempt, running or not. One that is not known here has ended, and its end was told.
    pub(crate) fn kill(&mut self, key: Key) {
        if let Some(current) = self.current.as_ref().filter(|current| current.key == key) {
            if current.keeping.is_none() {
                self.end_container();
            }
            self.current.iter_mut().for_each(|current| current.cancel(Instant::now()));
        } else if let Some(place) = self.queue.iter().position(|(_, order)| order.key == key) {
            self.queue.remove(place);
            self.notices.push(Notice::GivenBack { key, killed: true });
        }
    }

    /// Nobody may count on this machine any more: what has not begun does not begin, and what runs is ended.
    pub(crate) fn give_up(&mut self, why: &str) {
        self.queue.clear();
        self.end_container();
        if let Some(current) = &mut self.current {
            current.stop(EndKind::Interrupted { message: why.to_owned() });
        }
    }

    pub(crate) fn give_back(&mut self, count: u32) {
        for _ in 0..count {
            let Some((_, order)) = self.queue.pop_back() else { break };
            self.notices.push(Notice::GivenBack { key: order.key, killed: false });
        }
    }

    pub(crate) fn forget(&mut self, keys: Vec<Key>) {
        keys.iter().for_each(|key| {
            self.ended.remove(key);
        });
        self.log.forgotten(keys);
    }

    pub(crate) fn is_idle(&self) -> bool {
        self.current.is_none() && self.queue.is_empty()
    }

    pub(crate) fn owes_nothing(&self) -> bool {
        self.is_idle() && self.ended.is_empty() && self.notices.is_empty()
    }

    pub(crate) fn has_notices(&self) -> bool {
        !self.notices.is_empty()
    }

    pub(crate) fn queued(&self) -> Vec<Key> {
        let begins = self.current.iter().filter(|current| !current.is_told()).map(|current| current.key);
        begins.chain(self.queue.iter().map(|(_, order)| order.key)).collect()
    }

    pub(crate) fn running(&self) -> Option<(Key, Timestamp)> {
        self.current.as_ref().filter(|current| current.is_told()).map(|current| (current.key, current.started_at))
    }

    pub(crate) fn ended(&self) -> Vec<(Key, End)> {
        self.ended.iter().map(|(key, end)| (*key, end.clone())).collect()
    }

    /// What becomes ready when a process has ended, or something is to be said to a worker or heard of it.
    pub(crate) fn sources(&self) -> impl Iterator<Item = PollFd<'_>> {
        let current = self.current.as_ref().filter(|current| current.clearing.is_none());
        let called = current.filter(|current| current.stopped.is_none()).and_then(|current| match &current.process {
            Process::Own(_) | Process::Contained(_) | Process::Resting => None,
            Process::Called(worker) => Some(worker.sources()),
        });
        let waiting = self.worker.as_ref().map(|worker| &worker.child);
        let leaving = self.leaving.as_ref().and_then(Leaving::child);
        let looked_at =
            current.filter(|current| current.stopped.is_none()).and_then(|current| current.keeping.as_ref());
        let bell =
            looked_at.and_then(|keeping| keeping.bell()).map(|bell| PollFd::from_borrowed_fd(bell, PollFlags::IN));
        let children = [current.and_then(|current| current.process.child()), waiting, leaving];
        let ends = children.into_iter().flatten().map(|child| PollFd::new(child, PollFlags::IN));
        ends.chain(called.into_iter().flatten()).chain(bell)
    }

    /// When to call [`Runner::advance`] if nothing happens before.
    pub(crate) fn next_timeout(&self) -> Option<Instant> {
        let Some(current) = &self.current else { return self.leaving.as_ref().map(Leaving::next) };
        let look_at = current.clearing.as_ref().map_or(current.look_at, |clearing| clearing.rounds.next);
        if current.stopped.is_some() || current.clearing.is_some() {
            return Some(look_at);
        }
        let deadline = current.deadline.as_ref().map(|(deadline, _)| *deadline);
        let scratch = current.scratch.as_ref().map(Scratch::next);
        let keeping = current.keeping.as_ref().and_then(|keeping| keeping.next());
        [Some(look_at), deadline, scratch, keeping].into_iter().flatten().min()
    }

    /// Takes what the agent has to be told. Before that stands in the log, which outlives this process; that it outlives
    /// the machine is the concern of the agent, whose journal is synced before anyone hears of it. Where the disk takes
    /// no more the agent is told all the same: its journal has room of its own.
    pub(crate) fn take_notices(&mut self) -> Vec<Notice> {
        let _ = self.log.write();
        std::mem::take(&mut self.notices)
    }

    /// Makes durable what there is no agent to tell: the next one is told with the greeting.
    pub(crate) fn keep_notices(&mut self) {
        let _ = self.log.sync();
        self.notices.clear();
    }

    /// Takes note of what has ended, and starts what is next.
    pub(crate) fn advance(&mut self, now: Instant) {
        loop {
            match &mut self.current {
                Some(_) => {
                    if !self.advance_current(now) {
                        return;
                    }
                }
                None => {
                    if !self.is_free_for_next(now) {
                        return;
                    }
                    let Some((common, order)) = self.queue.pop_front() else { break };
                    self.start(common, order, now);
                    // It has only just begun; that it ends is heard.
                    if self.current.is_some() {
                        return;
                    }
                }
            }
        }
        if self.notices.is_empty() {
            // What cannot be rewritten now is rewritten when there is room.
            let _ = self.log.rewrite_if_long(self.ended.iter());
        }
    }

    /// Makes the slot as the next execution is to find it, so that what is left takes no room until then. Whoever waits for
    /// the end of the last one is told of it before. The next start tries again if this fails.
    pub(crate) fn clean_up(&mut self) {
        if self.dirty && self.current.is_none() {
            let is_removed = !self.contained || container::remove_noted(self.slot.path()).is_ok();
            self.contained = !is_removed;
            self.dirty = self.slot.clean().is_err() || !is_removed;
        }
    }

    /// Whether the current execution is over.
    fn advance_current(&mut self, now: Instant) -> bool {
        let Some(current) = &mut self.current else { return false };
        if let Some(clearing) = &mut current.clearing {
            let is_over = clearing.rounds.advance(&self.limits, now);
            let ended = clearing.ended;
            return is_over && self.finish(ended, now);
        }
        if let Some((_, reason)) = current.deadline.take_if(|(deadline, _)| now >= *deadline) {
            self.end_container();
            self.current.iter_mut().for_each(|current| current.stop(reason.clone()));
        }
        if let Some(is_over) = self.look_after(now) {
            return is_over;
        }
        if self.hear_worker(now) {
            return true;
        }
        let Some(current) = &mut self.current else { return false };
        // That there is nothing to wait for cannot happen to a child that nobody else reaps.
        let Some(child) = current.process.child_mut() else { return false };
        match child.try_wait().unwrap_or_default() {
            Some(ended) if tree::reap(None) => self.finish(ended, now),
            Some(ended) => {
                if ended.status.code().is_none() {
                    self.end_container();
                }
                let Some(current) = &mut self.current else { return false };
                current.clearing = Some(Clearing { ended, rounds: Rounds { count: 0, next: now } });
                self.advance_current(now)
            }
            None => {
                if now >= current.look_at {
                    current.look_at = now + LOOK_INTERVAL;
                    let child = child.id();
                    if !std::mem::replace(&mut current.noted, true) {
                        self.log.spawned(child.unsigned_abs());
                        let _ = self.log.write();
                    }
                    tree::reap(Pid::from_raw(child));
                    self.slot.bound_logs(current.common.log_bytes_max);
                }
                let scratch = current.scratch.as_mut().filter(|scratch| now >= scratch.next());
                if let Some(spent) = scratch.and_then(|scratch| scratch.look(&self.slot, now)) {
                    self.end_container();
                    self.current.iter_mut().for_each(|current| current.stop(spent.clone()));
                }
                false
            }
        }
    }

    /// Takes note of how what ran has ended, with all that was below it. Whether the execution is over with it.
    fn finish(&mut self, ended: Ended, now: Instant) -> bool {
        let Some(mut current) = self.current.take() else { return false };
        let finished_at = now_timestamp();
        let how = self.how(&current, ended);
        self.slot.bound_logs(current.common.log_bytes_max);
        let Some(how) = self.judge(&mut current, how, now) else {
            self.current = Some(current);
            return false;
        };
        let counted = self.take_counted(&current);
        // How much memory a container used the engine does not say.
        let max_rss_bytes = if current.common.container.is_some() { 0 } else { ended.max_rss_bytes };
        self.conclude(&current, how, finished_at, counted.with_memory(max_rss_bytes));
        true
    }

    /// What all has used that was reaped since it was last asked, but for what was told of.
    fn take_counted(&mut self, current: &Current) -> Counted {
        let children = Counted::of_children();
        let told = if let Process::Called(worker) = &current.process { worker.told() } else { Counted::default() };
        children.since(std::mem::replace(&mut self.children, children)).since(told)
    }

    fn how(&mut self, current: &Current, ended: Ended) -> EndKind {
        if let Some(container) = &current.common.container {
            return self.end_of_contained(current, container, ended);
        }
        let ran_out_of_memory = self.limits.ran_out_of_memory();
        match (ended.status.code(), ended.status.signal(), current.stopped.clone()) {
            (_, Some(9), Some(reason)) => reason,
            // Whoever asks the shim to end may have asked what it runs as well, which then ends in its own way.
            (code, _, Some(reason @ EndKind::Interrupted { .. })) if code != Some(0) => reason,
            // One that could have gone on has come to its end; what it is ended for counts, and that it did not answer.
            (_, _, Some(reason)) if current.process.is_worker() => reason,
            (Some(0), _, _) if !current.process.is_worker() => EndKind::Code(0),
            _ if ran_out_of_memory => EndKind::OutOfMemory,
            _ if current.process.is_worker() => called::ended_without_answer(ended.status),
            (Some(code), _, _) => EndKind::Code(code),
            (None, signal, _) => EndKind::Signal(signal.unwrap_or_default()),
        }
    }

    /// Moves aside what an attempt left that has ended so, and takes note of it.
    fn conclude(&mut self, current: &Current, how: EndKind, finished_at: Timestamp, spent: Spent) {
        let how = match &current.scratch {
            Some(scratch) => scratch.judge(how, &self.slot),
            None => how,
        };
        let outputs = if how == EndKind::Code(0) { current.common.outputs } else { Outputs::Ignored };
        let (how, left) = match self.slot.keep(current.key, outputs) {
            Ok(left) => (how, left),
            Err(error) => {
                let message = format!("what it left cannot be moved aside: {error}");
                (EndKind::Interrupted { message }, Left::default())
            }
        };
        let started_at = current.started_at;
        self.note_end(current.key, End { started_at, finished_at, how, spent, left });
    }

    fn note_end(&mut self, key: Key, end: End) {
        self.log.ended(key, &end);
        self.notices.push(Notice::Ended { key, end: end.clone() });
        self.ended.insert(key, end);
    }
}

impl Current {
    /// Whether the agent was told that it has started: of a service when it is well for the first time.
    fn is_told(&self) -> bool {
        self.keeping.as_ref().is_none_or(|keeping| keeping.is_told)
    }

    fn stop(&mut self, reason: EndKind) {
        if self.stopped.is_none() && self.clearing.is_none() {
            self.stopped = Some(reason);
            if let Some(child) = self.process.child() {
                // If it has ended by itself meanwhile, its own end counts.
                let _ = pidfd_send_signal(child, Signal::KILL);
            }
        }
    }
}

fn now_timestamp() -> Timestamp {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    Timestamp(i64::try_from(since.as_micros()).unwrap_or(i64::MAX))
}
