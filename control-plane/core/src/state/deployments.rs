//! How facts about deployed workflows change the state.

use atoll_model::id::StepIndex;

use super::{State, Tries};
use crate::deployments::SourcePhase;
use crate::fact::Fact;

/// A source is a run of one step, which does not fan out.
pub(crate) const SOURCE: (StepIndex, u32) = (StepIndex(0), 0);

impl State {
    #[expect(clippy::wildcard_enum_match_arm, reason = "`evolve` names every fact once")]
    pub(super) fn evolve_deployments(&mut self, fact: &Fact) {
        let deployments = &mut self.deployments;
        match fact {
            Fact::WorkflowDeployed { name, deployed, at } => deployments.deploy(name, deployed, *at),
            Fact::SourceBegun { name } => deployments.begin(name),
            Fact::SourceEnded { name, run, state, message, at } => {
                let ended = SourcePhase::Ended { state: *state, message: message.clone(), at: *at };
                deployments.end(name, *run, ended);
            }
            Fact::RecordEmitted { name, emission, at } => {
                deployments.emit(name, emission, *at);
                let run = deployments.get(name).and_then(|deployment| deployment.live_run());
                let run = run.expect("who emits is there");
                // It gets on: what went wrong before says nothing of what will.
                self.note_success(run, SOURCE.0);
                if let Some(tries) = self.run_mut(run).steps[SOURCE.0.index()].tries.get_mut(&SOURCE.1) {
                    *tries = Tries { failures: 0, crashes: 0, not_started: 0, ..tries.clone() };
                }
            }
            Fact::WorkflowUndeployed { name } => deployments.leave(name),
            Fact::DeploymentRemoved { name } => deployments.remove(name),
            _ => unreachable!("evolve hands over facts about deployments only"),
        }
    }
}
