//! Workflows: what a file says, checked whole. A [`Workflow`] is acyclic, every reference in it resolves, and the types
//! of what is handed from step to step agree.

mod cluster;
mod growth;
mod held;
mod inputs;
mod order;
mod outputs;
mod parse;
mod rules;
mod schema;
mod service;
mod settings;
mod sites;
mod source;
mod steps;

use std::time::Duration;

use indexmap::IndexMap;
use serde::{Deserialize, Serialize};

pub use self::growth::Growth;
pub use self::held::{
    BUCKET_SCHEMES, FetchedFrom, Given, HeldAt, Outside, OutsideUrl, OutsideUrlError, TakenIn, WEB_SCHEMES,
};
pub use self::parse::{Deployable, Surroundings, parse, parse_deployable};
pub use self::schema::{action_schema, workflow_schema};
pub(crate) use self::settings::{check_variable, read_demands};
pub use self::sites::{SiteFacts, check_sites};
use crate::action::{ActionReference, SERVICE_VARIABLE};
use crate::diagnostic::Place;
use crate::expression::Expression;
use crate::id::{ObjectId, StepIndex};
use crate::placement::{Rule, SiteSelector};
use crate::resources::Resources;
use crate::value::{Type, Value};

/// A versioned definition: inputs, steps in the order of the file, outputs, rules.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Workflow {
    /// As the person named it.
    pub file: String,
    pub name: String,
    pub description: Option<String>,
    pub inputs: IndexMap<String, Input>,
    /// Indexed by [`StepIndex`]: the steps of the file, in its order, after one [`Work::Import`] for each input that
    /// is held at a site, and before one [`Work::Export`] for each output that is published.
    pub steps: Vec<Step>,
    pub outputs: IndexMap<String, Expression>,
    /// What the file says under `placement`, in its order.
    pub placement: Vec<Rule>,
    /// Programs that its scripts call, for what starts sites of its own to look for beforehand.
    pub requires: Vec<String>,
    /// Of its runs that are submitted without one, from -100 to 100.
    pub priority: i8,
    pub concurrency: Concurrency,
}

/// How much may be under way at a time, where a limit is set.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Concurrency {
    /// Executions that are placed at a site and have not ended.
    pub executions: Option<u32>,
    /// Runs with an execution that was placed, and that have not ended.
    pub runs: Option<u32>,
}

impl Workflow {
    /// The same, but nothing that was made before is taken.
    pub fn make_all_anew(&mut self) {
        self.steps.iter_mut().filter_map(|step| step.cache.as_mut()).for_each(|cache| cache.takes = false);
    }

    pub fn step(&self, index: StepIndex) -> &Step {
        &self.steps[index.index()]
    }
}

/// A declared input of a workflow.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Input {
    pub r#type: Type,
    pub default: Option<Value>,
    /// A file or directory that a step [`Work::Import`] takes in at a site; the index of that step.
    pub imported_by: Option<StepIndex>,
    pub description: Option<String>,
    pub place: Place,
    /// Whether an expression asks for the files of this directory, so that its listing must come with its value.
    pub listed: bool,
}

/// A node of the graph.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Step {
    pub name: String,
    pub index: StepIndex,
    pub place: Place,
    pub work: Work,
    /// `with`: the value of each input, by name.
    pub bindings: IndexMap<String, Expression>,
    pub foreach: Option<Expression>,
    pub when: Option<Expression>,
    pub site: SiteSelector,
    pub resources: Resources,
    pub resource_places: ResourcePlaces,
    pub retry: Retry,
    pub outputs: IndexMap<String, Output>,
    /// Steps whose outputs its expressions read, and those it names under `after`; each before it in no cycle.
    pub needs: Vec<StepIndex>,
    pub start: StartMode,
    pub on_disconnect: OnDisconnect,
    pub environment: IndexMap<String, String>,
    /// Added to the priority of the run.
    pub priority: i8,
    /// Executions of the step in one run that may be at sites at a time.
    pub max_parallel: Option<u32>,
    /// Whether what its executions make may stand for what others would make that do the same with the same inputs.
    pub cache: Option<Cache>,
}

/// How results are taken again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cache {
    /// For how long a result may be taken.
    pub lasts: Duration,
    /// Whether the run may take results; not if it was submitted to make all anew. Others take what it makes.
    pub takes: bool,
}

impl Step {
    /// What an execution carries out, by its content: the bundle of an action, or the digest of a script or a command.
    pub fn version(&self) -> Option<ObjectId> {
        let digest = |kind: &str, parts: &[&str]| {
            let mut hasher = blake3::Hasher::new();
            for part in std::iter::once(&kind).chain(parts) {
                hasher.update(&(part.len() as u64).to_le_bytes());
                hasher.update(part.as_bytes());
            }
            Some(ObjectId::from_digest(*hasher.finalize().as_bytes()))
        };
        match &self.work {
            Work::Action(Action { bundle: Some(bundle), .. }) => Some(*bundle),
            Work::Python(action) | Work::Container(action) | Work::Wasm(action) => action.bundle,
            Work::Action(action) => digest("command", &action.command.iter().map(String::as_str).collect::<Vec<_>>()),
            Work::Script(script) => digest("script", &[script]),
            Work::Import { .. } | Work::Null | Work::Export { .. } => None,
        }
    }

    /// Bytes of memory that an attempt may use when so many before it have ended for want of memory.
    pub fn memory_after(&self, grown: u32) -> Option<u64> {
        let bytes = self.resources.memory_bytes?;
        Some(self.retry.memory.map_or(bytes, |growth| growth.of(bytes, grown)))
    }

    /// Whether it is a service of a workflow that is deployed.
    pub fn is_service(&self) -> bool {
        self.environment.contains_key(SERVICE_VARIABLE)
    }

    /// The URL at which it publishes what it reads, if it does: outside of all sites.
    pub fn published_url(&self) -> Option<&OutsideUrl> {
        match &self.work {
            Work::Export { target: Outside::Url(url), .. } => Some(url),
            Work::Export { target: Outside::Path(_), .. }
            | Work::Script(_)
            | Work::Action(_)
            | Work::Python(_)
            | Work::Container(_)
            | Work::Wasm(_)
            | Work::Import { .. }
            | Work::Null => None,
        }
    }
}

/// Where a file says what a step asks for; the step itself, where it does not.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResourcePlaces {
    pub cpu: Place,
    pub memory: Place,
}

/// What an execution of a step does.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Work {
    /// `run:`, a script for `sh -eu`.
    Script(String),
    /// `action:`, an action with the `command` runtime, resolved when the workflow was submitted.
    Action(Action),
    /// Takes a file or directory into the store of the site: one that it holds, or fetches.
    Import { source: Outside, directory: bool },
    /// Nothing: succeeds as soon as it starts. What `atoll bench engine --executor null` runs.
    Null,
    /// Publishes its one input, a file or directory: at a path of the site, or in a bucket.
    Export { target: Outside, overwrite: bool },
    /// `action:`, an action with the `python` runtime, which has no command.
    Python(Action),
    /// `action:`, an action with the `container` runtime, whose image its manifest names.
    Container(Action),
    /// `action:`, an action with the `wasm` runtime, whose component its manifest names.
    Wasm(Action),
}

impl Work {
    /// The action that it is, if it is one.
    pub fn action(&self) -> Option<&Action> {
        match self {
            Self::Action(action) | Self::Python(action) | Self::Container(action) | Self::Wasm(action) => Some(action),
            Self::Script(_) | Self::Import { .. } | Self::Null | Self::Export { .. } => None,
        }
    }
}

/// An action as a step uses it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Action {
    pub name: String,
    pub version: String,
    /// The tree of its folder; nothing while the workflow is only checked.
    pub bundle: Option<ObjectId>,
    pub bundle_bytes: u64,
    /// Program and arguments; a program without a `/` at its start is looked up in the bundle, then in `PATH`. Empty for
    /// an action with the `python` runtime, whose handler stands in its bundle, and of a container that runs its image's.
    pub command: Vec<String>,
    pub inputs: IndexMap<String, ActionInput>,
    pub outputs: IndexMap<String, Output>,
    /// What an execution asks for where the step does not say.
    pub resources: Option<Resources>,
}

impl Action {
    /// What it is called by where it was pushed.
    pub fn reference(&self) -> ActionReference {
        ActionReference { name: self.name.clone(), version: self.version.clone() }
    }
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ActionInput {
    pub r#type: Type,
    pub default: Option<Value>,
}

/// A declared output of a step.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Output {
    pub r#type: Type,
    pub optional: bool,
    /// Whether an expression asks for the files of this directory, so that its listing must be reported with it.
    pub listed: bool,
    pub place: Place,
}

/// When a failed attempt is followed by another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Retry {
    /// Attempts in all, at least 1.
    pub attempts: u32,
    /// Before the second attempt; doubled for each further one, up to [`crate::limits::RETRY_BACKOFF_MAX`].
    pub backoff: Duration,
    /// Whether the next attempt should run at another site, if there is one.
    pub other_site: bool,
    /// How much more memory the attempt after one that ran out of it asks for.
    pub memory: Option<Growth>,
}

impl Retry {
    /// How long to wait after an attempt that failed before the next one, if there is to be one. `failures` were before it.
    pub fn after_failure(&self, failures: u32) -> Option<Duration> {
        let doubled = self.backoff.saturating_mul(1 << failures.min(16));
        (failures + 1 < self.attempts).then(|| doubled.min(crate::limits::RETRY_BACKOFF_MAX))
    }
}

impl Default for Retry {
    fn default() -> Self {
        Self { attempts: 1, backoff: Duration::from_secs(1), other_site: false, memory: None }
    }
}

/// How often an attempt whose fate is not known may have been started.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum StartMode {
    #[default]
    AtLeastOnce,
    /// Never started twice; an execution whose fate is unknown waits for a decision.
    AtMostOnce,
}

/// What a lost link means for running work.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum OnDisconnect {
    #[default]
    Finish,
    Stop,
}
