//! Placement policies as data: what an administrator or a project says about where data may go, by rules that match what
//! they are about. Evaluated by `storage-sync-core`, which knows no more than what stands here.

mod accounts;
mod glob;
mod parse;
mod schema;
mod selector;
mod selector_text;
mod site;

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

pub use self::accounts::{AccountChoice, AccountRule, AccountRules, ChosenAccount};
pub use self::glob::matches as glob_matches;
pub use self::parse::parse;
pub(crate) use self::parse::{read_bucket_use, read_kind, read_said};
pub use self::schema::policy_schema;
pub(crate) use self::schema::{PLACEMENT_FIELDS, said_fields};
pub use self::selector::{Attribute, AttributeKind, Attributes, Comparison, Literal, Location, Selector, Truth};
pub use self::site::{BUCKET, LeaveStep, NamedKey, SiteMatch, SitePolicy, SiteRule, Withholding, WorkKind};
use crate::diagnostic::Place;
use crate::placement::{Labels, PushMode};

/// One policy file.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Policy {
    /// As the person named it.
    pub file: String,
    /// What its selectors may ask of a site, beside its name.
    pub attributes: Attributes,
    pub rules: Vec<PolicyRule>,
}

/// Where a rule is attached. A later one is more specific; that of the site is its own administrator's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Level {
    Instance,
    Project,
    Workflow,
    Step,
    Output,
    Site,
}

/// What is to hold for everything that it matches.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct PolicyRule {
    pub matches: PolicyMatch,
    pub confine: Option<Confine>,
    /// In the order in which they are to be tried.
    pub route: Option<Vec<Route>>,
    pub push: Option<PushMode>,
    pub replicate: Option<Replicate>,
    pub keep: Option<Keep>,
    pub pin: Option<Pin>,
    pub expire: Option<Expire>,
    pub encrypt: Option<KeyScope>,
    pub hold: Option<Hold>,
    pub place: Place,
}

/// All parts that are given must hold. Names are patterns: `*` is any text, `?` any character.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyMatch {
    pub workflow: Option<String>,
    pub step: Option<String>,
    pub output: Option<String>,
    pub input: Option<String>,
    pub labels: Labels,
    pub bytes: Option<ByteRange>,
}

/// From `least` to `most`, both included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ByteRange {
    pub least: u64,
    pub most: u64,
}

/// The data leaves these sites for no other.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Confine {
    pub to: Selector,
    pub bucket: BucketUse,
}

/// Whether confined data may pass through the bucket. A later one is stricter.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum BucketUse {
    Allowed,
    IfEncrypted,
    #[default]
    Forbidden,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Route {
    Direct,
    Bucket,
}

/// So many copies, on sites that differ in `across`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Replicate {
    pub copies: u32,
    /// An attribute; `site` where nothing is said.
    pub across: String,
    pub to: Selector,
    pub within: Option<Duration>,
    pub importance: Importance,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Importance {
    /// What cannot be had is told, and not insisted on.
    Should,
    #[default]
    Must,
}

/// A copy stays there for a time.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Keep {
    pub at: KeepAt,
    pub until: Until,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum KeepAt {
    /// Wherever it was made.
    Producer,
    Sites(Selector),
}

/// A later one lasts longer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Until {
    /// This long after the end of the run.
    AfterRun(Duration),
    Forever,
}

/// A copy is brought there, and is not evicted.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Pin {
    pub at: Selector,
    pub until: Until,
}

/// Its time is over so long after the end of the run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Expire {
    pub after: Duration,
    pub then: Expiry,
}

/// What becomes of it then. A later one is safer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Expiry {
    Delete,
    /// There is no place that an archive would be in: rules of earlier versions that say so are taken for [`Self::Ask`].
    Archive,
    /// Somebody decides.
    Ask,
}

/// Whose key encrypts it outside of the sites.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum KeyScope {
    Project,
}

/// It stays, whatever `expire` says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hold {
    pub reason: String,
}

/// The attributes of a site, as its labels give them.
pub type SiteLabels = BTreeMap<String, String>;

impl Policy {
    /// Names this version of the rules: of what they say, not of how the file is laid out.
    pub fn hash(&self) -> [u8; 32] {
        let mut bare = self.clone();
        bare.file.clear();
        for rule in &mut bare.rules {
            rule.place = Place::default();
        }
        let encoded = postcard::to_allocvec(&bare).expect("plain data can be encoded");
        *blake3::hash(&encoded).as_bytes()
    }
}

impl PolicyRule {
    /// What it speaks of, by the names of the fields.
    pub fn fields(&self) -> Vec<&'static str> {
        let all = [
            ("confine", self.confine.is_some()),
            ("route", self.route.is_some()),
            ("push", self.push.is_some()),
            ("replicate", self.replicate.is_some()),
            ("keep", self.keep.is_some()),
            ("pin", self.pin.is_some()),
            ("expire", self.expire.is_some()),
            ("encrypt", self.encrypt.is_some()),
            ("hold", self.hold.is_some()),
        ];
        all.into_iter().filter(|(_, is_said)| *is_said).map(|(field, _)| field).collect()
    }
}

impl PolicyMatch {
    /// Whether it may match what a run takes in, as far as its form says.
    pub fn may_be_an_input(&self) -> bool {
        self.step.is_none() && self.output.is_none()
    }

    /// Whether there may be data that both match, as far as their forms say.
    pub fn may_overlap(&self, other: &Self) -> bool {
        let is_apart = |one: &Option<String>, other: &Option<String>| match (one, other) {
            (Some(one), Some(other)) => !may_be_one_name(one, other),
            (None, _) | (_, None) => false,
        };
        let of_outputs = |of: &Self| of.step.is_some() || of.output.is_some();
        let names = [
            (&self.workflow, &other.workflow),
            (&self.step, &other.step),
            (&self.output, &other.output),
            (&self.input, &other.input),
        ];
        let labels =
            self.labels.iter().all(|(label, value)| other.labels.get(label).is_none_or(|found| found == value));
        let sizes = self
            .bytes
            .is_none_or(|one| other.bytes.is_none_or(|other| one.least <= other.most && other.least <= one.most));
        let is_other_kind = self.input.is_some() && of_outputs(other) || other.input.is_some() && of_outputs(self);
        labels && sizes && !is_other_kind && !names.into_iter().any(|(one, other)| is_apart(one, other))
    }
}

impl ByteRange {
    pub fn contains(&self, bytes: u64) -> bool {
        (self.least..=self.most).contains(&bytes)
    }
}

/// Whether a name may match both patterns. Of two that say neither is a name, it is not found out.
fn may_be_one_name(one: &str, other: &str) -> bool {
    let is_pattern = |text: &str| text.contains(['*', '?']);
    match (is_pattern(one), is_pattern(other)) {
        (false, false) => one == other,
        (true, false) => glob_matches(one, other),
        (false, true) => glob_matches(other, one),
        (true, true) => true,
    }
}
