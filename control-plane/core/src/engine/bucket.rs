//! What is in the bucket: what people send in, what agents read, and what goes when nobody needs it.

use std::time::Duration;

use atoll_model::id::{AgentId, ExecutionId, ObjectId, SiteId, StepIndex, TransferId};
use atoll_model::limits::URL_LIFETIME;
use atoll_model::session::FaultLocation;
use atoll_model::time::Timestamp;
use atoll_model::value::ObjectRef;
use storage_sync_core::{Needs, Reach, Retention, retain};

use super::policies::Kept;
use crate::agenda::Timer;
use crate::command::{Command, Rejection, Response};
use crate::control_plane::ControlPlane;
use crate::encryption::KeyId;
use crate::fact::{Fact, PinnedAt};
use crate::rules::DataRules;
use crate::state::{Active, BucketState, ObjectState, Run, Source};

/// How long what a person sent in is held for a run to come.
const UPLOAD_HOLD: Duration = Duration::from_secs(3_600);
/// How long a request to delete may be under way after the process that sent it has ended.
const DELETION_LASTS: Duration = Duration::from_secs(30);

impl ControlPlane {
    pub(crate) fn record_upload(&mut self, object: ObjectRef, key: Option<KeyId>) -> Result<Response, Rejection> {
        let known = self.state.objects.get(&object.id);
        let bucket = known.map_or(BucketState::Absent, |known| known.bucket);
        let coming = bucket == BucketState::Absent && known.is_some_and(|known| known.transfer.is_some());
        if coming && self.state.keys.of_copy(object.id) != key.as_ref() {
            let reason = format!("{} is just on its way to the bucket; send it again", object.id);
            return Err(Rejection::Unavailable(reason));
        }
        if bucket == BucketState::Deleting {
            let reason = format!("{} is just being removed from the bucket; send it again", object.id);
            return Err(Rejection::Unavailable(reason));
        }
        let hold_until = self.now + UPLOAD_HOLD;
        self.record(Fact::ObjectUploaded { object, at: self.now, hold_until });
        if let Some(key) = key.filter(|_| bucket == BucketState::Absent && !coming) {
            self.record(Fact::EncryptionChosen { object: object.id, key });
        }
        self.agenda.set(hold_until, Timer::Object(object.id));
        self.agenda.replan.insert(object.id);
        Ok(Response::Staged { copy: self.copy_of(object) })
    }

    /// Deletes the object from the bucket if nobody needs it there.
    pub(crate) fn sweep(&mut self, object: ObjectId) {
        let Some(known) = self.state.objects.get(&object) else { return };
        if retain(self.needs(known)) == Retention::Keep {
            if let Some(until) = self.held_until(known).filter(|_| known.bucket == BucketState::Present) {
                // It may have come after the process that held it.
                self.agenda.set(until, Timer::Object(object));
            }
            if known.bucket == BucketState::Present && self.is_last_and_held(known) {
                // Its site may come back, or another get a copy.
                self.agenda.look_for_other_copy(object, self.now);
            }
            self.look_when_kept_no_more(object);
            return;
        }
        self.agenda.sweep_around.extend(known.within);
        if known.bucket != BucketState::Present || self.is_needed_within(known) {
            return;
        }
        self.record(Fact::BucketReleased { object });
        self.ask_to_delete(object);
    }

    /// Whether a file is needed that is in the bucket as part of this directory only.
    fn is_needed_within(&self, tree: &ObjectState) -> bool {
        tree.parts.iter().filter_map(|part| self.state.objects.get(part)).any(|part| {
            // What knows both of them has been asked for the directory.
            part.within == Some(tree.reference.id)
                && part.uses != tree.uses
                && retain(self.needs(part)) == Retention::Keep
        })
    }

    /// Deletes the object, after a look where it is not known whether it came there: what did is on record and is used.
    /// One thing at a time is asked of the bucket about an object.
    pub(crate) fn ask_to_delete(&mut self, object: ObjectId) {
        if self.agenda.asked_of_bucket.contains_key(&object) {
            return;
        }
        let settled = self.started_at + DELETION_LASTS;
        if self.now >= settled {
            self.agenda.deleted_before.clear();
        } else if self.agenda.deleted_before.contains(&object) {
            // What comes there after an answer to this process, a request of the one before it could still take away.
            return self.agenda.set(settled, Timer::Object(object));
        }
        let known = &self.state.objects[&object];
        // An agent that was turned away does not say that it has stopped: it may send as long as its URLs live.
        let unheard = known
            .doubtful
            .as_ref()
            .filter(|doubtful| self.state.sites.get(&doubtful.ended.site).is_none_or(|site| site.revoked.is_some()));
        if let Some(until) = unheard.map(|doubtful| doubtful.since + URL_LIFETIME).filter(|until| *until > self.now) {
            return self.agenda.set(until, Timer::Object(object));
        }
        let copy = self.copy_of(known.reference);
        let doubtful = known.doubtful.as_ref().map(|doubtful| doubtful.transfer);
        self.agenda.asked_of_bucket.insert(object, doubtful);
        self.command(match doubtful {
            Some(transfer) => Command::LookInBucket { copy, transfer },
            None => Command::DeleteFromBucket { copy },
        });
    }

    /// Whether this was asked of the bucket; then it is no more.
    fn is_answer(&mut self, object: ObjectId, asked: Option<TransferId>) -> bool {
        let is_answer = self.agenda.asked_of_bucket.get(&object) == Some(&asked);
        if is_answer {
            self.agenda.asked_of_bucket.remove(&object);
        }
        is_answer
    }

    /// When the last hold on it ends.
    fn held_until(&self, object: &ObjectState) -> Option<Timestamp> {
        [object.hold_until, object.upload_until].into_iter().flatten().filter(|until| *until > self.now).max()
    }

    pub(super) fn needs(&self, object: &ObjectState) -> Needs {
        let held = self.held_until(object).is_some()
            || self.is_pinned_at(object.reference.id, PinnedAt::Bucket)
            || self.is_last_and_held(object)
            || self.is_being_copied(object)
            || self.state.registry.holds(object.reference.id);
        let mut needs = Needs { held, transfer: object.transfer.is_some(), ..Needs::default() };
        for usage in &object.uses {
            let Some(run) = self.state.runs.get(&usage.run).filter(|run| run.is_live()) else { continue };
            needs.unfinished_readers += unfinished_readers(run, usage.source);
        }
        needs.kept_by_rule = self.is_kept_by_rule(object);
        needs
    }

    fn is_kept_by_rule(&self, object: &ObjectState) -> bool {
        self.rules_on(object).any(|(run, rules)| self.keeps_in_bucket(run, &rules, object.reference.id))
            || self.is_left_in_bucket(object.reference.id)
    }

    /// Whether a rule of the run wants the object in the bucket now.
    pub(super) fn keeps_in_bucket(&self, run: &Run, rules: &DataRules, object: ObjectId) -> bool {
        // What is to be kept for a time is, whatever is said of its end.
        let has_let_go = || rules.keep.is_none() && self.has_let_go(run, rules, object);
        self.is_kept(run, rules) != Kept::No && !has_let_go()
    }

    pub(super) fn is_needed_in_bucket(&self, known: &ObjectState) -> bool {
        self.is_pinned_at(known.reference.id, PinnedAt::Bucket) || retain(self.needs(known)) == Retention::Keep
    }

    /// Whether a rule or a person wants it in the bucket, whoever reads it.
    pub(crate) fn is_kept_in_bucket(&self, object: &ObjectState) -> bool {
        self.is_kept_by_rule(object)
            || self.held_until(object).is_some()
            || self.is_pinned_at(object.reference.id, PinnedAt::Bucket)
    }

    /// Whether no site has a copy of what a person or a rule wants to stay somewhere.
    fn is_last_and_held(&self, object: &ObjectState) -> bool {
        let at_sites = object.sites.iter().any(|site| self.reach(*site) != Reach::Gone);
        let is_pinned = || self.is_pinned_at(object.reference.id, PinnedAt::Anywhere);
        !at_sites && (is_pinned() || self.held_anywhere(object).is_some())
    }

    pub(crate) fn bucket_object_deleted(&mut self, object: ObjectId) {
        let is_answer = self.is_answer(object, None);
        let deleting = |known: &&ObjectState| is_answer && known.bucket == BucketState::Deleting;
        let Some(known) = self.state.objects.get(&object).filter(deleting) else { return };
        if known.doubtful.is_some() {
            return self.ask_to_delete(object);
        }
        let was_last = known.sites.iter().all(|site| self.reach(*site) == Reach::Gone);
        self.record(Fact::BucketDeleted { object });
        self.agenda.replan.insert(object);
        if was_last {
            self.wake_data();
        }
    }

    pub(crate) fn bucket_object_seen(&mut self, object: ObjectId, transfer: TransferId, present: bool) {
        if !self.is_answer(object, Some(transfer)) {
            return;
        }
        let Some(known) = self.state.objects.get(&object) else { return };
        if known.doubtful.as_ref().is_none_or(|doubtful| doubtful.transfer != transfer) {
            return self.look_at_object(object);
        }
        self.record(Fact::PushLookedUp { object, found: present, at: self.now });
        if present {
            // It is served from there, or goes if nobody needs it any more.
            self.agenda.replan.insert(object);
            self.wake_data();
        } else {
            self.ask_to_delete(object);
        }
    }

    /// A hold may have ended.
    pub(crate) fn look_at_object(&mut self, object: ObjectId) {
        let Some(known) = self.state.objects.get(&object) else { return };
        match known.bucket {
            // It may be time to push again what was refused.
            BucketState::Absent if known.push_trouble.is_some() => {
                self.agenda.replan.insert(object);
            }
            BucketState::Absent => {}
            BucketState::Deleting => self.ask_to_delete(object),
            BucketState::Present => {
                self.agenda.sweep.insert(object);
            }
        }
        self.refuse_who_waited_too_long(object);
    }

    /// May this agent read the object from the bucket?
    pub(crate) fn authorise_fetch(&mut self, agent: AgentId, object: ObjectId) -> Result<Response, Rejection> {
        let site = self.trusted_site(agent)?;
        let reads_still = |execution| self.state.active(execution).is_some_and(|active| !active.cancelling);
        let is_wanted = self.agenda.wants.at(object, site).any(reads_still);
        if !is_wanted && !self.may_fetch(site, object) {
            return Err(Rejection::Forbidden(format!("no execution at this site reads {object}")));
        }
        if let Some(reason) = self.veto(object, site) {
            return Err(Rejection::Forbidden(reason));
        }
        match self.state.objects.get(&object) {
            Some(known) if self.state.bucket_state(known) == BucketState::Present => {
                let within = self.state.container(known).map(|tree| self.copy_of(tree.reference));
                let (reference, is_own) = (known.reference, known.bucket == BucketState::Present);
                if !is_own {
                    self.record(Fact::PartTaken { object });
                }
                Ok(Response::Authorised { copy: self.copy_of(reference), within })
            }
            Some(_) | None => Err(Rejection::Unavailable(format!("{object} is not in the bucket"))),
        }
    }

    /// Whether an execution that is dispatched to the site reads the object, a rule wants a copy of it there, or it is made
    /// ready there.
    pub(crate) fn may_fetch(&self, site: SiteId, object: ObjectId) -> bool {
        self.reader_at(site, object).is_some()
            || self.state.replicas.contains_key(&(object, site))
            || self.state.made_ready_for(site, object).is_some()
    }

    /// An execution that is dispatched to the site and reads the object. What is to be cancelled, as its agent may not have
    /// heard yet, reads nothing more.
    pub(crate) fn reader_at(&self, site: SiteId, object: ObjectId) -> Option<ExecutionId> {
        let known = self.state.objects.get(&object)?;
        self.state.site(site).busy.keys().find_map(|(run_id, step)| {
            let run = self.state.run(*run_id);
            let sources = &run.plan.steps[step.index()].reads;
            let may_read = known.uses.iter().any(|usage| usage.run == *run_id && sources.contains(&usage.source));
            let here = |active: &Active| active.site == site && !active.cancelling;
            let mut active = run.steps[step.index()].active.iter().filter(|(_, active)| here(active));
            let reads = |element: u32| self.needed_objects(run, *step, element).iter().any(|read| read.id == object);
            let (element, _) = active.find(|(element, _)| may_read && reads(**element))?;
            Some(ExecutionId { run: *run_id, step: *step, element: *element })
        })
    }

    pub(crate) fn authorise_push(&self, agent: AgentId, transfer: TransferId) -> Result<Response, Rejection> {
        let site = self.trusted_site(agent)?;
        match self.state.transfers.get(&transfer) {
            Some(known) if known.site == site && !known.cancelled => {
                Ok(Response::Authorised { copy: self.copy_of(known.object), within: None })
            }
            Some(known) if known.site == site => Err(Rejection::Conflict(format!("{transfer} was cancelled"))),
            Some(_) | None => Err(Rejection::Forbidden(format!("no {transfer} was ordered from this site"))),
        }
    }

    pub(crate) fn bucket_fault(
        &mut self,
        agent: AgentId,
        object: ObjectId,
        message: String,
    ) -> Result<Response, Rejection> {
        let site = self.trusted_site(agent)?;
        self.replica_lost(site, object, FaultLocation::Bucket, message);
        Ok(Response::Done)
    }

    /// Executions at a site that lost its copy fetch it again, so it is brought to the bucket for them.
    pub(crate) fn replica_lost(&mut self, site: SiteId, object: ObjectId, location: FaultLocation, message: String) {
        let Some(known) = self.state.objects.get(&object) else { return };
        let is_news = match location {
            FaultLocation::Bucket => known.bucket == BucketState::Present,
            FaultLocation::SiteStore => known.is_at(site),
        };
        if !is_news {
            return;
        }
        self.record(Fact::ReplicaLost { object, site, location, message });
        self.agenda.to_copy.insert(object);
        if location == FaultLocation::Bucket {
            self.ask_to_delete(object);
            // With a directory goes what was to be taken out of it.
            self.agenda.replan.extend(self.state.objects[&object].parts.iter().copied());
        }
        let busy: Vec<_> = self.state.site(site).busy.keys().copied().collect();
        for (run, step) in busy {
            let sources = &self.state.run(run).plan.steps[step.index()].reads;
            let uses = &self.state.objects[&object].uses;
            if uses.iter().any(|usage| usage.run == run && sources.contains(&usage.source)) {
                let elements = self.active_at(site, run, step, |_, _| true);
                for element in elements.iter() {
                    self.want(site, ExecutionId { run, step, element });
                }
            }
        }
        self.agenda.replan.insert(object);
        self.wake_data();
    }
}

/// Steps of a live run that may still read what comes from this source. What a run was given nobody can make again: when a
/// site is lost with what was made of it, its readers start anew, also those that have ended.
pub(super) fn unfinished_readers(run: &Run, source: Source) -> u32 {
    match source {
        Source::Step(step) => {
            let successors = &run.plan.steps[step.index()].successors;
            let again = successors.iter().filter(|reader| !run.steps[reader.index()].recomputing.is_empty());
            run.steps[step.index()].readers_left + u32::from(again.take(1).count() > 0)
        }
        Source::Input(_) | Source::Bundle(_) => u32::from(run.is_live()),
    }
}

/// The first execution that reads what comes from this source.
pub(super) fn first_reader(run: &Run, source: Source) -> Option<ExecutionId> {
    let steps = (0..=u16::MAX).map(StepIndex).zip(&run.plan.steps);
    let (step, _) = steps.into_iter().find(|(_, planned)| planned.reads.contains(&source))?;
    Some(ExecutionId { run: run.id, step, element: 0 })
}

/// What other steps made for a step, and what it made: all that may go when it ends.
pub(crate) fn sources_released_by(run: &Run, step: StepIndex) -> Vec<Source> {
    let reads = run.plan.steps[step.index()].reads.iter().copied();
    let mut sources: Vec<Source> = reads.filter(|source| matches!(source, Source::Step(_))).collect();
    sources.extend(run.workflow.step(step).needs.iter().map(|need| Source::Step(*need)));
    sources.push(Source::Step(step));
    sources.sort_unstable();
    sources.dedup();
    sources
}
