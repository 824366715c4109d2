//! Sites, the agents that speak for them, and the log of commands to each.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use atoll_model::elements::ElementSet;
use atoll_model::id::{
    AgentId, Attempt, CommandSeq, Epoch, ExecutionId, JournalId, ReportSeq, RunId, SiteId, SiteName, StepIndex,
    TransferId,
};
use atoll_model::placement::Labels;
use atoll_model::resources::Capacity;
use atoll_model::time::Timestamp;
use atoll_model::value::ObjectRef;
use serde::{Deserialize, Serialize};

use super::Active;
use crate::plan::Load;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Token {
    pub(crate) secret_hash: [u8; 32],
    pub(crate) site: SiteId,
    pub(crate) expires_at: Timestamp,
    /// By which identity key it was redeemed, and which agent came of it.
    pub(crate) redeemed: Option<([u8; 32], AgentId)>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Agent {
    pub(crate) site: SiteId,
    pub(crate) identity_key: [u8; 32],
    pub(crate) join_counter: u64,
    pub(crate) recoveries: u32,
    pub(crate) certified_at: Timestamp,
    pub(crate) quarantined: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Site {
    pub(crate) name: SiteName,
    pub(crate) labels: Labels,
    pub(crate) agent: Option<AgentId>,
    pub(crate) drained: bool,
    pub(crate) revoked: Option<String>,
    /// Set while its agent is taken for lost.
    pub(crate) lost: Option<Timestamp>,
    /// Nothing until its agent has been connected once.
    pub(crate) capacity: Option<Capacity>,
    pub(crate) runtimes: Vec<String>,
    pub(crate) agent_version: Option<String>,
    pub(crate) epoch: Epoch,
    pub(crate) log: Log,
    /// Executions that are placed there and have not ended.
    pub(crate) outstanding: u32,
    /// The same by step, so that they are found without looking at every run.
    pub(crate) busy: BTreeMap<(RunId, StepIndex), u32>,
    /// What it has to do, those that wait there for inputs aside. It follows from the runs.
    #[serde(skip)]
    pub(crate) loads: BTreeMap<Load, u32>,
}

impl Site {
    pub(crate) fn new(name: SiteName, labels: Labels) -> Self {
        Self {
            name,
            labels,
            agent: None,
            drained: false,
            revoked: None,
            lost: None,
            capacity: None,
            runtimes: Vec::new(),
            agent_version: None,
            epoch: Epoch(0),
            log: Log::default(),
            outstanding: 0,
            busy: BTreeMap::new(),
            loads: BTreeMap::new(),
        }
    }

    pub(crate) fn add_load(&mut self, load: Load, count: u32) {
        if count > 0 {
            *self.loads.entry(load).or_default() += count;
        }
    }

    pub(crate) fn remove_load(&mut self, load: Load, count: u32) {
        if count > 0 {
            let left = self.loads.get_mut(&load).expect("what ends at a site was counted there");
            *left -= count;
            if *left == 0 {
                self.loads.remove(&load);
            }
        }
    }

    pub(crate) fn add_busy(&mut self, run: RunId, step: StepIndex, count: u32) {
        if count > 0 {
            self.outstanding += count;
            *self.busy.entry((run, step)).or_default() += count;
        }
    }

    pub(crate) fn remove_busy(&mut self, run: RunId, step: StepIndex, count: u32) {
        if count == 0 {
            return;
        }
        self.outstanding -= count;
        let left = self.busy.get_mut(&(run, step)).expect("what ends at a site was counted there");
        *left -= count;
        if *left == 0 {
            self.busy.remove(&(run, step));
        }
    }
}

/// Both numbered logs of one agent journal.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Log {
    pub(crate) journal: Option<JournalId>,
    pub(crate) incarnation: u64,
    pub(crate) last_report: ReportSeq,
    pub(crate) last_command: CommandSeq,
    /// Commands that the agent has not acknowledged; the last one is `last_command`.
    pub(crate) outbox: VecDeque<Outgoing>,
    /// Steps whose template this journal has, or will have before anything of the step.
    pub(crate) prepared: BTreeMap<RunId, BTreeSet<StepIndex>>,
    /// Whether the journal is new and its inventory was not heard yet: a session may end before that.
    pub(crate) is_unheard: bool,
}

impl Log {
    pub(crate) fn push(&mut self, command: Outgoing) -> CommandSeq {
        self.last_command = self.last_command.next();
        self.outbox.push_back(command);
        self.last_command
    }

    /// An execution of a dispatch that was never sent is not sent any more: its attempt is given out anew.
    pub(crate) fn take_back(&mut self, execution: ExecutionId, active: &Active) {
        let place = active.command.0.checked_sub(self.first_unacknowledged().0);
        let command = place.and_then(|place| self.outbox.get_mut(usize::try_from(place).ok()?));
        // The number may be one of an earlier journal.
        if let Some(Outgoing::Dispatch { run, step, attempt, elements, .. }) = command
            && (*run, *step, *attempt) == (execution.run, execution.step, active.attempt)
        {
            elements.remove(execution.element);
        }
    }

    /// The number of the first command in the outbox.
    pub(crate) fn first_unacknowledged(&self) -> CommandSeq {
        CommandSeq(self.last_command.0 + 1 - self.outbox.len() as u64)
    }

    pub(crate) fn acknowledge(&mut self, through: CommandSeq) {
        let known = through.0.min(self.last_command.0);
        let count = (known + 1).saturating_sub(self.first_unacknowledged().0);
        self.outbox.drain(..usize::try_from(count).expect("no longer than the outbox"));
    }
}

/// A command, small enough to keep until it is acknowledged; the whole of it is made when it is sent.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) enum Outgoing {
    Prepare { run: RunId, step: StepIndex },
    Dispatch { run: RunId, step: StepIndex, attempt: Attempt, elements: ElementSet, fragment: bool },
    Cancel { run: RunId, step: StepIndex, elements: ElementSet, reason: Arc<str> },
    Push { transfer: TransferId, object: ObjectRef },
    CancelPush { transfer: TransferId },
    Forget { run: RunId },
    Delegate { run: RunId, step: StepIndex },
    Withdraw { run: RunId, step: StepIndex, stop: bool },
    Evict { proposal: u64, objects: Vec<ObjectRef>, refused: u32, reason: Option<Arc<str>> },
    ProposeEviction { object: ObjectRef },
    Verify { objects: Vec<ObjectRef> },
    Replicate { object: ObjectRef, execution: ExecutionId },
    ProposeExpired { objects: Vec<ObjectRef> },
    PrepareGrown { run: RunId, step: StepIndex, grown: u32 },
    MakeReady { run: RunId, step: StepIndex },
}
