//! What cannot hold together.

use std::collections::BTreeSet;

use atoll_model::placement::PushMode;
use atoll_model::policy::{Importance, KeepAt, Location, Replicate, Route, Selector};

use super::{Bucket, Layer, RuleId, Verdict};

/// Why a rule cannot be kept, and every other rule that has part in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Conflict {
    pub unmet: Unmet,
    /// The rule that cannot be kept, if it is one that asks for something.
    pub rule: Option<RuleId>,
    pub with: BTreeSet<RuleId>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unmet {
    /// No site is left where the data may be.
    NoSite,
    /// It cannot be made where it may be.
    NoProducer,
    /// No site where it may be is one of those where it is to be kept.
    Keep,
    Pin,
    /// Of the copies that are wanted, so many are possible.
    Replicate {
        wanted: u32,
        possible: u32,
    },
    /// It is to be pushed to a bucket that it may not enter.
    Push,
    /// No route is left but one that is forbidden.
    Route,
}

pub(super) fn find(
    layers: &[Layer<'_>],
    verdict: &Verdict<'_>,
    sites: &[Location<'_>],
    producers: Option<&BTreeSet<usize>>,
) -> Vec<(Importance, Conflict)> {
    debug_assert!(verdict.standing.confined_by.iter().all(|id| usize::from(id.layer) < layers.len()));
    let mut found = Vec::new();
    let mut must = |unmet, rule| {
        found.push((Importance::Must, Conflict { unmet, rule, with: verdict.standing.confined_by.clone() }));
    };
    if verdict.allowed.is_empty() && !verdict.standing.confined_by.is_empty() {
        must(Unmet::NoSite, None);
    } else if producers.is_some_and(|producers| !producers.is_empty() && producers.is_disjoint(&verdict.allowed)) {
        must(Unmet::NoProducer, None);
    }
    let selected = |selector: &Selector| -> BTreeSet<usize> {
        verdict.allowed.iter().copied().filter(|site| selector.admits(sites[*site])).collect()
    };
    if let Some((keep, id)) = verdict.standing.keep
        && let KeepAt::Sites(selector) = &keep.at
        && selected(selector).is_empty()
    {
        must(Unmet::Keep, Some(id));
    }
    if let Some((pin, id)) = verdict.standing.pin
        && selected(&pin.at).is_empty()
    {
        must(Unmet::Pin, Some(id));
    }
    let pushes = matches!(verdict.standing.push.value, PushMode::Eager | PushMode::OnSuccess);
    if pushes && verdict.standing.bucket.value == Bucket::Forbidden {
        must(Unmet::Push, verdict.standing.push.by);
    }
    // Data that stays at one site needs no route.
    if verdict.standing.route.value == [Route::Bucket]
        && verdict.standing.bucket.value == Bucket::Forbidden
        && verdict.allowed.len() > 1
    {
        must(Unmet::Route, verdict.standing.route.by);
    }
    if let Some((replicate, id)) = verdict.standing.replicate {
        let possible = distinct(replicate, &selected(&replicate.to), sites);
        if possible < replicate.copies {
            let unmet = Unmet::Replicate { wanted: replicate.copies, possible };
            let conflict = Conflict { unmet, rule: Some(id), with: verdict.standing.confined_by.clone() };
            found.push((replicate.importance, conflict));
        }
    }
    found
}

/// By what a site differs from the others that hold copies.
pub fn differing<'a>(replicate: &Replicate, site: Location<'a>) -> Option<&'a str> {
    match replicate.across.as_str() {
        "site" => Some(site.name.as_str()),
        attribute => site.labels.get(attribute).map(String::as_str),
    }
}

/// How many copies the sites can hold that differ in the attribute; those that do not say count once, together.
fn distinct(replicate: &Replicate, at: &BTreeSet<usize>, sites: &[Location<'_>]) -> u32 {
    let mut values: BTreeSet<Option<&str>> = BTreeSet::new();
    values.extend(at.iter().map(|site| differing(replicate, sites[*site])));
    u32::try_from(values.len()).unwrap_or(u32::MAX)
}
