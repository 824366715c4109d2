//! Placement: which sites a step may run at, the rules for where data may go, and why a site was chosen.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::diagnostic::Place;
use crate::id::SiteName;
use crate::policy::PolicyRule;

/// Labels of a site, or the labels that a selector asks for: all of them must be equal.
pub type Labels = BTreeMap<String, String>;

/// The label of a site that says what it costs when a gigabyte leaves it, in whatever money is counted in.
pub const EGRESS_PRICE_LABEL: &str = "egress-price-per-gb";

/// Which sites a step may run at. An empty one admits every site.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SiteSelector {
    /// One of these, if there are any.
    pub names: Vec<SiteName>,
    pub labels: Labels,
    pub place: Place,
    /// Where each name stands, in the order of the names, and each label: its name, and its value.
    pub name_places: Vec<Place>,
    pub label_places: BTreeMap<String, (Place, Place)>,
}

impl SiteSelector {
    pub fn admits(&self, name: &SiteName, labels: &Labels) -> bool {
        (self.names.is_empty() || self.names.contains(name))
            && self.labels.iter().all(|(label, value)| labels.get(label) == Some(value))
    }
}

/// One rule under `placement` of a workflow.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Rule {
    /// What it says, as rules of all levels are evaluated.
    pub said: PolicyRule,
    /// What it matches, and the sites that it confines to, as they are written: to be checked against what there is.
    pub matches: RuleMatch,
    pub confine: Option<SiteSelector>,
    pub place: Place,
}

/// What a rule applies to; every part that is given must hold. A name may end with `*`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RuleMatch {
    pub step: Option<String>,
    pub output: Option<String>,
    pub input: Option<String>,
}

/// When an output is pushed to the bucket.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum PushMode {
    /// When an execution that reads it is placed at another site.
    #[default]
    WhenNeeded,
    /// As soon as it exists.
    Eager,
    /// Never: whatever reads it runs where it is.
    Never,
    /// Once the run has succeeded.
    OnSuccess,
}

/// Why one site was, or was not, chosen.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SiteVerdict {
    pub site: SiteName,
    pub feasible: bool,
    /// Why it is not feasible; for the chosen one and for those that lost, in a few words why.
    pub reason: String,
    /// The terms of its score by name (`data_seconds`, `queue_seconds`, `run_seconds`, `score`, …); lower is better.
    pub terms: BTreeMap<String, f64>,
}

/// A placement and the reasons for it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Explanation {
    pub chosen: Option<SiteName>,
    pub sites: Vec<SiteVerdict>,
}
