//! How facts about objects and transfers change the state.

use std::sync::Arc;

use atoll_model::id::{ExecutionId, ObjectId, RunId, SiteId, SiteName};
use atoll_model::session::{FaultLocation, PushFailure};
use atoll_model::time::Timestamp;
use atoll_model::value::ObjectRef;

use super::{
    BucketState, DoubtfulPush, LedgerEntry, ObjectState, Outgoing, Place, PushTrouble, RowState, State, Transfer,
};
use crate::fact::{Fact, RuleText};

impl State {
    #[expect(clippy::wildcard_enum_match_arm, reason = "`evolve` names every fact once")]
    pub(super) fn evolve_object(&mut self, fact: &Fact) {
        match fact {
            Fact::ObjectUploaded { object, at, hold_until } => {
                let known = self.objects.entry(object.id).or_insert_with(|| ObjectState::new(*object));
                known.upload_until = Some(*hold_until);
                self.enter_bucket(object.id);
                self.unclaimed_ledger.push(LedgerEntry {
                    object: object.id,
                    bytes: object.bytes,
                    from: Place::Client,
                    to: Place::Bucket,
                    for_execution: None,
                    rule: RuleText::Client,
                    at: *at,
                });
            }
            Fact::ObjectFetched { object, site, wire_bytes, direct, execution, rule, at } => {
                self.add_replica(*object, *site);
                let of_site = direct
                    .and_then(|(holder, bytes)| Some((Place::Site(self.sites.get(&holder)?.name.clone()), bytes)));
                let rest = wire_bytes - of_site.as_ref().map_or(0, |(_, bytes)| *bytes);
                let of_bucket = (rest > 0 || of_site.is_none()).then_some((Place::Bucket, rest));
                for (from, bytes) in of_site.into_iter().chain(of_bucket) {
                    let entry = LedgerEntry {
                        object: object.id,
                        bytes,
                        from,
                        to: Place::Site(self.site(*site).name.clone()),
                        for_execution: Some(*execution),
                        rule: rule.clone(),
                        at: *at,
                    };
                    self.enter_ledger(Some(execution.run), entry);
                }
            }
            Fact::PartTaken { object } => {
                let known = self.objects.get(object);
                let container = known.and_then(|known| Some(self.container(known)?.reference.id));
                if let Some(container) = container {
                    self.encrypt_as(*object, container);
                }
                self.enter_bucket(*object);
            }
            Fact::PushOrdered { .. }
            | Fact::PushCancelled { .. }
            | Fact::PushEnded { .. }
            | Fact::PushFailed { .. }
            | Fact::PushLookedUp { .. } => self.evolve_transfer(fact),
            Fact::ReplicaLost { object, site, location, message: _ } => match location {
                FaultLocation::SiteStore => {
                    if let Some(known) = self.objects.get_mut(object) {
                        known.remove_site(*site);
                    }
                }
                // The damaged copy must go before another is put in its place.
                FaultLocation::Bucket => self.leave_bucket(*object, BucketState::Deleting),
            },
            Fact::ObjectHeld { object, run: _, site, until } => {
                let known = self.objects.entry(object.id).or_insert_with(|| ObjectState::new(*object));
                known.hold_until = known.hold_until.max(Some(*until));
                if let Some(site) = site {
                    known.add_site(*site);
                }
            }
            Fact::ObjectDownloaded { object, run, bytes, at } => {
                let entry = LedgerEntry {
                    object: object.id,
                    bytes: *bytes,
                    from: Place::Bucket,
                    to: Place::Client,
                    for_execution: None,
                    rule: RuleText::Client,
                    at: *at,
                };
                self.enter_ledger(Some(*run), entry);
            }
            Fact::BucketReleased { object } => {
                self.leave_bucket(*object, BucketState::Deleting);
                if let Some(known) = self.objects.get_mut(object) {
                    known.hold_until = None;
                    known.upload_until = None;
                }
            }
            Fact::BucketDeleted { object } => {
                self.leave_bucket(*object, BucketState::Absent);
                self.keys.forget_copy(*object);
                self.drop_if_unknown(*object);
            }
            _ => unreachable!("evolve hands over facts about objects only"),
        }
    }

    #[expect(clippy::wildcard_enum_match_arm, reason = "`evolve` names every fact once")]
    fn evolve_transfer(&mut self, fact: &Fact) {
        match fact {
            Fact::PushOrdered { transfer, object, site, run, for_execution, rule, at } => {
                let ordered = Transfer {
                    object: *object,
                    site: *site,
                    run: *run,
                    for_execution: *for_execution,
                    rule: rule.clone(),
                    ordered_at: *at,
                    cancelled: false,
                };
                if self.transfers.insert(*transfer, ordered).is_none() {
                    self.transfers_ordered += 1;
                }
                let known = self.objects.get_mut(&object.id).expect("only known objects are pushed");
                known.transfer = Some(*transfer);
                self.site_mut(*site).log.push(Outgoing::Push { transfer: *transfer, object: *object });
            }
            Fact::PushCancelled { transfer } => {
                if let Some(known) = self.transfers.get_mut(transfer) {
                    known.cancelled = true;
                    let site = known.site;
                    self.site_mut(site).log.push(Outgoing::CancelPush { transfer: *transfer });
                }
            }
            Fact::PushEnded { transfer, wire_bytes, at } => {
                let Some(ended) = self.end_transfer(*transfer) else { return };
                self.enter_bucket(ended.object.id);
                if let Some(known) = self.objects.get_mut(&ended.object.id) {
                    known.push_trouble = None;
                }
                let from = self.site(ended.site).name.clone();
                self.enter_push(&ended, from, *wire_bytes, *at);
            }
            Fact::PushFailed { transfer, reason, message, at } => {
                let Some(ended) = self.end_transfer(*transfer) else { return };
                let from = self.site(ended.site).name.clone();
                if let Some(known) = self.objects.get_mut(&ended.object.id) {
                    match reason {
                        PushFailure::Unavailable => known.remove_site(ended.site),
                        PushFailure::Refused => {
                            let times = known.push_trouble.as_ref().map_or(0, |trouble| trouble.times) + 1;
                            let message = Arc::from(message.as_str());
                            known.push_trouble = Some(PushTrouble { times, at: *at, message });
                        }
                        PushFailure::Cancelled => {}
                        PushFailure::Forbidden => {
                            known.withheld.insert(ended.site, Arc::from(message.as_str()));
                        }
                    }
                    if known.bucket == BucketState::Absent {
                        // An earlier try may have got through, and its report been lost with the agent.
                        known.bucket = BucketState::Deleting;
                        known.doubtful = Some(DoubtfulPush { transfer: *transfer, ended, from, since: *at });
                    }
                }
            }
            Fact::PushLookedUp { object, found, at } => {
                let doubtful = self.objects.get_mut(object).and_then(|known| known.doubtful.take());
                if let Some(DoubtfulPush { ended, from, .. }) = doubtful.filter(|_| *found) {
                    self.enter_bucket(*object);
                    self.enter_push(&ended, from, ended.object.bytes, *at);
                }
            }
            _ => unreachable!("only facts about transfers come here"),
        }
    }

    fn end_transfer(&mut self, transfer: atoll_model::id::TransferId) -> Option<Transfer> {
        let ended = self.transfers.remove(&transfer)?;
        if let Some(known) = self.objects.get_mut(&ended.object.id) {
            known.transfer = None;
        }
        Some(ended)
    }

    pub(super) fn add_replica(&mut self, object: ObjectRef, site: SiteId) {
        let known = self.objects.entry(object.id).or_insert_with(|| ObjectState::new(object));
        known.add_site(site);
        if known.parts.is_empty() {
            return;
        }
        let parts = known.parts.clone();
        for part in parts {
            if let Some(part) = self.objects.get_mut(&part) {
                part.add_site(site);
            }
        }
    }

    /// A site has made what was accepted from another.
    pub(super) fn also_made(&mut self, execution: ExecutionId, site: SiteId) {
        let step = &self.runs[&execution.run].steps[execution.step.index()];
        let succeeded = step.row(execution.element).is_some_and(|row| row.state == RowState::Succeeded);
        let Some(detail) = step.details.get(&execution.element).filter(|_| succeeded) else { return };
        let mut made = Vec::new();
        detail.outputs.iter().for_each(|value| value.visit_objects(&mut |object| made.push(object)));
        made.into_iter().for_each(|object| self.add_replica(object, site));
    }

    /// Whether it can be had from the bucket: as an object of its own, or inside of a directory that was sent in.
    pub(crate) fn bucket_state(&self, known: &ObjectState) -> BucketState {
        match known.bucket {
            BucketState::Absent if self.container(known).is_some() => BucketState::Present,
            own @ (BucketState::Absent | BucketState::Present | BucketState::Deleting) => own,
        }
    }

    /// The directory in the bucket that a file can be taken out of.
    pub(crate) fn container(&self, known: &ObjectState) -> Option<&ObjectState> {
        self.objects.get(&known.within?).filter(|tree| tree.bucket == BucketState::Present)
    }

    fn enter_bucket(&mut self, object: ObjectId) {
        let Some(known) = self.objects.get_mut(&object) else { return };
        known.bucket = BucketState::Present;
        for usage in &known.uses {
            if let Some(run) = self.runs.get_mut(&usage.run) {
                Arc::make_mut(run).in_bucket.entry(usage.source).or_default().insert(object);
            }
        }
    }

    fn leave_bucket(&mut self, object: ObjectId, state: BucketState) {
        let Some(known) = self.objects.get_mut(&object) else { return };
        known.bucket = state;
        for usage in &known.uses {
            if let Some(run) = self.runs.get_mut(&usage.run) {
                let run = Arc::make_mut(run);
                if let Some(objects) = run.in_bucket.get_mut(&usage.source) {
                    objects.remove(&object);
                    if objects.is_empty() {
                        run.in_bucket.remove(&usage.source);
                    }
                }
            }
        }
    }

    fn enter_push(&mut self, push: &Transfer, from: SiteName, bytes: u64, at: Timestamp) {
        let entry = LedgerEntry {
            object: push.object.id,
            bytes,
            from: Place::Site(from),
            to: Place::Bucket,
            for_execution: push.for_execution,
            rule: push.rule.clone(),
            at,
        };
        self.enter_ledger(push.run, entry);
    }

    /// Bytes that did not cross a border (the object was there already) are no entry.
    fn enter_ledger(&mut self, run: Option<RunId>, entry: LedgerEntry) {
        if entry.bytes == 0 && entry.from != Place::Client {
            return;
        }
        match run.and_then(|run| self.runs.get_mut(&run)) {
            Some(run) => Arc::make_mut(run).ledger.push(entry),
            None => self.unclaimed_ledger.push(entry),
        }
    }

    /// Forgets an object that no run knows and nothing happens to.
    pub(super) fn drop_if_unknown(&mut self, object: ObjectId) {
        let droppable = self.objects.get(&object).is_some_and(|known| {
            known.uses.is_empty()
                && known.bucket == BucketState::Absent
                && known.transfer.is_none()
                && known.hold_until.is_none()
                && !self.is_pinned(object)
                && !self.claims.holds(object)
                && !self.results.holds(object)
                && !self.registry.holds(object)
                && self.copying(object).next().is_none()
        });
        if droppable {
            self.objects.remove(&object);
            self.let_go.remove(&object);
        }
    }
}
