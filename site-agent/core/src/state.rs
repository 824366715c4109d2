//! What is durable. [`Snapshot::evolve`] is the only function that changes it, live and in recovery alike.

mod command;
mod delegated;
mod outbox;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use atoll_model::elements::ElementSet;
use atoll_model::id::{Attempt, CommandSeq, ExecutionId, JournalId, ObjectId, RunId, StepIndex, TransferId};
use atoll_model::policy::Withholding;
use atoll_model::session::{Binding, FinishedElement, Outcome, Report, StartedElement, StepTemplate};
use atoll_model::time::Timestamp;
use atoll_model::value::{ObjectRef, Value};
use serde::{Deserialize, Serialize};

use crate::fact::Fact;
pub use delegated::Items;
pub(crate) use delegated::{Delegated, Phase as DelegatedPhase};
pub(crate) use outbox::{Outbox, Part};

pub(crate) type StepKey = (RunId, StepIndex);
pub(crate) type AttemptKey = (ExecutionId, Attempt);

/// Everything that an agent must remember.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Snapshot {
    pub(crate) journal: Option<JournalId>,
    pub(crate) incarnation: u64,
    pub(crate) last_command: CommandSeq,
    last_order: u64,
    pub(crate) steps: BTreeMap<StepKey, StepState>,
    /// Attempts that may have a process: from the intent to start them to their end.
    pub(crate) active: BTreeMap<AttemptKey, Active>,
    pub(crate) fetches: BTreeMap<ObjectId, FetchIntent>,
    last_intent: u64,
    pub(crate) pushes: BTreeMap<TransferId, PushOrder>,
    pub(crate) outbox: Outbox,
    pub(crate) lease: Lease,
    /// Objects that do not leave the site, each with the first reason that was found for it.
    pub(crate) withheld: BTreeMap<ObjectId, Vec<Withholding>>,
    /// What may go and is not known to be gone, by the command that said so.
    pub(crate) evictions: BTreeMap<CommandSeq, Vec<ObjectRef>>,
    /// What is to be read again, by the command that asked for it.
    pub(crate) verifications: BTreeMap<CommandSeq, Vec<ObjectRef>>,
    /// Objects of which the site is to have a copy, each with the execution that made it.
    pub(crate) replicas: BTreeMap<ObjectId, (ObjectRef, ExecutionId)>,
    /// What is left of trees that were named to go. Not there before format 2 of the journal.
    pub(crate) parts: BTreeMap<ObjectId, ObjectRef>,
    /// Steps whose actions are to be made ready. Not there before format 7 of the journal.
    pub(crate) ahead: BTreeMap<StepKey, Arc<StepTemplate>>,
}

/// Leases as they were last noted, in time since a start of the machine.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Lease {
    pub(crate) boot: u128,
    pub(crate) session: Duration,
    pub(crate) work: Duration,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct StepState {
    /// Each as it was prepared; what was dispatched under one keeps it.
    pub(crate) templates: Vec<Arc<StepTemplate>>,
    /// Elements that were dispatched, by attempt.
    pub(crate) seen: BTreeMap<Attempt, ElementSet>,
    /// Those of them that are over.
    pub(crate) ended: BTreeMap<Attempt, ElementSet>,
    /// Outputs of those that succeeded, for executions that are still to be dispatched here.
    pub(crate) results: BTreeMap<(u32, Attempt), StepResult>,
    /// What is accepted and not started, by order of arrival.
    pub(crate) items: BTreeMap<u64, Item>,
    /// Elements that have succeeded here, with outputs that can be taken in.
    pub(crate) succeeded: ElementSet,
    pub(crate) delegated: Option<Box<Delegated>>,
    /// Delegated steps that need it.
    pub(crate) readers: BTreeSet<StepIndex>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct StepResult {
    pub(crate) template: u32,
    pub(crate) outputs: Arc<Vec<Value>>,
}

/// Elements that wait together.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Item {
    pub(crate) attempt: Attempt,
    pub(crate) elements: ElementSet,
    pub(crate) terms: Terms,
    /// Why it is to end instead of being started.
    pub(crate) ending: Option<Ending>,
}

/// The terms on which an attempt was dispatched.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Terms {
    /// Index into [`StepState::templates`].
    pub(crate) template: u32,
    /// Inputs of its own.
    pub(crate) bindings: Arc<Vec<Binding>>,
    pub(crate) accepted_at: Timestamp,
    pub(crate) start_by: Option<Duration>,
    pub(crate) fragment: bool,
    /// Whether the agent gave it out itself.
    pub(crate) delegated: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Ending {
    Cancelled,
    /// A later attempt at the same execution was dispatched here.
    Superseded,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Active {
    /// Nothing if a new journal found it and it was not dispatched again since.
    pub(crate) terms: Option<Terms>,
    pub(crate) ending: Option<Ending>,
    /// Nobody wants to hear of it.
    pub(crate) forgotten: bool,
    /// Its start is among the reports.
    pub(crate) start_reported: bool,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct FetchIntent {
    pub(crate) object: ObjectRef,
    pub(crate) execution: ExecutionId,
    pub(crate) number: u64,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct PushOrder {
    pub(crate) object: ObjectRef,
    pub(crate) cancelled: bool,
}

/// Where an attempt stands, for those that wait for its outputs.
#[derive(Debug)]
pub(crate) enum Standing<'a> {
    Unknown,
    Pending,
    Succeeded(&'a StepResult),
    Failed,
}

impl Snapshot {
    /// Format of snapshots and facts. Facts are only ever added to, at the end of their list; new fields of a snapshot stand
    /// at its end, and [`Self::upgrade`] makes them. With format 3 came steps in Python, with format 4 what a step asks for beside
    /// CPUs, memory and time, with format 5 who has asked for its run, with format 6 what was used of disks and how a step is
    /// spread over a cluster, and nothing has moved. With format 7 came actions that are made ready ahead.
    pub const FORMAT: u16 = 7;

    /// Makes an encoded snapshot of an earlier format one of this format.
    pub fn upgrade(format: u16, encoded: &mut Vec<u8>) {
        const EMPTY: u8 = 0;
        encoded.extend([2, 7].iter().filter(|since| format < **since).map(|_| EMPTY));
    }

    pub(crate) fn evolve(&mut self, fact: &Fact) {
        match fact {
            Fact::Opened { journal } => self.journal = Some(*journal),
            Fact::ProcessStarted => self.incarnation += 1,
            Fact::OrphansFound { attempts } => attempts.iter().for_each(|attempt| self.adopt_orphan(*attempt)),
            Fact::StartsWithdrawn { starts } => starts.iter().for_each(|attempt| self.withdraw(*attempt)),
            Fact::CommandsAccepted { first, at, commands } => self.accept(*first, *at, commands),
            Fact::VerdictsAccepted { cancel, forget } => self.accept_verdicts(cancel, forget),
            Fact::FetchIntended { object, execution } => {
                self.last_intent += 1;
                let intent = FetchIntent { object: *object, execution: *execution, number: self.last_intent };
                self.fetches.insert(object.id, intent);
            }
            Fact::Fetched { object, wire_bytes, direct, execution, at } => {
                self.fetches.remove(&object.id);
                let (object, wire_bytes, direct) = (*object, *wire_bytes, *direct);
                let report = Report::Fetched { object, wire_bytes, direct, execution: *execution, at: *at };
                self.outbox.push(Part::Other(Box::new(report)));
            }
            Fact::FetchEnded { object } => {
                self.fetches.remove(object);
            }
            Fact::PushEnded { transfer, report } => {
                self.pushes.remove(transfer);
                self.outbox.push(Part::Other(Box::new(report.clone())));
            }
            Fact::FaultFound { report } => self.outbox.push(Part::Other(Box::new(report.clone()))),
            Fact::StartsIntended { run, step, starts } => {
                starts.iter().for_each(|(item, elements)| self.intend((*run, *step), *item, elements));
            }
            Fact::Ended { run, step, item, elements, started_at, finished_at, outcome } => {
                self.end_elements((*run, *step), *item, elements, (*started_at, *finished_at), outcome);
            }
            Fact::Finished { run, step, element } => self.finish((*run, *step), element),
            Fact::Dropped { attempts } => attempts.iter().for_each(|key| self.drop_active(*key)),
            Fact::Reported { first, started, batches } => {
                self.note_reported(started);
                self.outbox.number(*first, started, batches);
            }
            Fact::ReportsAcknowledged { through } => self.outbox.trim(*through),
            Fact::ReportsWanted { after } => self.outbox.rewind(*after),
            Fact::OrdersForgotten => self.ahead.clear(),
            Fact::LeaseNoted { boot, session, work } => {
                self.lease = Lease { boot: *boot, session: *session, work: *work };
            }
            Fact::Withheld { objects, terms } => self.withhold(objects, terms),
            Fact::RoomAsked { proposal, objects } => {
                let report = Report::Evictable { proposal: *proposal, objects: objects.clone() };
                self.outbox.push(Part::Other(Box::new(report)));
            }
            Fact::EvictionEnded { order, report } => self.end_eviction(*order, report),
            Fact::VerificationEnded { order, report } => {
                self.verifications.remove(order);
                self.outbox.push(Part::Other(Box::new(report.clone())));
            }
            Fact::StepExpanded { run, step, items, bindings } => self.expand((*run, *step), items, bindings),
            Fact::StepSkipped { run, step } => self.skip((*run, *step)),
            Fact::ElementsTaken { run, step, attempt, elements, at } => {
                self.take_elements((*run, *step), *attempt, elements, *at);
            }
            Fact::Retried { run, step, element, not_before } => self.retry((*run, *step), element, *not_before),
            Fact::DelegationEnded { run, step, reason } => self.end_delegation((*run, *step), reason, false),
            Fact::ReplicaEnded { object, report } => {
                self.replicas.remove(object);
                self.outbox.push(Part::Other(Box::new(report.clone())));
            }
            Fact::PartsNamed { objects } => self.parts.extend(objects.iter().map(|object| (object.id, *object))),
            Fact::PartsStay { objects } => self.drop_parts(objects.iter()),
        }
    }

    fn end_eviction(&mut self, order: CommandSeq, report: &Report) {
        self.evictions.remove(&order);
        if let Report::Evicted { gone, kept: _ } = report {
            self.drop_parts(gone.iter().map(|object| &object.id));
        }
        self.outbox.push(Part::Other(Box::new(report.clone())));
    }

    fn drop_parts<'a>(&mut self, objects: impl Iterator<Item = &'a ObjectId>) {
        objects.for_each(|object| {
            self.parts.remove(object);
        });
    }

    fn finish(&mut self, (run, step): StepKey, element: &FinishedElement) {
        let execution = ExecutionId { run, step, element: element.element };
        let active = self.active.remove(&(execution, element.attempt)).expect("what finishes was started");
        let state = self.steps.entry((run, step)).or_default();
        state.ended.entry(element.attempt).or_default().insert(element.element);
        if element.outcome == Outcome::Succeeded && element.outputs.iter().all(|value| !value.is_too_large()) {
            state.succeeded.insert(element.element);
        }
        if element.outcome == Outcome::Succeeded && !element.outputs.is_empty() {
            let template = active.terms.map_or(0, |terms| terms.template);
            let outputs = Arc::new(element.outputs.clone());
            state.results.insert((element.element, element.attempt), StepResult { template, outputs });
        }
        self.outbox.push(Part::Finished { run, step, element: Box::new(element.clone()) });
    }

    fn note_reported(&mut self, started: &[(RunId, StepIndex, Vec<StartedElement>)]) {
        for (run, step, elements) in started {
            for element in elements {
                let execution = ExecutionId { run: *run, step: *step, element: element.element };
                if let Some(active) = self.active.get_mut(&(execution, element.attempt)) {
                    active.start_reported = true;
                }
            }
        }
    }

    fn withhold(&mut self, objects: &[ObjectId], terms: &[Withholding]) {
        for object in objects {
            let known = self.withheld.entry(*object).or_default();
            for term in terms {
                if !known.contains(term) {
                    known.push(term.clone());
                }
            }
        }
    }

    pub(crate) fn template(&self, key: StepKey, index: u32) -> Option<&Arc<StepTemplate>> {
        self.steps.get(&key)?.templates.get(index as usize)
    }

    pub(crate) fn standing(&self, (execution, attempt): AttemptKey) -> Standing<'_> {
        let Some(step) = self.steps.get(&(execution.run, execution.step)) else { return Standing::Unknown };
        if let Some(result) = step.results.get(&(execution.element, attempt)) {
            return Standing::Succeeded(result);
        }
        let holds = |sets: &BTreeMap<Attempt, ElementSet>| {
            sets.get(&attempt).is_some_and(|elements| elements.contains(execution.element))
        };
        match (holds(&step.seen), holds(&step.ended)) {
            (false, _) => Standing::Unknown,
            (true, false) => Standing::Pending,
            (true, true) => Standing::Failed,
        }
    }

    /// Attempts of a step that may have a process.
    pub(crate) fn active_of(&self, (run, step): StepKey) -> impl Iterator<Item = (&AttemptKey, &Active)> {
        let execution = |element| ExecutionId { run, step, element };
        self.active.range((execution(0), Attempt(0))..=(execution(u32::MAX), Attempt(u32::MAX)))
    }

    /// Whether an earlier attempt at this execution may still have a process.
    pub(crate) fn earlier_active(&self, (execution, attempt): AttemptKey) -> Option<AttemptKey> {
        self.active.range((execution, Attempt(0))..(execution, attempt)).next().map(|(key, _)| *key)
    }

    pub(crate) fn items(&self) -> impl Iterator<Item = (StepKey, u64, &Item)> {
        self.steps.iter().flat_map(|(key, step)| step.items.iter().map(|(order, item)| (*key, *order, item)))
    }

    pub(crate) fn item(&self, key: StepKey, order: u64) -> Option<&Item> {
        self.steps.get(&key)?.items.get(&order)
    }

    /// The order of the last item that came into the queue.
    pub(crate) fn last_order(&self) -> u64 {
        self.last_order
    }

    fn take_order(&mut self) -> u64 {
        self.last_order += 1;
        self.last_order
    }

    fn adopt_orphan(&mut self, (execution, attempt): AttemptKey) {
        let active = Active { terms: None, ending: None, forgotten: false, start_reported: false };
        self.active.insert((execution, attempt), active);
        let step = self.steps.entry((execution.run, execution.step)).or_default();
        step.seen.entry(attempt).or_default().insert(execution.element);
    }

    fn withdraw(&mut self, (execution, attempt): AttemptKey) {
        let active = self.active.remove(&(execution, attempt)).expect("what is withdrawn was intended");
        let order = self.take_order();
        let step = self.steps.entry((execution.run, execution.step)).or_default();
        match active.terms {
            Some(terms) if !active.forgotten => {
                let elements = ElementSet::from_range(execution.element..execution.element + 1);
                step.items.insert(order, Item { attempt, elements, terms, ending: active.ending });
            }
            Some(_) | None => {
                step.ended.entry(attempt).or_default().insert(execution.element);
            }
        }
    }

    fn intend(&mut self, (run, step): StepKey, order: u64, elements: &ElementSet) {
        let state = self.steps.get_mut(&(run, step)).expect("what starts was dispatched");
        let item = state.items.get_mut(&order).expect("what starts was queued");
        for element in elements.iter() {
            let active =
                Active { terms: Some(item.terms.clone()), ending: None, forgotten: false, start_reported: false };
            self.active.insert((ExecutionId { run, step, element }, item.attempt), active);
        }
        item.elements.remove_all(elements);
        if item.elements.is_empty() {
            state.items.remove(&order);
        }
    }

    fn end_elements(
        &mut self,
        (run, step): StepKey,
        order: u64,
        elements: &ElementSet,
        (started_at, finished_at): (Option<Timestamp>, Timestamp),
        outcome: &Outcome,
    ) {
        let state = self.steps.get_mut(&(run, step)).expect("what ends was dispatched");
        let item = state.items.get_mut(&order).expect("what ends was queued");
        let attempt = item.attempt;
        item.elements.remove_all(elements);
        if item.elements.is_empty() {
            state.items.remove(&order);
        }
        state.ended.entry(attempt).or_default().insert_all(elements);
        if *outcome == Outcome::Succeeded {
            state.succeeded.insert_all(elements);
        }
        let (elements, outcome) = (elements.clone(), outcome.clone());
        self.outbox.push(Part::Same { run, step, attempt, elements, started_at, finished_at, outcome });
    }

    fn drop_active(&mut self, (execution, attempt): AttemptKey) {
        self.active.remove(&(execution, attempt)).expect("what is dropped was active");
        if let Some(step) = self.steps.get_mut(&(execution.run, execution.step)) {
            step.ended.entry(attempt).or_default().insert(execution.element);
        }
    }
}
