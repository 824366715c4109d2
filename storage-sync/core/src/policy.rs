//! What the rules of all levels say of one object: where it may be, how it gets there, where copies must be, how long they
//! stay. A total function: whatever the rules are, there is an answer, and what cannot be kept together is named in it.
//!
//! - Where an object may be is what no confinement forbids; forbidden sets add up over levels and over everything that the
//!   object was derived from, so no rule widens what another has narrowed.
//! - Of several rules of one other kind those of the most specific level count, and of these the safest.
//! - What must be kept, pinned or replicated must fit into where the object may be.

mod conflict;
mod sites;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use atoll_model::placement::{Labels, PushMode};
use atoll_model::policy::{
    BucketUse, Confine, Expire, Hold, Importance, Keep, KeyScope, Level, Location, Pin, PolicyMatch, PolicyRule,
    Replicate, Route, Until, glob_matches,
};

pub use self::conflict::{Conflict, Unmet, differing};

/// The rules of one file, or of one place in a workflow.
#[derive(Debug, Clone, Copy)]
pub struct Layer<'a> {
    pub level: Level,
    pub rules: &'a [PolicyRule],
}

/// A rule: which layer of those that were given, and which rule of it, both from 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RuleId {
    pub layer: u16,
    pub rule: u16,
}

/// What rules may match.
#[derive(Debug, Clone, Copy)]
pub struct Object<'a> {
    pub workflow: &'a str,
    pub origin: Origin<'a>,
    pub labels: &'a Labels,
    /// Nothing before it exists.
    pub bytes: Option<u64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin<'a> {
    Output { step: &'a str, output: &'a str },
    Input { name: &'a str },
}

/// How well a rule matches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fit {
    No,
    /// If the object turns out to have the right size.
    Maybe,
    Yes,
}

/// Whether an object may pass through the bucket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Bucket {
    Plain,
    Encrypted,
    Forbidden,
}

/// What holds for an object, wherever it is.
#[derive(Debug, Clone, PartialEq)]
pub struct Standing<'a> {
    /// Every rule that matches, and those that confine what it was derived from.
    pub matched: BTreeSet<RuleId>,
    /// All confinements on it: what is derived from it inherits them.
    pub confined_by: BTreeSet<RuleId>,
    pub bucket: Ruled<Bucket>,
    pub route: Ruled<&'a [Route]>,
    pub push: Ruled<PushMode>,
    pub replicate: Option<(&'a Replicate, RuleId)>,
    pub keep: Option<(&'a Keep, RuleId)>,
    pub pin: Option<(&'a Pin, RuleId)>,
    /// Whatever it says, nothing goes while a hold is on it.
    pub expire: Option<(&'a Expire, RuleId)>,
    pub encrypt: Option<(KeyScope, RuleId)>,
    pub hold: Option<(&'a Hold, RuleId)>,
}

/// What holds for an object at the sites that there are.
#[derive(Debug, Clone, PartialEq)]
pub struct Verdict<'a> {
    pub standing: Standing<'a>,
    /// The sites (by their place among those that were given) where it may not be, each with all rules that say so.
    pub forbidden: BTreeMap<usize, BTreeSet<RuleId>>,
    pub allowed: BTreeSet<usize>,
    /// Rules that must hold and cannot hold together: what has any is not admitted.
    pub conflicts: Vec<Conflict>,
    /// Rules that should hold and cannot.
    pub warnings: Vec<Conflict>,
}

/// A value, and the rule that it comes from, if it is from any.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ruled<T> {
    pub value: T,
    pub by: Option<RuleId>,
}

/// Tried in this order where no rule says otherwise.
const ROUTES: &[Route] = &[Route::Direct, Route::Bucket];

/// Says what the layers mean for the object at these sites. `inherited` are the confinements of all that it was derived
/// from; `producers` are the sites where it may be made, where that is known.
pub fn evaluate<'a>(
    layers: &[Layer<'a>],
    object: &Object<'_>,
    inherited: &BTreeSet<RuleId>,
    sites: &[Location<'_>],
    producers: Option<&BTreeSet<usize>>,
) -> Verdict<'a> {
    let standing = standing(layers, object, inherited);
    let forbidden = sites::forbidden(layers, &standing.confined_by, sites);
    let allowed = (0..sites.len()).filter(|site| !forbidden.contains_key(site)).collect();
    let mut verdict = Verdict { standing, forbidden, allowed, conflicts: Vec::new(), warnings: Vec::new() };
    let found = conflict::find(layers, &verdict, sites, producers);
    for (importance, conflict) in found {
        match importance {
            Importance::Must => verdict.conflicts.push(conflict),
            Importance::Should => verdict.warnings.push(conflict),
        }
    }
    verdict
}

/// What the layers say of the object, before sites are looked at.
pub fn standing<'a>(layers: &[Layer<'a>], object: &Object<'_>, inherited: &BTreeSet<RuleId>) -> Standing<'a> {
    let matching = Matching::new(layers, object);
    let mut confined_by: BTreeSet<RuleId> =
        inherited.iter().copied().filter(|id| confinement(layers, *id).is_some()).collect();
    // A rule that may come to match confines from the start: what has left cannot be called back.
    confined_by.extend(matching.all(Fit::Maybe).filter(|(_, rule)| rule.confine.is_some()).map(|(id, _)| id));
    let encrypt = matching.all(Fit::Maybe).filter_map(|(id, rule)| Some((rule.encrypt?, id))).max_by_key(|(_, id)| *id);
    Standing {
        matched: matching.all(Fit::Yes).map(|(id, _)| id).chain(confined_by.iter().copied()).collect(),
        bucket: bucket(layers, &confined_by, encrypt.map(|(_, id)| id)),
        route: ruled(matching.pick(|rule| rule.route.as_deref(), |routes| Reverse(routes.len())), ROUTES),
        push: ruled(matching.pick(|rule| rule.push, |mode| push_safety(*mode)), PushMode::WhenNeeded),
        replicate: matching.pick(|rule| rule.replicate.as_ref(), |replicate| (replicate.copies, replicate.importance)),
        keep: matching.pick(|rule| rule.keep.as_ref(), |keep| keep.until),
        pin: matching.pick(|rule| rule.pin.as_ref(), |pin| pin.until),
        expire: matching.pick(|rule| rule.expire.as_ref(), |expire| (expire.after, expire.then)),
        encrypt,
        hold: matching.pick(|rule| rule.hold.as_ref(), |_| 0),
        confined_by,
    }
}

/// The first of these confinements that keeps the data away from the site. Forbidden sets add up.
pub fn keeping_away<'a>(
    layers: &[Layer<'_>],
    confined_by: impl IntoIterator<Item = &'a RuleId>,
    site: Location<'_>,
) -> Option<RuleId> {
    let forbids = |id: &&RuleId| confinement(layers, **id).is_some_and(|confine| !confine.to.admits(site));
    confined_by.into_iter().find(forbids).copied()
}

/// Whether a copy may go, given how many others there are and who relies on it.
pub fn may_remove(
    other_copies: u32,
    relied_on: bool,
    standing: &Standing<'_>,
    run_ended: Option<std::time::Duration>,
) -> bool {
    let lasts = |until: Until| match until {
        Until::Forever => true,
        Until::AfterRun(time) => run_ended.is_none_or(|ended| ended < time),
    };
    let kept = standing.keep.is_some_and(|(keep, _)| lasts(keep.until));
    let pinned = standing.pin.is_some_and(|(pin, _)| lasts(pin.until));
    other_copies > 0 || !(relied_on || kept || pinned || standing.hold.is_some())
}

/// How well a rule matches an object.
pub fn fit(matches: &PolicyMatch, object: &Object<'_>) -> Fit {
    let named = |pattern: &Option<String>, name: &str| pattern.as_deref().is_none_or(|p| glob_matches(p, name));
    let origin = match object.origin {
        Origin::Output { step, output } => {
            matches.input.is_none() && named(&matches.step, step) && named(&matches.output, output)
        }
        Origin::Input { name } => matches.step.is_none() && matches.output.is_none() && named(&matches.input, name),
    };
    let labels = matches.labels.iter().all(|(label, value)| object.labels.get(label) == Some(value));
    if !origin || !labels || !named(&matches.workflow, object.workflow) {
        return Fit::No;
    }
    match (matches.bytes, object.bytes) {
        (None, _) => Fit::Yes,
        (Some(_), None) => Fit::Maybe,
        (Some(range), Some(bytes)) if range.contains(bytes) => Fit::Yes,
        (Some(_), Some(_)) => Fit::No,
    }
}

struct Matching<'a> {
    /// With the level of each.
    rules: Vec<(Level, RuleId, &'a PolicyRule, Fit)>,
}

impl<'a> Matching<'a> {
    fn new(layers: &[Layer<'a>], object: &Object<'_>) -> Self {
        let mut rules = Vec::new();
        for (layer, Layer { level, rules: of_layer }) in (0..=u16::MAX).zip(layers) {
            for (rule, written) in (0..=u16::MAX).zip(*of_layer) {
                let fit = fit(&written.matches, object);
                if fit != Fit::No {
                    rules.push((*level, RuleId { layer, rule }, written, fit));
                }
            }
        }
        Self { rules }
    }

    fn all(&self, least: Fit) -> impl Iterator<Item = (RuleId, &'a PolicyRule)> {
        self.rules.iter().filter(move |(.., fit)| *fit >= least).map(|(_, id, rule, _)| (*id, *rule))
    }

    /// The value of the most specific level, and of several there the safest; of equals the first that was written.
    fn pick<T, S: Ord>(
        &self,
        value: impl Fn(&'a PolicyRule) -> Option<T>,
        safety: impl Fn(&T) -> S,
    ) -> Option<(T, RuleId)> {
        let sure = self.rules.iter().filter(|(.., fit)| *fit == Fit::Yes);
        let values = sure.filter_map(|(level, id, rule, _)| Some((*level, value(rule)?, *id)));
        values.max_by_key(|(level, value, id)| (*level, safety(value), Reverse(*id))).map(|(_, value, id)| (value, id))
    }
}

fn ruled<T>(picked: Option<(T, RuleId)>, default: T) -> Ruled<T> {
    match picked {
        Some((value, id)) => Ruled { value, by: Some(id) },
        None => Ruled { value: default, by: None },
    }
}

/// What moves less is safer; of what moves, what is elsewhere earlier.
fn push_safety(mode: PushMode) -> u8 {
    match mode {
        PushMode::WhenNeeded => 0,
        PushMode::OnSuccess => 1,
        PushMode::Eager => 2,
        PushMode::Never => 3,
    }
}

fn confinement<'a>(layers: &[Layer<'a>], id: RuleId) -> Option<&'a Confine> {
    layers.get(usize::from(id.layer))?.rules.get(usize::from(id.rule))?.confine.as_ref()
}

/// The strictest of all that confine it.
fn bucket(layers: &[Layer<'_>], confined_by: &BTreeSet<RuleId>, encrypt: Option<RuleId>) -> Ruled<Bucket> {
    let uses = confined_by.iter().filter_map(|id| Some((confinement(layers, *id)?.bucket, *id)));
    let strictest = uses.max_by_key(|(bucket, id)| (*bucket, Reverse(*id)));
    match (strictest, encrypt) {
        (Some((BucketUse::Forbidden, id)), _) | (Some((BucketUse::IfEncrypted, id)), None) => {
            Ruled { value: Bucket::Forbidden, by: Some(id) }
        }
        (_, Some(id)) => Ruled { value: Bucket::Encrypted, by: Some(id) },
        (Some((BucketUse::Allowed, _)) | None, None) => Ruled { value: Bucket::Plain, by: None },
    }
}

#[cfg(test)]
mod tests;
