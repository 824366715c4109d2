//! What people see of deployed workflows.

use std::sync::Arc;

use atoll_model::id::{Attempt, ExecutionId, RunId, SiteId, SiteName, StepIndex};
use atoll_model::workflow::{Step, Workflow};

use crate::control_plane::ControlPlane;
use crate::deployments::{Deployment, DeploymentName, SourcePhase};
use crate::state::{Active, ActivePhase, SOURCE, Tries};
use crate::view::{DeploymentState, DeploymentView, ExecutionState, RunState, ServiceView, SourceView};

/// After as many failures of a source without a record between them, people are told that it has failed.
const FAILURES_IN_A_ROW: u32 = 5;

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
        let run = known.deployed.emitter.as_ref().map(|(_, run)| known.former.unwrap_or(*run));
        let source = known.deployed.source().zip(run).and_then(|(step, run)| {
            let action = step.work.action()?;
            Some(self.view_of_source(action.reference().to_string(), run))
        });
        let services: Vec<ServiceView> = known.deployed.emitter.as_ref().map_or_else(Vec::new, |(emitter, run)| {
            let of_emitter = emitter.steps.iter().filter(|step| step.is_service());
            of_emitter.filter_map(|step| self.view_of_service(step, *run)).collect()
        });
        let (state, reason) = match &known.phase {
            _ if known.is_leaving => (DeploymentState::Draining, None),
            _ if known.deployed.emitter.is_none() && known.former.is_none() => (DeploymentState::Ready, None),
            SourcePhase::Waiting => {
                let reason = "what stays of the generation before has not ended".to_owned();
                (DeploymentState::Deploying, Some(reason))
            }
            SourcePhase::Begun => self.state_of_begun(run, source.as_ref(), &services),
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
            services,
            emitted: known.emitted,
            emitted_at: known.emitted_at,
            offset: known.offset.clone(),
        }
    }

    /// How far what stays of a deployment has come.
    fn state_of_begun(
        &self,
        run: Option<RunId>,
        source: Option<&SourceView>,
        services: &[ServiceView],
    ) -> (DeploymentState, Option<String>) {
        let step = run.and_then(|run| self.state.runs.get(&run)?.steps.get(SOURCE.0.index()));
        // One that has come to its end leaves its services as they are.
        let has_ended = step.is_some_and(|step| step.row(SOURCE.1).is_some());
        let is_there = source.is_none_or(|source| source.is_running || has_ended);
        if is_there && services.iter().all(|service| service.is_ready) {
            return (DeploymentState::Ready, None);
        }
        let tries = step.and_then(|step| step.tries.get(&SOURCE.1)).filter(|_| !is_there);
        let times = tries.map_or(0, |tries| tries.failures + tries.crashes + tries.not_started);
        if times < FAILURES_IN_A_ROW {
            return (DeploymentState::Deploying, self.what_is_missing(run));
        }
        let last = source.and_then(|source| source.last_error.as_deref()).unwrap_or_default();
        let reason = format!("its source has failed {times} times in a row and is begun again after a pause: {last}");
        (DeploymentState::Failed, Some(reason))
    }

    /// What keeps what stays of a deployment from being ready, if that is known.
    fn what_is_missing(&self, run: Option<RunId>) -> Option<String> {
        let run = self.state.runs.get(&run?)?;
        run.workflow.steps.iter().find_map(|step| {
            let view = self.execution(ExecutionId { run: run.id, step: step.index, element: SOURCE.1 })?;
            let begins = step.is_service() && view.state == ExecutionState::Dispatched;
            let not_well = begins.then(|| format!("the service {} is at its site, and not well yet", step.name));
            view.waiting_for.map(|waits| format!("{} waits for {waits}", step.name)).or(not_well)
        })
    }

    fn view_of_source(&self, action: String, run: RunId) -> SourceView {
        let (active, tries) = self.what_stays(run, SOURCE.0);
        SourceView {
            action,
            run,
            site: active.and_then(|active| self.name_of_site(active.site)),
            is_running: active.is_some_and(|active| active.phase == ActivePhase::Running),
            restarts: restarts(tries),
            last_error: tries.and_then(|tries| tries.last_error.clone()),
        }
    }

    fn view_of_service(&self, step: &Step, run: RunId) -> Option<ServiceView> {
        let (active, tries) = self.what_stays(run, step.index);
        Some(ServiceView {
            name: step.name.clone(),
            action: step.work.action()?.reference().to_string(),
            execution: ExecutionId { run, step: step.index, element: SOURCE.1 },
            site: active.and_then(|active| self.name_of_site(active.site)),
            is_ready: active.is_some_and(|active| active.phase == ActivePhase::Running),
            restarts: restarts(tries),
            last_error: tries.and_then(|tries| tries.last_error.clone()),
        })
    }

    /// What goes on of a step that stays, and what is known of its attempts.
    fn what_stays(&self, run: RunId, step: StepIndex) -> (Option<&Active>, Option<&Tries>) {
        let step = self.state.runs.get(&run).and_then(|run| run.steps.get(step.index()));
        (step.and_then(|step| step.active.get(&SOURCE.1)), step.and_then(|step| step.tries.get(&SOURCE.1)))
    }

    fn name_of_site(&self, site: SiteId) -> Option<SiteName> {
        self.state.sites.get(&site).map(|site| site.name.clone())
    }
}

fn restarts(tries: Option<&Tries>) -> u32 {
    tries.map_or(0, |tries| tries.highest.0.saturating_sub(Attempt::FIRST.0))
}
