//! Copies that somebody wants, whoever reads them. Rules want them in the bucket (`push: eager`, `push: on-success`) and at
//! several sites (`replicate`, `pin`): they are made when what they are of is made, again when that was refused, and anew when
//! one is lost. People want them where they have pinned the object, as long as it is pinned. Nothing is copied of which no run
//! is remembered: nobody knows its rules any more.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::sync::Arc;

use atoll_model::id::{ExecutionId, ObjectId, RunId, SiteId};
use atoll_model::policy::{Importance, Replicate, Selector};
use storage_sync_core::policy::{RuleId, differing};
use storage_sync_core::{Plan, Reach};

use super::bucket::first_reader;
use super::taking_out::holds;
use crate::agenda::Timer;
use crate::command::Rejection;
use crate::control_plane::ControlPlane;
use crate::fact::{Fact, PinnedAt, RuleText};
use crate::state::{BucketState, Detail, ObjectState, Phase, Run, Source, Use};
use crate::view::RunState;

/// What a rule wants of an object.
pub(super) struct Replication<'a> {
    pub(super) run: &'a Run,
    rule: RuleId,
    pub(super) wanted: Cow<'a, Replicate>,
}

impl Replication<'_> {
    pub(super) fn name(&self) -> String {
        self.run.plan.rules.name(self.rule)
    }

    /// Whether sites that differ in so much are enough.
    pub(super) fn is_content(&self, there: usize) -> bool {
        there >= self.wanted.copies as usize
    }
}

/// Who wants the object in the bucket.
enum By<'a> {
    Rule(&'a Run, RuleId),
    /// The name of who has pinned it there.
    Person(&'a str),
}

/// What somebody wants in the bucket.
pub(super) struct Owed<'a> {
    by: By<'a>,
    /// What it is entered for.
    execution: ExecutionId,
}

impl Owed<'_> {
    fn cite(&self) -> RuleText {
        match self.by {
            By::Rule(run, rule) => run.plan.rules.cite(rule),
            By::Person(_) => RuleText::Client,
        }
    }

    pub(super) fn name(&self) -> String {
        match self.by {
            By::Rule(run, rule) => run.plan.rules.name(rule),
            By::Person(name) => name.to_owned(),
        }
    }
}

/// A copy that is to be made.
pub(super) struct NextCopy {
    at: SiteId,
    plan: Plan<(RunId, RuleId)>,
    execution: ExecutionId,
    rule: RuleText,
}

impl ControlPlane {
    pub(super) fn replications<'a>(&'a self, known: &'a ObjectState) -> impl Iterator<Item = Replication<'a>> {
        self.rules_on(known).filter(|(run, _)| is_worth_copies(run)).flat_map(|(run, data)| {
            let is_wanted = !self.has_let_go(run, &data, known.reference.id);
            let replicate = data.replicate.iter().filter(|_| is_wanted).filter_map(|rule| {
                let wanted = Cow::Borrowed(run.plan.rules.rule(*rule)?.replicate.as_ref()?);
                Some(Replication { run, rule: *rule, wanted })
            });
            let pin = self.pinning(run, &data).map(|(rule, pin)| {
                let wanted = Cow::Owned(one_copy(&pin.at));
                Replication { run, rule, wanted }
            });
            replicate.chain(pin).collect::<Vec<_>>()
        })
    }

    /// In what the sites differ of those that count for a rule.
    pub(super) fn differing_among(
        &self,
        wanted: &Replicate,
        sites: impl Iterator<Item = SiteId>,
    ) -> BTreeSet<Option<&str>> {
        let counting = sites.filter(|site| self.reach(*site) != Reach::Gone);
        let locations = counting.filter_map(|site| self.location(site));
        locations.filter(|location| wanted.to.admits(*location)).map(|location| differing(wanted, location)).collect()
    }

    fn sites_of<'a>(&'a self, known: &'a ObjectState) -> impl Iterator<Item = SiteId> {
        known.sites.iter().copied().chain(self.state.copying(known.reference.id))
    }

    /// The next copy that somebody wants and a site can take now.
    pub(super) fn next_copy(&self, known: &ObjectState) -> Option<NextCopy> {
        self.next_by_rule(known).or_else(|| self.next_pinned(known))
    }

    fn next_by_rule(&self, known: &ObjectState) -> Option<NextCopy> {
        let execution = known.producer?;
        self.replications(known).find_map(|replication| {
            let wanted = &*replication.wanted;
            let there = self.differing_among(wanted, self.sites_of(known));
            if replication.is_content(there.len()) {
                return None;
            }
            let free = self.state.sites.keys().copied().filter(|site| {
                let differs = |location| wanted.to.admits(location) && !there.contains(&differing(wanted, location));
                self.location(*site).is_some_and(differs) && self.site_closed(*site).is_none()
            });
            let planned = free.filter_map(|site| Some((site, self.way_of_copy(known, site)?)));
            // Those that need no push first, and not always the same.
            let (at, plan) = planned.min_by_key(|(site, plan)| {
                let needs_push = matches!(plan, Plan::PushFrom(_) | Plan::Wait);
                (needs_push, spread(known.reference.id, *site))
            })?;
            let rule = replication.run.plan.rules.cite(replication.rule);
            Some(NextCopy { at, plan, execution, rule })
        })
    }

    fn next_pinned(&self, known: &ObjectState) -> Option<NextCopy> {
        let (object, rule) = (known.reference.id, RuleText::Client);
        let execution = self.entered_for(known)?;
        let lacking = self.pinned_and_lacking(known).map(|(site, _)| site);
        let free = lacking
            .filter(|site| self.site_closed(*site).is_none() && self.state.copying(object).all(|other| other != *site));
        let (at, plan) = free.filter_map(|site| Some((site, self.way_of_copy(known, site)?))).next()?;
        Some(NextCopy { at, plan, execution, rule })
    }

    /// The sites at which the object is pinned and is not, and who has pinned it there.
    pub(super) fn pinned_and_lacking<'a>(&'a self, known: &'a ObjectState) -> impl Iterator<Item = (SiteId, &'a str)> {
        let pins = self.state.pins.get(&known.reference.id).into_iter().flatten();
        pins.filter_map(|(at, pin)| match at {
            PinnedAt::Site(site) if !known.is_at(*site) => Some((*site, &*pin.by)),
            PinnedAt::Site(_) | PinnedAt::Bucket | PinnedAt::Anywhere => None,
        })
    }

    /// What is moved because a person asked for it is entered for an execution that made it, or reads it if it was sent in, of
    /// a run that is remembered.
    fn entered_for(&self, known: &ObjectState) -> Option<ExecutionId> {
        let of_run = |usage: &Use| {
            let run = self.state.runs.get(&usage.run)?;
            let made = known.producer.filter(|producer| producer.run == run.id);
            made.or_else(|| maker(run, *usage, known)).or_else(|| first_reader(run, usage.source))
        };
        known.uses.iter().find_map(of_run)
    }

    /// Whether a copy can come to where somebody pins the object, and there is none.
    pub(crate) fn can_come_to(&self, at: PinnedAt, known: &ObjectState) -> Result<(), Rejection> {
        let object = known.reference.id;
        let is_left = known.bucket == BucketState::Present
            || known.sites.iter().any(|site| self.reach(*site) != Reach::Gone)
            || self.state.container(known).is_some();
        if !is_left {
            return Err(Rejection::Conflict(format!("there is no copy of {object} left that could stay")));
        }
        let keeping = match at {
            PinnedAt::Anywhere => None,
            PinnedAt::Bucket => self.confining(known).or_else(|| self.vetoes(known, None).bucket),
            PinnedAt::Site(site) => {
                if let Some(reason) = self.site_closed(site).filter(|_| self.reach(site) == Reach::Gone) {
                    let site = self.state.site_name(site);
                    return Err(Rejection::Conflict(format!("no copy of {object} can come to {site}: {reason}")));
                }
                match self.plan_object(object, site) {
                    Plan::Forbidden(rule) | Plan::Closed(rule) => Some(rule),
                    Plan::Present
                    | Plan::InBucket
                    | Plan::DirectFrom(_)
                    | Plan::PushFrom(_)
                    | Plan::Wait
                    | Plan::Withheld(_)
                    | Plan::Unavailable => None,
                }
            }
        };
        if let Some(rule) = keeping {
            let place = match at {
                PinnedAt::Site(site) => self.state.site_name(site),
                PinnedAt::Bucket | PinnedAt::Anywhere => "the bucket".to_owned(),
            };
            let reason = format!("{} keeps {object} from coming to {place}", self.rule_name(rule));
            return Err(Rejection::Forbidden(reason));
        }
        if self.entered_for(known).is_none() {
            let reason = format!("no run that is remembered makes or reads {object}: its rules are not known");
            return Err(Rejection::Conflict(reason));
        }
        Ok(())
    }

    pub(super) fn way_of_copy(&self, known: &ObjectState, site: SiteId) -> Option<Plan<(RunId, RuleId)>> {
        let plan = self.plan_object(known.reference.id, site);
        let is_way = match plan {
            Plan::InBucket | Plan::DirectFrom(_) | Plan::PushFrom(_) => true,
            // Until it is in the bucket; a holder that is away may be so for long.
            Plan::Wait => known.transfer.is_some(),
            Plan::Present | Plan::Forbidden(_) | Plan::Closed(_) | Plan::Withheld(_) | Plan::Unavailable => false,
        };
        is_way.then_some(plan)
    }

    /// Has the copies made that somebody wants of the object.
    pub(crate) fn make_copies(&mut self, object: ObjectId) {
        self.bring_to_bucket(object);
        self.copy_to_sites(object);
        let lacks = |known: &ObjectState| self.lacks_copies(known) || self.owed_to_bucket(known).is_some();
        if self.state.objects.get(&object).is_some_and(lacks) {
            self.agenda.look_for_copy(object, self.now);
        } else {
            self.agenda.lacking.remove(object);
            self.agenda.copy_failures.remove(&object);
        }
    }

    fn bring_to_bucket(&mut self, object: ObjectId) {
        let Some(known) = self.state.objects.get(&object) else { return };
        let Some(owed) = self.owed_to_bucket(known) else { return };
        if known.bucket != BucketState::Absent || known.transfer.is_some() {
            return;
        }
        if let Some(until) = self.push_paused_until(known) {
            return self.agenda.set(until, Timer::Object(object));
        }
        let gives = |site: &SiteId| self.reach(*site) == Reach::Connected && !known.withheld.contains_key(site);
        let Some(holder) = known.sites.iter().copied().find(gives) else { return };
        let (reference, rule, execution) = (known.reference, owed.cite(), owed.execution);
        self.order_push(reference, holder, (execution.run, Some(execution)), rule);
    }

    /// Who wants the object in the bucket where it is not, if it can come there some time.
    pub(super) fn owed_to_bucket<'a>(&'a self, known: &'a ObjectState) -> Option<Owed<'a>> {
        let gives = |site: &SiteId| self.reach(*site) != Reach::Gone && !known.withheld.contains_key(site);
        if self.state.bucket_state(known) == BucketState::Present || !known.sites.iter().any(gives) {
            return None;
        }
        let mut rules = self.rules_by_use(known).filter(|(_, run, _)| is_worth_copies(run));
        let by_rule = rules.find_map(|(usage, run, rules)| {
            let rule = rules.push.rule.filter(|_| self.keeps_in_bucket(run, &rules, known.reference.id))?;
            Some(Owed { by: By::Rule(run, rule), execution: maker(run, usage, known)? })
        });
        let pinned = || {
            let by =
                self.pinned_by(known.reference.id, PinnedAt::Bucket).filter(|_| self.confining(known).is_none())?;
            Some(Owed { by: By::Person(by), execution: self.entered_for(known)? })
        };
        let owed = by_rule.or_else(pinned)?;
        self.vetoes(known, None).bucket.is_none().then_some(owed)
    }

    /// Whether rules of a run that has ended want something in the bucket which is not there yet.
    pub(crate) fn owes_pushes(&self, run: RunId) -> bool {
        let Some(run) = self.state.runs.get(&run).filter(|run| run.plan.rules.want_copies()) else { return false };
        let may_lack = |object: &ObjectId| self.agenda.lacking.has(*object) || self.agenda.to_copy.contains(object);
        run.objects().into_iter().filter(may_lack).any(|object| {
            let Some(known) = self.state.objects.get(&object) else { return false };
            let mut rules = self.rules_on(known).filter(|(ruled, _)| ruled.id == run.id);
            self.owed_to_bucket(known).is_some()
                && rules.any(|(run, rules)| self.kept_in_bucket_until(run, &rules).is_some())
        })
    }

    fn copy_to_sites(&mut self, object: ObjectId) {
        while let Some(known) = self.state.objects.get(&object)
            && let Some(next) = self.next_copy(known)
        {
            let reference = known.reference;
            match next.plan {
                Plan::InBucket | Plan::DirectFrom(_) => {
                    let NextCopy { at, execution, rule, .. } = next;
                    self.record(Fact::ReplicaOrdered { object: reference, site: at, execution, rule });
                    self.agenda.touched.insert(at);
                }
                Plan::PushFrom(holder) => {
                    if let Some(until) = self.push_paused_until(known) {
                        self.agenda.set(until, Timer::Object(object));
                    } else {
                        self.order_push(reference, holder, (next.execution.run, Some(next.execution)), next.rule);
                    }
                    break;
                }
                Plan::Wait
                | Plan::Present
                | Plan::Forbidden(_)
                | Plan::Closed(_)
                | Plan::Withheld(_)
                | Plan::Unavailable => break,
            }
        }
    }

    fn lacks_copies(&self, known: &ObjectState) -> bool {
        let lacks = |replication: Replication<'_>| {
            !replication.is_content(self.differing_among(&replication.wanted, self.sites_of(known)).len())
        };
        known.producer.is_some() && self.replications(known).any(lacks)
            || self.pinned_and_lacking(known).next().is_some() && self.entered_for(known).is_some()
    }

    /// Something has become of the object for which copies may have waited.
    pub(crate) fn copy_if_lacking(&mut self, object: ObjectId) {
        if self.agenda.lacking.has(object) {
            self.agenda.to_copy.insert(object);
        }
    }

    /// Copies may be gone, or others wanted.
    pub(crate) fn look_at_all_copies(&mut self) {
        if self.state.runs.values().any(|run| run.plan.rules.want_copies()) {
            self.agenda.to_copy.extend(self.state.objects.keys().copied());
        } else {
            self.agenda.to_copy.extend(self.state.pins.keys().copied());
        }
    }

    /// What the run made may be wanted elsewhere now that it has ended.
    pub(crate) fn look_at_copies_of(&mut self, run: RunId) {
        let run = self.state.run(run);
        if run.plan.rules.want_copies() {
            self.agenda.to_copy.extend(run.objects());
        }
    }

    /// Whether copies are made of it, or can be once it is where it is needed for that.
    pub(crate) fn is_being_copied(&self, known: &ObjectState) -> bool {
        let reached = |site: SiteId| self.reach(site) != Reach::Gone;
        self.state.copying(known.reference.id).any(reached) || self.next_copy(known).is_some()
    }

    /// A copy is there, or cannot be had.
    pub(crate) fn replica_ended(&mut self, site: SiteId, object: ObjectId, failure: Option<&str>) {
        if !self.state.replicas.contains_key(&(object, site)) {
            return; // It was taken back.
        }
        self.record(Fact::ReplicaEnded { object, site, made: failure.is_none() });
        if let Some(message) = failure {
            // It is not asked again at once for what it could not do now.
            self.agenda.copy_failures.insert(object, (site, Arc::from(message)));
            self.agenda.look_for_copy(object, self.now);
        } else {
            self.agenda.replan.insert(object);
        }
        self.agenda.sweep.insert(object);
    }

    /// With a new journal the agent does not know what it was told.
    pub(crate) fn order_copies_again(&mut self, site: SiteId) {
        let orders: Vec<_> = self.copies_ordered(site).map(|(_, order)| order.clone()).collect();
        for order in orders {
            let (object, execution, rule) = (order.object, order.execution, order.rule);
            self.record(Fact::ReplicaOrdered { object, site, execution, rule });
        }
    }

    /// The site will not make copies any more.
    pub(crate) fn take_back_copies(&mut self, site: SiteId) {
        let orders: Vec<ObjectId> = self.copies_ordered(site).map(|(object, _)| object).collect();
        for object in orders {
            self.record(Fact::ReplicaEnded { object, site, made: false });
            self.agenda.sweep.insert(object);
        }
        self.look_at_all_copies();
    }

    fn copies_ordered(&self, site: SiteId) -> impl Iterator<Item = (ObjectId, &crate::state::ReplicaOrder)> {
        let of_site = self.state.replicas.iter().filter(move |((_, at), _)| *at == site);
        of_site.map(|((object, _), order)| (*object, order))
    }

    /// Which rule would have too few copies without the one at this site.
    pub(crate) fn is_one_of_copies(&self, site: SiteId, known: &ObjectState) -> Option<String> {
        self.replications(known).find_map(|replication| {
            let wanted = &*replication.wanted;
            let counts = self.location(site).is_some_and(|location| wanted.to.admits(location));
            let others = || known.sites.iter().copied().filter(|other| *other != site);
            let too_few = counts && !replication.is_content(self.differing_among(wanted, others()).len());
            too_few.then(|| format!("{} wants {} of it", replication.name(), copies(wanted.copies)))
        })
    }
}

/// The execution that made the object in the run, as itself and not as a file of a directory.
pub(super) fn maker(run: &Run, usage: Use, known: &ObjectState) -> Option<ExecutionId> {
    let Source::Step(step) = usage.source else { return None };
    let made = &run.steps.get(step.index())?.details;
    let is_made = |detail: &Detail| {
        let value = detail.outputs.get(usize::from(usage.output));
        value.is_some_and(|value| holds(value, known.reference.id))
    };
    let first = known.producer.filter(|producer| (producer.run, producer.step) == (run.id, step));
    let element = match first {
        Some(first) => made.get(&first.element).filter(|detail| is_made(detail)).map(|_| first.element),
        // Another run or step made the same before.
        None => made.iter().find(|(_, detail)| is_made(detail)).map(|(element, _)| *element),
    };
    element.map(|element| ExecutionId { run: run.id, step, element })
}

/// What a rule wants that pins something at one of these sites.
fn one_copy(at: &Selector) -> Replicate {
    let (across, importance) = ("site".to_owned(), Importance::Must);
    Replicate { copies: 1, across, to: at.clone(), within: None, importance }
}

pub(super) fn copies(count: u32) -> String {
    if count == 1 { "1 copy".to_owned() } else { format!("{count} copies") }
}

/// What a run made that came to nothing is not worth copies.
fn is_worth_copies(run: &Run) -> bool {
    matches!(run.phase, Phase::Going | Phase::Ended(RunState::Succeeded))
}

/// An order of the sites that is another for each object.
fn spread(object: ObjectId, site: SiteId) -> u64 {
    let (first, _) = object.digest().split_first_chunk::<8>().expect("a digest is longer");
    (u64::from_le_bytes(*first) ^ u64::from(site.0)).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}
