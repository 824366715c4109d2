//! Projects.

use std::collections::BTreeMap;

use control_plane_core::view::{ProjectView, WorkflowUsage};
use serde::Serialize;
use utoipa::ToSchema;

#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ProjectsBody {
    pub(crate) projects: Vec<ProjectBody>,
}

/// What a project may have, and has.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ProjectBody {
    project: String,
    share: u32,
    /// Nothing for no limit.
    max_executions: Option<u32>,
    max_runs: Option<u32>,
    /// Runs that have not ended, and of them those that have begun.
    runs_live: u64,
    runs: u64,
    /// At sites.
    executions: u64,
    /// Ready, and without a site.
    executions_waiting: u64,
    workflows: BTreeMap<String, ProjectWorkflowBody>,
}

/// What runs of a workflow may have, and have.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ProjectWorkflowBody {
    max_executions: Option<u32>,
    max_runs: Option<u32>,
    runs: u64,
    executions: u64,
}

impl ProjectBody {
    pub(crate) fn new(view: &ProjectView) -> Self {
        let workflow = |(name, usage): (&String, &WorkflowUsage)| {
            let body = ProjectWorkflowBody {
                max_executions: usage.limits.executions,
                max_runs: usage.limits.runs,
                runs: usage.runs,
                executions: usage.executions,
            };
            (name.clone(), body)
        };
        Self {
            project: view.project.clone(),
            share: view.settings.share,
            max_executions: view.settings.limits.executions,
            max_runs: view.settings.limits.runs,
            runs_live: view.runs_live,
            runs: view.runs,
            executions: view.executions,
            executions_waiting: view.executions_waiting,
            workflows: view.workflows.iter().map(workflow).collect(),
        }
    }
}
