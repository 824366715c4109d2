//! What happens to the control plane.

use std::sync::Arc;
use std::time::Duration;

use atoll_model::id::{AgentId, Attempt, ExecutionId, ObjectId, RunId, SiteName, TokenId, TransferId};
use atoll_model::placement::Labels;
use atoll_model::policy::Policy;
use atoll_model::repository::{RepositoryName, RepositorySource};
use atoll_model::session::AgentFrame;
use atoll_model::time::Timestamp;
use atoll_model::value::{ObjectRef, Value};
use atoll_model::workflow::Workflow;
use indexmap::IndexMap;

use crate::deployments::{Deployed, DeploymentName, EmittedRecord};
use crate::encryption::{KeyId, WrappedKey};
use crate::finished::FinishedRun;
use crate::look_ahead::{Aim, Goal};
use crate::registry::{ActionName, ActionVersion};
use crate::repositories::{ImportMode, ImportReport, Origin};
use crate::view::RunTags;

/// A connection that a shell accepted; never used twice by one process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnectionId(pub u64);

/// A request of a person or of a shell that waits for its reply; never used twice by one process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(pub u64);

#[derive(Debug, Clone)]
pub enum Event {
    /// Answered with exactly one [`crate::Command::Reply`], at once or later.
    Request { request: RequestId, body: Request },
    /// A frame arrived from the agent whose certificate the connection was made with.
    FrameReceived { connection: ConnectionId, agent: AgentId, frame: AgentFrame },
    /// The stream ended, or its keep-alive failed.
    ConnectionLost { connection: ConnectionId },
    /// What [`crate::Command::DeleteFromBucket`] asked for is done; also when the object was not there.
    BucketObjectDeleted { object: ObjectId },
    /// What [`crate::Command::LookInBucket`] asked for.
    BucketObjectSeen { object: ObjectId, transfer: TransferId, present: bool },
    /// The history holds the run, durably: what [`crate::Command::KeepRun`] asked for the last time.
    RunKept { run: RunId },
    /// The time of [`crate::ControlPlane::next_timeout`] has come.
    TimeoutElapsed,
}

#[derive(Debug, Clone)]
pub enum Request {
    /// Start a run. Its id was minted by the shell: repeated with the same id, it answers as it did the first time.
    Submit {
        run: RunId,
        workflow: Arc<Workflow>,
        /// The text of the file, for export and display.
        source: Arc<str>,
        /// Given inputs, types already checked; defaults are filled in by the core.
        inputs: IndexMap<String, Value>,
        submitted_by: String,
        traceparent: Option<String>,
        tags: RunTags,
    },
    CancelRun {
        run: RunId,
        reason: String,
    },
    /// A join token for a site, which is created with these labels if it is new.
    CreateToken {
        token: TokenId,
        /// SHA-256 of the secret.
        secret_hash: [u8; 32],
        site: SiteName,
        labels: Labels,
        lifetime: Duration,
    },
    /// Redeem a token. A repeat by the same key answers as the first time.
    Enrol {
        token: TokenId,
        secret_hash: [u8; 32],
        /// SHA-256 of the public identity key, whose possession the shell has verified.
        identity_key: [u8; 32],
        /// Minted by the shell; taken if the token was not redeemed before.
        agent: AgentId,
    },
    /// May this agent have a new certificate over its session?
    RenewCertificate {
        agent: AgentId,
        join_counter: u64,
    },
    /// May this agent, whose certificate has expired, have a new one? The shell has verified its identity key.
    RecoverIdentity {
        agent: AgentId,
        identity_key: [u8; 32],
        join_counter: u64,
    },
    DrainSite {
        site: SiteName,
        drained: bool,
    },
    RevokeSite {
        site: SiteName,
        reason: String,
    },
    /// A person knows that the agent of a site is gone: what it had is given to others. Refused while its leases may hold.
    DeclareLost {
        site: SiteName,
    },
    /// Forget a site that is revoked, or has never had a run that is still alive.
    RemoveSite {
        site: SiteName,
    },
    /// May the agent read this object from the bucket now? Only if it holds a live execution that has it as an input.
    AuthoriseFetch {
        agent: AgentId,
        object: ObjectId,
    },
    /// The agent fetches from others, and listens at these addresses for those that fetch from it.
    Advertise {
        agent: AgentId,
        addresses: Vec<String>,
        /// Whether it gives what it has of an object that is on its way to it, and takes such from others.
        relays: bool,
    },
    /// Which agents give this object to this one? Only if it holds a live execution that has it as an input.
    Offers {
        agent: AgentId,
        object: ObjectId,
    },
    /// The holder has not given the object to the agent.
    OfferFailed {
        agent: AgentId,
        object: ObjectId,
        holder: AgentId,
    },
    /// May the agent write this object to the bucket now? Only under a live transfer that was ordered from it.
    AuthorisePush {
        agent: AgentId,
        transfer: TransferId,
    },
    /// What was to be handed to the agent from the bucket is damaged there.
    BucketFault {
        agent: AgentId,
        object: ObjectId,
        message: String,
    },
    /// A person has sent this object in; it is in the bucket, verified. Held until a run takes it, or for an hour. The answer
    /// says how the copy stands there that counts: another one is of no use.
    RecordUpload {
        object: ObjectRef,
        /// By which it is encrypted.
        key: Option<KeyId>,
    },
    /// A key of a project was made, because there is none yet, or was wrapped anew.
    KeepProjectKey {
        key: KeyId,
        wrapped: WrappedKey,
        /// As it was wrapped before.
        instead_of: Option<WrappedKey>,
    },
    /// A person wants this output or log of a run: answered once it is in the bucket, where it is held for `hold`.
    StageForClient {
        run: RunId,
        object: ObjectRef,
        hold: Duration,
        /// What the history holds of the run, if it is not known here any more.
        kept: Option<Box<FinishedRun>>,
    },
    /// A person wants a copy of the object to stay.
    PinObject {
        object: ObjectId,
        at: PinPlace,
        by: String,
    },
    UnpinObject {
        object: ObjectId,
        at: PinPlace,
    },
    /// A person wants the object to leave a site, or the bucket. Refused where somebody needs that copy; what the site does
    /// with it it says later.
    EvictObject {
        object: ObjectId,
        /// Nothing for the bucket.
        site: Option<SiteName>,
    },
    /// A person lets go of an object whose time is over by a rule that asks, wherever it is.
    LetExpiredGo {
        object: ObjectId,
    },
    /// A person wants a site to read these objects again, or all that it has.
    VerifySite {
        site: SiteName,
        objects: Vec<ObjectId>,
    },
    /// A person has taken this much of the object out.
    RecordDownload {
        run: RunId,
        object: ObjectRef,
        bytes: u64,
    },
    /// An administrator sets what a project may have.
    SetProject {
        project: String,
        change: ProjectChange,
    },
    /// An administrator of a project gives it other rules.
    ApplyPolicy {
        application: Box<PolicyApplication>,
    },
    /// A person pushes a version of an action, whose bundle is in the bucket. The shell has read its manifest there, and
    /// verified the signatures; when it was pushed the core says.
    PushAction {
        name: ActionName,
        version: Box<ActionVersion>,
    },
    /// A person advises against a version, for a reason, or (nothing) does no longer.
    DeprecateAction {
        name: ActionName,
        advice: Option<(Option<String>, String)>,
    },
    /// Refused while a live run uses it.
    RemoveAction {
        name: ActionName,
    },
    /// A person wants actions from this repository; every so often by the clock, or only when somebody asks.
    AddRepository {
        name: RepositoryName,
        source: RepositorySource,
        every: Option<Duration>,
        by: String,
    },
    RemoveRepository {
        name: RepositoryName,
    },
    /// A person wants the repository scanned or imported now. Answered when that is durable, not when it is done.
    LookAtRepository {
        name: RepositoryName,
        mode: ImportMode,
        by: String,
    },
    CancelImport {
        name: RepositoryName,
        by: String,
    },
    /// What [`crate::Repositories::orders`] named is done.
    ImportEnded {
        name: RepositoryName,
        number: u64,
        report: Box<ImportReport>,
    },
    /// An import has found a version, whose bundle is in the bucket. Refused when that import does not go on any more.
    PushImported {
        number: u64,
        name: ActionName,
        version: Box<ActionVersion>,
        origin: Box<Origin>,
    },
    /// A person deploys a workflow. The ids of its runs are minted by the shell.
    DeployWorkflow {
        name: DeploymentName,
        deployed: Box<Deployed>,
    },
    UndeployWorkflow {
        name: DeploymentName,
    },
    /// A source has emitted these, in this order, at the site of this agent. Without any: how far has it come?
    Emit {
        agent: AgentId,
        execution: ExecutionId,
        attempt: Attempt,
        records: Vec<EmittedRecord>,
    },
    /// The journal is a copy of an earlier time: agents may know more than it does.
    NoteRestored,
    /// An administrator decides the fate of an execution that is `unknown`.
    ResolveUnknown {
        execution: ExecutionId,
        run_again: bool,
    },
}

/// The rules that are to hold for a project.
#[derive(Debug, Clone)]
pub struct PolicyApplication {
    pub project: String,
    pub policy: Policy,
    /// The text of the file, for export and display.
    pub source: Arc<str>,
    pub applied_by: String,
    /// The version that was looked at before, 0 for none: another one is not replaced.
    pub instead_of: Option<u32>,
}

/// Where a copy is to stay.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PinPlace {
    /// One copy at least, wherever it is.
    Anywhere,
    Bucket,
    Site(SiteName),
}

/// What is to be other than it is; what is left out stays.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ProjectChange {
    pub share: Option<u32>,
    /// The limits are those of runs of this workflow.
    pub workflow: Option<String>,
    /// Nothing for no limit.
    pub max_executions: Option<Option<u32>>,
    pub max_runs: Option<Option<u32>>,
}

/// What a core is told of itself when it starts.
#[derive(Debug, Clone)]
pub struct Config {
    pub session_lease: Duration,
    pub work_lease: Duration,
    pub heartbeat: Duration,
    /// After its own start, nobody is declared lost for this long.
    pub restart_grace: Duration,
    /// How long an agent may be unheard before its work is given to another.
    pub lost_after: Duration,
    /// Executions dispatched to an agent beyond what runs there at once.
    pub dispatch_ahead: u32,
    /// As many of them as run within this time, roughly.
    pub dispatch_ahead_time: Duration,
    /// Runs that have not ended: no more are taken.
    pub live_runs_max: u64,
    /// What placement looks ahead for.
    pub goal: Goal,
    /// How long a finished run stays in memory, at most.
    pub keep_finished: Duration,
    /// Memory that finished runs may take: beyond it the oldest go into the history sooner.
    pub keep_finished_bytes: u64,
    /// Seed of the ids that the core derives (transfers); from the shell, so that the core has no randomness.
    pub started_at: Timestamp,
}

impl Default for Config {
    fn default() -> Self {
        use atoll_model::limits;
        Self {
            session_lease: limits::SESSION_LEASE,
            work_lease: limits::WORK_LEASE,
            heartbeat: limits::HEARTBEAT,
            restart_grace: limits::RESTART_GRACE,
            lost_after: limits::WORK_LEASE,
            dispatch_ahead: limits::DISPATCH_AHEAD,
            dispatch_ahead_time: limits::DISPATCH_AHEAD_TIME,
            live_runs_max: limits::LIVE_RUNS_MAX,
            keep_finished: Duration::from_secs(7 * 24 * 3_600),
            goal: Goal { aim: Aim::Time, share_max: 1.0, effort: limits::LOOK_AHEAD_EFFORT },
            keep_finished_bytes: limits::FINISHED_RUNS_BYTES,
            started_at: Timestamp::ZERO,
        }
    }
}
