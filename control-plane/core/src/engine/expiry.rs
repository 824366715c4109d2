//! What rules let go of (`expire`): objects whose time is over. Nothing goes that somebody still needs. A site is asked to let
//! go as it is for a person, when it is there; the bucket loses them by the usual sweep. What cannot go yet, and what is gone,
//! is looked at again, all of it by one timer.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::time::Duration;

use atoll_model::id::{ObjectId, RunId, SiteId};
use atoll_model::limits::EVICTION_OBJECTS_MAX;
use atoll_model::policy::Expiry;
use atoll_model::time::Timestamp;
use atoll_model::value::ObjectRef;
use storage_sync_core::Reach;
use storage_sync_core::policy::RuleId;

use crate::agenda::{Leaving, Timer};
use crate::command::{Rejection, Response};
use crate::control_plane::ControlPlane;
use crate::fact::{ClaimId, ClaimTerms, Fact};
use crate::rules::{Claim, DataRules};
use crate::state::{BucketState, ObjectState, Run, StandingHold};
use crate::view::{ExpiryState, ExpiryView};

/// Before a site is asked again for what it did not let go, and before an object counts as gone that no copy is known of.
const LOOK_AGAIN: Duration = Duration::from_secs(600);
/// Between two questions to a site: for each it goes through its whole store.
const ASK_AGAIN: Duration = Duration::from_secs(30);

/// When the time of an object is over, by the rule that says the latest.
struct Expiring<'a> {
    rule: Cow<'a, str>,
    then: Expiry,
    /// Nothing as long as its run goes on.
    at: Option<Timestamp>,
}

impl ControlPlane {
    /// Whether the rules of the run want nothing of the object any more, because its time is over.
    pub(super) fn has_let_go(&self, run: &Run, rules: &DataRules, object: ObjectId) -> bool {
        let over = rules.expires.and_then(|expires| Some((expires.then, expires_at(run, rules)?.1)));
        let over = over.filter(|(_, at)| *at <= self.now && !rules.is_held());
        over.is_some_and(|(then, at)| then == Expiry::Delete || self.is_decided(object, at))
    }

    /// The same, as whatever it is in the run.
    pub(super) fn is_let_go_by(&self, run: &Run, object: ObjectId) -> bool {
        let Some(known) = self.state.objects.get(&object) else { return false };
        let mut of_run = self.rules_on(known).filter(|(ruled, _)| ruled.id == run.id).peekable();
        of_run.peek().is_some() && of_run.all(|(run, rules)| self.has_let_go(run, &rules, object))
    }

    fn is_decided(&self, object: ObjectId, at: Timestamp) -> bool {
        self.state.let_go.get(&object).is_some_and(|decided| *decided >= at)
    }

    fn expiring<'a>(&'a self, known: &'a ObjectState) -> Option<Expiring<'a>> {
        let by_rules = self.rules_on(known).filter_map(|(run, rules)| {
            let expires = rules.expires?;
            let at = expires_at(run, &rules).map(|(_, at)| at);
            Some(Expiring { rule: Cow::Owned(run.plan.rules.name(expires.rule)), then: expires.then, at })
        });
        let left = self.left_expiring(known).filter_map(|(claim, terms)| {
            let then = terms.rule.expire?.then;
            Some(Expiring { rule: Cow::Borrowed(&*terms.name), then, at: claim.until })
        });
        by_rules.chain(left).max_by_key(|expiring| (expiring.at.is_none(), expiring.at, expiring.then))
    }

    /// What rules of runs that are forgotten say of it.
    fn left_expiring<'a>(&'a self, known: &ObjectState) -> impl Iterator<Item = (ClaimId, &'a ClaimTerms)> + use<'a> {
        let left = self.state.claims.on(known.reference.id).filter(|(id, _)| id.claim == Claim::Expire);
        left.map(|(id, left)| (id, &*left.terms))
    }

    /// Which rule holds it, whatever others say of its time: also one that came when its run was forgotten, if it may be
    /// about this.
    fn holding_back(&self, known: &ObjectState) -> Option<String> {
        let later = || self.left_expiring(known).find_map(|(claim, terms)| self.holding_back_left(claim, terms));
        self.holding_for_good(known).or_else(later)
    }

    fn holding_back_left(&self, claim: ClaimId, terms: &ClaimTerms) -> Option<String> {
        let project = terms.project.as_deref()?;
        let ended = claim.until.zip(terms.rule.expire).map(|(over, expire)| over - expire.after);
        let is_later = |hold: &&StandingHold| match claim.version {
            Some(version) => hold.since > version,
            None => ended.is_none_or(|ended| hold.since_at > ended),
        };
        // One that stood then has left a claim of its own on what it is about.
        let later = self.state.holds.get(project)?.iter().filter(is_later);
        let bears = later.map(|hold| &hold.rule).find(|rule| rule.matches.may_overlap(&terms.rule.matches))?;
        let file = &self.state.policy(project)?.policy.file;
        Some(format!("{file}:{} of the policy of its project", bears.place.line))
    }

    /// The rule by which its time is over now.
    fn over<'a>(&'a self, known: &'a ObjectState) -> Option<Expiring<'a>> {
        let expiring = self.expiring(known).filter(|expiring| expiring.at.is_some_and(|at| at <= self.now))?;
        self.holding_back(known).is_none().then_some(expiring)
    }

    pub(crate) fn has_expired(&self, known: &ObjectState) -> bool {
        self.over(known).is_some()
    }

    fn is_to_go(&self, object: ObjectId, over: &Expiring<'_>) -> bool {
        over.then == Expiry::Delete || over.at.is_some_and(|at| self.is_decided(object, at))
    }

    /// The run has ended: its rules may say when the time of what it made is over.
    pub(crate) fn look_when_expired(&mut self, run_id: RunId) {
        let run = self.state.run(run_id);
        let Some(ended) = run.finished_at else { return };
        for after in run.plan.rules.expiring_after() {
            self.agenda.set(ended + after, Timer::Expire(run_id));
        }
    }

    /// Rules have changed.
    pub(crate) fn look_at_all_expiries(&mut self) {
        let ended = self.state.runs.values().filter(|run| !run.is_live()).map(|run| run.id);
        ended.collect::<Vec<_>>().into_iter().for_each(|run| self.look_when_expired(run));
        self.agenda.to_expire.extend(self.agenda.expired.objects.keys().copied());
        // A hold may have been lifted.
        let is_over =
            |claim: &ClaimId| claim.claim == Claim::Expire && claim.until.is_some_and(|over| over <= self.now);
        let over = self.state.claims.ids().filter(is_over);
        self.agenda.to_expire.extend(over.flat_map(|claim| self.state.claims.objects_of(claim)));
    }

    pub(crate) fn look_at_expiry_of(&mut self, run: RunId) {
        if let Some(run) = self.state.runs.get(&run) {
            self.agenda.to_expire.extend(run.objects());
        }
    }

    /// The run needs nothing any more of what has expired.
    pub(crate) fn look_at_expired_of(&mut self, run: RunId) {
        if !self.agenda.expired.objects.is_empty() {
            let objects = self.state.run(run).objects();
            self.look_at_left(&objects);
        }
    }

    /// Copies of these are gone, or have stayed.
    pub(crate) fn look_at_left<'a>(&mut self, objects: impl IntoIterator<Item = &'a ObjectId>) {
        let expired = &self.agenda.expired.objects;
        let left = objects.into_iter().filter(|object| expired.contains_key(object)).copied();
        self.agenda.to_expire.extend(left);
    }

    pub(crate) fn look_at_expired_again(&mut self) {
        let expired = &mut self.agenda.expired;
        expired.asked.clear();
        expired.is_timed = false;
        self.agenda.to_expire.extend(expired.objects.keys().copied());
    }

    /// The site is back, and may not know what it was asked.
    pub(crate) fn ask_again_for_expired(&mut self, site: SiteId) {
        self.agenda.expired.asked.remove(&site);
        let there = |object: &&ObjectId| self.state.objects.get(object).is_some_and(|known| known.is_at(site));
        let there: Vec<ObjectId> = self.agenda.expired.objects.keys().filter(there).copied().collect();
        self.agenda.to_expire.extend(there);
    }

    /// Looks at all that may have expired.
    pub(crate) fn look_at_expiry(&mut self) {
        let (mut ended, mut sites) = (Vec::new(), BTreeSet::new());
        for object in std::mem::take(&mut self.agenda.to_expire) {
            let before = self.agenda.expired.objects.remove(&object);
            let Some(leaving) = self.leaving(object, before) else { continue };
            match leaving {
                Leaving::Gone(since) if since + LOOK_AGAIN <= self.now => {
                    ended.push(object);
                    continue;
                }
                Leaving::Going => {
                    sites.extend(self.state.objects[&object].sites.iter().copied());
                    self.agenda.sweep.insert(object);
                }
                Leaving::Gone(_) | Leaving::Asking => {}
            }
            self.agenda.expired.objects.insert(object, leaving);
        }
        ended.retain(|object| self.state.claims.holds(*object));
        if !ended.is_empty() {
            self.record(Fact::ExpiryEnded { objects: ended });
        }
        sites.into_iter().for_each(|site| self.ask_for_expired(site));
        if !self.agenda.expired.objects.is_empty() && !self.agenda.expired.is_timed {
            self.agenda.expired.is_timed = true;
            self.agenda.set(self.now + LOOK_AGAIN, Timer::Expired);
        }
    }

    /// What there is of an object, if its time is over.
    fn leaving(&self, object: ObjectId, before: Option<Leaving>) -> Option<Leaving> {
        let known = self.state.objects.get(&object)?;
        let over = self.over(known)?;
        Some(match before {
            _ if self.is_somewhere(known) && self.is_to_go(object, &over) => Leaving::Going,
            _ if self.is_somewhere(known) => Leaving::Asking,
            Some(Leaving::Gone(since)) => Leaving::Gone(since),
            Some(Leaving::Going | Leaving::Asking) | None => Leaving::Gone(self.now),
        })
    }

    /// Whether a copy is anywhere that may still go.
    fn is_somewhere(&self, known: &ObjectState) -> bool {
        known.bucket != BucketState::Absent
            || known.transfer.is_some()
            || known.sites.iter().any(|site| self.is_trusted(*site))
            || self.state.copying(known.reference.id).next().is_some()
            || self.state.letting_go(known.reference.id).any(|site| self.is_trusted(site))
    }

    fn is_trusted(&self, site: SiteId) -> bool {
        self.state.sites.get(&site).is_some_and(|site| site.revoked.is_none())
    }

    /// Asks a site for what is there of what has expired. One question at a time: it has only the last one in mind.
    pub(crate) fn ask_for_expired(&mut self, site: SiteId) {
        if self.reach(site) != Reach::Connected {
            return;
        }
        let asked = self.agenda.expired.asked.get(&site);
        if asked.is_some_and(|asked| asked.is_open) {
            return;
        }
        if let Some(next) = asked.filter(|asked| !asked.has_more).map(|asked| asked.at + ASK_AGAIN)
            && next > self.now
        {
            return self.agenda.set(next, Timer::ExpiredAt(site));
        }
        let going = self.agenda.expired.objects.iter().filter(|(_, leaving)| **leaving == Leaving::Going);
        let is_new = |object: &ObjectId| asked.is_none_or(|asked| !asked.objects.contains(object));
        let new = going.map(|(object, _)| object).filter(|object| is_new(object));
        let there = new.filter_map(|object| self.state.objects.get(object)).filter(|known| known.is_at(site));
        let there: Vec<ObjectRef> = there.map(|known| known.reference).collect();
        let shown = self.shown_objects(&there);
        let may_go = there.iter().filter(|object| self.why_it_stays(site, object.id, &shown).is_none());
        let objects: Vec<ObjectRef> = may_go.take(EVICTION_OBJECTS_MAX).copied().collect();
        if objects.is_empty() {
            return;
        }
        let asked = self.agenda.expired.asked.entry(site).or_default();
        (asked.at, asked.is_open, asked.has_more) = (self.now, true, objects.len() == EVICTION_OBJECTS_MAX);
        asked.objects.extend(objects.iter().map(|object| object.id));
        self.record(Fact::CopiesExpired { site, objects });
        self.agenda.touched.insert(site);
    }

    /// The site has let go of what it was asked for, or may not.
    pub(crate) fn has_answered_for_expired(&mut self, site: SiteId) {
        if let Some(asked) = self.agenda.expired.asked.get_mut(&site)
            && std::mem::take(&mut asked.is_open)
        {
            self.ask_for_expired(site);
        }
    }

    pub(crate) fn let_expired_go(&mut self, object: ObjectId) -> Result<Response, Rejection> {
        let known = self.known_object(object)?;
        let Some(expiring) = self.expiring(known) else {
            return Err(Rejection::Conflict(format!("no rule says when the time of {object} is over")));
        };
        if expiring.at.is_none_or(|at| at > self.now) {
            let when = expiring.at.map_or_else(|| "after the end of its run".to_owned(), |at| format!("at {at}"));
            return Err(Rejection::Conflict(format!("the time of {object} is over {when}, by {}", expiring.rule)));
        }
        if let Some(rule) = self.holding_back(known) {
            return Err(Rejection::Conflict(format!("{rule} holds {object}")));
        }
        if !self.is_to_go(object, &expiring) {
            self.record(Fact::ExpiryDecided { object, at: self.now });
            self.agenda.to_expire.insert(object);
        }
        Ok(Response::Done)
    }

    /// What rules say of the time of an object, for people, with what keeps it all the same.
    pub(crate) fn whole_expiry_view(&self, known: &ObjectState) -> Option<ExpiryView> {
        let view = self.expiry_view(known)?;
        Some(match view.state {
            ExpiryState::Going => ExpiryView { waits_for: self.what_keeps_it(known), ..view },
            ExpiryState::Pending | ExpiryState::Held | ExpiryState::Asking => view,
        })
    }

    /// The same, but for what sites would say of it.
    pub(crate) fn expiry_view(&self, known: &ObjectState) -> Option<ExpiryView> {
        let expiring = self.expiring(known)?;
        let object = known.reference.id;
        let is_over = expiring.at.is_some_and(|at| at <= self.now);
        let (state, waits_for) = match self.holding_back(known) {
            Some(rule) => (ExpiryState::Held, vec![format!("{rule} holds it")]),
            None if !is_over => (ExpiryState::Pending, Vec::new()),
            None if self.is_to_go(object, &expiring) => (ExpiryState::Going, Vec::new()),
            None => (ExpiryState::Asking, Vec::new()),
        };
        let deletes = expiring.then == Expiry::Delete;
        Some(ExpiryView { rule: expiring.rule.into_owned(), deletes, at: expiring.at, state, waits_for })
    }

    /// Why each copy that is left of what has expired is still there.
    fn what_keeps_it(&self, known: &ObjectState) -> Vec<String> {
        let shown = self.shown_objects(&[known.reference]);
        let at_sites = known.sites.iter().map(|site| {
            let why = self.why_it_stays(*site, known.reference.id, &shown);
            let away = || (self.reach(*site) != Reach::Connected).then(|| "it is away".to_owned());
            let rest = why.or_else(away).unwrap_or_else(|| "it was asked to let it go".to_owned());
            format!("{}: {rest}", self.state.site_name(*site))
        });
        let going = self.state.letting_go(known.reference.id).filter(|site| self.is_trusted(*site));
        let going = going.map(|site| {
            format!("{}: it was let go, and the site has not said that it has", self.state.site_name(site))
        });
        let is_needed = known.bucket == BucketState::Present && self.is_needed_in_bucket(known);
        at_sites.chain(going).chain(is_needed.then(|| "bucket: it is needed there".to_owned())).collect()
    }
}

/// When a rule of a run that has ended lets the data go without asking anybody.
pub(super) fn deleted_at(run: &Run, rules: &DataRules) -> Option<Timestamp> {
    rules.expires.filter(|expires| expires.then == Expiry::Delete && !rules.is_held())?;
    expires_at(run, rules).map(|(_, at)| at)
}

/// When the time of the data is over by a rule of a run that has ended, whatever holds it.
pub(super) fn expires_at(run: &Run, rules: &DataRules) -> Option<(RuleId, Timestamp)> {
    let expires = rules.expires?;
    let ended = run.finished_at.filter(|_| !run.is_live())?;
    Some((expires.rule, ended + expires.after))
}
