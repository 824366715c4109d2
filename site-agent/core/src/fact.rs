//! What an agent has decided: the only thing that its journal holds.

use std::time::Duration;

use atoll_model::elements::ElementSet;
use atoll_model::id::{Attempt, CommandSeq, ExecutionId, JournalId, ObjectId, ReportSeq, RunId, StepIndex, TransferId};
use atoll_model::policy::Withholding;
use atoll_model::session::{
    Binding, DirectShare, DispatchElements, FinishedElement, Outcome, Report, SiteCommand, StartedElement,
};
use atoll_model::time::Timestamp;
use atoll_model::value::ObjectRef;
use serde::{Deserialize, Serialize};

pub use crate::state::Items;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Fact {
    /// The first fact of a journal.
    Opened {
        journal: JournalId,
    },
    /// The agent's process began.
    ProcessStarted,
    /// Attempts that shims hold and the journal, being new, knows nothing of.
    OrphansFound {
        attempts: Vec<(ExecutionId, Attempt)>,
    },
    /// Starts that were intended and that no shim has claimed: they wait for their turn again.
    StartsWithdrawn {
        starts: Vec<(ExecutionId, Attempt)>,
    },
    /// These commands are this agent's to carry out.
    CommandsAccepted {
        first: CommandSeq,
        at: Timestamp,
        commands: Vec<SiteCommand>,
    },
    /// What the control plane said of the inventory, where it was not to go on.
    VerdictsAccepted {
        cancel: Vec<(ExecutionId, Attempt)>,
        forget: Vec<(ExecutionId, Attempt)>,
    },
    /// The object is not here; from now on bytes of it may cross the border for this execution. Takes the next number.
    FetchIntended {
        object: ObjectRef,
        execution: ExecutionId,
    },
    Fetched {
        object: ObjectRef,
        wire_bytes: u64,
        direct: Option<DirectShare>,
        execution: ExecutionId,
        at: Timestamp,
    },
    /// The fetch came to nothing.
    FetchEnded {
        object: ObjectId,
    },
    /// The push was carried out or given up, as the report says.
    PushEnded {
        transfer: TransferId,
        report: Report,
    },
    FaultFound {
        report: Report,
    },
    /// These executions may be running from now on: elements of items of the queue, which are named by their order.
    StartsIntended {
        run: RunId,
        step: StepIndex,
        starts: Vec<(u64, ElementSet)>,
    },
    /// Elements of an item of the queue ended all in the same way, without outputs, logs or usage.
    Ended {
        run: RunId,
        step: StepIndex,
        item: u64,
        elements: ElementSet,
        started_at: Option<Timestamp>,
        finished_at: Timestamp,
        outcome: Outcome,
    },
    Finished {
        run: RunId,
        step: StepIndex,
        element: Box<FinishedElement>,
    },
    /// Attempts that the control plane has no use for have ended: nobody is told.
    Dropped {
        attempts: Vec<(ExecutionId, Attempt)>,
    },
    /// All that was waiting to be reported got its numbers: first a report for each step with starts, then one for each
    /// batch, which holds the positions of what it is made of.
    Reported {
        first: ReportSeq,
        started: Vec<(RunId, StepIndex, Vec<StartedElement>)>,
        batches: Vec<Vec<u32>>,
    },
    ReportsAcknowledged {
        through: ReportSeq,
    },
    /// The control plane lacks what it has acknowledged after this one.
    ReportsWanted {
        after: ReportSeq,
    },
    /// How far the leases reach, in time since this start of the machine: the next process of the agent goes on under them.
    LeaseNoted {
        boot: u128,
        session: Duration,
        work: Duration,
    },
    /// The control plane is asked which of these may go.
    RoomAsked {
        proposal: u64,
        objects: Vec<ObjectRef>,
    },
    /// What the control plane had allowed was done, or not, as the report says.
    EvictionEnded {
        order: CommandSeq,
        report: Report,
    },
    VerificationEnded {
        order: CommandSeq,
        report: Report,
    },
    /// The site's own policy keeps these objects here, or from some of those who may ask for them; whoever derives from
    /// them inherits it.
    Withheld {
        objects: Vec<ObjectId>,
        terms: Vec<Withholding>,
    },

    // Later additions.
    /// All that a delegated step needs has ended: these are its elements, and these the inputs that all of them share.
    StepExpanded {
        run: RunId,
        step: StepIndex,
        items: Items,
        bindings: Vec<Binding>,
    },
    /// Something that a delegated step needs was skipped, or its own `when` is false.
    StepSkipped {
        run: RunId,
        step: StepIndex,
    },
    /// Attempts at elements of a delegated step are in the queue.
    ElementsTaken {
        run: RunId,
        step: StepIndex,
        attempt: Attempt,
        elements: DispatchElements,
        at: Timestamp,
    },
    /// An attempt at an element of a delegated step failed, and is followed by another.
    Retried {
        run: RunId,
        step: StepIndex,
        element: Box<FinishedElement>,
        not_before: Timestamp,
    },
    /// Nothing more of a delegated step is started.
    DelegationEnded {
        run: RunId,
        step: StepIndex,
        reason: String,
    },
    /// The copy of an object that the site was to have is there, or not, as the report says.
    ReplicaEnded {
        object: ObjectId,
        report: Report,
    },
    /// What trees that were named to go are made of, and nothing else is: it goes after them, by whatever process.
    PartsNamed {
        objects: Vec<ObjectRef>,
    },
    /// They are in use, or may not go: nobody comes back to them.
    PartsStay {
        objects: Vec<ObjectId>,
    },
    /// The control plane does not know what was to be made ready: nobody will end it.
    OrdersForgotten,
}
