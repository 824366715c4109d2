//! What a workflow that is sent in refers to: the actions and inputs that came with it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use atoll_model::action::{self, ActionKind, ActionReference};
use atoll_model::value::{Value, from_json};
use atoll_model::workflow::{Given, Surroundings, TakenIn, Work, Workflow};
use control_plane_core::{ActionName, Registry, Rejection};
use indexmap::IndexMap;
use serde::Deserialize;
use serde_json::Value as Json;
use utoipa::ToSchema;

/// An action that came with a workflow.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct SentAction {
    /// The text of its `action.yaml`.
    manifest: String,
    /// Its folder, as `PUT /uploads?kind=tree` named it; not needed to check a workflow or plan it.
    object: Option<String>,
    #[serde(default)]
    bytes: u64,
}

/// Everything that came with a workflow.
#[derive(Debug)]
pub(super) struct Sent {
    actions: BTreeMap<String, SentAction>,
    inputs: IndexMap<String, Json>,
    /// What was pushed, as it is now: the run keeps what it finds there.
    registry: Arc<Registry>,
    project: String,
    /// What was resolved already: many steps may name the same.
    resolved: Mutex<BTreeMap<(String, ActionKind), Result<Work, String>>>,
}

impl Surroundings for Sent {
    fn action(&self, reference: &str) -> Result<Work, String> {
        self.find(reference, ActionKind::Processor)
    }

    fn source(&self, reference: &str) -> Result<Work, String> {
        self.find(reference, ActionKind::Source)
    }

    fn service(&self, reference: &str) -> Result<Work, String> {
        self.find(reference, ActionKind::Service)
    }

    fn given(&self, input: &str) -> Given {
        match self.inputs.get(input) {
            None => Given::Nothing,
            // `{"site": …, "path": …}` or `{"url": …}`; anything else is a value.
            Some(json) => TakenIn::deserialize(json).map_or(Given::Value, Given::TakenIn),
        }
    }
}

impl Sent {
    pub(super) fn new(
        actions: BTreeMap<String, SentAction>,
        inputs: IndexMap<String, Json>,
        registry: Arc<Registry>,
        project: String,
    ) -> Self {
        Self { actions, inputs, registry, project, resolved: Mutex::default() }
    }

    fn find(&self, reference: &str, kind: ActionKind) -> Result<Work, String> {
        let mut resolved = self.resolved.lock().unwrap_or_else(PoisonError::into_inner);
        resolved.entry((reference.to_owned(), kind)).or_insert_with(|| self.resolve(reference, kind)).clone()
    }

    fn resolve(&self, reference: &str, kind: ActionKind) -> Result<Work, String> {
        if ActionReference::is_meant_by(reference) {
            let reference = reference.parse::<ActionReference>().map_err(|error| error.to_string())?;
            return self.registry.action_of(&ActionName { project: self.project.clone(), reference }, kind);
        }
        let sent =
            self.actions.get(reference).ok_or_else(|| format!("no action {reference} came with the workflow"))?;
        let object = sent.object.as_deref().map(str::parse).transpose();
        let object = object.map_err(|error: atoll_model::id::ParseIdError| error.to_string())?;
        let manifest = action::parse(&format!("{reference}/action.yaml"), &sent.manifest)
            .map_err(|diagnostics| diagnostics.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))?;
        Ok(manifest.of_kind(kind)?.into_work(object, sent.bytes))
    }

    /// The values that the run brings along, of the types that the workflow declares.
    ///
    /// # Errors
    /// When one is of another type, one that is needed is missing, or one is not asked for.
    pub(super) fn values(&self, workflow: &Workflow) -> Result<IndexMap<String, Value>, Rejection> {
        let mut values = IndexMap::new();
        for (name, json) in &self.inputs {
            let Some(input) = workflow.inputs.get(name) else {
                let known: Vec<&str> = workflow.inputs.keys().map(String::as_str).collect();
                let known =
                    if known.is_empty() { "it has none".to_owned() } else { format!("it has {}", known.join(", ")) };
                return Err(Rejection::Invalid(format!("the workflow has no input {name}: {known}")));
            };
            if input.imported_by.is_some() {
                continue;
            }
            let value = from_json(json, &input.r#type)
                .map_err(|mismatch| Rejection::Invalid(format!("the input {name}: {mismatch}")))?;
            values.insert(name.clone(), value);
        }
        let missing = workflow.inputs.iter().find(|(name, input)| {
            input.default.is_none() && input.imported_by.is_none() && !values.contains_key(*name)
        });
        match missing {
            Some((name, _)) => Err(Rejection::Invalid(format!("the input {name} has no default and was not given"))),
            None => Ok(values),
        }
    }
}
