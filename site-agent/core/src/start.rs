//! From the queue to a start: what an item waits for, whose turn it is, what is started.

use std::collections::BTreeMap;
use std::sync::Arc;

use atoll_model::elements::ElementSet;
use atoll_model::id::Attempt;
use atoll_model::session::{NotStartedReason, Outcome, StepTemplate};
use atoll_model::time::Timestamp;
use atoll_model::workflow::OnDisconnect;

use crate::agent::{Agent, Step, execution};
use crate::command::Command;
use crate::config::{BACKFILL_SCAN, BYPASS_MAX};
use crate::ending::Launch;
use crate::event::NodeId;
use crate::fact::Fact;
use crate::queue::{Place, Turn};
use crate::readiness::{Readiness, needs_room};
use crate::room::{Admission, Kind, Where};
use crate::state::{Ending, Item, StepKey};

/// One look at all that is ready.
#[derive(Debug, Default)]
struct Pass {
    /// Work that is nothing.
    nulls: BTreeMap<(StepKey, Attempt), ElementSet>,
    /// The first item that finds no room, by its order.
    stalled: Option<u64>,
    /// Items that find no room.
    blocked: usize,
    /// How many pilots they would fill.
    pilots: u32,
}

impl Agent {
    /// Looks at an item of the queue: it ends, waits, or is ready.
    pub(crate) fn wake_item(&mut self, place: Place, now: Timestamp, step: &mut Step) {
        let (order, key) = place;
        let unwanted = self.waiting.remove(place);
        let Some(item) = self.state.item(key, order) else {
            self.ready.remove(place);
            self.asked.remove(&(key, order));
            self.cancel_fetches(&unwanted, step);
            return;
        };
        let expired = item.terms.start_by.is_some_and(|start_by| item.terms.accepted_at + start_by <= now);
        let readiness = match item.ending {
            Some(Ending::Cancelled) => Readiness::Doomed(NotStartedReason::Cancelled, "cancelled".to_owned()),
            Some(Ending::Superseded) => {
                Readiness::Doomed(NotStartedReason::Cancelled, "another attempt took its place".to_owned())
            }
            None if expired => Readiness::Doomed(NotStartedReason::Expired, "its time to start has passed".to_owned()),
            None if self.asked.contains(&(key, order)) => return,
            None => self.readiness(key, item),
        };
        match readiness {
            Readiness::Ready => {
                let template = self.state.template(key, item.terms.template);
                self.ready.insert(place, template.map_or(0, |template| template.priority));
            }
            Readiness::Waiting(waits, missing) => {
                let for_execution = execution(key, item.elements.first().unwrap_or(0));
                self.ready.remove(place);
                self.waiting.insert(place, waits);
                for object in missing {
                    self.need(object, for_execution, step);
                }
            }
            Readiness::Doomed(reason, message) => {
                self.end_item(place, Outcome::NotStarted { reason, message }, now, step);
            }
        }
        self.cancel_fetches(&unwanted, step);
    }

    /// Ends all that is left of an item without having started it.
    pub(crate) fn end_item(&mut self, (order, key): Place, outcome: Outcome, now: Timestamp, step: &mut Step) {
        let Some(item) = self.state.item(key, order) else { return };
        let elements = item.elements.clone();
        self.end_elements((order, key), elements, None, now, outcome, step);
    }

    pub(crate) fn null_finished(
        &mut self,
        key: StepKey,
        attempt: Attempt,
        elements: &ElementSet,
        at: Timestamp,
        step: &mut Step,
    ) {
        // What was cancelled meanwhile is no longer asked for.
        let asked: Vec<u64> = self.asked.range((key, 0)..=(key, u64::MAX)).map(|(_, order)| *order).collect();
        for order in asked {
            let Some(item) = self.state.item(key, order).filter(|item| item.attempt == attempt) else { continue };
            let finished = item.elements.intersection(elements);
            if !finished.is_empty() {
                self.end_elements((order, key), finished, Some(at), at, Outcome::Succeeded, step);
            }
        }
    }

    fn end_elements(
        &mut self,
        place: Place,
        elements: ElementSet,
        started_at: Option<Timestamp>,
        finished_at: Timestamp,
        outcome: Outcome,
        step: &mut Step,
    ) {
        let (order, key) = place;
        let Some(attempt) = self.state.item(key, order).map(|item| item.attempt) else { return };
        let ended = elements.clone();
        let (run, index) = key;
        self.decide(step, Fact::Ended { run, step: index, item: order, elements, started_at, finished_at, outcome });
        if self.state.item(key, order).is_none() {
            self.leave_queue(place, step);
        }
        for element in ended.iter() {
            self.attempt_ended((execution(key, element), attempt));
        }
        self.step_progressed(key, step);
    }

    /// Forgets an item of the queue that is empty or gone.
    pub(crate) fn leave_queue(&mut self, place: Place, step: &mut Step) {
        let unwanted = self.waiting.remove(place);
        self.ready.remove(place);
        self.asked.remove(&(place.1, place.0));
        self.cancel_fetches(&unwanted, step);
    }

    /// Starts what may start, by priority and in order of arrival; whether there is more to look at. A smaller execution may
    /// pass one that finds no room, but not for ever.
    pub(crate) fn admit(&mut self, now: Timestamp, step: &mut Step) -> bool {
        if self.state.outbox.bytes() >= self.config.outbox_bytes_max {
            return false;
        }
        let (session, work) = self.session.leases(now);
        if !session && !work {
            return false;
        }
        let mut pass = Pass::default();
        for turn in self.ready.turns(now) {
            self.take_turn(turn, session, now, &mut pass, step);
            if self.is_over(&pass) {
                break;
            }
        }
        self.pilots_wanted = pass.pilots.min(self.room.pilots_max());
        for (((run, index), attempt), elements) in pass.nulls {
            step.commands.push(Command::StartNull { run, step: index, attempt, elements });
        }
        !self.wake.is_empty() || !self.unsettled.is_empty()
    }

    fn take_turn(&mut self, turn: Turn, session: bool, now: Timestamp, pass: &mut Pass, step: &mut Step) {
        let mut after = 0;
        while let Some(place) = self.ready.head_after(turn.priority, after) {
            after = place.0;
            let (order, key) = place;
            let Some(item) = self.state.item(key, order) else {
                self.ready.remove(place);
                continue;
            };
            let Some(template) = self.state.template(key, item.terms.template).cloned() else { continue };
            let granted = session || (item.terms.fragment && template.on_disconnect == OnDisconnect::Finish);
            if !granted {
                continue;
            }
            if !needs_room(&template) {
                pass.nulls.entry((key, item.attempt)).or_default().insert_all(&item.elements);
                self.ready.remove(place);
                self.asked.insert((key, order));
                continue;
            }
            let most = if turn.by_age { 1 } else { self.may_pass(pass.stalled) };
            let (started, whole) = self.start_some(place, &template, pass.stalled, most, step);
            if let Some(waiting) = pass.stalled {
                let passed = if self.passed.0 == waiting { self.passed.1 } else { 0 };
                self.passed = (waiting, passed + started);
            }
            if started > 0 {
                self.ready.served(turn.priority, now);
                if turn.by_age {
                    return;
                }
            }
            if !whole {
                pass.blocked += 1;
                match self.pilots_for(place, &template) {
                    0 => pass.stalled = pass.stalled.or(Some(order)),
                    // What waits for a pilot takes nothing from what is not for one.
                    pilots => pass.pilots = pass.pilots.saturating_add(pilots),
                }
            }
            if self.is_over(pass) {
                return;
            }
        }
    }

    /// How many pilots what is left of an item would fill, if it is for pilots.
    fn pilots_for(&self, (order, key): Place, template: &StepTemplate) -> u32 {
        let item = self.state.item(key, order).filter(|item| self.place(template, &item.terms) == Where::Pilots);
        self.room.pilots_for(item.map_or(0, |item| item.elements.len()), &template.resources)
    }

    fn is_over(&self, pass: &Pass) -> bool {
        pass.blocked == BACKFILL_SCAN || pass.stalled.is_some() && self.may_pass(pass.stalled) == 0
    }

    /// How many executions may start before the one that is `stalled` for want of room.
    fn may_pass(&self, stalled: Option<u64>) -> u32 {
        let Some(order) = stalled else { return u32::MAX };
        let passed = if self.passed.0 == order { self.passed.1 } else { 0 };
        BYPASS_MAX.saturating_sub(passed)
    }

    /// Starts as many elements of an item as there is room for, `most` at most: how many, and whether that was all. While
    /// another is `stalled` for want of room, none queues behind those that run.
    fn start_some(
        &mut self,
        place: Place,
        template: &Arc<StepTemplate>,
        stalled: Option<u64>,
        most: u32,
        step: &mut Step,
    ) -> (u32, bool) {
        let (order, key) = place;
        let Some(item) = self.state.item(key, order).cloned() else { return (0, true) };
        // Between being ready and its turn an input may have been found damaged, or its predecessor's commit have failed.
        if !matches!(self.readiness(key, &item), Readiness::Ready) {
            self.ready.remove(place);
            self.wake.insert(place);
            return (0, true);
        }
        let most = most.min(item.elements.len());
        let room_at = self.place(template, &item.terms);
        let mut admissions = Vec::new();
        while admissions.len() < most as usize
            && let Some(admission) = self.room.admit(key, &template.resources, room_at, stalled.is_none())
        {
            admissions.push(admission);
        }
        let started = u32::try_from(admissions.len()).unwrap_or(u32::MAX);
        let whole = started == item.elements.len();
        if started > 0 {
            self.start_elements(place, &item, template, &admissions, step);
        }
        if whole {
            self.leave_queue(place, step);
        }
        (started, whole)
    }

    fn start_elements(
        &mut self,
        (order, key): Place,
        item: &Item,
        template: &Arc<StepTemplate>,
        admissions: &[(NodeId, Admission)],
        step: &mut Step,
    ) {
        let (run, index) = key;
        let elements = item.elements.clone().take_first(u32::try_from(admissions.len()).unwrap_or(u32::MAX));
        let inputs = self.inputs(template, &item.terms);
        match step.facts.last_mut() {
            Some(Fact::StartsIntended { run: last_run, step: last_step, starts }) if (*last_run, *last_step) == key => {
                let more = Fact::StartsIntended { run, step: index, starts: vec![(order, elements.clone())] };
                self.state.evolve(&more);
                starts.push((order, elements.clone()));
            }
            Some(_) | None => {
                let starts = vec![(order, elements.clone())];
                self.decide(step, Fact::StartsIntended { run, step: index, starts });
            }
        }
        for (element, (node, admission)) in elements.iter().zip(admissions) {
            let attempt = (execution(key, element), item.attempt);
            self.launches.insert(attempt, Launch::in_room(*node, Kind::new(key, &template.resources)));
            self.unsettled.insert(attempt);
            step.commands.push(Command::Start {
                execution: attempt.0,
                attempt: attempt.1,
                template: Arc::clone(template),
                inputs: inputs.clone(),
                node: *node,
                ahead: match admission {
                    Admission::Own => None,
                    Admission::Ahead(lanes) => Some(*lanes),
                },
            });
        }
    }
}
