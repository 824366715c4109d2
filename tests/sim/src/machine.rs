//! What stands at a site and outlives its agent: processes, outcome records, the store.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use atoll_model::id::{Attempt, ExecutionId, ObjectId, RunId, StepIndex, TransferId};
use atoll_model::session::StepTemplate;
use atoll_model::time::Timestamp;
use atoll_model::value::{ObjectKind, ObjectRef};
use site_agent_core::event::{Arrival, Exit, Found, FoundAttempt, FoundState, NodeId};

use crate::sources::Emitting;

pub(crate) type Key = (ExecutionId, Attempt);

#[derive(Debug, Default)]
pub(crate) struct Machine {
    /// Starts of the machine.
    pub(crate) boot: u64,
    /// When it came up, in the world's time.
    pub(crate) booted_at: Timestamp,
    pub(crate) claims: BTreeMap<Key, Claim>,
    /// Claims behind others of their step, in order.
    pub(crate) queues: BTreeMap<(RunId, StepIndex), VecDeque<Key>>,
    pub(crate) store: BTreeMap<ObjectId, Stored>,
    pub(crate) is_full: bool,
    pub(crate) next_seal: u64,
    /// Notes of fetches whose bytes have come.
    pub(crate) arrivals: BTreeMap<ObjectId, Arrival>,
    /// What this process of the agent is fetching and pushing, with the number of the try.
    pub(crate) fetching: BTreeMap<ObjectId, u64>,
    /// The sites that it waits for with them, which are being given them too.
    pub(crate) relayed_by: BTreeMap<ObjectId, usize>,
    pub(crate) pushing: BTreeMap<TransferId, u64>,
    /// What sources have emitted that run.
    pub(crate) emitting: BTreeMap<Key, Emitting>,
    /// What this process has proposed to let go, and nobody has used since.
    pub(crate) watched: BTreeSet<ObjectId>,
}

#[derive(Debug)]
pub(crate) struct Claim {
    pub(crate) template: Arc<StepTemplate>,
    pub(crate) state: ClaimState,
    pub(crate) bytes_in: u64,
    /// What it reads, and what it has made and not released.
    pub(crate) holds: Vec<ObjectId>,
}

#[derive(Debug, Clone)]
pub(crate) enum ClaimState {
    Queued,
    Running { since: Timestamp },
    Exited(Exit),
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Stored {
    pub(crate) kind: ObjectKind,
    pub(crate) damaged: bool,
}

impl Machine {
    pub(crate) fn found(&self) -> Found {
        let found = |((execution, attempt), claim): (&Key, &Claim)| {
            let state = match &claim.state {
                ClaimState::Queued => FoundState::Queued,
                ClaimState::Running { since } => FoundState::Running { since: *since },
                ClaimState::Exited(exit) => FoundState::Exited(exit.clone()),
            };
            FoundAttempt { execution: *execution, attempt: *attempt, node: NodeId::HOME, state }
        };
        let attempts = self.claims.iter().map(found).collect();
        Found { attempts, arrivals: self.arrivals.values().cloned().collect(), ..Found::default() }
    }

    pub(crate) fn forget_arrival(&mut self, object: ObjectId, intent: u64) {
        if self.arrivals.get(&object).is_some_and(|noted| noted.intent == intent) {
            self.arrivals.remove(&object);
        }
    }

    /// Whether anything of the step runs.
    pub(crate) fn runs_any_of(&self, run: RunId, step: StepIndex) -> bool {
        self.claims.iter().any(|((execution, _), claim)| {
            (execution.run, execution.step) == (run, step) && matches!(claim.state, ClaimState::Running { .. })
        })
    }

    pub(crate) fn hold(&mut self, key: Key, object: ObjectId) {
        if let Some(claim) = self.claims.get_mut(&key) {
            claim.holds.push(object);
        }
    }

    /// Whether anything that is there reads the object, or has just made it.
    pub(crate) fn is_held(&self, object: ObjectId) -> bool {
        self.claims.values().any(|claim| claim.holds.contains(&object))
    }

    pub(crate) fn put(&mut self, object: ObjectRef) {
        self.watched.remove(&object.id);
        self.store.insert(object.id, Stored { kind: object.kind, damaged: false });
    }
}
