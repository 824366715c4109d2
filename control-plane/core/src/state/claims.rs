//! What rules hold of runs that are forgotten here, or let go some time, and how facts change it. A run takes much memory,
//! and what is held of it may be one file for ten years.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use atoll_model::id::{ObjectId, RunId, SiteId};
use atoll_model::policy::{Policy, PolicyRule};
use atoll_model::time::Timestamp;
use serde::{Deserialize, Serialize};

use super::State;
use crate::fact::Fact;
use crate::rules::{AppliedPolicy, Claim};

/// A rule that holds something of a run that has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ClaimId {
    pub run: RunId,
    pub claim: Claim,
    /// Nothing where it is for good.
    pub until: Option<Timestamp>,
    /// Its place among the rules of its project or workflow.
    pub rule: u16,
    /// Of the rules of the project; nothing for one of the workflow's own.
    pub version: Option<u32>,
}

/// An object that is claimed, and where its run made it.
pub(crate) type Claimed = (ObjectId, Option<SiteId>);

/// What the rule said when its run was forgotten.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ClaimTerms {
    /// Nothing for a rule of the workflow's own, which nobody can lift; but for one that lets data go, which the project can
    /// hold.
    pub project: Option<Arc<str>>,
    pub rule: PolicyRule,
    /// Its file and line.
    pub name: Arc<str>,
}

/// A rule of a project that holds something, and since when it does without a break: what is left of a run that was forgotten
/// before is not known well enough to say whether the rule is about it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct StandingHold {
    pub(crate) rule: PolicyRule,
    /// Version of the project's rules.
    pub(crate) since: u32,
    pub(crate) since_at: Timestamp,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct LeftClaim {
    pub(crate) terms: Arc<ClaimTerms>,
    /// Each with the site where the run made it.
    pub(crate) objects: BTreeMap<ObjectId, Option<SiteId>>,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Claims {
    left: BTreeMap<ClaimId, LeftClaim>,
    /// Follows from the others.
    #[serde(skip)]
    of_object: BTreeMap<ObjectId, BTreeSet<ClaimId>>,
    #[serde(skip)]
    said: Said,
}

/// By project and name: what one rule says is there once, of however many runs it holds something.
#[derive(Debug, Clone, Default)]
struct Said(BTreeMap<ProjectAndName, Arc<ClaimTerms>>);

type ProjectAndName = (Option<Arc<str>>, Arc<str>);

/// Which claims share what they say is not a part of the state.
impl PartialEq for Said {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Said {
    fn share(&mut self, terms: &Arc<ClaimTerms>) -> Arc<ClaimTerms> {
        let known = self.0.entry((terms.project.clone(), terms.name.clone())).or_insert_with(|| Arc::clone(terms));
        Arc::clone(if known == terms { known } else { terms })
    }
}

impl Claims {
    /// Whether anything is known of it because of a rule.
    pub(crate) fn holds(&self, object: ObjectId) -> bool {
        self.of_object.contains_key(&object)
    }

    pub(crate) fn on(&self, object: ObjectId) -> impl Iterator<Item = (ClaimId, &LeftClaim)> {
        let claims = self.of_object.get(&object).into_iter().flatten();
        claims.filter_map(|claim| Some((*claim, self.left.get(claim)?)))
    }

    pub(crate) fn ids(&self) -> impl Iterator<Item = ClaimId> {
        self.left.keys().copied()
    }

    pub(crate) fn objects_of(&self, claim: ClaimId) -> impl Iterator<Item = ObjectId> {
        self.left.get(&claim).into_iter().flat_map(|left| left.objects.keys().copied())
    }

    /// Those of rules of the project.
    pub(crate) fn of_project(&self, project: &str) -> impl Iterator<Item = ClaimId> {
        let is_of = move |left: &LeftClaim| left.terms.project.as_deref() == Some(project);
        self.left.iter().filter(move |(_, left)| is_of(left)).map(|(claim, _)| *claim)
    }

    fn leave(&mut self, claim: ClaimId, terms: &Arc<ClaimTerms>, objects: &[Claimed]) {
        let terms = self.said.share(terms);
        let left = self.left.entry(claim).or_insert_with(|| LeftClaim { terms, objects: BTreeMap::new() });
        for (object, made_at) in objects {
            left.objects.insert(*object, *made_at);
            self.of_object.entry(*object).or_default().insert(claim);
        }
    }

    /// The objects that nothing holds any more.
    fn lapse(&mut self, claim: ClaimId) -> Vec<ObjectId> {
        let Some(left) = self.left.remove(&claim) else { return Vec::new() };
        let mut free = Vec::new();
        for object in left.objects.into_keys() {
            let Some(claims) = self.of_object.get_mut(&object) else { continue };
            claims.remove(&claim);
            if claims.is_empty() {
                self.of_object.remove(&object);
                free.push(object);
            }
        }
        self.forget_unsaid();
        free
    }

    /// The object is gone, as rules have wanted.
    fn release(&mut self, object: ObjectId) {
        let Some(claims) = self.of_object.get_mut(&object) else { return };
        for claim in claims.extract_if(.., |claim| claim.claim == Claim::Expire) {
            let Some(left) = self.left.get_mut(&claim) else { continue };
            left.objects.remove(&object);
            if left.objects.is_empty() {
                self.left.remove(&claim);
            }
        }
        if claims.is_empty() {
            self.of_object.remove(&object);
        }
        self.forget_unsaid();
    }

    fn forget_unsaid(&mut self) {
        if self.said.0.len() > self.left.len() {
            self.said = Said::default();
            self.left.values_mut().for_each(|left| left.terms = self.said.share(&left.terms));
        }
    }

    /// What the rules of the project do not say any more.
    fn lifted_by(&self, project: &str, policy: &Policy) -> Vec<ClaimId> {
        let is_said = |claim: &ClaimId| {
            let held = &self.left[claim].terms.rule;
            policy.rules.iter().any(|rule| rule.matches == held.matches && says_the_same(claim.claim, rule, held))
        };
        self.of_project(project).filter(|claim| claim.version.is_some() && !is_said(claim)).collect()
    }

    pub(super) fn restore_derived(&mut self) {
        for (claim, left) in &mut self.left {
            left.terms = self.said.share(&left.terms);
            for object in left.objects.keys() {
                self.of_object.entry(*object).or_default().insert(*claim);
            }
        }
    }
}

fn says_the_same(claim: Claim, one: &PolicyRule, other: &PolicyRule) -> bool {
    match claim {
        Claim::Keep => one.keep == other.keep,
        Claim::Pin => one.pin == other.pin,
        Claim::Hold => one.hold == other.hold,
        Claim::Bucket => one.push == other.push && one.keep == other.keep,
        Claim::Expire => one.expire == other.expire,
    }
}

impl State {
    #[expect(clippy::wildcard_enum_match_arm, reason = "`evolve` names every fact once")]
    pub(super) fn evolve_claims(&mut self, fact: &Fact) {
        match fact {
            Fact::ClaimLeft { claim, terms, objects } => self.claims.leave(*claim, terms, objects),
            Fact::ClaimLapsed { claim } => self.lapse_claim(*claim),
            Fact::ExpiryDecided { object, at } => {
                self.let_go.insert(*object, *at);
            }
            Fact::ExpiryEnded { objects } => {
                for object in objects {
                    self.claims.release(*object);
                    self.drop_if_unknown(*object);
                }
            }
            _ => unreachable!("evolve hands over facts about claims only"),
        }
    }

    /// Rules of the project were changed: some that hold may stand since then.
    pub(super) fn note_holds(&mut self, project: &str, applied: &AppliedPolicy) {
        let before = self.holds.remove(project).unwrap_or_default();
        let stands = |rule: &PolicyRule| {
            let says_it = |known: &&StandingHold| {
                known.rule.matches == rule.matches && says_the_same(Claim::Hold, &known.rule, rule)
            };
            let known = before.iter().find(says_it);
            let (since, since_at) = known.map_or((applied.version, applied.at), |known| (known.since, known.since_at));
            StandingHold { rule: rule.clone(), since, since_at }
        };
        let holding = applied.policy.rules.iter().filter(|rule| rule.hold.is_some());
        let holds: Vec<_> = holding.map(stands).collect();
        if !holds.is_empty() {
            self.holds.insert(project.to_owned(), holds);
        }
    }

    /// Rules of the project were changed: what they do not say any more holds nothing of what is forgotten either.
    pub(super) fn lift_claims(&mut self, project: &str, policy: &Policy) {
        for claim in self.claims.lifted_by(project, policy) {
            self.lapse_claim(claim);
        }
    }

    fn lapse_claim(&mut self, claim: ClaimId) {
        for object in self.claims.lapse(claim) {
            self.drop_if_unknown(object);
        }
    }
}
