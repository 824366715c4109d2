//! Workflows that are deployed.

use control_plane_core::view::{DeploymentState, DeploymentView, ServiceView, SourceView};
use serde::Serialize;
use serde_json::Value as Json;
use utoipa::ToSchema;

use super::time;

#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct DeploymentsBody {
    /// By name.
    pub(crate) workflows: Vec<DeploymentBody>,
}

/// A workflow that is deployed.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct DeploymentBody {
    workflow: String,
    project: String,
    /// `deploying`, `ready`, `draining`, `ended` or `failed`; what is gone is not shown.
    state: &'static str,
    reason: Option<String>,
    generation: u32,
    deployed_by: String,
    deployed_at: String,
    /// What starts its runs, if anything does.
    source: Option<SourceBody>,
    /// What is kept running, in the order of the file.
    services: Vec<ServiceBody>,
    /// Records that have started a run.
    emitted: u64,
    last_emitted_at: Option<String>,
    /// How far the source has come, as it says.
    #[schema(value_type = Object)]
    offset: Option<Json>,
    /// The text of the file.
    text: String,
}

/// The source of a deployed workflow.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct SourceBody {
    action: String,
    /// The run that it lives in, whose logs are its own.
    run: String,
    site: Option<String>,
    restarts: u32,
    last_error: Option<String>,
}

/// A service of a deployed workflow.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ServiceBody {
    service: String,
    action: String,
    /// `deploying` or `ready`.
    state: &'static str,
    /// The run that it lives in, and which execution it is there: its logs are of that.
    run: String,
    execution: String,
    site: Option<String>,
    restarts: u32,
    last_error: Option<String>,
}

impl DeploymentBody {
    pub(crate) fn new(view: &DeploymentView) -> Self {
        let offset = view.offset.as_deref();
        Self {
            workflow: view.name.name.clone(),
            project: view.name.project.clone(),
            state: view.state.as_str(),
            reason: view.reason.clone(),
            generation: view.generation,
            deployed_by: view.deployed_by.clone(),
            deployed_at: time(view.deployed_at),
            source: view.source.as_ref().map(SourceBody::new),
            services: view.services.iter().map(ServiceBody::new).collect(),
            emitted: view.emitted,
            last_emitted_at: view.emitted_at.map(time),
            // It was JSON when it came.
            offset: offset.and_then(|offset| serde_json::from_str(offset).ok()),
            text: view.text.to_string(),
        }
    }
}

impl SourceBody {
    fn new(view: &SourceView) -> Self {
        Self {
            action: view.action.clone(),
            run: view.run.to_string(),
            site: view.site.as_ref().map(ToString::to_string),
            restarts: view.restarts,
            last_error: view.last_error.as_ref().map(ToString::to_string),
        }
    }
}

impl ServiceBody {
    fn new(view: &ServiceView) -> Self {
        let state = if view.is_ready { DeploymentState::Ready } else { DeploymentState::Deploying };
        Self {
            service: view.name.clone(),
            action: view.action.clone(),
            state: state.as_str(),
            run: view.execution.run.to_string(),
            execution: view.execution.to_string(),
            site: view.site.as_ref().map(ToString::to_string),
            restarts: view.restarts,
            last_error: view.last_error.as_ref().map(ToString::to_string),
        }
    }
}
