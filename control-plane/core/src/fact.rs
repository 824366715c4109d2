//! What the control plane has decided: the only thing that its journal holds. Facts carry decisions, never inputs, so
//! that replaying them through newer code yields the same state.

mod parts;
mod run;

use std::sync::Arc;

use atoll_model::action::BundleSignature;
use atoll_model::elements::ElementSet;
use atoll_model::id::{
    AgentId, Attempt, CommandSeq, Epoch, ExecutionId, JournalId, ObjectId, ReportSeq, RunId, SiteId, SiteName,
    StepIndex, TokenId, TransferId,
};
use atoll_model::placement::{Labels, SiteVerdict};
use atoll_model::repository::RepositoryName;
use atoll_model::resources::Capacity;
use atoll_model::session::{FaultLocation, FinishedElement, Logs, PushFailure, StartedElement};
use atoll_model::time::Timestamp;
use atoll_model::value::{ObjectRef, Value};
use atoll_model::workflow::Workflow;
use indexmap::IndexMap;
use serde::{Deserialize, Serialize};

pub use self::parts::{Items, LogPositions, PinnedAt, ReturnCause, RuleText};
use crate::deployments::{Deployed, DeploymentName, Emission};
use crate::encryption::{KeyId, WrappedKey};
use crate::registry::{ActionName, ActionVersion, Deprecation};
use crate::repositories::{Import, ImportReport, Origin, Repository};
use crate::rules::AppliedPolicy;

pub(crate) use crate::state::{ClaimId, ClaimTerms, Claimed, ResultKey};
use crate::view::{ProjectSettings, RunError, RunState, RunTags};

/// A new fact stands at the end of the list, so that journals of earlier versions are read as they were written.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Fact {
    // Identity.
    TokenCreated {
        token: TokenId,
        secret_hash: [u8; 32],
        site: SiteName,
        /// The site's number; a new one makes the site.
        site_id: SiteId,
        labels: Labels,
        expires_at: Timestamp,
    },
    /// The token was redeemed: from now on this agent speaks for the token's site.
    AgentEnrolled {
        token: TokenId,
        agent: AgentId,
        identity_key: [u8; 32],
        at: Timestamp,
    },
    AgentCertified {
        agent: AgentId,
        join_counter: u64,
        recovery: bool,
        at: Timestamp,
    },
    AgentQuarantined {
        agent: AgentId,
        reason: String,
    },
    SiteDrained {
        site: SiteId,
        drained: bool,
    },
    SiteRevoked {
        site: SiteId,
        reason: String,
    },
    SiteRemoved {
        site: SiteId,
    },

    // Sessions.
    SessionOpened {
        agent: AgentId,
        epoch: Epoch,
        journal: JournalId,
        incarnation: u64,
        /// Where both logs begin again, if the journal is not the one that was known.
        restart: Option<LogPositions>,
        capacity: Capacity,
        runtimes: Vec<String>,
        agent_version: String,
        at: Timestamp,
    },
    /// These commands are in the agent's journal.
    CommandsAcknowledged {
        agent: AgentId,
        through: CommandSeq,
    },
    /// The effects of these reports are among the facts of the same step.
    ReportsApplied {
        agent: AgentId,
        through: ReportSeq,
    },
    CapacityChanged {
        site: SiteId,
        capacity: Capacity,
    },
    /// Unheard for too long: what it had may be given to others.
    AgentLost {
        agent: AgentId,
        at: Timestamp,
    },

    // Commands to agents that are no part of another fact; each takes the next number of the agent's log.
    Prepared {
        site: SiteId,
        run: RunId,
        step: StepIndex,
    },
    CancelOrdered {
        site: SiteId,
        run: RunId,
        step: StepIndex,
        elements: ElementSet,
        reason: Arc<str>,
    },
    ForgetOrdered {
        site: SiteId,
        run: RunId,
    },

    // Runs.
    RunSubmitted {
        run: RunId,
        workflow: Arc<Workflow>,
        source: Arc<str>,
        inputs: IndexMap<String, Value>,
        submitted_by: String,
        traceparent: Option<String>,
        at: Timestamp,
    },
    /// What the step needs has ended, and so its elements are known.
    StepExpanded {
        run: RunId,
        step: StepIndex,
        items: Items,
        count: u32,
        at: Timestamp,
    },
    /// Something that the step needs was skipped, or its own `when` is false.
    StepSkipped {
        run: RunId,
        step: StepIndex,
    },
    /// The run will fail: what has not been handed to an agent is cancelled, what runs may end.
    RunFailing {
        run: RunId,
        error: RunError,
    },
    /// Somebody asked to cancel the run.
    RunCancelling {
        run: RunId,
        reason: String,
    },
    RunEnded {
        run: RunId,
        state: RunState,
        outputs: IndexMap<String, Value>,
        error: Option<RunError>,
        at: Timestamp,
    },
    RunRemoved {
        run: RunId,
    },

    // Executions.
    /// A decision of the placement, to which others refer by its place among the step's decisions.
    PlacementDecided {
        run: RunId,
        step: StepIndex,
        sites: Vec<SiteVerdict>,
        at: Timestamp,
    },
    /// A site is chosen; inputs are on their way to the bucket.
    ExecutionsPlaced {
        run: RunId,
        step: StepIndex,
        attempt: Attempt,
        elements: ElementSet,
        site: SiteId,
        decision: u32,
        at: Timestamp,
    },
    /// Takes the next number of the agent's log.
    ExecutionsDispatched {
        run: RunId,
        step: StepIndex,
        attempt: Attempt,
        elements: ElementSet,
        site: SiteId,
        decision: u32,
        /// The executions wait at the agent for the outputs of others.
        fragment: bool,
        at: Timestamp,
    },
    ExecutionsStarted {
        run: RunId,
        step: StepIndex,
        elements: Vec<StartedElement>,
    },
    /// The outcomes count, and are final.
    ExecutionsFinished {
        run: RunId,
        step: StepIndex,
        site: SiteId,
        elements: Vec<FinishedElement>,
    },
    /// They ended without an agent: they could not be handed to one, or were cancelled before.
    ExecutionsGivenUp {
        run: RunId,
        step: StepIndex,
        elements: ElementSet,
        cancelled: bool,
        message: Arc<str>,
        at: Timestamp,
    },
    /// Their attempts are over (or were given away) and they wait for the next one.
    ExecutionsReturned {
        run: RunId,
        step: StepIndex,
        elements: ElementSet,
        cause: ReturnCause,
        message: Arc<str>,
        not_before: Timestamp,
    },
    /// Nobody knows whether they ran, and they must not run twice.
    ExecutionsUnknown {
        run: RunId,
        step: StepIndex,
        elements: ElementSet,
        message: Arc<str>,
    },
    /// An attempt that was given away counts again.
    AttemptAdopted {
        execution: ExecutionId,
        attempt: Attempt,
        site: SiteId,
        started_at: Option<Timestamp>,
        at: Timestamp,
    },
    /// An outcome that came when another had been accepted.
    OutcomeSuperseded {
        execution: ExecutionId,
        attempt: Attempt,
        site: SiteId,
        succeeded: bool,
        /// Whether its outputs are those that were accepted.
        same_outputs: bool,
    },
    /// The outputs of an execution that succeeded are nowhere any more: it is run again.
    RecomputeOrdered {
        execution: ExecutionId,
    },

    // Data.
    /// A person sent it in; it is in the bucket.
    ObjectUploaded {
        object: ObjectRef,
        at: Timestamp,
        hold_until: Timestamp,
    },
    ObjectFetched {
        object: ObjectRef,
        site: SiteId,
        wire_bytes: u64,
        /// What of it came straight from another site; the rest came from the bucket.
        direct: Option<(SiteId, u64)>,
        execution: ExecutionId,
        rule: RuleText,
        at: Timestamp,
    },
    /// Takes the next number of the agent's log.
    PushOrdered {
        transfer: TransferId,
        object: ObjectRef,
        site: SiteId,
        run: Option<RunId>,
        for_execution: Option<ExecutionId>,
        rule: RuleText,
        at: Timestamp,
    },
    /// Takes the next number of the agent's log.
    PushCancelled {
        transfer: TransferId,
    },
    /// The object is in the bucket.
    PushEnded {
        transfer: TransferId,
        wire_bytes: u64,
        at: Timestamp,
    },
    PushFailed {
        transfer: TransferId,
        reason: PushFailure,
        message: String,
        at: Timestamp,
    },
    /// The bucket was looked into after a push that came to nothing: whether its bytes had arrived all the same.
    PushLookedUp {
        object: ObjectId,
        found: bool,
        at: Timestamp,
    },
    /// A copy is damaged or gone: at the site, or in the bucket as the site found.
    ReplicaLost {
        object: ObjectId,
        site: SiteId,
        location: FaultLocation,
        message: String,
    },
    /// A person wants the object: it stays in the bucket until then.
    ObjectHeld {
        object: ObjectRef,
        run: RunId,
        /// A site that has it, where that was not known.
        site: Option<SiteId>,
        until: Timestamp,
    },
    ObjectDownloaded {
        object: ObjectRef,
        run: RunId,
        bytes: u64,
        at: Timestamp,
    },
    /// An agent is to read a file of a directory that was sent in: the file is an object of the bucket's from now on.
    PartTaken {
        object: ObjectId,
    },
    /// Nobody needs it in the bucket; it is being deleted there.
    BucketReleased {
        object: ObjectId,
    },
    BucketDeleted {
        object: ObjectId,
    },

    /// What the agent's new journal lacks is among the facts of the same step, or follows.
    InventoryHeard {
        agent: AgentId,
    },

    // Later additions.
    /// With [`Self::RunSubmitted`], where the run was given any.
    RunTagged {
        run: RunId,
        tags: RunTags,
    },
    /// What watched over the attempt went down while it ran; what becomes of it is another fact of the same step.
    ExecutionCrashed {
        execution: ExecutionId,
        attempt: Attempt,
        site: SiteId,
        incarnation: u64,
        message: Arc<str>,
        logs: Logs,
        at: Timestamp,
    },
    /// An administrator has set what the project may have.
    ProjectSet {
        project: String,
        settings: ProjectSettings,
    },
    /// The control plane was restored from a backup: what these sites have done since is not known before they say.
    SetBack {
        sites: Vec<SiteId>,
        at: Timestamp,
    },
    /// The site has said all that it has done.
    CaughtUp {
        site: SiteId,
    },
    /// A whole step is given to the agent of a site before what it needs has ended. Takes the next number of the agent's log.
    StepDelegated {
        run: RunId,
        step: StepIndex,
        site: SiteId,
        /// Of the first attempts that the agent gives out.
        attempt: Attempt,
        decision: u32,
        at: Timestamp,
    },
    /// Attempts that the agent of a delegated step gave out by itself, and told of.
    ExecutionsTaken {
        run: RunId,
        step: StepIndex,
        attempt: Attempt,
        elements: ElementSet,
        site: SiteId,
        at: Timestamp,
    },
    /// Of executions that have just returned: the agent of the delegated step makes the next attempt by itself.
    ExecutionsKept {
        run: RunId,
        step: StepIndex,
        elements: ElementSet,
    },
    /// The agent is told to hand the step back. Takes the next number of the agent's log.
    DelegationWithdrawn {
        run: RunId,
        step: StepIndex,
        site: SiteId,
        stop: bool,
    },
    /// The agent has handed the step back; or the step was given away, and the agent may still go on with it.
    DelegationEnded {
        run: RunId,
        step: StepIndex,
        given_away: bool,
    },
    /// From now on these rules hold for the project, live runs included.
    PolicyApplied {
        project: String,
        applied: Arc<AppliedPolicy>,
    },
    /// The site may let go of these: from now on they do not count as being there. Of what it proposed, `refused` must
    /// stay, the first of them for this reason. Takes the next number of the agent's log.
    EvictionGranted {
        site: SiteId,
        /// The number that the site gave to what it proposed.
        proposal: u64,
        objects: Vec<ObjectRef>,
        refused: u32,
        reason: Option<Arc<str>>,
    },
    /// What became of those.
    EvictionEnded {
        site: SiteId,
        gone: Vec<ObjectId>,
        kept: Vec<ObjectId>,
    },
    /// A person wants the object to leave the site. Takes the next number of the agent's log.
    EvictionAsked {
        site: SiteId,
        object: ObjectRef,
    },
    ObjectPinned {
        object: ObjectId,
        at: PinnedAt,
        by: Arc<str>,
        since: Timestamp,
    },
    ObjectUnpinned {
        object: ObjectId,
        at: PinnedAt,
    },
    /// A person has asked a site to read these objects again, or all that it has. Takes the next number of the agent's log.
    VerificationAsked {
        site: SiteId,
        objects: Vec<ObjectRef>,
        at: Timestamp,
    },
    VerificationEnded {
        site: SiteId,
        files: u64,
        bytes: u64,
        damaged: u64,
        at: Timestamp,
    },
    /// A key of a project was made, or wrapped anew.
    ProjectKeyKept {
        key: KeyId,
        wrapped: WrappedKey,
    },
    /// With [`Self::PushOrdered`] or [`Self::ObjectUploaded`]: what it brings into the bucket is encrypted by this key.
    EncryptionChosen {
        object: ObjectId,
        key: KeyId,
    },
    /// With [`Self::RunRemoved`]: what a rule holds of the run from then on, or some of it. Each object with the site where
    /// the run made it.
    ClaimLeft {
        claim: ClaimId,
        terms: Arc<ClaimTerms>,
        objects: Vec<Claimed>,
    },
    ClaimLapsed {
        claim: ClaimId,
    },
    /// The site is told to have a copy, since a rule wants so, of what this execution made.
    ReplicaOrdered {
        object: ObjectRef,
        site: SiteId,
        execution: ExecutionId,
        rule: RuleText,
    },
    /// It has, or it says that it cannot; or it is not asked any more.
    ReplicaEnded {
        object: ObjectId,
        site: SiteId,
        made: bool,
    },
    /// What these executions have made may be taken by others that would do the same, until then.
    ResultsKept {
        run: RunId,
        step: StepIndex,
        results: Vec<(u32, ResultKey)>,
        until: Timestamp,
    },
    ResultsDropped {
        keys: Vec<ResultKey>,
    },
    /// These executions end with what others have made, and are not placed.
    ExecutionsReused {
        run: RunId,
        step: StepIndex,
        results: Vec<(u32, ResultKey)>,
        at: Timestamp,
    },
    /// The time of these is over, and the site is to let go of them. Takes the next number of the agent's log.
    CopiesExpired {
        site: SiteId,
        objects: Vec<ObjectRef>,
    },
    /// Somebody lets go of an object whose time was over by then.
    ExpiryDecided {
        object: ObjectId,
        at: Timestamp,
    },
    /// Nothing is left of these, whose time is over.
    ExpiryEnded {
        objects: Vec<ObjectId>,
    },
    /// A version of an action, which never changes.
    ActionPushed {
        name: ActionName,
        version: Arc<ActionVersion>,
    },
    ActionSigned {
        name: ActionName,
        signature: BundleSignature,
    },
    /// Somebody advises against a version, or does no longer.
    ActionDeprecated {
        name: ActionName,
        deprecation: Option<Deprecation>,
    },
    ActionRemoved {
        name: ActionName,
    },

    // Repositories that actions are imported from.
    RepositoryAdded {
        name: RepositoryName,
        repository: Box<Repository>,
    },
    /// What goes on with it goes on for nobody.
    RepositoryRemoved {
        name: RepositoryName,
    },
    /// It is to be looked at: until that has ended, shells begin anew after each start.
    ImportAsked {
        name: RepositoryName,
        import: Import,
    },
    ImportEnded {
        name: RepositoryName,
        at: Timestamp,
        report: Box<ImportReport>,
    },
    /// Where a version came from first.
    ActionImported {
        name: ActionName,
        origin: Box<Origin>,
    },

    // Workflows that are deployed.
    /// In place of what was deployed by this name, if anything was.
    WorkflowDeployed {
        name: DeploymentName,
        deployed: Box<Deployed>,
        at: Timestamp,
    },
    /// The run that carries its source out is, or will be, one of the facts of the same step.
    SourceBegun {
        name: DeploymentName,
    },
    SourceEnded {
        name: DeploymentName,
        run: RunId,
        state: RunState,
        message: Option<String>,
        at: Timestamp,
    },
    /// The run that the record starts is one of the facts of the same step.
    RecordEmitted {
        name: DeploymentName,
        emission: Emission,
        at: Timestamp,
    },
    /// It is gone when its source is.
    WorkflowUndeployed {
        name: DeploymentName,
    },
    DeploymentRemoved {
        name: DeploymentName,
    },

    /// As [`Self::Prepared`], with the memory that executions ask for which has grown so often.
    GrownPrepared {
        site: SiteId,
        run: RunId,
        step: StepIndex,
        grown: u32,
    },
    /// The action of a step is to be ready at a site before any of its executions is there. Takes the next number of the
    /// agent's log.
    ReadyOrdered {
        site: SiteId,
        run: RunId,
        step: StepIndex,
    },
}
