//! The agent itself: events in, facts and commands out.

use std::collections::{BTreeMap, BTreeSet};

use atoll_model::id::{ExecutionId, RunId, StepIndex};
use atoll_model::session::{FaultLocation, Heartbeat, Report};
use atoll_model::time::Timestamp;

use crate::ahead::Ahead;
use crate::command::Command;
use crate::config::{Config, STARTED_DELAY};
use crate::delegation::Lists;
use crate::ending::Launch;
use crate::event::{Event, Found, FoundAttempt, FoundState};
use crate::fact::Fact;
use crate::making_room::MakingRoom;
use crate::queue::{Place, Ready, Waiting};
use crate::room::Room;
use crate::session::Session;
use crate::stage::Stage;
use crate::state::{AttemptKey, Snapshot, StepKey};

/// What follows from an event: to be made durable, and then to be carried out, in this order.
#[derive(Debug, Default)]
#[must_use]
pub struct Step {
    pub facts: Vec<Fact>,
    pub commands: Vec<Command>,
}

/// Decides what an agent does. What is durable is in `state`; all the rest is lost with the process and made again.
#[derive(Debug)]
pub struct Agent {
    pub(crate) config: Config,
    pub(crate) state: Snapshot,
    pub(crate) session: Session,
    pub(crate) room: Room,
    pub(crate) stage: Stage,
    pub(crate) making_room: MakingRoom,
    pub(crate) ahead: Ahead,
    pub(crate) waiting: Waiting,
    pub(crate) ready: Ready,
    /// Items whose work is nothing and that the shell was asked to finish.
    pub(crate) asked: BTreeSet<(StepKey, u64)>,
    /// One for each active attempt.
    pub(crate) launches: BTreeMap<AttemptKey, Launch>,
    /// Executions that run on outputs which are not committed yet, by the execution that makes the outputs.
    pub(crate) followers: BTreeMap<AttemptKey, BTreeSet<AttemptKey>>,
    /// Items by the time at which they must have started.
    pub(crate) deadlines: BTreeSet<(Timestamp, Place)>,
    /// Starts that are not among the reports yet, and when the first of them is to be.
    pub(crate) unreported: BTreeMap<AttemptKey, Timestamp>,
    pub(crate) report_starts_at: Option<Timestamp>,
    /// The control plane is told, if it can be, to send nothing more before reports are acknowledged (B5).
    pub(crate) outbox_full: bool,
    /// How many pilots what waits would fill, and how many the shell was told.
    pub(crate) pilots_wanted: u32,
    pub(crate) pilots_told: u32,
    /// The item that waits for room longest, and how many have passed it.
    pub(crate) passed: (u64, u32),
    pub(crate) measured: Heartbeat,
    pub(crate) measured_at: Timestamp,
    /// Items and attempts to look at again before the event is done with.
    pub(crate) wake: BTreeSet<Place>,
    pub(crate) unsettled: BTreeSet<AttemptKey>,
    /// The last order of arrival that was looked at.
    pub(crate) seen_order: u64,
    /// Delegated steps of which something that they need may have ended.
    pub(crate) expandable: BTreeSet<StepKey>,
    /// Delegated steps with elements that may be taken up.
    pub(crate) fed: BTreeSet<StepKey>,
    /// When elements of delegated steps may be tried again.
    pub(crate) retries: BTreeSet<(Timestamp, StepKey)>,
    /// Lists of outputs that expressions of delegated steps read.
    pub(crate) lists: Lists,
}

impl Agent {
    /// Rebuilds the state from the last snapshot, if there is one, and the facts after it; none of both is a new journal.
    /// `found` is everything that shims, outcome records and the store hold of the process before. The step is carried out
    /// like any other.
    pub fn recover(
        config: Config,
        snapshot: Option<Snapshot>,
        facts: impl IntoIterator<Item = Fact>,
        found: Found,
        now: Timestamp,
    ) -> (Self, Step) {
        let mut state = snapshot.unwrap_or_default();
        facts.into_iter().for_each(|fact| state.evolve(&fact));
        let room = Room::new(&config.capacity, config.pilots.clone(), &found.nodes);
        let measured = Heartbeat { capacity: room.offered(&config.capacity), ..Heartbeat::default() };
        let mut agent = Self {
            session: Session::resumed(&state.lease, config.boot, now),
            room,
            measured,
            measured_at: now,
            state,
            config,
            stage: Stage::default(),
            making_room: MakingRoom::default(),
            ahead: Ahead::default(),
            waiting: Waiting::default(),
            ready: Ready::default(),
            asked: BTreeSet::new(),
            launches: BTreeMap::new(),
            followers: BTreeMap::new(),
            deadlines: BTreeSet::new(),
            unreported: BTreeMap::new(),
            report_starts_at: None,
            outbox_full: false,
            pilots_wanted: 0,
            pilots_told: 0,
            passed: (0, 0),
            wake: BTreeSet::new(),
            unsettled: BTreeSet::new(),
            seen_order: 0,
            expandable: BTreeSet::new(),
            fed: BTreeSet::new(),
            retries: BTreeSet::new(),
            lists: Lists::default(),
        };
        let mut step = Step::default();
        agent.begin(found, &mut step);
        agent.report_starts_at = (!agent.unreported.is_empty()).then_some(now);
        agent.settle_all(now, &mut step);
        (agent, step)
    }

    /// Takes in one event and returns everything that follows from it. `now` never goes back while the process lives, and
    /// goes on while the machine is suspended.
    pub fn handle(&mut self, event: Event, now: Timestamp) -> Step {
        let mut step = Step::default();
        match event {
            Event::Connected { boot_nonce, wall_clock } => self.say_hello(boot_nonce, wall_clock, now, &mut step),
            Event::Disconnected => self.session.end(),
            Event::FrameReceived { frame } => self.receive(frame, now, &mut step),
            Event::Located { object, present } => self.located(object, present, &mut step),
            Event::Fetched { object, wire_bytes, direct, at } => {
                self.fetched(object, (wire_bytes, direct), at, &mut step);
            }
            Event::FetchFailed { object, message, corrupt, permanent } => {
                self.fetch_failed(object, &message, (corrupt, permanent), now, &mut step);
            }
            Event::Started { execution, attempt, at } => self.started((execution, attempt), at, now),
            Event::NotStarted { execution, attempt, reason, message } => {
                self.not_started((execution, attempt), reason, message, now, &mut step);
            }
            Event::Exited { execution, attempt, exit, stored } => {
                self.exited((execution, attempt), exit, stored, &mut step);
            }
            Event::OutputsSealed { execution, attempt, outputs } => self.sealed((execution, attempt), outputs),
            Event::OutputsStored { execution, attempt, result } => self.stored((execution, attempt), result),
            Event::NullFinished { run, step: index, attempt, elements, at } => {
                self.null_finished((run, index), attempt, &elements, at, &mut step);
            }
            Event::Pushed { transfer, object, wire_bytes, at } => {
                self.pushed(transfer, object, wire_bytes, at, &mut step);
            }
            Event::PushFailed { transfer, object, reason, message } => {
                self.end_push(transfer, Report::PushFailed { transfer, object, reason, message }, &mut step);
            }
            Event::Damaged { object, kind, message } => {
                self.stage.forget(object);
                let location = FaultLocation::SiteStore;
                self.decide(&mut step, Fact::FaultFound { report: Report::Fault { object, kind, location, message } });
            }
            Event::EvictableFound { objects } => self.evictable_found(objects, now, &mut step),
            Event::Evicted { order, gone, kept } => self.evicted(order, gone, kept, &mut step),
            Event::Verified { order, files, bytes, damaged } => {
                self.verified(order, Report::Verified { files, bytes, damaged }, &mut step);
            }
            Event::Measured { heartbeat } => self.measured(heartbeat, now, &mut step),
            Event::NodesChanged { nodes } => {
                self.room.set_others(&nodes);
                // What was too large for any of them may fit now, and the other way round.
                self.wake_ready();
            }
            Event::TimeoutElapsed => {}
            Event::PilotsBarred { barred } => self.room.bar_pilots(barred),
        }
        self.elapse(now, &mut step);
        self.settle_all(now, &mut step);
        self.note_lease(&mut step);
        step
    }

    /// When to handle [`Event::TimeoutElapsed`], if nothing happens before.
    pub fn next_timeout(&self) -> Option<Timestamp> {
        let deadline = self.deadlines.first().map(|(at, _)| *at);
        let reports = self.report_starts_at.filter(|_| self.may_gather());
        let retry = self.retries.first().map(|(at, _)| *at);
        [self.session.next_timeout(), self.stage.next_timeout(), deadline, self.session.stop_at(), reports, retry]
            .into_iter()
            .flatten()
            .min()
    }

    /// Asserts the invariants that the crate's documentation names.
    pub fn check(&self) {
        assert!(self.wake.is_empty() && self.unsettled.is_empty(), "an event is done with when its step is returned");
        for (key, order, item) in self.state.items() {
            let place = (order, key);
            assert!(!item.elements.is_empty() && item.ending.is_none(), "what waits may be started");
            let held = [self.ready.contains(place), self.waiting.contains(place), self.asked.contains(&(key, order))];
            assert_eq!(held.iter().filter(|held| **held).count(), 1, "an item is ready, or waits, or was asked for");
            let ended = self.state.steps[&key].ended.get(&item.attempt);
            assert!(ended.is_none_or(|ended| ended.intersection(&item.elements).is_empty()), "what waits is not over");
        }
        assert!(
            self.launches.keys().eq(self.state.active.keys()),
            "what is active was launched by this process, or found"
        );
        self.room.check(self.launches.values().filter(|launch| launch.room.is_some()).count());
        self.session.check(&self.state.outbox);
    }

    /// Everything durable: what [`Agent::recover`] would come to from all facts so far.
    pub fn snapshot(&self) -> Snapshot {
        self.state.clone()
    }

    /// Remembers a fact: the only way in which anything durable changes.
    pub(crate) fn decide(&mut self, step: &mut Step, fact: Fact) {
        self.state.evolve(&fact);
        step.facts.push(fact);
    }

    /// Why the site takes no new work, if it does not (E1).
    pub(crate) fn closed(&self) -> Option<String> {
        let full = self.measured.capacity.disk_free_bytes < self.config.disk_free_bytes_min;
        let closed = self.measured.closed.clone().or_else(|| full.then(|| "the disk of the site is full".to_owned()));
        closed.or_else(|| {
            let full = self.config.policy.refuses_growth(self.measured.store_bytes)?;
            Some(match self.making_room.obstacle() {
                Some(why) => format!("{full}; nothing of it may go: {why}"),
                None => full,
            })
        })
    }

    fn begin(&mut self, Found { attempts: found, arrivals, .. }: Found, step: &mut Step) {
        let new = self.state.journal.is_none();
        if new {
            self.decide(step, Fact::Opened { journal: self.config.new_journal });
        }
        self.decide(step, Fact::ProcessStarted);
        if new && !found.is_empty() {
            let attempts = found.iter().map(|found| (found.execution, found.attempt)).collect();
            self.decide(step, Fact::OrphansFound { attempts });
        }
        for FoundAttempt { execution, attempt, node, state } in found {
            let key = (execution, attempt);
            if self.state.active.contains_key(&key) {
                self.take_in(key, node, state);
            } else if let FoundState::Queued | FoundState::Running { .. } = state {
                // Its run was forgotten, and the process ended before the shell was told.
                step.commands.push(Command::Kill { execution, attempt });
            } else {
                step.commands.push(Command::Release { execution, attempt });
            }
        }
        let starts: Vec<AttemptKey> =
            self.state.active.keys().filter(|key| !self.launches.contains_key(key)).copied().collect();
        if !starts.is_empty() {
            self.decide(step, Fact::StartsWithdrawn { starts });
        }
        self.unsettled.extend(self.launches.keys());
        let steps: Vec<StepKey> = self.state.steps.keys().copied().collect();
        self.notice_items(steps.into_iter());
        self.resume_delegations();
        self.resume_store_orders(step);
        self.take_in_arrivals(arrivals, step);
        self.resume_transfers(step);
        self.wake_orders();
    }

    /// Looks at the items of these steps that came since the last look, or are to end.
    pub(crate) fn notice_items(&mut self, steps: impl Iterator<Item = StepKey>) {
        for key in steps {
            let Some(state) = self.state.steps.get(&key) else { continue };
            for (order, item) in &state.items {
                let place = (*order, key);
                if *order > self.seen_order {
                    if let Some(start_by) = item.terms.start_by {
                        self.deadlines.insert((item.terms.accepted_at + start_by, place));
                    }
                    self.wake.insert(place);
                } else if item.ending.is_some() {
                    self.wake.insert(place);
                }
            }
        }
        self.seen_order = self.state.last_order();
    }

    pub(crate) fn wake_ready(&mut self) {
        self.wake.extend(self.ready.heads());
    }

    fn wake_all(&mut self) {
        let asked = &self.asked;
        let places = self.state.items().filter(|(key, order, _)| !asked.contains(&(*key, *order)));
        self.wake.extend(places.map(|(key, order, _)| (order, key)));
    }

    fn measured(&mut self, heartbeat: Heartbeat, now: Timestamp, step: &mut Step) {
        let before = self.closed();
        let capacity = self.room.offered(&heartbeat.capacity);
        let known = std::mem::replace(&mut self.measured, Heartbeat { capacity, ..heartbeat });
        self.measured_at = now;
        self.hear_of_deployed(&known.deployed);
        if self.closed() != before {
            // Told at once, and before the work that is given back for it, so that no more of it comes.
            self.send_heartbeat(now, step);
            self.hand_back_if_closed(step);
            self.wake_all();
        }
        self.make_room(now, step);
    }

    fn started(&mut self, key: AttemptKey, at: Timestamp, now: Timestamp) {
        // Of an attempt that is over, or was forgotten, nobody wants to hear.
        let Some(launch) = self.launches.get_mut(&key) else { return };
        launch.started_at = Some(at);
        if self.state.active.get(&key).is_some_and(|active| !active.start_reported) {
            self.unreported.insert(key, at);
            self.report_starts_at = self.report_starts_at.or(Some(now + STARTED_DELAY));
        }
    }

    /// What the passing of time brings.
    fn elapse(&mut self, now: Timestamp, step: &mut Step) {
        self.session_elapse(now, step);
        self.stage_elapse(now, step);
        while let Some((at, place)) = self.deadlines.first().copied()
            && at <= now
        {
            self.deadlines.remove(&(at, place));
            self.wake.insert(place);
        }
        while let Some((at, key)) = self.retries.first().copied()
            && at <= now
        {
            self.retries.remove(&(at, key));
            self.fed.insert(key);
        }
        if self.session.stop_at().is_some_and(|at| at <= now) && self.session.take_stop() {
            self.unsettled.extend(self.launches.keys());
        }
    }

    /// Goes on until nothing is left to decide.
    fn settle_all(&mut self, now: Timestamp, step: &mut Step) {
        loop {
            if let Some(key) = self.unsettled.pop_first() {
                self.settle(key, now, step);
            } else if let Some(place) = self.wake.pop_first() {
                self.wake_item(place, now, step);
            } else if let Some(key) = self.expandable.pop_first() {
                self.expand(key, step);
            } else if self.look_ahead(now, step) || self.feed(now, step) {
            } else if !self.admit(now, step) {
                break;
            }
        }
        if std::mem::replace(&mut self.pilots_told, self.pilots_wanted) != self.pilots_wanted {
            step.commands.push(Command::WantPilots { count: self.pilots_wanted });
        }
        self.report(now, step);
        self.note_outbox(now, step);
        self.tell_of_deployed(now, step);
    }
}

pub(crate) fn execution((run, step): (RunId, StepIndex), element: u32) -> ExecutionId {
    ExecutionId { run, step, element }
}
