//! What people see of deployed workflows.

use std::sync::Arc;

use atoll_model::id::RunId;
use atoll_model::workflow::Workflow;

use crate::control_plane::ControlPlane;
use crate::deployments::{Deployment, DeploymentName, SourcePhase};
use crate::state::{ActivePhase, SOURCE};
use crate::view::{DeploymentState, DeploymentView, RunState, SourceView};

impl ControlPlane {
    pub fn deployment(&self, name: &DeploymentName) -> Option<DeploymentView> {
        self.state.deployments.get(name).map(|known| self.view_of_deployment(name, known))
    }

    /// All of a project, by name.
    pub fn deployments(&self, project: &str) -> Vec<DeploymentView> {
        let of_project = self.state.deployments.iter().filter(|(name, _)| name.project == project);
        of_project.map(|(name, known)| self.view_of_deployment(name, known)).collect()
    }

    /// The workflow for whose runs the source emits that lives in this run.
    pub fn emits_for(&self, run: RunId) -> Option<Arc<Workflow>> {
        self.state.deployments.of_run(run).map(|(_, deployment)| Arc::clone(&deployment.deployed.workflow))
    }

    fn view_of_deployment(&self, name: &DeploymentName, known: &Deployment) -> DeploymentView {
        let source = known.deployed.emitter.as_ref().and_then(|(emitter, run)| {
            let action = emitter.steps.first()?.work.action()?;
            Some(self.view_of_source(action.reference().to_string(), known.former.unwrap_or(*run)))
        });
        let (state, reason) = match &known.phase {
            _ if known.is_leaving => (DeploymentState::Draining, None),
            _ if known.deployed.emitter.is_none() && known.former.is_none() => (DeploymentState::Ready, None),
            SourcePhase::Waiting => {
                (DeploymentState::Deploying, Some("the source of the generation before has not ended".to_owned()))
            }
            SourcePhase::Begun => match &source {
                Some(source) if source.is_running => (DeploymentState::Ready, None),
                Some(_) | None => (DeploymentState::Deploying, None),
            },
            SourcePhase::Ended { state: RunState::Failed, message, .. } => (DeploymentState::Failed, message.clone()),
            SourcePhase::Ended { message, .. } => (DeploymentState::Ended, message.clone()),
        };
        DeploymentView {
            name: name.clone(),
            state,
            reason,
            generation: known.generation,
            deployed_by: known.deployed.by.clone(),
            deployed_at: known.at,
            text: Arc::clone(&known.deployed.text),
            source,
            emitted: known.emitted,
            emitted_at: known.emitted_at,
            offset: known.offset.clone(),
        }
    }

    fn view_of_source(&self, action: String, run: RunId) -> SourceView {
        let step = self.state.runs.get(&run).and_then(|run| run.steps.get(SOURCE.0.index()));
        let active = step.and_then(|step| step.active.get(&SOURCE.1));
        let tries = step.and_then(|step| step.tries.get(&SOURCE.1));
        SourceView {
            action,
            run,
            site: active.and_then(|active| self.state.sites.get(&active.site)).map(|site| site.name.clone()),
            is_running: active.is_some_and(|active| active.phase == ActivePhase::Running),
            restarts: tries.map_or(0, |tries| tries.highest.0.saturating_sub(atoll_model::id::Attempt::FIRST.0)),
            last_error: tries.and_then(|tries| tries.last_error.clone()),
        }
    }
}
