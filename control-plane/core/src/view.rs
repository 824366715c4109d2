//! What people see of the state: plain values, made on demand.

mod deployments;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use atoll_model::id::{Attempt, ExecutionId, ObjectId, RunId, SiteName};
use atoll_model::placement::{Explanation, Labels, PushMode};
use atoll_model::resources::Capacity;
use atoll_model::session::{DeployedState, Logs, Usage};
use atoll_model::time::Timestamp;
use atoll_model::value::{ObjectRef, Value};
use atoll_model::workflow::Concurrency;
use indexmap::IndexMap;
use serde::{Deserialize, Serialize};

pub use self::deployments::{DeploymentState, DeploymentView, ServiceView, SourceView};

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum RunState {
    /// Accepted; nothing has started.
    Submitted,
    Running,
    /// A cancel was asked for; executions are being stopped.
    Cancelling,
    Succeeded,
    Failed,
    Cancelled,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum ExecutionState {
    /// Its inputs do not exist yet.
    Waiting,
    /// Ready; no site for it yet, or waiting for its next attempt.
    Ready,
    /// A site is chosen; its inputs are on their way to the bucket.
    Placed,
    /// Handed to the agent.
    Dispatched,
    Running,
    Succeeded,
    Failed,
    Cancelled,
    /// Its `when` was false, or what it needs was skipped.
    Skipped,
    /// It may or may not have run, and must not run twice: somebody has to decide.
    Unknown,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SiteState {
    /// A token was made for it; no agent has joined.
    Expected,
    Ready,
    /// Connected, not yet agreed on what the agent has.
    Syncing,
    /// No heartbeat for one lease: nothing new is sent there.
    Suspect,
    Disconnected,
    Lost,
    Draining,
    Revoked,
    /// Two agents use one identity.
    Quarantined,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RunView {
    pub run: RunId,
    pub workflow: String,
    pub state: RunState,
    pub submitted_by: String,
    pub submitted_at: Timestamp,
    pub started_at: Option<Timestamp>,
    pub finished_at: Option<Timestamp>,
    pub outputs: IndexMap<String, Value>,
    pub error: Option<RunError>,
    /// Executions by state.
    pub counts: BTreeMap<ExecutionState, u64>,
    /// As it was submitted with.
    pub traceparent: Option<String>,
    pub tags: RunTags,
    /// Sites at which its executions are, or were.
    pub sites: BTreeSet<SiteName>,
    /// What moves for it, as sites have told last.
    #[serde(skip)]
    pub moving: Vec<MovingView>,
}

/// An object on its way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MovingView {
    pub object: ObjectId,
    pub from: String,
    pub to: String,
    pub bytes: u64,
    pub moved_bytes: u64,
    pub bytes_per_second: u64,
}

/// What a run was given to be found by.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunTags {
    pub project: String,
    pub labels: Labels,
    /// Instead of its workflow's.
    pub priority: Option<i8>,
}

/// What an administrator has set for a project.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProjectSettings {
    /// Of what there is, beside the shares of the others who want it at the time; 1 unless set.
    pub share: u32,
    pub limits: Concurrency,
    /// Of runs of single workflows.
    pub workflows: BTreeMap<String, Concurrency>,
}

impl Default for ProjectSettings {
    fn default() -> Self {
        Self { share: 1, limits: Concurrency::default(), workflows: BTreeMap::new() }
    }
}

/// A project: what it may have, and what it has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProjectView {
    pub project: String,
    pub settings: ProjectSettings,
    /// Runs that have not ended.
    pub runs_live: u64,
    /// Of them, those that have begun.
    pub runs: u64,
    /// At sites.
    pub executions: u64,
    /// Ready, and without a site.
    pub executions_waiting: u64,
    /// Workflows that have something under way, or a limit.
    pub workflows: BTreeMap<String, WorkflowUsage>,
}

/// What runs of one workflow have under way in a project.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct WorkflowUsage {
    pub runs: u64,
    pub executions: u64,
    pub limits: Concurrency,
}

impl RunTags {
    /// The project of a run that was submitted without one.
    pub const PROJECT: &str = "default";
}

impl Default for RunTags {
    fn default() -> Self {
        Self { project: Self::PROJECT.to_owned(), labels: Labels::new(), priority: None }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunError {
    pub step: String,
    pub execution: Option<ExecutionId>,
    pub message: String,
}

#[derive(Debug, Clone, PartialEq)]
pub struct ExecutionView {
    pub execution: ExecutionId,
    pub step: String,
    pub attempt: Attempt,
    /// How much memory the attempt may use, where its step says so.
    pub memory_limit_bytes: Option<u64>,
    pub state: ExecutionState,
    pub site: Option<SiteName>,
    pub submitted_at: Timestamp,
    pub placed_at: Option<Timestamp>,
    pub started_at: Option<Timestamp>,
    pub finished_at: Option<Timestamp>,
    pub inputs: IndexMap<String, Value>,
    pub outputs: IndexMap<String, Value>,
    pub exit_code: Option<i32>,
    pub error: Option<String>,
    pub usage: Usage,
    pub logs: Logs,
    /// Why it waits, if it does.
    pub waiting_for: Option<String>,
    /// The times that something went down while it ran.
    pub crashes: Vec<CrashView>,
    /// It did not run: another had made the same.
    pub reused: Option<ReusedView>,
}

/// Whose outputs an execution has taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReusedView {
    pub made_by: ExecutionId,
    /// How long it took to make them.
    pub took: Duration,
}

/// What watched over an attempt went down while it ran.
#[derive(Debug, Clone, PartialEq)]
pub struct CrashView {
    pub at: Timestamp,
    pub attempt: Attempt,
    pub site: String,
    /// Which process of the site's agent has told of it: counted up with each of its starts.
    pub incarnation: u64,
    pub message: String,
    /// What it had written, where the site has it.
    pub logs: Logs,
}

#[derive(Debug, Clone, PartialEq)]
pub struct SiteView {
    pub site: SiteName,
    pub state: SiteState,
    pub labels: Labels,
    pub agent_version: Option<String>,
    pub connected_since: Option<Timestamp>,
    pub last_heard: Option<Timestamp>,
    pub capacity: Capacity,
    pub free: Capacity,
    pub running: u64,
    pub queued: u64,
    /// How long work waits there for a batch system, as its agent has seen it.
    pub batch_wait: Option<Duration>,
    pub store_objects: u64,
    pub store_bytes: u64,
    /// Why it takes no work, if it does not.
    pub reason: Option<String>,
    /// What a person should look into.
    pub warning: Option<String>,
}

/// How far an action is at a site, as its agent has told last.
#[derive(Debug, Clone, PartialEq)]
pub struct DeployedView {
    pub site: SiteName,
    pub state: DeployedState,
    /// By the clock of its agent.
    pub since: Timestamp,
}

/// One crossing of a border.
#[derive(Debug, Clone, PartialEq)]
pub struct LedgerView {
    pub object: ObjectId,
    pub bytes: u64,
    /// A site's name, `bucket` or `client`.
    pub from: String,
    pub to: String,
    /// `bucket` or `direct`.
    pub route: String,
    pub for_execution: Option<ExecutionId>,
    pub run: Option<RunId>,
    /// Which rule asked for it, or `when-needed`.
    pub rule: String,
    pub at: Timestamp,
}

#[derive(Debug, Clone, PartialEq)]
pub struct ObjectView {
    pub object: ObjectRef,
    /// Names of sites, and `bucket`.
    pub replicas: Vec<String>,
    /// The key by which the copy in the bucket is encrypted.
    pub encrypted: Option<String>,
    pub ledger: Vec<LedgerView>,
    pub confined_to: Option<Vec<SiteName>>,
    /// Every rule that bears on it, by file and line.
    pub rules: Vec<String>,
    /// Sites whose own policy does not let it leave, and what they said.
    pub withheld: Vec<(String, String)>,
    pub pins: Vec<PinView>,
    /// Why a copy of it stays, if one must.
    pub needed: Option<String>,
    /// What rules want of copies at several sites, and what there is.
    pub copies: Vec<String>,
    /// The same of each rule, as a state.
    pub wanted: Vec<WantedCopiesView>,
    pub expiry: Option<ExpiryView>,
    /// Runs that know it.
    pub runs: Vec<RunId>,
}

/// What became of copies that a rule wants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WantedCopiesView {
    pub rule: String,
    pub copies: u32,
    pub there: u32,
    pub state: WantedState,
    /// Why they are not there.
    pub reason: Option<String>,
    /// When that was made of which there are too few.
    pub since: Option<Timestamp>,
    /// When they have to be there (`within`).
    pub due: Option<Timestamp>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WantedState {
    Ok,
    InProgress,
    /// Nothing can be done now; it is tried again.
    Stuck,
    /// The time is over in which they had to be there. It goes on all the same.
    Violated,
}

/// When the time of an object is over, by the rule that says the latest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExpiryView {
    pub rule: String,
    /// Else somebody is asked.
    pub deletes: bool,
    /// Nothing as long as its run goes on.
    pub at: Option<Timestamp>,
    pub state: ExpiryState,
    /// What keeps it all the same.
    pub waits_for: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExpiryState {
    Pending,
    /// A rule holds it.
    Held,
    /// Somebody is to decide.
    Asking,
    Going,
}

/// What the rules say of the data of a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunRulesView {
    pub run: RunId,
    pub project: String,
    /// Of the project's policy, where there is one.
    pub version: Option<u32>,
    pub data: Vec<DataRulesView>,
}

/// What the rules say of an output or an input, of which the size is not known; each rule by its file and line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DataRulesView {
    /// `STEP.OUTPUT` or `inputs.NAME`.
    pub data: String,
    pub confined_by: Vec<String>,
    /// The only sites where it may be.
    pub sites: Option<Vec<SiteName>>,
    pub push: PushMode,
    pub push_rule: Option<String>,
    pub bucket_closed: Option<String>,
    pub direct_closed: Option<String>,
    pub encrypted: Option<String>,
    pub expires: Option<String>,
}

/// A person wants a copy to stay.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PinView {
    /// The name of a site, `bucket`, or `anywhere`.
    pub at: String,
    pub by: String,
    pub since: Timestamp,
}

/// Which objects to show; each part that is given must hold.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ObjectFilter {
    pub site: Option<SiteName>,
    pub run: Option<RunId>,
    pub pinned: bool,
    /// Those whose time is over.
    pub expired: bool,
    /// Those after this one.
    pub after: Option<ObjectId>,
    pub limit: usize,
}

/// One object of a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObjectRow {
    pub object: ObjectRef,
    /// Names of sites, and `bucket`.
    pub replicas: Vec<String>,
    pub pins: Vec<PinView>,
    pub expiry: Option<ExpiryView>,
}

/// What came of the last time that a site was asked to read its store again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VerificationView {
    pub asked_at: Timestamp,
    /// Nothing while it goes on.
    pub ended_at: Option<Timestamp>,
    pub files: u64,
    pub bytes: u64,
    pub damaged: u64,
}

/// What placement would do with a step, before anything runs.
#[derive(Debug, Clone, PartialEq)]
pub struct PlanView {
    pub steps: Vec<(String, Explanation)>,
    pub edges: Vec<PlannedEdge>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct PlannedEdge {
    pub from: String,
    pub to: String,
    pub bytes_expected: Option<u64>,
    /// Until they are there, where they have to move and it is known how many they are.
    pub seconds_expected: Option<f64>,
    /// What their leaving costs, by the price that the site has as its label; nothing where that is not known.
    pub money_expected: Option<f64>,
    /// `local`, `direct` or `bucket`.
    pub route: String,
    pub rule: String,
}

/// Which runs to show; every part that is given must hold.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RunFilter {
    pub state: Option<RunState>,
    pub workflow: Option<String>,
    /// Runs with an execution that is, or was, at this site.
    pub site: Option<SiteName>,
    pub project: Option<String>,
    /// Labels that it has, with these values.
    pub labels: Labels,
    /// Submitted then or later.
    pub since: Option<Timestamp>,
    /// Submitted before then.
    pub until: Option<Timestamp>,
    /// Only runs that are listed after this one.
    pub before: Option<RunPlace>,
    pub limit: Option<usize>,
}

/// Where a run stands among all of them: they are listed from the greatest place to the least.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct RunPlace {
    pub submitted_at: Timestamp,
    pub run: RunId,
}

impl RunView {
    pub fn place(&self) -> RunPlace {
        RunPlace { submitted_at: self.submitted_at, run: self.run }
    }
}

impl RunFilter {
    /// Whether a run is among those that were asked for, the limit aside.
    pub fn admits(&self, run: &RunView) -> bool {
        self.admits_place(run.place())
            && self.state.is_none_or(|state| state == run.state)
            && self.workflow.as_ref().is_none_or(|name| *name == run.workflow)
            && self.project.as_ref().is_none_or(|project| *project == run.tags.project)
            && self.labels.iter().all(|(label, value)| run.tags.labels.get(label) == Some(value))
            && self.site.as_ref().is_none_or(|site| run.sites.contains(site))
    }

    /// Whether a run that stands there may be among them.
    pub fn admits_place(&self, place: RunPlace) -> bool {
        self.before.is_none_or(|before| place < before)
            && self.since.is_none_or(|since| place.submitted_at >= since)
            && self.until.is_none_or(|until| place.submitted_at < until)
    }
}

/// Which executions of a run to show.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ExecutionPage {
    /// Begin after this one.
    pub after: Option<ExecutionId>,
    pub limit: Option<usize>,
    pub step: Option<String>,
}

/// Which crossings to show; every part that is given must hold.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LedgerFilter {
    pub run: Option<RunId>,
    /// From or to this site.
    pub site: Option<SiteName>,
    pub object: Option<ObjectId>,
}

/// What has been counted since the process began, and what there is now.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Counters {
    pub runs_submitted: u64,
    pub runs_ended: BTreeMap<RunState, u64>,
    pub executions_dispatched: u64,
    pub executions_started: u64,
    pub executions_ended: BTreeMap<ExecutionState, u64>,
    pub executions_returned: u64,
    /// Of those that have succeeded, without having run.
    pub executions_reused: u64,
    pub late_outcomes: u64,
    pub bytes_to_bucket: u64,
    pub bytes_from_bucket: u64,
    pub sessions_opened: u64,
    pub agents_lost: u64,
    /// Now.
    pub runs_live: u64,
    pub executions_waiting: u64,
    pub executions_outstanding: u64,
    pub objects_in_bucket: u64,
    /// Objects whose time is over and that are still somewhere, and those of which somebody is to decide.
    pub objects_expired: u64,
    pub objects_asking: u64,
    /// Objects that lack copies which rules want, and those of which the copies are late.
    pub objects_lacking_copies: u64,
    pub objects_late: u64,
    pub transfers_live: u64,
    pub sites_by_state: BTreeMap<SiteState, u64>,
    /// Not declared lost, because too many fell silent together.
    pub sites_held_back: u64,
}
