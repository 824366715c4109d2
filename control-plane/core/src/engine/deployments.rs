//! Workflows that are deployed: their sources begin, emit records that start runs, and end.

use std::sync::Arc;

use atoll_model::id::{AgentId, Attempt, ExecutionId, RunId};
use atoll_model::limits::DEPLOYMENTS_MAX;
use atoll_model::workflow::Workflow;
use indexmap::IndexMap;

use super::submit::Submission;
use crate::command::{Rejection, Response};
use crate::control_plane::ControlPlane;
use crate::deployments::{Deployed, Deployment, DeploymentName, Emission, EmittedRecord, SourcePhase};
use crate::fact::Fact;
use crate::plan::RunPlan;
use crate::registry::ActionName;
use crate::state::{Phase, SOURCE};
use crate::view::{RunState, RunTags};

impl ControlPlane {
    /// Deploys a workflow, in place of what is deployed by this name: that ends before this one emits anything.
    pub(crate) fn deploy_workflow(&mut self, name: DeploymentName, deployed: Deployed) -> Result<Response, Rejection> {
        let known = self.state.deployments.get(&name);
        if known.is_some_and(|known| is_as_wanted(known, &deployed)) {
            // Its answer was lost, or somebody wants what is so already.
            return Ok(Response::Done);
        }
        if deployed.emitter.as_ref().is_some_and(|(_, run)| self.state.runs.contains_key(run)) {
            // It was carried out and its answer lost; what is deployed by now was wanted later.
            return Ok(Response::Done);
        }
        if known.is_none() && self.state.deployments.len() >= DEPLOYMENTS_MAX {
            let reason = format!("no more than {DEPLOYMENTS_MAX} workflows can be deployed: undeploy one");
            return Err(Rejection::Unavailable(reason));
        }
        let former = known.and_then(Deployment::live_run);
        let tags = tags_of(&name);
        self.check_deployable(&deployed.workflow, &tags)?;
        if let Some((emitter, run)) = &deployed.emitter {
            self.check_deployable(emitter, &tags)?;
            if former.is_none() {
                self.submit(source_run(&name, &deployed, emitter, *run))?;
            }
        }
        let begins = deployed.emitter.is_some() && former.is_none();
        let fact = Fact::WorkflowDeployed { name: name.clone(), deployed: Box::new(deployed), at: self.now };
        self.record(fact);
        if begins {
            self.record(Fact::SourceBegun { name });
        } else if let Some(former) = former {
            self.stop_source(former, "another generation was deployed");
        }
        Ok(Response::Done)
    }

    /// Ends the source of a workflow. Runs that it has started go on.
    pub(crate) fn undeploy_workflow(&mut self, name: DeploymentName) -> Result<Response, Rejection> {
        let Some(known) = self.state.deployments.get(&name) else {
            return Err(Rejection::NotFound(self.why_not_deployed(&name)));
        };
        if known.is_leaving {
            return Ok(Response::Done);
        }
        match known.live_run() {
            None => self.record(Fact::DeploymentRemoved { name }),
            Some(run) => {
                self.record(Fact::WorkflowUndeployed { name });
                self.stop_source(run, "the workflow was undeployed");
            }
        }
        Ok(Response::Done)
    }

    /// Takes in what the current attempt at a source has emitted: each record starts a run, in the same step that notes it.
    pub(crate) fn emit(
        &mut self,
        agent: AgentId,
        (execution, attempt): (ExecutionId, Attempt),
        records: Vec<EmittedRecord>,
    ) -> Result<Response, Rejection> {
        let name = self.may_emit(agent, execution, attempt)?;
        let (mut taken, mut refused) = (0, None);
        for record in records {
            match self.take_record(&name, attempt, record) {
                Ok(()) => taken += 1,
                Err(Rejection::Busy(reason) | Rejection::Unavailable(reason)) if taken == 0 => {
                    return Err(Rejection::Busy(reason));
                }
                // The rest comes again.
                Err(Rejection::Busy(_) | Rejection::Unavailable(_)) => break,
                Err(
                    Rejection::NotFound(reason)
                    | Rejection::Conflict(reason)
                    | Rejection::Invalid(reason)
                    | Rejection::Forbidden(reason),
                ) => {
                    refused = Some(reason);
                    break;
                }
            }
        }
        let deployment = self.state.deployments.get(&name).expect("it has just emitted");
        let through = deployment.position.filter(|(of, _)| *of == attempt).map_or(0, |(_, number)| number);
        Ok(Response::Emitted { through, offset: deployment.offset.clone(), refused })
    }

    /// The deployment whose source this is, if it is the attempt that counts. One that was given to others may come back:
    /// it asks again until it is told to end.
    fn may_emit(&self, agent: AgentId, execution: ExecutionId, attempt: Attempt) -> Result<DeploymentName, Rejection> {
        let not_now = || Rejection::Busy(format!("attempt {attempt} at {execution} is not the one that counts"));
        let (name, known) = self.state.deployments.of_run(execution.run).ok_or_else(not_now)?;
        // A service emits nothing. In a run of the generation before the source has the same place.
        if (execution.step, execution.element) != SOURCE || known.deployed.source().is_none() {
            return Err(not_now());
        }
        let site = self.state.site_of(agent).ok_or_else(not_now)?;
        let active = self.state.active(execution).ok_or_else(not_now)?;
        let counts = active.attempt == attempt && active.site == site && self.state.run(execution.run).is_going_on();
        if counts { Ok(name.clone()) } else { Err(not_now()) }
    }

    fn take_record(&mut self, name: &DeploymentName, attempt: Attempt, record: EmittedRecord) -> Result<(), Rejection> {
        let deployment = self.state.deployments.get(name).expect("it emits");
        if deployment.position.is_some_and(|(of, last)| of == attempt && record.number <= last) {
            // Its answer was lost.
            return Ok(());
        }
        let is_known = record.key.as_ref().is_some_and(|key| deployment.keys.contains(key));
        let mut emission =
            Emission { attempt, number: record.number, offset: record.offset, key: record.key, run: None };
        if !is_known {
            let deployed = &deployment.deployed;
            let submission = Submission {
                run: record.run,
                workflow: Arc::clone(&deployed.workflow),
                source: Arc::clone(&deployed.text),
                inputs: record.inputs,
                submitted_by: deployed.by.clone(),
                traceparent: None,
                tags: tags_of(name),
            };
            self.submit(submission)?;
            emission.run = Some(record.run);
        }
        self.record(Fact::RecordEmitted { name: name.clone(), emission, at: self.now });
        Ok(())
    }

    /// A run has ended, which may have been that of a source.
    pub(crate) fn source_ended(&mut self, run: RunId) {
        let Some((name, deployment)) = self.state.deployments.of_run(run) else { return };
        let (name, is_leaving) = (name.clone(), deployment.is_leaving);
        let ended = self.state.run(run);
        let Phase::Ended(state) = ended.phase else { return };
        let message = ended.error.as_ref().map(|error| error.message.clone());
        self.record(Fact::SourceEnded { name: name.clone(), run, state, message, at: self.now });
        if is_leaving { self.record(Fact::DeploymentRemoved { name }) } else { self.begin_source(name) }
    }

    /// Begins what has waited for the end of its former.
    fn begin_source(&mut self, name: DeploymentName) {
        let Some(deployment) = self.state.deployments.get(&name) else { return };
        let Some((emitter, run)) = &deployment.deployed.emitter else { return };
        if deployment.phase != SourcePhase::Waiting {
            return;
        }
        let (run, submission) = (*run, source_run(&name, &deployment.deployed, emitter, *run));
        self.record(Fact::SourceBegun { name: name.clone() });
        if let Err(rejection) = self.submit(submission) {
            let (state, message) = (RunState::Failed, Some(rejection.to_string()));
            self.record(Fact::SourceEnded { name, run, state, message, at: self.now });
        }
    }

    fn stop_source(&mut self, run: RunId, reason: &str) {
        // One that has just ended by itself needs no stopping.
        let _ = self.cancel_run(run, reason.to_owned());
    }

    /// Refuses what no run could be made of.
    fn check_deployable(&self, workflow: &Workflow, tags: &RunTags) -> Result<(), Rejection> {
        for action in workflow.steps.iter().filter_map(|step| step.work.action()) {
            let name = ActionName { project: tags.project.clone(), reference: action.reference() };
            let pushed = self.state.registry.get(&name).map(|version| version.bundle.id);
            if action.bundle.is_some() && pushed != action.bundle {
                let reason = format!(
                    "the action {} was not pushed, and runs of a deployed workflow need it for as long as that is \
                     deployed: `atoll action push` it, and name it as {0}@{}",
                    action.name, action.version
                );
                return Err(Rejection::Invalid(reason));
            }
        }
        let plan = RunPlan::new(workflow, self.rules_for(workflow, tags));
        self.check_inputs_sent(workflow, &IndexMap::new(), &plan)?;
        self.check_possible_sites(workflow, &plan)
    }

    /// The deployed workflow that runs this version of an action, or will.
    pub(crate) fn deployed_user(&self, action: &ActionName) -> Option<&DeploymentName> {
        let uses_it = |workflow: &Workflow| {
            let mut actions = workflow.steps.iter().filter_map(|step| step.work.action());
            actions.any(|used| used.bundle.is_some() && used.reference() == action.reference)
        };
        let found = self.state.deployments.iter().find(|(name, deployment)| {
            let Deployed { workflow, emitter, .. } = &deployment.deployed;
            let emitter = emitter.as_ref().map(|(emitter, _)| emitter);
            name.project == action.project && [Some(workflow), emitter].into_iter().flatten().any(|one| uses_it(one))
        });
        found.map(|(name, _)| name)
    }

    /// That nothing is deployed by this name, and what is.
    pub fn why_not_deployed(&self, name: &DeploymentName) -> String {
        let of_project = self.state.deployments.iter().filter(|(known, _)| known.project == name.project);
        let known: Vec<&str> = of_project.map(|(known, _)| known.name.as_str()).collect();
        let there = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
        format!("there is no deployed workflow {} in project {} (it has {there})", name.name, name.project)
    }
}

/// Whether nothing would change.
fn is_as_wanted(known: &Deployment, wanted: &Deployed) -> bool {
    let has_ended = matches!(known.phase, SourcePhase::Ended { .. });
    !known.is_leaving && !has_ended && known.deployed.text == wanted.text && known.deployed.workflow == wanted.workflow
}

fn tags_of(name: &DeploymentName) -> RunTags {
    RunTags { project: name.project.clone(), ..RunTags::default() }
}

fn source_run(name: &DeploymentName, deployed: &Deployed, emitter: &Arc<Workflow>, run: RunId) -> Submission {
    Submission {
        run,
        workflow: Arc::clone(emitter),
        source: Arc::clone(&deployed.text),
        inputs: IndexMap::new(),
        submitted_by: deployed.by.clone(),
        traceparent: None,
        tags: tags_of(name),
    }
}
