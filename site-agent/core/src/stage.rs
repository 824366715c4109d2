//! Objects on their way: one fetch for each however many wait, tried again with patience; pushes; each told of once.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use atoll_model::id::{ExecutionId, ObjectId, TransferId};
use atoll_model::session::{DirectShare, FaultLocation, NotStartedReason, Outcome, Report};
use atoll_model::time::Timestamp;
use atoll_model::value::ObjectRef;

use crate::agent::{Agent, Step};
use crate::command::Command;
use crate::config::{FETCH_ATTEMPTS_MAX, FETCH_BACKOFF, FETCH_BACKOFF_MAX, PRESENT_MAX};
use crate::event::Arrival;
use crate::fact::Fact;

#[derive(Debug, Default)]
pub(crate) struct Stage {
    /// Objects that are known to be in the store.
    present: BTreeSet<ObjectId>,
    wanted: BTreeMap<ObjectId, Wanted>,
    /// Objects that came to a process before this one, and are on record only since this one began.
    arrived: BTreeSet<ObjectId>,
    /// Pushes that a process before this one may have carried out.
    resumed: BTreeSet<TransferId>,
}

/// An object that is looked for or fetched.
#[derive(Debug)]
struct Wanted {
    object: ObjectRef,
    /// The first execution that waits for it.
    execution: ExecutionId,
    phase: Phase,
    failures: u32,
    /// It was last fetched, or is, when orders alone waited for it: how that ends is no word on an execution that has come since.
    is_ahead: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Locating,
    Fetching,
    /// Nobody waits for it any more; the shell is still to say how far it came.
    Cancelled,
    Pausing {
        until: Timestamp,
    },
}

impl Stage {
    pub(crate) fn is_present(&self, object: ObjectId) -> bool {
        self.present.contains(&object)
    }

    pub(crate) fn set_present(&mut self, object: ObjectId) {
        if self.present.len() >= PRESENT_MAX {
            self.present.clear();
        }
        self.present.insert(object);
    }

    pub(crate) fn forget(&mut self, object: ObjectId) {
        self.present.remove(&object);
    }

    pub(crate) fn next_timeout(&self) -> Option<Timestamp> {
        self.pausing().map(|(until, _)| until).min()
    }

    /// Objects that are waited for.
    pub(crate) fn wanted(&self) -> impl Iterator<Item = ObjectId> {
        self.wanted.keys().copied()
    }

    /// The object, if it is being looked for.
    pub(crate) fn is_located(&self, object: ObjectId) -> Option<ObjectRef> {
        self.wanted.get(&object).filter(|wanted| wanted.phase == Phase::Locating).map(|wanted| wanted.object)
    }

    fn pausing(&self) -> impl Iterator<Item = (Timestamp, ObjectId)> {
        self.wanted.values().filter_map(|wanted| match wanted.phase {
            Phase::Pausing { until } => Some((until, wanted.object.id)),
            Phase::Locating | Phase::Fetching | Phase::Cancelled => None,
        })
    }
}

impl Agent {
    /// An item of the queue waits for this object.
    pub(crate) fn need(&mut self, object: ObjectRef, execution: ExecutionId, step: &mut Step) {
        let Some(wanted) = self.stage.wanted.get_mut(&object.id) else { return self.locate(object, execution, step) };
        let is_needed = self.waiting.is_waited_for(object.id) || self.state.replicas.contains_key(&object.id);
        if wanted.is_ahead && is_needed && matches!(wanted.phase, Phase::Pausing { .. }) {
            wanted.failures = 0;
            self.fetch(object.id, step);
        }
    }

    /// The site is to have a copy.
    pub(crate) fn replicate(&mut self, object: ObjectRef, step: &mut Step) {
        let Some((_, execution)) = self.state.replicas.get(&object.id).copied() else { return };
        if let Some(reason) = self.closed() {
            return self.end_replica(object.id, Some(reason), step);
        }
        if self.stage.is_present(object.id) && !self.is_going(object.id) {
            return self.end_replica(object.id, None, step);
        }
        self.need(object, execution, step);
    }

    fn end_replica(&mut self, id: ObjectId, failure: Option<String>, step: &mut Step) {
        if let Some((object, _)) = self.state.replicas.get(&id).copied() {
            let report = Report::ReplicaEnded { object, failure };
            self.decide(step, Fact::ReplicaEnded { object: id, report });
        }
    }

    /// Whether an item of the queue waits for the object, or the site is to have a copy of it.
    fn is_needed(&self, object: ObjectId) -> bool {
        self.waiting.is_waited_for(object) || self.state.replicas.contains_key(&object)
    }

    /// Whether it is needed, or ordered.
    fn is_wanted(&self, object: ObjectId) -> bool {
        self.is_needed(object) || self.ahead.waits_for(object)
    }

    /// Nobody waits for these objects any more.
    pub(crate) fn cancel_fetches(&mut self, unwanted: &[ObjectId], step: &mut Step) {
        for id in unwanted {
            if self.is_wanted(*id) {
                continue;
            }
            let Some(wanted) = self.stage.wanted.get_mut(id) else { continue };
            match wanted.phase {
                Phase::Fetching => {
                    wanted.phase = Phase::Cancelled;
                    step.commands.push(Command::CancelFetch { object: wanted.object });
                }
                Phase::Pausing { .. } => self.end_fetch(*id, step),
                Phase::Locating | Phase::Cancelled => {}
            }
        }
    }

    pub(crate) fn located(&mut self, object: ObjectRef, present: bool, step: &mut Step) {
        if self.stage.wanted.get(&object.id).is_none_or(|wanted| wanted.phase != Phase::Locating) {
            return; // Asked for by the process before.
        }
        let arrived = self.stage.arrived.remove(&object.id);
        if present {
            // What a process before this one was to fetch did not arrive: it was made here.
            self.end_intent(object.id, step);
            self.have(object.id, step);
            return;
        }
        if arrived {
            let (location, message) = (FaultLocation::SiteStore, "it was gone before it was on record".to_owned());
            let report = Report::Fault { object: object.id, kind: object.kind, location, message };
            self.decide(step, Fact::FaultFound { report });
        }
        if self.is_wanted(object.id) {
            self.fetch(object.id, step);
        } else {
            self.end_fetch(object.id, step);
        }
    }

    pub(crate) fn fetched(
        &mut self,
        object: ObjectRef,
        (wire_bytes, direct): (u64, Option<DirectShare>),
        at: Timestamp,
        step: &mut Step,
    ) {
        let Some(wanted) = self.stage.wanted.get(&object.id) else { return };
        if matches!(wanted.phase, Phase::Locating | Phase::Pausing { .. }) {
            return; // Said twice.
        }
        match self.state.fetches.get(&object.id).map(|intent| (intent.execution, intent.number)) {
            Some((execution, intent)) if wire_bytes > 0 => {
                self.decide(step, Fact::Fetched { object, wire_bytes, direct, execution, at });
                step.commands.push(Command::ForgetArrival { object, intent });
            }
            // An execution of this site had made the same bytes meanwhile.
            Some(_) => self.decide(step, Fact::FetchEnded { object: object.id }),
            None => {}
        }
        self.have(object.id, step);
    }

    pub(crate) fn fetch_failed(
        &mut self,
        object: ObjectRef,
        message: &str,
        (corrupt, permanent): (bool, bool),
        now: Timestamp,
        step: &mut Step,
    ) {
        let online = self.session.may_report();
        let Some(wanted) = self.stage.wanted.get_mut(&object.id) else { return };
        if matches!(wanted.phase, Phase::Locating | Phase::Pausing { .. }) {
            return; // Said twice.
        }
        if corrupt {
            let (location, message) = (FaultLocation::Bucket, message.to_owned());
            let report = Report::Fault { object: object.id, kind: object.kind, location, message };
            self.decide(step, Fact::FaultFound { report });
        }
        if !self.is_wanted(object.id) {
            self.end_fetch(object.id, step);
            return;
        }
        let is_needed = self.is_needed(object.id);
        let Some(wanted) = self.stage.wanted.get_mut(&object.id) else { return };
        // Without the control plane nobody can say where the object is: that is no fault of the object's.
        wanted.failures = wanted.failures.saturating_add(u32::from(online));
        let is_hopeless = permanent || wanted.failures >= FETCH_ATTEMPTS_MAX;
        wanted.is_ahead |= !is_needed;
        if is_hopeless {
            self.ahead.fetch_failed(object.id, &format!("{} cannot be fetched: {message}", object.id), now);
        }
        if is_hopeless && is_needed && !wanted.is_ahead {
            // The control plane may think that it is here: what an agent found may be lost with its journal.
            let report = not_here(object);
            self.decide(step, Fact::FaultFound { report });
            let message = format!("{} could not be fetched: {message}", object.id);
            self.end_replica(object.id, Some(message.clone()), step);
            let outcome = Outcome::NotStarted { reason: NotStartedReason::InputUnavailable, message };
            for place in self.waiting.for_object(object.id) {
                self.end_item(place, outcome.clone(), now, step);
            }
            self.end_fetch(object.id, step);
        } else {
            let pause = if is_needed && wanted.is_ahead {
                (wanted.failures, wanted.is_ahead) = (0, false);
                Duration::ZERO
            } else if permanent {
                FETCH_BACKOFF_MAX
            } else {
                backoff(wanted.failures)
            };
            wanted.phase = Phase::Pausing { until: now + pause };
            // Nothing is on its way now: if the object is here after a restart, it was made here.
            self.end_intent(object.id, step);
        }
    }

    pub(crate) fn stage_elapse(&mut self, now: Timestamp, step: &mut Step) {
        let due: Vec<ObjectId> = self.stage.pausing().filter(|(until, _)| *until <= now).map(|(_, id)| id).collect();
        for id in due {
            if self.is_wanted(id) { self.fetch(id, step) } else { self.end_fetch(id, step) }
        }
    }

    /// Fetches that failed while nobody could be asked are tried at once.
    pub(crate) fn stage_reconnected(&mut self, now: Timestamp) {
        for wanted in self.stage.wanted.values_mut() {
            if let Phase::Pausing { until } = &mut wanted.phase {
                *until = now;
            }
        }
    }

    /// After a restart: records what came before it and was not on record, whatever has become of it since.
    pub(crate) fn take_in_arrivals(&mut self, arrivals: Vec<Arrival>, step: &mut Step) {
        for Arrival { object, intent, wire_bytes, direct, at } in arrivals {
            // One of an intent that is over was on record already.
            let open = self.state.fetches.get(&object.id).filter(|open| open.number == intent);
            if let Some(execution) = open.map(|open| open.execution) {
                self.decide(step, Fact::Fetched { object, wire_bytes, direct, execution, at });
                self.stage.arrived.insert(object.id);
                self.locate(object, execution, step);
            }
            step.commands.push(Command::ForgetArrival { object, intent });
        }
    }

    /// After a restart: looks for what was being fetched, and asks again for every push.
    pub(crate) fn resume_transfers(&mut self, step: &mut Step) {
        let intents: Vec<_> = self.state.fetches.values().cloned().collect();
        intents.into_iter().for_each(|intent| self.locate(intent.object, intent.execution, step));
        let replicas: Vec<_> = self.state.replicas.values().map(|(object, _)| *object).collect();
        replicas.into_iter().for_each(|object| self.replicate(object, step));
        let transfers: Vec<TransferId> = self.state.pushes.keys().copied().collect();
        self.stage.resumed.extend(&transfers);
        for transfer in transfers {
            if self.refuse_push(transfer, step) {
                continue;
            }
            step.commands.push(Command::Push { transfer, object: self.state.pushes[&transfer].object });
            if self.state.pushes[&transfer].cancelled {
                step.commands.push(Command::CancelPush { transfer });
            }
        }
    }

    pub(crate) fn pushed(
        &mut self,
        transfer: TransferId,
        object: ObjectRef,
        wire_bytes: u64,
        at: Timestamp,
        step: &mut Step,
    ) {
        // Nothing moved now, so it did before the restart.
        let before = wire_bytes == 0 && self.stage.resumed.contains(&transfer);
        let wire_bytes = if before { object.bytes } else { wire_bytes };
        self.end_push(transfer, Report::Pushed { transfer, object, wire_bytes, at }, step);
    }

    pub(crate) fn end_push(&mut self, transfer: TransferId, report: Report, step: &mut Step) {
        self.stage.resumed.remove(&transfer);
        // Its end was told of already.
        if self.state.pushes.contains_key(&transfer) {
            self.decide(step, Fact::PushEnded { transfer, report });
        }
    }

    fn locate(&mut self, object: ObjectRef, execution: ExecutionId, step: &mut Step) {
        let wanted = Wanted { object, execution, phase: Phase::Locating, failures: 0, is_ahead: false };
        self.stage.wanted.insert(object.id, wanted);
        // One that may be about to go is looked for when that is settled.
        if !self.is_going(object.id) {
            step.commands.push(Command::Locate { object });
        }
    }

    fn fetch(&mut self, id: ObjectId, step: &mut Step) {
        let is_ahead = !self.is_needed(id);
        let Some(wanted) = self.stage.wanted.get_mut(&id) else { return };
        (wanted.phase, wanted.is_ahead) = (Phase::Fetching, is_ahead);
        let (object, execution) = (wanted.object, wanted.execution);
        if !self.state.fetches.contains_key(&id) {
            self.decide(step, Fact::FetchIntended { object, execution });
        }
        let intent = self.state.fetches[&id].number;
        step.commands.push(Command::Fetch { object, intent });
    }

    fn have(&mut self, id: ObjectId, step: &mut Step) {
        self.note_stored(id);
        self.stage.wanted.remove(&id);
        self.stage.set_present(id);
        self.end_replica(id, None, step);
        self.wake.extend(self.waiting.for_object(id));
        self.ahead.arrived(id);
    }

    fn end_fetch(&mut self, id: ObjectId, step: &mut Step) {
        self.stage.wanted.remove(&id);
        self.end_intent(id, step);
    }

    fn end_intent(&mut self, id: ObjectId, step: &mut Step) {
        if self.state.fetches.contains_key(&id) {
            self.decide(step, Fact::FetchEnded { object: id });
        }
    }
}

fn not_here(object: ObjectRef) -> Report {
    let (location, message) = (FaultLocation::SiteStore, "it is not in the store".to_owned());
    Report::Fault { object: object.id, kind: object.kind, location, message }
}

fn backoff(failures: u32) -> Duration {
    FETCH_BACKOFF.saturating_mul(1 << failures.saturating_sub(1).min(16)).min(FETCH_BACKOFF_MAX)
}
