//! The frames of a session, as both cores see them: what an agent and the control plane say to each other over the one
//! stream that the agent opened. `proto` turns them into the wire format and back.
//!
//! Order of a session: `Hello` → `Welcome` → `Inventory` → `Verdicts` → reports and commands from the positions that
//! `Welcome` names → `Ready` → new commands. Either side acknowledges cumulatively what it has made durable; what is not
//! acknowledged is sent again in the next session. Every frame carries the session's epoch; one with another epoch is
//! dropped.

mod heartbeat;
mod origin;
mod outcome;
mod usage;

use std::time::Duration;

use serde::{Deserialize, Serialize};

pub use self::heartbeat::{Deployed, DeployedState, Heartbeat, Moving, Other, WaitingJob};
pub use self::origin::{Origin, Requester};
pub use self::outcome::{
    FailureReason, FaultLocation, FinishedElement, Logs, NotStartedReason, Outcome, PushFailure, StartedElement, Usage,
};
use crate::action::BundleSignature;
use crate::elements::ElementSet;
use crate::expression::Expression;
use crate::id::{
    AgentId, Attempt, CommandSeq, Epoch, ExecutionId, JournalId, ObjectId, ReportSeq, RunId, StepIndex, TransferId,
};
use crate::resources::{Capacity, Resources};
use crate::time::Timestamp;
use crate::value::{ObjectKind, ObjectRef, Type, Value};
use crate::workflow::{OnDisconnect, Outside, Retry, StartMode};

/// Version of this protocol; peers whose ranges share a version understand each other.
pub const PROTOCOL_VERSION: u32 = 2;
/// The oldest version that is still spoken: it knows no [`SiteCommand::Delegate`], and nothing that follows from one.
pub const PROTOCOL_VERSION_MIN: u32 = 1;
/// The version from which on whole steps can be delegated.
pub const PROTOCOL_VERSION_DELEGATION: u32 = 2;
/// The runtime of an agent that knows how to publish.
pub const EXPORT_RUNTIME: &str = "export";
/// The runtime of an agent whose machine has a Python that actions can run in.
pub const PYTHON_RUNTIME: &str = "python";
/// The runtime of an agent whose machine can start containers.
pub const CONTAINER_RUNTIME: &str = "container";

/// What an agent can run that has an engine for WebAssembly.
pub const WASM_RUNTIME: &str = "wasm";

/// From an agent to the control plane.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AgentFrame {
    /// The session's; in `Hello` that of the last session that the agent's process was in, 0 before the first.
    pub epoch: Epoch,
    /// Every command up to this one is in the agent's journal.
    pub acknowledged: CommandSeq,
    pub body: AgentBody,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum AgentBody {
    Hello(Hello),
    /// Sent once after `Welcome`.
    Inventory(Inventory),
    /// Reports with contiguous numbers from `first`, each in the agent's journal.
    Reports {
        first: ReportSeq,
        reports: Vec<Report>,
    },
    Heartbeat(Heartbeat),
    /// Nothing but the acknowledgement in the frame.
    Acknowledge,
}

/// First frame of an agent.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Hello {
    pub agent: AgentId,
    pub journal: JournalId,
    /// Starts of the agent's process since the journal was made.
    pub incarnation: u64,
    /// Random at each start of the process: two that alternate are two agents with one identity.
    pub boot_nonce: u64,
    pub protocol_min: u32,
    pub protocol_max: u32,
    pub agent_version: String,
    pub capacity: Capacity,
    pub runtimes: Vec<String>,
    /// The last command in its journal.
    pub last_command: CommandSeq,
    /// The last report that it knows was acknowledged.
    pub acknowledged_report: ReportSeq,
    /// The last report in its outbox.
    pub last_report: ReportSeq,
    /// The first report that it still has, acknowledged or not; 0 from one that keeps none that were acknowledged.
    pub first_report: ReportSeq,
    /// What its leases run by.
    pub clock: Timestamp,
    /// That of its machine, which may have been set since the agent started (E2).
    pub wall_clock: Timestamp,
}

/// Bytes that an agent of another site sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct DirectShare {
    pub holder: AgentId,
    pub wire_bytes: u64,
}

/// What an agent knows of executions.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Inventory {
    pub items: Vec<InventoryItem>,
    /// The last report in the agent's outbox: those up to it may tell of what was before this session. Zero from an agent
    /// that does not say.
    pub last_report: ReportSeq,
}

/// What an agent knows of one execution.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct InventoryItem {
    pub execution: ExecutionId,
    pub attempt: Attempt,
    pub state: LocalState,
}

/// How far an agent has come with an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum LocalState {
    /// In its journal, not started: staging inputs, or waiting for a predecessor or for room.
    Accepted,
    Running,
    /// Ended; its report is in the outbox.
    Finished,
}

/// From the control plane to an agent.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ControlFrame {
    pub epoch: Epoch,
    /// Every report up to this one is in the control plane's journal.
    pub acknowledged: ReportSeq,
    /// Grants the session lease for this long from when the heartbeat that it answers was sent.
    pub lease: Option<LeaseGrant>,
    pub body: ControlBody,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseGrant {
    /// `sent_at` of the heartbeat (or `clock` of the `Hello`) that is answered.
    pub answers: Timestamp,
    /// How long the agent may start new dispatches unheard.
    pub session: Duration,
    /// How long it may start the steps of a fragment unheard.
    pub work: Duration,
    /// When to send the next heartbeat.
    pub heartbeat: Duration,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum ControlBody {
    Welcome(Welcome),
    /// One for each item of the inventory, in its order.
    Verdicts(Vec<Verdict>),
    /// Commands with contiguous numbers from `first`, each in the control plane's journal.
    Commands {
        first: CommandSeq,
        commands: Vec<SiteCommand>,
    },
    /// Both sides agree on what the agent has; new commands follow.
    Ready,
    /// Nothing but the acknowledgement and the lease in the frame.
    Acknowledge,
    /// The session is refused or ended; the agent closes the stream.
    Goodbye(Goodbye),
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Welcome {
    pub protocol: u32,
    /// Reports after this one are wanted (again).
    pub resume_after: ReportSeq,
    /// Whether the control plane does not know this journal, and so takes the inventory for the whole truth.
    pub new_journal: bool,
    pub credits: Credits,
}

/// How much may be on its way unacknowledged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Credits {
    /// Reports that the agent may have sent and not seen acknowledged.
    pub reports: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Verdict {
    /// Go on; a later command may say otherwise.
    Keep,
    /// Stop it and report its end.
    Cancel,
    /// The control plane has no use for it: stop it, and forget it once it has ended.
    Forget,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Goodbye {
    /// A newer session of the same agent was accepted.
    Superseded,
    /// The agent's identity was revoked, or is quarantined because two agents use it.
    Revoked { reason: String },
    /// Versions, journals or identities do not fit.
    Refused { reason: String },
    /// The control plane is going down; come back.
    ShuttingDown,
}

/// Durable, numbered, from the control plane to one agent. Fenced by `(execution, attempt)`, and harmless if repeated.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum SiteCommand {
    /// What all executions of a step have in common; comes before the first [`SiteCommand::Dispatch`] of the step.
    Prepare(Box<StepTemplate>),
    Dispatch(Dispatch),
    Cancel {
        run: RunId,
        step: StepIndex,
        elements: ElementSet,
        reason: String,
    },
    /// Copy an object of the site's store into the bucket.
    Push {
        transfer: TransferId,
        object: ObjectRef,
    },
    /// The push is not needed any more.
    CancelPush {
        transfer: TransferId,
    },
    /// The run has ended: its templates and work directories may go. Its outputs stay in the store.
    Forget {
        run: RunId,
    },
    /// These objects may go: what is needed at the site, or was used since it was proposed, stays all the same. The answer
    /// to each [`Report::Evictable`]: of what that proposed, `refused` must stay, the first of them for this reason.
    Evict {
        /// That of the [`Report::Evictable`] that is answered.
        proposal: u64,
        objects: Vec<ObjectRef>,
        refused: u32,
        reason: Option<String>,
    },
    /// A person wants these to go: propose them.
    ProposeEviction {
        objects: Vec<ObjectRef>,
    },
    /// Read these objects again, or everything if there are none, and tell what came of it.
    Verify {
        objects: Vec<ObjectRef>,
    },
    /// A command that `proto` could not read, because the control plane is of a newer version. It keeps its number: it is
    /// journaled and acknowledged like any other, and has no effect of its own.
    Unknown {
        reason: String,
    },
    /// A whole step is the agent's: it finds out what the elements are when all that the step needs has ended, starts them,
    /// and tries them again, without asking.
    Delegate(Box<Delegation>),
    /// The step is not the agent's any more: what was not started is not, and [`Report::DelegationEnded`] says what was.
    /// With `stop`, what runs is stopped too.
    Withdraw {
        run: RunId,
        step: StepIndex,
        stop: bool,
    },
    /// The site is to have a copy of the object, which this execution has made. Answered by [`Report::ReplicaEnded`].
    Replicate {
        object: ObjectRef,
        execution: ExecutionId,
    },
    /// An execution of this step is certain to come: its action is to be there by then, with all that is made of it, though
    /// no input is. Has no bindings. Ends with [`SiteCommand::Forget`]; how far it is, heartbeats tell.
    MakeReady(Box<StepTemplate>),
}

/// A step as it is delegated: what the control plane would go by, for an agent to go by.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Delegation {
    /// Its bindings are those that no expression gives.
    pub template: StepTemplate,
    /// Of the first attempts at its elements; each further one at an element is the next number.
    pub attempt: Attempt,
    pub retry: Retry,
    /// Every step that it needs.
    pub needs: Vec<Need>,
    /// Inputs of the workflow that its expressions read.
    pub inputs: Vec<(String, GivenInput)>,
    pub when: Option<Expression>,
    pub foreach: Option<Expression>,
    /// Inputs that are the same for every element.
    pub shared: Vec<(String, Expression)>,
    /// Inputs that differ by element.
    pub own: Vec<(String, Expression)>,
}

/// A step that a delegated one needs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Need {
    pub step: StepIndex,
    /// Whether its outputs are lists, with an entry for each of its elements.
    pub fans_out: bool,
    pub state: NeedState,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum NeedState {
    /// It has succeeded, with these outputs as far as they are read.
    Ended { outputs: Vec<(String, Value)> },
    /// All its elements were dispatched to the same agent.
    Dispatched { count: u32 },
    /// It is delegated to the same agent.
    Delegated,
}

/// Where the value of a workflow's input comes from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum GivenInput {
    Value(Value),
    /// The site holds it, and this step takes it in.
    Output {
        step: StepIndex,
        output: String,
    },
}

/// What all executions of a step have in common.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StepTemplate {
    pub run: RunId,
    pub step: StepIndex,
    pub step_name: String,
    pub workflow: String,
    pub work: TemplateWork,
    pub resources: Resources,
    pub outputs: Vec<TemplateOutput>,
    /// Inputs that are the same for every element.
    pub bindings: Vec<Binding>,
    pub environment: Vec<(String, String)>,
    pub start: StartMode,
    pub on_disconnect: OnDisconnect,
    /// That of the run and of the step together: more comes first, at the agent as at the control plane.
    pub priority: i16,
    pub origin: Origin,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum TemplateWork {
    Script(String),
    Command {
        command: Vec<String>,
        bundle: Option<ObjectRef>,
    },
    Import {
        source: Outside,
        directory: bool,
    },
    Null,
    /// Publishes its one input. Only for agents with the runtime [`EXPORT_RUNTIME`].
    Export {
        target: Outside,
        overwrite: bool,
    },
    /// [`Self::Command`] of a bundle that somebody has signed. Those that an agent takes in have been verified.
    SignedCommand {
        command: Vec<String>,
        bundle: ObjectRef,
        signatures: Vec<BundleSignature>,
    },
    /// What `action.yaml` in the bundle says, signed or not. Only for agents with the runtime [`PYTHON_RUNTIME`].
    Python {
        bundle: ObjectRef,
        signatures: Vec<BundleSignature>,
    },
    /// What `action.yaml` in the bundle says, signed or not. Only for agents with the runtime [`CONTAINER_RUNTIME`].
    Container {
        bundle: ObjectRef,
        signatures: Vec<BundleSignature>,
    },
    /// What `action.yaml` in the bundle says, signed or not. Only for agents with the runtime [`WASM_RUNTIME`].
    Wasm {
        bundle: ObjectRef,
        signatures: Vec<BundleSignature>,
    },
}

impl TemplateWork {
    /// The folder of the action that it runs, if it runs one.
    pub fn bundle(&self) -> Option<ObjectRef> {
        match self {
            Self::Command { bundle, .. } => *bundle,
            Self::SignedCommand { bundle, .. }
            | Self::Python { bundle, .. }
            | Self::Container { bundle, .. }
            | Self::Wasm { bundle, .. } => Some(*bundle),
            Self::Script(_) | Self::Import { .. } | Self::Null | Self::Export { .. } => None,
        }
    }

    pub fn signatures(&self) -> &[BundleSignature] {
        match self {
            Self::SignedCommand { signatures, .. }
            | Self::Python { signatures, .. }
            | Self::Container { signatures, .. }
            | Self::Wasm { signatures, .. } => signatures,
            Self::Script(_) | Self::Command { .. } | Self::Import { .. } | Self::Null | Self::Export { .. } => &[],
        }
    }
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TemplateOutput {
    pub name: String,
    pub r#type: Type,
    pub optional: bool,
    pub listed: bool,
}

/// One input of an execution.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Binding {
    pub name: String,
    pub source: BindingSource,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum BindingSource {
    Value(Value),
    /// An output of an execution that was dispatched to the same agent: the fragment starts when it is there.
    Output {
        execution: ExecutionId,
        attempt: Attempt,
        output: String,
    },
}

/// Attempts at elements of one step.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Dispatch {
    pub run: RunId,
    pub step: StepIndex,
    pub attempt: Attempt,
    pub elements: DispatchElements,
    /// Whether any binding waits for an execution of the same agent, so that it starts under the work lease.
    pub fragment: bool,
    /// What must have started within this long after it was journaled, or is reported as not started.
    pub start_by: Option<Duration>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum DispatchElements {
    /// Elements without inputs of their own.
    Plain(ElementSet),
    /// Elements with inputs of their own, in ascending order.
    Bound(Vec<(u32, Vec<Binding>)>),
}

/// Durable, numbered, from an agent to the control plane.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Report {
    Started {
        run: RunId,
        step: StepIndex,
        elements: Vec<StartedElement>,
    },
    Finished {
        run: RunId,
        step: StepIndex,
        elements: Vec<FinishedElement>,
    },
    /// An object was fetched into the site's store, for this execution first.
    Fetched {
        object: ObjectRef,
        wire_bytes: u64,
        /// What of it came straight from another site; the rest came from the bucket.
        direct: Option<DirectShare>,
        execution: ExecutionId,
        at: Timestamp,
    },
    Pushed {
        transfer: TransferId,
        object: ObjectRef,
        wire_bytes: u64,
        at: Timestamp,
    },
    PushFailed {
        transfer: TransferId,
        object: ObjectRef,
        reason: PushFailure,
        message: String,
    },
    /// Bytes were not what their name says, or were not there. The damaged copy is out of use.
    Fault {
        object: ObjectId,
        kind: ObjectKind,
        location: FaultLocation,
        message: String,
    },
    /// Nothing at the site uses these: may they go?
    Evictable {
        /// Of all proposals of an agent only the last counts.
        proposal: u64,
        objects: Vec<ObjectRef>,
    },
    /// Of the objects of one [`SiteCommand::Evict`], those that are not in the store any more, and those that stayed.
    Evicted {
        gone: Vec<ObjectRef>,
        kept: Vec<ObjectRef>,
    },
    /// A [`SiteCommand::Verify`] is carried out. What was damaged was told of before.
    Verified {
        files: u64,
        bytes: u64,
        damaged: u64,
    },
    /// A report that `proto` could not read, because the agent is of another version. It keeps its number: it is
    /// acknowledged like any other, and has no effect of its own.
    Unknown {
        reason: String,
    },
    /// Attempts at elements of a delegated step ended, and the agent makes the next ones by itself.
    Retried {
        run: RunId,
        step: StepIndex,
        elements: Vec<FinishedElement>,
    },
    /// The agent starts nothing more of a step that was delegated to it: it is done with it, cannot go on with it by itself,
    /// or was told so.
    DelegationEnded {
        run: RunId,
        step: StepIndex,
        /// What it has started and not reported the end of.
        kept: Vec<(Attempt, ElementSet)>,
        reason: String,
    },
    /// A [`SiteCommand::Replicate`] is carried out, or, for this reason, is not.
    ReplicaEnded {
        object: ObjectRef,
        failure: Option<String>,
    },
}
