//! Which run a fact is about.

use atoll_model::id::RunId;

use super::{ClaimId, Fact};

impl Fact {
    /// The run that it is about, if it is about one.
    pub fn run(&self) -> Option<RunId> {
        match self {
            Self::RunSubmitted { run, .. }
            | Self::StepExpanded { run, .. }
            | Self::StepSkipped { run, .. }
            | Self::RunFailing { run, .. }
            | Self::RunCancelling { run, .. }
            | Self::RunEnded { run, .. }
            | Self::RunRemoved { run }
            | Self::ClaimLeft { claim: ClaimId { run, .. }, .. }
            | Self::RunTagged { run, .. }
            | Self::PlacementDecided { run, .. }
            | Self::ExecutionsPlaced { run, .. }
            | Self::ExecutionsDispatched { run, .. }
            | Self::ExecutionsStarted { run, .. }
            | Self::ExecutionsFinished { run, .. }
            | Self::ExecutionsGivenUp { run, .. }
            | Self::ExecutionsReturned { run, .. }
            | Self::ExecutionsUnknown { run, .. }
            | Self::CancelOrdered { run, .. }
            | Self::StepDelegated { run, .. }
            | Self::ExecutionsTaken { run, .. }
            | Self::ResultsKept { run, .. }
            | Self::ExecutionsReused { run, .. }
            | Self::ExecutionsKept { run, .. }
            | Self::DelegationWithdrawn { run, .. }
            | Self::DelegationEnded { run, .. }
            | Self::ObjectHeld { run, .. }
            | Self::ObjectDownloaded { run, .. } => Some(*run),
            Self::AttemptAdopted { execution, .. }
            | Self::OutcomeSuperseded { execution, .. }
            | Self::ExecutionCrashed { execution, .. }
            | Self::RecomputeOrdered { execution }
            | Self::ObjectFetched { execution, .. } => Some(execution.run),
            Self::PushOrdered { run, .. } => *run,
            Self::TokenCreated { .. }
            | Self::AgentEnrolled { .. }
            | Self::AgentCertified { .. }
            | Self::AgentQuarantined { .. }
            | Self::SiteDrained { .. }
            | Self::SiteRevoked { .. }
            | Self::SiteRemoved { .. }
            | Self::SessionOpened { .. }
            | Self::CommandsAcknowledged { .. }
            | Self::ReportsApplied { .. }
            | Self::CapacityChanged { .. }
            | Self::AgentLost { .. }
            | Self::Prepared { .. }
            | Self::GrownPrepared { .. }
            | Self::ReadyOrdered { .. }
            | Self::ForgetOrdered { .. }
            | Self::ObjectUploaded { .. }
            | Self::PushCancelled { .. }
            | Self::PushEnded { .. }
            | Self::PushFailed { .. }
            | Self::PushLookedUp { .. }
            | Self::ReplicaLost { .. }
            | Self::PartTaken { .. }
            | Self::BucketReleased { .. }
            | Self::BucketDeleted { .. }
            | Self::ProjectSet { .. }
            | Self::EvictionGranted { .. }
            | Self::EvictionEnded { .. }
            | Self::EvictionAsked { .. }
            | Self::CopiesExpired { .. }
            | Self::ExpiryDecided { .. }
            | Self::ExpiryEnded { .. }
            | Self::ObjectPinned { .. }
            | Self::ObjectUnpinned { .. }
            | Self::VerificationAsked { .. }
            | Self::VerificationEnded { .. }
            | Self::PolicyApplied { .. }
            | Self::ProjectKeyKept { .. }
            | Self::EncryptionChosen { .. }
            | Self::ClaimLapsed { .. }
            | Self::ActionPushed { .. }
            | Self::ActionSigned { .. }
            | Self::ActionDeprecated { .. }
            | Self::ActionRemoved { .. }
            | Self::RepositoryAdded { .. }
            | Self::RepositoryRemoved { .. }
            | Self::ImportAsked { .. }
            | Self::ImportEnded { .. }
            | Self::ActionImported { .. }
            | Self::WorkflowDeployed { .. }
            | Self::SourceBegun { .. }
            | Self::SourceEnded { .. }
            | Self::RecordEmitted { .. }
            | Self::WorkflowUndeployed { .. }
            | Self::DeploymentRemoved { .. }
            | Self::ReplicaOrdered { .. }
            | Self::ResultsDropped { .. }
            | Self::ReplicaEnded { .. }
            | Self::SetBack { .. }
            | Self::CaughtUp { .. }
            | Self::InventoryHeard { .. } => None,
        }
    }
}
