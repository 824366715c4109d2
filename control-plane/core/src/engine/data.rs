//! Late-bound pushes: an object goes to the bucket when an execution that reads it is placed elsewhere.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use atoll_model::id::{ExecutionId, ObjectId, RunId, SiteId, StepIndex, TransferId};
use atoll_model::limits;
use atoll_model::placement::PushMode;
use atoll_model::session::{FinishedElement, PushFailure};
use atoll_model::time::Timestamp;
use atoll_model::value::ObjectRef;
use atoll_model::workflow::{StartMode, Workflow};
use storage_sync_core::{InBucket, Knowledge, Plan, Reach, plan};

use super::ruling::Cited;
use super::taking_out::holds;
use crate::agenda::Timer;
use crate::control_plane::ControlPlane;
use crate::fact::{Fact, ReturnCause, RuleText};
use crate::state::{ActivePhase, BucketState, ObjectState, RowState, Source, StepPhase, Use};

/// Pushes of one object that the bucket or the link refused, one after the other, before a person who asks for it is told.
const PUSH_FAILURES_MAX: u32 = 5;
/// Before what was refused is pushed again for those who wait; doubled each time. The agent had tried for minutes, mostly.
const PUSH_BACKOFF: Duration = Duration::from_secs(1);
/// How often the outputs of one execution are made again.
const RECOMPUTATIONS_MAX: u32 = 2;

impl ControlPlane {
    /// How the object gets to the site.
    pub(crate) fn plan_object(&self, object: ObjectId, site: SiteId) -> Plan<Cited> {
        let Some(known) = self.state.objects.get(&object) else { return Plan::Unavailable };
        let sites = self.holders_in_order(known, site).into_iter();
        let holders: Vec<_> = sites.map(|holder| self.holder(known, holder, site)).collect();
        let vetoes = self.vetoes(known, Some(site));
        let bucket = match self.state.bucket_state(known) {
            BucketState::Absent => InBucket::Absent,
            BucketState::Present => InBucket::Present,
            BucketState::Deleting => InBucket::Deleting,
        };
        let planned = plan(site, &Knowledge { holders: &holders, bucket, transfer: known.transfer.is_some(), vetoes });
        // It may have come to the bucket before its last site was lost: somebody looks.
        if matches!(planned, Plan::Unavailable) && self.is_looked_for(known) { Plan::Wait } else { planned }
    }

    fn is_looked_for(&self, object: &ObjectState) -> bool {
        let trusted = |site: &SiteId| self.state.sites.get(site).is_some_and(|site| site.revoked.is_none());
        object.doubtful.as_ref().is_some_and(|doubtful| trusted(&doubtful.ended.site))
    }

    /// Whether nothing is to be waited for: it is at the site, or can be fetched.
    pub(crate) fn is_at_hand(&self, object: ObjectRef, site: SiteId) -> bool {
        let Some(known) = self.state.objects.get(&object.id) else { return false };
        known.is_at(site)
            || self.state.bucket_state(known) == BucketState::Present
            || self.direct.may_read(site) && matches!(self.plan_object(object.id, site), Plan::DirectFrom(_))
    }

    /// Whether the object must cross a border to get to the site.
    ///
    /// # Errors
    /// Why it cannot get there.
    pub(crate) fn lack(&self, object: ObjectRef, site: SiteId) -> Result<bool, String> {
        match self.plan_object(object.id, site) {
            Plan::Present => Ok(false),
            Plan::InBucket | Plan::DirectFrom(_) | Plan::PushFrom(_) => Ok(true),
            Plan::Wait => match self.away(object.id) {
                Some(site) => Err(format!("it reads {}, which is at {site}, and that is not connected", object.id)),
                None => Ok(true),
            },
            Plan::Forbidden(_) | Plan::Closed(_) | Plan::Withheld(_) => {
                Err(self.veto(object.id, site).unwrap_or_else(|| format!("it reads {}, which stays", object.id)))
            }
            Plan::Unavailable => Err(format!("it reads {}, of which there is no copy left", object.id)),
        }
    }

    /// The site that has the object and is not connected, if no other can give it.
    fn away(&self, object: ObjectId) -> Option<String> {
        let known = self.state.objects.get(&object)?;
        let connected = known.sites.iter().any(|site| self.reach(*site) == Reach::Connected);
        let waits = known.transfer.is_some() || known.bucket == BucketState::Deleting;
        let first = known.sites.iter().find(|site| self.reach(**site) == Reach::Away)?;
        (!connected && !waits).then(|| self.state.site_name(*first))
    }

    pub(crate) fn reach(&self, site: SiteId) -> Reach {
        let Some(known) = self.state.sites.get(&site) else { return Reach::Gone };
        if known.revoked.is_some() || known.lost.is_some() || known.agent.is_none() {
            return Reach::Gone;
        }
        let ready = self.sessions.by_site.get(&site).is_some_and(|s| s.phase == crate::sessions::SessionPhase::Ready);
        if ready { Reach::Connected } else { Reach::Away }
    }

    /// Where an object is: what executions that are placed together have in common.
    pub(crate) fn places(&self, object: ObjectId) -> (Vec<SiteId>, bool) {
        let known = self.state.objects.get(&object);
        known.map_or_else(Default::default, |known| {
            (known.sites.clone(), self.state.bucket_state(known) == BucketState::Present)
        })
    }

    /// Takes the next step for an object that placed executions wait for.
    pub(crate) fn replan(&mut self, object: ObjectId) {
        let waiting: Vec<_> = self.agenda.wants.of(object).collect();
        for (site, execution) in waiting {
            let Some(active) = self.state.active(execution) else { continue };
            let is_placed = active.phase == ActivePhase::Placed;
            match self.plan_object(object, site) {
                Plan::Present | Plan::InBucket | Plan::DirectFrom(_) => {
                    if is_placed {
                        self.agenda.arrived.insert(execution);
                    }
                }
                Plan::PushFrom(holder) => {
                    let known = &self.state.objects[&object];
                    let reference = known.reference;
                    if let Some(until) = self.push_paused_until(known) {
                        self.agenda.set(until, Timer::Object(object));
                        continue;
                    }
                    let reader = (execution.run, Some(execution));
                    self.order_push(reference, holder, reader, RuleText::WhenNeeded);
                }
                Plan::Wait => {}
                Plan::Forbidden(_) | Plan::Closed(_) | Plan::Withheld(_) => {
                    if is_placed {
                        let reason = self.veto(object, site);
                        self.unplace(
                            execution,
                            reason.as_deref().unwrap_or("a rule keeps an input away from the site"),
                        );
                    }
                }
                Plan::Unavailable => {
                    if is_placed {
                        self.unplace(execution, "an input is not there any more");
                    }
                }
            }
        }
        self.serve_clients(object);
        self.copy_if_lacking(object);
        self.agenda.sweep.insert(object);
    }

    /// A placed execution waits for a site again.
    fn unplace(&mut self, execution: ExecutionId, message: &str) {
        let (run, step) = (execution.run, execution.step);
        let site = self.state.active(execution).expect("only what is placed").site;
        self.agenda.unwant(execution);
        self.record(Fact::ExecutionsReturned {
            run,
            step,
            elements: std::iter::once(execution.element).collect(),
            cause: ReturnCause::InputUnavailable,
            message: Arc::from(message),
            not_before: self.now,
        });
        self.agenda.has_room(site);
        self.want_place(run, step);
    }

    pub(crate) fn order_push(
        &mut self,
        object: ObjectRef,
        site: SiteId,
        (run, for_execution): (RunId, Option<ExecutionId>),
        rule: RuleText,
    ) {
        let number = self.state.transfers_ordered + 1;
        // The first half tells control planes apart, the second their transfers.
        let origin = u128::from(self.config.started_at.micros().unsigned_abs());
        let transfer = TransferId::from_bits((origin << 64) | u128::from(number));
        let run = Some(run);
        self.record(Fact::PushOrdered { transfer, object, site, run, for_execution, rule, at: self.now });
        self.choose_encryption(object.id);
        self.agenda.touched.insert(site);
    }

    /// Calls back a push that was ordered for executions which wait for it no more: they were given to a site that has the
    /// object, were taken from the site that lacks it, or it was made there meanwhile. What rules or people want in the
    /// bucket comes there all the same, and so does what may soon be waited for again.
    pub(crate) fn call_back(&mut self, object: ObjectId) {
        let Some(known) = self.state.objects.get(&object) else { return };
        let Some(transfer) = known.transfer.filter(|id| {
            let transfer = &self.state.transfers[id];
            !transfer.cancelled && transfer.rule == RuleText::WhenNeeded
        }) else {
            return;
        };
        let is_lacked = |(site, execution)| !known.is_at(site) && self.state.active(execution).is_some();
        let is_wanted = self.agenda.wants.of(object).any(is_lacked)
            || self.agenda.clients.contains_key(&object)
            || self.is_kept_in_bucket(known)
            || known.uses.iter().any(|usage| self.may_be_read_soon(*usage));
        if !is_wanted {
            let site = self.state.transfers[&transfer].site;
            self.record(Fact::PushCancelled { transfer });
            self.agenda.touched.insert(site);
        }
    }

    /// Whether executions that read it wait for a site.
    fn may_be_read_soon(&self, usage: Use) -> bool {
        let Some(run) = self.state.runs.get(&usage.run).filter(|run| run.is_going_on()) else { return false };
        let mut steps = run.plan.steps.iter().zip(&run.steps);
        steps.any(|(planned, state)| state.has_waiting() && planned.reads.contains(&usage.source))
    }

    /// Objects among the outputs for which executions wait somewhere already.
    pub(crate) fn wanted_among(&self, elements: &[FinishedElement]) -> Vec<ObjectId> {
        let mut wanted = Vec::new();
        for value in elements.iter().flat_map(|finished| &finished.outputs) {
            value.visit_objects(&mut |object| wanted.extend(self.agenda.wants.has(object.id).then_some(object.id)));
        }
        wanted
    }

    /// Objects that somebody waits for were made once more: whoever waits where they were waits no more.
    pub(crate) fn came_to_be(&mut self, wanted: Vec<ObjectId>) {
        self.agenda.replan.extend(wanted.iter().copied());
        self.agenda.unwanted.extend(wanted);
    }

    /// Pushes are not needed for a run any more; those that others wait for go on, and those that a rule still wants.
    pub(crate) fn cancel_pushes_of(&mut self, run: RunId) {
        let live: Vec<_> = self
            .state
            .transfers
            .iter()
            .filter(|(_, transfer)| transfer.run == Some(run) && !transfer.cancelled)
            .map(|(id, transfer)| (*id, transfer.object.id, transfer.site))
            .collect();
        for (transfer, object, site) in live {
            let wanted = self
                .agenda
                .wants
                .of(object)
                .any(|(_, execution)| execution.run != run && self.state.active(execution).is_some());
            let wants = |known: &ObjectState| self.is_kept_in_bucket(known) || self.is_being_copied(known);
            let is_kept = || self.state.objects.get(&object).is_some_and(wants);
            if !wanted && !self.agenda.clients.contains_key(&object) && !is_kept() {
                self.record(Fact::PushCancelled { transfer });
                self.agenda.touched.insert(site);
            }
        }
    }

    /// The object is in the bucket.
    pub(crate) fn pushed(&mut self, site: SiteId, transfer: TransferId, wire_bytes: u64, at: Timestamp) {
        // Repeated after a push that was given up with its site, or is known to have ended.
        let Some(known) = self.state.transfers.get(&transfer).filter(|known| known.site == site) else { return };
        let object = known.object.id;
        let seconds = self.now.saturating_since(known.ordered_at).as_secs_f64();
        self.estimates.learn_transfer(site, wire_bytes, seconds);
        self.counters.bytes_to_bucket += wire_bytes;
        self.record(Fact::PushEnded { transfer, wire_bytes, at });
        self.agenda.replan.insert(object);
    }

    pub(crate) fn push_failed(&mut self, site: SiteId, transfer: TransferId, reason: PushFailure, message: String) {
        let Some(known) = self.state.transfers.get(&transfer).filter(|known| known.site == site) else { return };
        let object = known.object.id;
        // What was called back is refused to who asks for it.
        let reason = if known.cancelled && reason == PushFailure::Refused { PushFailure::Cancelled } else { reason };
        self.end_push(transfer, object, reason, &message);
        // Whoever waits goes on waiting: nothing is lost, and the bucket comes back.
        let trouble = self.state.objects.get(&object).and_then(|known| known.push_trouble.as_ref());
        if trouble.is_some_and(|trouble| trouble.times >= PUSH_FAILURES_MAX) {
            self.refuse_clients(object, &format!("{object} could not be pushed to the bucket: {message}"));
        }
    }

    /// When it may be pushed again for those who wait, after it was refused.
    pub(crate) fn push_paused_until(&self, object: &ObjectState) -> Option<Timestamp> {
        let trouble = object.push_trouble.as_ref()?;
        let doubled = PUSH_BACKOFF.saturating_mul(1 << (trouble.times - 1).min(16));
        Some(trouble.at + doubled.min(limits::RETRY_BACKOFF_MAX)).filter(|until| *until > self.now)
    }

    /// A push has come to nothing, as far as is known: what it may have left in the bucket goes before the next.
    pub(crate) fn end_push(&mut self, transfer: TransferId, object: ObjectId, reason: PushFailure, message: &str) {
        self.record(Fact::PushFailed { transfer, reason, message: message.to_owned(), at: self.now });
        if self.state.objects.get(&object).is_some_and(|known| known.bucket == BucketState::Deleting) {
            self.ask_to_delete(object);
        }
        self.agenda.replan.insert(object);
    }

    /// Executions cannot be placed: inputs of which no copy is left are made again where that is possible, and where it
    /// is not, the readers fail.
    pub(crate) fn recover_inputs(&mut self, run: RunId, objects: &[ObjectRef]) {
        for object in objects {
            let gone = self.state.objects.get(&object.id).is_none_or(|known| {
                known.transfer.is_none()
                    && self.state.bucket_state(known) == BucketState::Absent
                    && known.sites.iter().all(|site| self.reach(*site) == Reach::Gone)
            });
            if gone {
                self.recompute(run, object.id);
            }
        }
    }

    /// Runs again what made an object, or fails its readers with its name.
    fn recompute(&mut self, reader: RunId, object: ObjectId) {
        let lost_sites = self.state.objects.get(&object).is_some_and(|known| {
            let may_return = |site: &SiteId| self.state.sites.get(site).is_some_and(|s| s.revoked.is_none());
            known.sites.iter().any(may_return)
        });
        for producer in self.producers(reader, object) {
            let Some(run) = self.state.runs.get(&producer.run).filter(|run| run.is_going_on()) else { continue };
            let step = &run.steps[producer.step.index()];
            if step.recomputing.contains(producer.element) {
                return;
            }
            let tries = step.tries.get(&producer.element).map_or(0, |tries| tries.recomputed);
            let succeeded = step.row(producer.element).is_some_and(|row| row.state == RowState::Succeeded);
            let definition = run.workflow.step(producer.step);
            let somewhere = self.candidates().iter().any(|candidate| {
                candidate.closed.is_none()
                    && crate::placement::permanent_obstacle(candidate, &self.requirement(run, definition)).is_none()
            });
            let again = definition.start == StartMode::AtLeastOnce && step.phase == StepPhase::Expanded;
            if succeeded && again && tries < RECOMPUTATIONS_MAX && (somewhere || !lost_sites) {
                self.record(Fact::RecomputeOrdered { execution: producer });
                self.want_place(producer.run, producer.step);
                return;
            }
        }
        // A lost site may come back with its copy.
        if !lost_sites {
            self.fail_readers(reader, object);
        }
    }

    /// What made an object first, and what made the same in the reader's own run: the run of the first may have ended. What
    /// comes after another that made it may have read it, and cannot make it again without.
    fn producers(&self, reader: RunId, object: ObjectId) -> Vec<ExecutionId> {
        let Some(known) = self.state.objects.get(&object) else { return Vec::new() };
        let mut producers = Vec::from_iter(known.producer);
        let Some(run) = self.state.runs.get(&reader) else { return producers };
        let sources = || known.uses.iter().filter(|usage| usage.run == reader).map(|usage| usage.source);
        if sources().any(|source| matches!(source, Source::Input(_))) {
            return producers;
        }
        let made_in = |source| if let Source::Step(step) = source { Some(step) } else { None };
        for step in sources().filter_map(made_in) {
            if sources().filter_map(made_in).any(|other| other != step && is_after(&run.workflow, step, other)) {
                continue;
            }
            let details = run.steps[step.index()].details.iter();
            let made = details.filter(|(_, detail)| detail.outputs.iter().any(|value| holds(value, object)));
            producers.extend(made.map(|(element, _)| ExecutionId { run: reader, step, element: *element }));
        }
        producers
    }

    fn fail_readers(&mut self, run_id: RunId, object: ObjectId) {
        let message = format!("no copy of its input {object} is left, and it cannot be made again");
        let Some(run) = self.state.runs.get(&run_id) else { return };
        let mut readers = Vec::new();
        for (index, step) in (0..=u16::MAX).map(StepIndex).zip(&run.steps) {
            if step.phase != StepPhase::Expanded || !step.has_waiting() {
                continue;
            }
            let waiting = step.ready.iter().chain(step.again.keys().copied());
            let reads = |element: &u32| self.needed_objects(run, index, *element).iter().any(|read| read.id == object);
            let elements: atoll_model::elements::ElementSet = waiting.filter(reads).collect();
            if !elements.is_empty() {
                readers.push((index, elements));
            }
        }
        for (step, elements) in readers {
            // The first failure cancels the others.
            if self.state.run(run_id).is_going_on() {
                self.give_up(run_id, step, elements, &message);
            }
        }
    }

    /// Which rule a fetch for an execution is entered under.
    pub(crate) fn fetch_rule(&self, object: ObjectId, site: SiteId, execution: ExecutionId) -> RuleText {
        let ordered = self.state.replicas.get(&(object, site)).filter(|order| order.execution == execution);
        if let Some(order) = ordered {
            return order.rule.clone();
        }
        let Some(known) = self.state.objects.get(&object) else { return RuleText::WhenNeeded };
        let Some(state) = self.state.runs.get(&execution.run) else { return RuleText::WhenNeeded };
        let rules = self.rules_on(known).filter(|(known, _)| known.id == execution.run);
        let eager = rules.map(|(_, rules)| rules.push).find(|push| push.mode == PushMode::Eager);
        let rule = eager.and_then(|push| push.rule);
        rule.map_or(RuleText::WhenNeeded, |rule| state.plan.rules.cite(rule))
    }
}

/// Whether a step needs another one, or what needs it.
fn is_after(workflow: &Workflow, step: StepIndex, other: StepIndex) -> bool {
    let (mut seen, mut next) = (BTreeSet::new(), vec![step]);
    while let Some(step) = next.pop() {
        for need in &workflow.step(step).needs {
            if *need == other {
                return true;
            }
            if seen.insert(*need) {
                next.push(*need);
            }
        }
    }
    false
}
