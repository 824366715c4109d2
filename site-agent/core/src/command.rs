//! What an agent's core asks of its shell. All of it may be lost with the process, and is asked for again after it.

use std::collections::BTreeSet;
use std::sync::Arc;

use atoll_model::elements::ElementSet;
use atoll_model::id::{Attempt, CommandSeq, ExecutionId, ObjectId, RunId, StepIndex, TransferId};
use atoll_model::session::{AgentFrame, StepTemplate};
use atoll_model::value::{ObjectRef, Value};

use crate::event::{NodeId, Seal};

#[derive(Debug, Clone)]
pub enum Command {
    Send {
        frame: AgentFrame,
    },
    /// End the stream; open a new one when the back-off says so, unless `give_up`.
    Disconnect {
        give_up: Option<String>,
    },
    /// Say whether the object is in the store, whole: answered by `Located`. Comes before a fetch.
    Locate {
        object: ObjectRef,
    },
    /// Bring an object from the bucket into the store. One at a time for each object. Answered by exactly one `Fetched` or
    /// `FetchFailed`; so is a fetch that was cancelled. When all bytes have come and before they are in the store, an
    /// `Arrival` is kept under this intent; it goes if the fetch fails after all.
    Fetch {
        object: ObjectRef,
        intent: u64,
    },
    /// The arrival is on record.
    ForgetArrival {
        object: ObjectRef,
        intent: u64,
    },
    CancelFetch {
        object: ObjectRef,
    },
    /// Copy an object into the bucket. Answered by exactly one `Pushed` or `PushFailed`; so is a push that was cancelled.
    Push {
        transfer: TransferId,
        object: ObjectRef,
    },
    CancelPush {
        transfer: TransferId,
    },
    /// Materialise the inputs, claim the attempt, run the work. Every object of the inputs is in the store, or sealed.
    Start {
        execution: ExecutionId,
        attempt: Attempt,
        template: Arc<StepTemplate>,
        inputs: Vec<StartInput>,
        /// Where it has room.
        node: NodeId,
        /// Absent if it has room of its own. Else it shares the room of executions of the same step that were started
        /// there before it, in which so many of them run at once: it gets a slot where fewer slots have work of this step, and
        /// goes into the queue of the one that has the least of it where they all have.
        ahead: Option<u32>,
    },
    /// About so many pilots would be filled by what waits for room on one.
    WantPilots {
        count: u32,
    },
    /// Executions whose work is nothing: answer that they have finished.
    StartNull {
        run: RunId,
        step: StepIndex,
        attempt: Attempt,
        elements: ElementSet,
    },
    /// End everything that the attempt started; answered by `Exited`.
    Kill {
        execution: ExecutionId,
        attempt: Attempt,
    },
    /// Take the outputs and logs of an attempt that has exited into the store. `outputs` is false if only the logs count.
    Collect {
        execution: ExecutionId,
        attempt: Attempt,
        template: Arc<StepTemplate>,
        outputs: bool,
    },
    /// The attempt is over and reported: its work directory may go.
    Release {
        execution: ExecutionId,
        attempt: Attempt,
    },
    /// Find objects that may go, to make this much room, or those of these; from now until the next such command, watch
    /// whether they are used. Answered by `EvictableFound`.
    FindEvictable {
        bytes: u64,
        objects: Option<Vec<ObjectRef>>,
        /// Bundles of actions that run here, or are to: the folders that were made of others may go before.
        actions: BTreeSet<ObjectId>,
    },
    /// Let go of these, where they were found last and were not used since. Answered by exactly one `Evicted`.
    Evict {
        order: CommandSeq,
        objects: Vec<ObjectRef>,
    },
    /// Read these again, or all that is in the store. Answered by exactly one `Verified`.
    Verify {
        order: CommandSeq,
        objects: Vec<ObjectRef>,
    },
    /// Have the action of a step there, with all that is made of it, before any execution is: its bundle is in the store. What
    /// becomes of it is told with what is measured.
    MakeReady {
        template: Arc<StepTemplate>,
    },
    /// The sealed outputs of this attempt must not be used: its commit failed.
    DropSealed {
        seals: Vec<Seal>,
    },
}

/// One input of a start.
#[derive(Debug, Clone, PartialEq)]
pub struct StartInput {
    pub name: String,
    pub value: StartValue,
}

#[derive(Debug, Clone, PartialEq)]
pub enum StartValue {
    Value(Value),
    /// A file or directory of this site whose digest is not known yet.
    Sealed {
        seal: Seal,
        name: Vec<u8>,
        directory: bool,
    },
}
