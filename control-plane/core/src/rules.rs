//! The rules that bear on the data of one run: those of its project and those of its workflow, evaluated as one.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use atoll_model::placement::{Labels, PushMode};
use atoll_model::policy::{Expiry, KeepAt, Level, Location, Policy, PolicyRule, Route, Until};
use atoll_model::time::Timestamp;
use atoll_model::workflow::Workflow;
use serde::{Deserialize, Serialize};
use storage_sync_core::policy::{
    Bucket, Conflict, Layer, Object, Origin, RuleId, Standing, Unmet, keeping_away, standing,
};

use crate::fact::RuleText;

/// A version of the rules of a project.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AppliedPolicy {
    /// From 1.
    pub version: u32,
    pub policy: Policy,
    /// The text of the file.
    pub source: Arc<str>,
    pub applied_by: String,
    pub at: Timestamp,
}

const PROJECT: u16 = 0;
const WORKFLOW: u16 = 1;

/// What holds for a run.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Rules {
    project: Option<Arc<AppliedPolicy>>,
    workflow: Vec<PolicyRule>,
    file: Arc<str>,
    name: Arc<str>,
    labels: Labels,
    /// Whether it depends on the size of anything what bears on it.
    pub(crate) sized: bool,
}

/// When an object is pushed, and which rule says so.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct PushRule {
    pub(crate) mode: PushMode,
    pub(crate) rule: Option<RuleId>,
}

/// What the rules say of one output or input. Where a rule is against something, it is named.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct DataRules {
    /// Inherited ones included.
    pub(crate) confined_by: BTreeSet<RuleId>,
    pub(crate) push: PushRule,
    pub(crate) bucket: Option<RuleId>,
    pub(crate) direct: Option<RuleId>,
    pub(crate) bucket_first: bool,
    /// How long the bucket keeps what was pushed there for good.
    pub(crate) keep: Option<Until>,
    /// Into the bucket it goes encrypted.
    pub(crate) encrypt: Option<RuleId>,
    /// Rules that hold copies of it.
    pub(crate) claims: BTreeSet<(Claim, RuleId)>,
    /// Rules that want copies of it at several sites.
    pub(crate) replicate: BTreeSet<RuleId>,
    pub(crate) expires: Option<Expires>,
}

/// When the time of data is over, and what becomes of it then. A later one is safer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Expires {
    /// Its run has ended.
    pub(crate) after: Duration,
    pub(crate) then: Expiry,
    pub(crate) rule: RuleId,
}

/// As what a rule holds a copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Claim {
    /// At the sites that it names.
    Keep,
    /// As `Keep`.
    Pin,
    /// Wherever the last one is.
    Hold,
    /// In the bucket, where a rule had it pushed.
    Bucket,
    /// Not at all: its time is over then.
    Expire,
}

impl DataRules {
    /// What is against its going anywhere, if something is against every way.
    pub(crate) fn staying(&self) -> Option<RuleId> {
        let never = self.push.rule.filter(|_| self.push.mode == PushMode::Never);
        never.or(self.bucket.filter(|_| self.direct.is_some()))
    }

    /// The same data under another name: the stricter of both.
    pub(crate) fn add(&mut self, other: Self) {
        self.confined_by.extend(other.confined_by);
        if self.push.rule.is_none() || other.push.mode == PushMode::Never {
            self.push = other.push;
        }
        self.bucket = self.bucket.or(other.bucket);
        self.direct = self.direct.or(other.direct);
        self.bucket_first |= other.bucket_first;
        self.keep = self.keep.max(other.keep);
        self.encrypt = self.encrypt.or(other.encrypt);
        self.claims.extend(other.claims);
        self.replicate.extend(other.replicate);
        self.expires = self.expires.max(other.expires);
    }

    /// Whether a rule holds it, whatever others say of its time.
    pub(crate) fn is_held(&self) -> bool {
        self.claims.iter().any(|(claim, _)| *claim == Claim::Hold)
    }

    /// The same by a rule of its workflow's own, which nobody can lift.
    pub(crate) fn is_held_by_workflow(&self) -> bool {
        self.claims.iter().any(|(claim, rule)| *claim == Claim::Hold && !Rules::is_of_project(*rule))
    }
}

impl Rules {
    pub(crate) fn new(workflow: &Workflow, project: Option<&Arc<AppliedPolicy>>, labels: &Labels) -> Self {
        let rules: Vec<PolicyRule> = workflow.placement.iter().map(|rule| rule.said.clone()).collect();
        let of_project = project.iter().flat_map(|applied| &applied.policy.rules);
        let sized = rules.iter().chain(of_project).any(|rule| rule.matches.bytes.is_some());
        Self {
            project: project.cloned(),
            workflow: rules,
            file: Arc::from(workflow.file.as_str()),
            name: Arc::from(workflow.name.as_str()),
            labels: labels.clone(),
            sized,
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.workflow.is_empty() && self.project.as_ref().is_none_or(|applied| applied.policy.rules.is_empty())
    }

    /// What is wrong where rules cannot hold together.
    pub(crate) fn disagreement(&self, what: &str, conflict: &Conflict) -> String {
        let names: Vec<_> = conflict.with.iter().map(|rule| self.name(*rule)).collect();
        let confining = names.join(" and ");
        let rule = conflict.rule.map_or_else(|| "a rule".to_owned(), |rule| self.name(rule));
        match conflict.unmet {
            Unmet::NoSite => format!("{what} may be at no site: {confining}"),
            Unmet::NoProducer => format!("{what} may not be at any site that makes it: {confining}"),
            Unmet::Keep => format!("{rule} keeps {what} where it may not be: {confining}"),
            Unmet::Pin => format!("{rule} pins {what} where it may not be: {confining}"),
            Unmet::Replicate { wanted, possible } => {
                format!("{rule} wants {wanted} copies of {what}, and {possible} are possible: {confining}")
            }
            Unmet::Push => format!("{rule} pushes {what}, which {confining} keeps out of the bucket"),
            Unmet::Route => format!("{rule} sends {what} by way of the bucket, where it may not go: {confining}"),
        }
    }

    /// Version of the project's rules; nothing where there are none.
    pub(crate) fn version(&self) -> Option<u32> {
        self.project.as_ref().map(|applied| applied.version)
    }

    pub(crate) fn layers(&self) -> [Layer<'_>; 2] {
        let project = self.project.as_ref().map_or(&[][..], |applied| &applied.policy.rules);
        [Layer { level: Level::Project, rules: project }, Layer { level: Level::Workflow, rules: &self.workflow }]
    }

    pub(crate) fn standing(
        &self,
        origin: Origin<'_>,
        bytes: Option<u64>,
        inherited: &BTreeSet<RuleId>,
    ) -> Standing<'_> {
        standing(&self.layers(), &self.object(origin, bytes), inherited)
    }

    pub(crate) fn object<'a>(&'a self, origin: Origin<'a>, bytes: Option<u64>) -> Object<'a> {
        Object { workflow: &self.name, origin, labels: &self.labels, bytes }
    }

    pub(crate) fn data(&self, origin: Origin<'_>, bytes: Option<u64>, inherited: &BTreeSet<RuleId>) -> DataRules {
        if self.is_empty() {
            return DataRules::default();
        }
        let standing = self.standing(origin, bytes, inherited);
        let closed = |route| standing.route.by.filter(|_| !standing.route.value.contains(&route));
        let (bucket, encrypt) = match standing.bucket.value {
            Bucket::Plain => (None, None),
            Bucket::Encrypted => (None, standing.bucket.by),
            Bucket::Forbidden => (standing.bucket.by, None),
        };
        DataRules {
            push: PushRule { mode: standing.push.value, rule: standing.push.by },
            bucket: bucket.or_else(|| closed(Route::Bucket)),
            direct: closed(Route::Direct),
            bucket_first: standing.route.by.is_some() && standing.route.value.first() == Some(&Route::Bucket),
            keep: standing.keep.filter(|(keep, _)| keep.at == KeepAt::Producer).map(|(keep, _)| keep.until),
            claims: [
                (Claim::Keep, standing.keep.map(|(_, rule)| rule)),
                (Claim::Pin, standing.pin.map(|(_, rule)| rule)),
                (Claim::Hold, standing.hold.map(|(_, rule)| rule)),
            ]
            .into_iter()
            .filter_map(|(claim, rule)| Some((claim, rule?)))
            .collect(),
            replicate: standing.replicate.map(|(_, rule)| rule).into_iter().collect(),
            expires: standing.expire.map(|(expire, rule)| Expires { after: expire.after, then: expire.then, rule }),
            confined_by: standing.confined_by,
            encrypt,
        }
    }

    /// Whether a rule wants copies of anything, at several sites or in the bucket, whoever reads it.
    pub(crate) fn want_copies(&self) -> bool {
        let wants = |rule: &PolicyRule| {
            rule.replicate.is_some()
                || rule.pin.is_some()
                || matches!(rule.push, Some(PushMode::Eager | PushMode::OnSuccess))
        };
        self.layers().iter().flat_map(|layer| layer.rules).any(wants)
    }

    /// How long after the end of their run rules let anything go.
    pub(crate) fn expiring_after(&self) -> BTreeSet<Duration> {
        let rules = self.layers().into_iter().flat_map(|layer| layer.rules);
        rules.filter_map(|rule| Some(rule.expire?.after)).collect()
    }

    /// Whether a rule wants anything encrypted.
    pub(crate) fn encrypts(&self) -> bool {
        self.layers().iter().flat_map(|layer| layer.rules).any(|rule| rule.encrypt.is_some())
    }

    /// The first of these confinements that keeps the data away from the site.
    pub(crate) fn keeping_away(&self, confined_by: &BTreeSet<RuleId>, site: Location<'_>) -> Option<RuleId> {
        if confined_by.is_empty() { None } else { keeping_away(&self.layers(), confined_by, site) }
    }

    pub(crate) fn rule(&self, id: RuleId) -> Option<&PolicyRule> {
        self.layers().get(usize::from(id.layer)).and_then(|layer| layer.rules.get(usize::from(id.rule)))
    }

    /// Whether the rule is one of the project, and not of the workflow.
    pub(crate) fn is_of_project(id: RuleId) -> bool {
        id.layer == PROJECT
    }

    /// A rule, as the ledger names it.
    pub(crate) fn cite(&self, id: RuleId) -> RuleText {
        let Some(line) = self.rule(id).map(|rule| rule.place.line) else { return RuleText::WhenNeeded };
        match (id.layer, &self.project) {
            (PROJECT, Some(applied)) => RuleText::Line { file: Arc::from(applied.policy.file.as_str()), line },
            _ => RuleText::Rule { number: u32::from(id.rule) + 1, line },
        }
    }

    /// A rule by its file and line, for who has to change it.
    pub(crate) fn name(&self, id: RuleId) -> String {
        let line = self.rule(id).map_or(0, |rule| rule.place.line);
        let number = id.rule + 1;
        match (id.layer, &self.project) {
            (PROJECT, Some(applied)) => {
                format!(
                    "{}:{line} (rule {number} of the project's policy, version {})",
                    applied.policy.file, applied.version
                )
            }
            (WORKFLOW, _) | (_, None | Some(_)) => format!("{}:{line} (rule {number} of the workflow)", self.file),
        }
    }
}
