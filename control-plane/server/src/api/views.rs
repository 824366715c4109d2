//! What people are shown, as JSON: the one translation from the core's views.

mod actions;
mod data;
mod deployments;
mod placement;
mod policies;
mod projects;
mod repositories;
mod runs;
mod simulation;
mod sites;
mod states;

use atoll_model::time::Timestamp;
use atoll_model::value::Value;
use indexmap::IndexMap;
use serde_json::{Map, Value as Json};

pub(crate) use actions::{ActionBody, ActionsBody};
pub(crate) use data::{LedgerBody, LedgerEntryBody, ObjectBody, ObjectsBody, VerificationBody};
pub(crate) use deployments::{DeploymentBody, DeploymentsBody};
pub(crate) use placement::{CheckBody, ExplanationBody, PlanBody};
pub(crate) use policies::{PolicyBody, RunRulesBody};
pub(crate) use projects::{ProjectBody, ProjectsBody};
pub(crate) use repositories::{RepositoriesBody, RepositoryBody, RepositoryLogBody};
pub(crate) use runs::{CrashBody, ExecutionBody, ReusedBody, RunBody, RunsBody};
pub(crate) use simulation::{SimulatedRun, SimulationBody};
pub(crate) use sites::{SiteBody, SitesBody};
pub(crate) use states::{
    execution_has_ended, execution_state, has_ended, object_kind, parse_run_state, run_state, site_state,
};

pub(crate) fn time(at: Timestamp) -> String {
    at.to_string()
}

fn values(values: &IndexMap<String, Value>) -> Map<String, Json> {
    values.iter().map(|(name, value)| (name.clone(), value.to_json())).collect()
}
