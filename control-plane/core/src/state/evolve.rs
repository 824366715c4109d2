//! The only function that changes the durable state.

use super::State;
use crate::fact::Fact;

impl State {
    pub(crate) fn evolve(&mut self, fact: &Fact) {
        let run = fact.run();
        let used = self.run_usage(run);
        self.apply(fact);
        self.follow_delegations(fact);
        self.count_usage(run, used);
    }

    fn apply(&mut self, fact: &Fact) {
        match fact {
            Fact::TokenCreated { .. }
            | Fact::AgentEnrolled { .. }
            | Fact::AgentCertified { .. }
            | Fact::AgentQuarantined { .. }
            | Fact::SiteDrained { .. }
            | Fact::SiteRevoked { .. }
            | Fact::SiteRemoved { .. }
            | Fact::SessionOpened { .. }
            | Fact::CommandsAcknowledged { .. }
            | Fact::InventoryHeard { .. }
            | Fact::ReportsApplied { .. }
            | Fact::CapacityChanged { .. }
            | Fact::AgentLost { .. }
            | Fact::Prepared { .. }
            | Fact::GrownPrepared { .. }
            | Fact::ReadyOrdered { .. }
            | Fact::SetBack { .. }
            | Fact::CaughtUp { .. }
            | Fact::ForgetOrdered { .. } => self.evolve_site(fact),
            Fact::RunSubmitted { .. }
            | Fact::StepExpanded { .. }
            | Fact::StepSkipped { .. }
            | Fact::RunFailing { .. }
            | Fact::RunCancelling { .. }
            | Fact::RunEnded { .. }
            | Fact::RunRemoved { .. }
            | Fact::RunTagged { .. }
            | Fact::PolicyApplied { .. }
            | Fact::ProjectSet { .. } => self.evolve_run(fact),
            Fact::PlacementDecided { .. }
            | Fact::ExecutionsPlaced { .. }
            | Fact::ExecutionsDispatched { .. }
            | Fact::ExecutionsStarted { .. }
            | Fact::ExecutionsFinished { .. }
            | Fact::ExecutionsGivenUp { .. }
            | Fact::ExecutionsReturned { .. }
            | Fact::ExecutionsUnknown { .. }
            | Fact::AttemptAdopted { .. }
            | Fact::OutcomeSuperseded { .. }
            | Fact::RecomputeOrdered { .. }
            | Fact::ExecutionCrashed { .. }
            | Fact::CancelOrdered { .. } => self.evolve_execution(fact),
            Fact::StepDelegated { .. }
            | Fact::ExecutionsTaken { .. }
            | Fact::ExecutionsKept { .. }
            | Fact::DelegationWithdrawn { .. }
            | Fact::DelegationEnded { .. } => self.evolve_delegation(fact),
            Fact::ReplicaOrdered { .. } | Fact::ReplicaEnded { .. } => self.evolve_replicas(fact),
            Fact::ResultsKept { .. } | Fact::ResultsDropped { .. } | Fact::ExecutionsReused { .. } => {
                self.evolve_results(fact);
            }
            Fact::ClaimLeft { .. }
            | Fact::ClaimLapsed { .. }
            | Fact::ExpiryDecided { .. }
            | Fact::ExpiryEnded { .. } => self.evolve_claims(fact),
            Fact::ActionPushed { .. }
            | Fact::ActionSigned { .. }
            | Fact::ActionDeprecated { .. }
            | Fact::ActionRemoved { .. } => self.evolve_registry(fact),
            Fact::RepositoryAdded { .. }
            | Fact::RepositoryRemoved { .. }
            | Fact::ImportAsked { .. }
            | Fact::ImportEnded { .. }
            | Fact::ActionImported { .. } => self.evolve_repositories(fact),
            Fact::WorkflowDeployed { .. }
            | Fact::SourceBegun { .. }
            | Fact::SourceEnded { .. }
            | Fact::RecordEmitted { .. }
            | Fact::WorkflowUndeployed { .. }
            | Fact::DeploymentRemoved { .. } => self.evolve_deployments(fact),
            Fact::ProjectKeyKept { .. } | Fact::EncryptionChosen { .. } => self.evolve_keys(fact),
            Fact::ObjectUploaded { .. }
            | Fact::ObjectFetched { .. }
            | Fact::PushOrdered { .. }
            | Fact::PushCancelled { .. }
            | Fact::PushEnded { .. }
            | Fact::PushFailed { .. }
            | Fact::PushLookedUp { .. }
            | Fact::ReplicaLost { .. }
            | Fact::ObjectHeld { .. }
            | Fact::ObjectDownloaded { .. }
            | Fact::PartTaken { .. }
            | Fact::BucketReleased { .. }
            | Fact::BucketDeleted { .. } => self.evolve_object(fact),
            Fact::EvictionGranted { .. }
            | Fact::EvictionEnded { .. }
            | Fact::EvictionAsked { .. }
            | Fact::CopiesExpired { .. }
            | Fact::ObjectPinned { .. }
            | Fact::ObjectUnpinned { .. }
            | Fact::VerificationAsked { .. }
            | Fact::VerificationEnded { .. } => self.evolve_copies(fact),
        }
    }
}
