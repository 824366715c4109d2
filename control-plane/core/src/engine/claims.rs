//! What rules of projects and workflows hold: copies at sites, the last copy wherever it is, and what was pushed to the bucket
//! to stay there. When a run is forgotten, what is held of it is left as claims.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;

use atoll_model::id::{ObjectId, RunId, SiteId};
use atoll_model::policy::{KeepAt, Pin, PolicyRule, Until};
use atoll_model::time::Timestamp;
use storage_sync_core::policy::RuleId;

use super::expiry::{deleted_at, expires_at};
use super::policies::Kept;
use crate::agenda::Timer;
use crate::control_plane::ControlPlane;
use crate::fact::{ClaimId, ClaimTerms, Claimed, Fact};
use crate::rules::{Claim, DataRules, Rules};
use crate::state::{BucketState, ObjectState, Run};

/// So many objects stand in one fact.
const CLAIMED_PER_FACT: usize = 256;

/// A rule that holds an object now.
struct Holding<'a> {
    claim: Claim,
    rule: &'a PolicyRule,
    by: By<'a>,
    /// Nothing as long as its run goes on, and where it holds for good.
    until: Option<Timestamp>,
}

enum By<'a> {
    Rules(&'a Run, RuleId),
    /// A run that is forgotten. With the name of the rule, and where the run made the object.
    Left(&'a str, Option<SiteId>),
}

impl Holding<'_> {
    fn name(&self) -> Cow<'_, str> {
        match self.by {
            By::Rules(run, rule) => Cow::Owned(run.plan.rules.name(rule)),
            By::Left(name, _) => Cow::Borrowed(name),
        }
    }
}

impl ControlPlane {
    fn holding<'a>(&'a self, known: &'a ObjectState) -> impl Iterator<Item = Holding<'a>> {
        let by_rules = self.rules_on(known).flat_map(|(run, data)| {
            let claims = data.claims.iter().copied();
            claims.filter_map(|(claim, rule)| self.holding_of(run, claim, rule)).collect::<Vec<_>>()
        });
        let left = self.state.claims.on(known.reference.id);
        let left = left.filter(|(id, _)| id.claim != Claim::Expire && self.is_still_on(*id));
        by_rules.chain(left.map(|(id, left)| {
            let made_at = left.objects.get(&known.reference.id).copied().flatten();
            let by = By::Left(&left.terms.name, made_at);
            Holding { claim: id.claim, rule: &left.terms.rule, by, until: id.until }
        }))
    }

    fn holding_of<'a>(&self, run: &'a Run, claim: Claim, id: RuleId) -> Option<Holding<'a>> {
        let rules = &*run.plan.rules;
        let rule = rules.rule(id)?;
        let ended = run.finished_at.filter(|_| !run.is_live());
        let until = match (claim_lasts(rule, claim)?, ended) {
            (Until::Forever, _) | (Until::AfterRun(_), None) => None,
            (Until::AfterRun(time), Some(ended)) => Some(ended + time),
        };
        let is_on = until.is_none_or(|until| until > self.now);
        is_on.then_some(Holding { claim, rule, by: By::Rules(run, id), until })
    }

    /// The rules of a run that pin the object now.
    pub(super) fn pinning<'a>(&self, run: &'a Run, data: &DataRules) -> impl Iterator<Item = (RuleId, &'a Pin)> {
        let pins = data.claims.iter().filter(|(claim, _)| *claim == Claim::Pin);
        pins.filter_map(|(claim, rule)| Some((*rule, self.holding_of(run, *claim, *rule)?.rule.pin.as_ref()?)))
    }

    fn is_still_on(&self, claim: ClaimId) -> bool {
        claim.until.is_none_or(|until| until > self.now)
    }

    /// Which rule wants the copy to stay at this site.
    pub(crate) fn held_there(&self, site: SiteId, known: &ObjectState) -> Option<String> {
        let location = self.location(site)?;
        let stays = |holding: &Holding<'_>| match holding.claim {
            Claim::Keep => holding.rule.keep.as_ref().is_some_and(|keep| match &keep.at {
                KeepAt::Producer => self.made_at(known, &holding.by) == Some(site),
                KeepAt::Sites(selector) => selector.admits(location),
            }),
            Claim::Pin => holding.rule.pin.as_ref().is_some_and(|pin| pin.at.admits(location)),
            Claim::Hold | Claim::Bucket | Claim::Expire => false,
        };
        self.holding(known).find(stays).map(|holding| format!("{} keeps it there", holding.name()))
    }

    fn made_at(&self, known: &ObjectState, by: &By<'_>) -> Option<SiteId> {
        let run = match by {
            By::Rules(run, _) => run,
            By::Left(_, made_at) => return *made_at,
        };
        if let Some(producer) = known.producer.filter(|producer| producer.run == run.id) {
            return Some(run.steps.get(producer.step.index())?.row(producer.element)?.site);
        }
        // Another run made the same before.
        makers(run, |object| object == known.reference.id).into_values().next()
    }

    /// Which rule wants one copy to stay at least, wherever it is.
    pub(crate) fn held_anywhere(&self, known: &ObjectState) -> Option<String> {
        let first = self.holding(known).find(|holding| holding.claim != Claim::Bucket)?;
        let verb = if first.claim == Claim::Hold { "holds" } else { "keeps" };
        Some(format!("{} {verb} it", first.name()))
    }

    /// Which rule holds the object until the rule is lifted.
    pub(super) fn holding_for_good(&self, known: &ObjectState) -> Option<String> {
        let first = self.holding(known).find(|holding| holding.claim == Claim::Hold)?;
        Some(first.name().into_owned())
    }

    /// Whether a rule of a run that is forgotten keeps the object in the bucket.
    pub(crate) fn is_left_in_bucket(&self, object: ObjectId) -> bool {
        self.state.claims.on(object).any(|(id, _)| id.claim == Claim::Bucket && self.is_still_on(id))
    }

    /// When the last rule ceases to hold the object, if all of them do.
    pub(crate) fn held_by_rules_until(&self, known: &ObjectState) -> Option<Timestamp> {
        self.holding(known).map(|holding| holding.until).collect::<Option<Vec<_>>>()?.into_iter().max()
    }

    /// The run is about to be forgotten, and with it the rules on what it has made.
    pub(crate) fn leave_claims(&mut self, run_id: RunId) {
        let mut left: BTreeMap<ClaimId, (ClaimTerms, Vec<Claimed>)> = BTreeMap::new();
        let Some(run) = self.state.runs.get(&run_id).filter(|run| !run.plan.rules.is_empty()) else { return };
        let made = makers(run, |_| true);
        for object in run.objects() {
            let Some(known) = self.state.objects.get(&object) else { continue };
            let is_going = self.state.letting_go(object).next().is_some();
            if known.sites.is_empty() && known.bucket == BucketState::Absent && !is_going {
                continue;
            }
            for (claim, rule, until) in self.claims_on(run, known) {
                let rules = &*run.plan.rules;
                let of_project = Rules::is_of_project(rule);
                let version = rules.version().filter(|_| of_project);
                let names_project = of_project || claim == Claim::Expire;
                let id = ClaimId { run: run_id, claim, until, rule: rule.rule, version };
                let terms = || ClaimTerms {
                    project: names_project.then(|| run.project.clone()),
                    rule: rules.rule(rule).cloned().unwrap_or_default(),
                    name: rules.name(rule).into(),
                };
                let (_, objects) = left.entry(id).or_insert_with(|| (terms(), Vec::new()));
                objects.push((object, made.get(&object).copied()));
            }
        }
        for (claim, (terms, objects)) in left {
            let terms = Arc::new(terms);
            for objects in objects.chunks(CLAIMED_PER_FACT) {
                let (terms, objects) = (Arc::clone(&terms), objects.to_vec());
                self.record(Fact::ClaimLeft { claim, terms, objects });
            }
            self.look_when_lapsed(claim);
        }
    }

    /// What the rules of one run hold of the object from now on, and until when.
    fn claims_on(&self, run: &Run, known: &ObjectState) -> Vec<(Claim, RuleId, Option<Timestamp>)> {
        let mut claims = Vec::new();
        for (_, data) in self.rules_on(known).filter(|(ruled, _)| ruled.id == run.id) {
            let holding = data.claims.iter().filter_map(|(claim, rule)| {
                let holding = self.holding_of(run, *claim, *rule)?;
                Some((*claim, *rule, holding.until))
            });
            claims.extend(holding);
            // What is held goes when the hold is lifted.
            let expires = expires_at(run, &data).filter(|_| !data.is_held_by_workflow());
            claims.extend(expires.map(|(rule, at)| (Claim::Expire, rule, Some(at))));
            let Some(until) = self.kept_in_bucket_until(run, &data) else { continue };
            let is_there = known.bucket == BucketState::Present;
            let keeping = data.claims.iter().find(|(claim, _)| *claim == Claim::Keep).map(|(_, rule)| *rule);
            // What the project had a part in, it can lift.
            let lifted_with = keeping.filter(|rule| Rules::is_of_project(*rule)).or(data.push.rule);
            let by = data.push.rule.filter(|rule| Rules::is_of_project(*rule)).or(lifted_with);
            claims.extend(by.filter(|_| is_there).map(|rule| (Claim::Bucket, rule, until)));
        }
        claims.sort_unstable();
        claims.dedup();
        claims
    }

    /// Until when a rule of a run that has ended keeps the object in the bucket, if one does; inside, nothing where it is
    /// for good.
    pub(crate) fn kept_in_bucket_until(&self, run: &Run, rules: &DataRules) -> Option<Option<Timestamp>> {
        let until = match self.is_kept(run, rules) {
            Kept::No => return None,
            // By a rule that says nothing of time it stays for as long as runs are known.
            Kept::Yes if rules.keep.is_none() => {
                let remembered = run.finished_at.map(|finished| finished + self.config.keep_finished);
                let deleted_at = deleted_at(run, rules);
                remembered.map(|remembered| deleted_at.map_or(remembered, |over| over.min(remembered)))
            }
            Kept::Yes => None,
            Kept::Until(until) => Some(until),
        };
        until.is_none_or(|until| until > self.now).then_some(until)
    }

    pub(crate) fn look_when_lapsed(&mut self, claim: ClaimId) {
        if let Some(until) = claim.until {
            self.agenda.set(until, Timer::Claim(claim));
        }
    }

    /// What was left of a forgotten run is held no longer, or its time is over.
    pub(crate) fn lapse(&mut self, claim: ClaimId) {
        let held: Vec<ObjectId> = self.state.claims.objects_of(claim).collect();
        self.agenda.to_expire.extend(held.iter().copied());
        if !held.is_empty() && claim.claim != Claim::Expire {
            self.record(Fact::ClaimLapsed { claim });
            self.agenda.sweep.extend(held);
        }
    }
}

/// How long a rule holds copies.
fn claim_lasts(rule: &PolicyRule, claim: Claim) -> Option<Until> {
    match claim {
        Claim::Keep => rule.keep.as_ref().map(|keep| keep.until),
        Claim::Pin => rule.pin.as_ref().map(|pin| pin.until),
        Claim::Hold => rule.hold.as_ref().map(|_| Until::Forever),
        // That follows from several rules, and is known when its run is forgotten.
        Claim::Bucket => None,
        Claim::Expire => None,
    }
}

/// Where each of these objects was made in the run, first.
fn makers(run: &Run, is_asked: impl Fn(ObjectId) -> bool) -> BTreeMap<ObjectId, SiteId> {
    let mut makers = BTreeMap::new();
    for step in &run.steps {
        for (element, detail) in &step.details {
            let Some(row) = step.row(*element) else { continue };
            for value in &detail.outputs {
                crate::state::visit_with_parts(value, &mut |object, parts| {
                    for id in parts.iter().map(|part| part.id).chain([object.id]).filter(|id| is_asked(*id)) {
                        makers.entry(id).or_insert(row.site);
                    }
                });
            }
        }
    }
    makers
}
