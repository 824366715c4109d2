//! Runs and their steps. Elements that wait are ranges, elements that are somewhere are entries of a map, elements that
//! have ended are rows.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use atoll_model::elements::ElementSet;
use atoll_model::id::{Attempt, CommandSeq, ObjectId, RunId, SiteId, StepIndex};
use atoll_model::limits;
use atoll_model::placement::SiteVerdict;
use atoll_model::time::Timestamp;
use atoll_model::value::Value;
use atoll_model::workflow::Workflow;
use indexmap::IndexMap;
use serde::{Deserialize, Serialize};

use super::{Crash, Detail, LedgerEntry, Row, RowState, Source, Tries};
use crate::fact::Items;
use crate::plan::RunPlan;
use crate::view::{RunError, RunState, RunTags};

/// A step of a workflow, what it was planned to be, and its state: as measured with chains of a thousand steps.
const STEP_BYTES: u64 = 3_000;
/// An element of a fan-out that has ended.
const ROW_BYTES: u64 = 120;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Run {
    pub(crate) id: RunId,
    pub(crate) workflow: Arc<Workflow>,
    pub(crate) source: Arc<str>,
    pub(crate) inputs: IndexMap<String, Value>,
    pub(crate) submitted_by: String,
    pub(crate) submitted_at: Timestamp,
    pub(crate) traceparent: Option<String>,
    pub(crate) started_at: Option<Timestamp>,
    pub(crate) finished_at: Option<Timestamp>,
    pub(crate) phase: Phase,
    pub(crate) error: Option<RunError>,
    pub(crate) outputs: IndexMap<String, Value>,
    pub(crate) steps: Vec<StepState>,
    /// Steps that have not ended.
    pub(crate) steps_left: u32,
    /// Executions that are placed and have not ended, of all steps.
    pub(crate) active: u64,
    /// Executions whose fate is unknown, of all steps.
    pub(crate) unknown: u64,
    /// Executions that were dispatched before what they read had ended, and have not ended.
    pub(crate) ahead: u32,
    /// Its objects that are in the bucket, by where they come from.
    pub(crate) in_bucket: BTreeMap<Source, BTreeSet<ObjectId>>,
    pub(crate) ledger: Vec<LedgerEntry>,
    /// Follows from the workflow alone.
    #[serde(skip)]
    pub(crate) plan: Arc<RunPlan>,
    /// Both follow from its tags and its workflow.
    #[serde(skip)]
    pub(crate) project: Arc<str>,
    #[serde(skip)]
    pub(crate) priority: i8,
}

impl Run {
    pub(crate) fn is_live(&self) -> bool {
        !matches!(self.phase, Phase::Ended(_))
    }

    /// Takes in what the run was given, if anything.
    pub(crate) fn tag(&mut self, tags: Option<&RunTags>) {
        self.project = Arc::from(tags.map_or(RunTags::PROJECT, |tags| tags.project.as_str()));
        self.priority = tags.and_then(|tags| tags.priority).unwrap_or(self.workflow.priority);
    }

    /// How urgent executions of a step are.
    pub(crate) fn priority_of(&self, step: StepIndex) -> i16 {
        let sum = i16::from(self.priority) + i16::from(self.workflow.step(step).priority);
        sum.clamp(i16::from(limits::PRIORITY_MIN), i16::from(limits::PRIORITY_MAX))
    }

    /// About what it takes in memory, from its steps and their elements.
    pub(crate) fn memory_bytes(&self) -> u64 {
        let rows: usize = self.steps.iter().map(|step| step.rows.len() + step.details.len()).sum();
        self.steps.len() as u64 * STEP_BYTES + rows as u64 * ROW_BYTES + self.source.len() as u64
    }

    /// Whether new executions may be started.
    pub(crate) fn is_going_on(&self) -> bool {
        matches!(self.phase, Phase::Going)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Phase {
    Going,
    Failing,
    Cancelling,
    Ended(RunState),
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct StepState {
    pub(crate) phase: StepPhase,
    /// Steps that it needs and that have not ended.
    pub(crate) needs_left: u32,
    /// Steps that read its outputs and have not ended.
    pub(crate) readers_left: u32,
    pub(crate) items: Option<Items>,
    pub(crate) count: u32,
    /// First attempts that have no site.
    pub(crate) ready: ElementSet,
    /// Further attempts that have no site, and when they may begin.
    pub(crate) again: BTreeMap<u32, Timestamp>,
    /// What went before, for elements that were tried more than once.
    pub(crate) tries: BTreeMap<u32, Tries>,
    pub(crate) active: BTreeMap<u32, Active>,
    /// Elements whose fate is unknown, as they were when it was lost.
    pub(crate) unknown: BTreeMap<u32, Active>,
    /// For attempts that were dispatched before what they read had ended: whose outputs each was bound to.
    pub(crate) bound: BTreeMap<Attempt, Vec<(StepIndex, Attempt)>>,
    /// Attempts that were given away while their agents may still have them.
    pub(crate) formers: BTreeMap<u32, Vec<Former>>,
    /// Cancelled before they had a site.
    pub(crate) cancelled: ElementSet,
    /// By element; shorter than `count` while the last ones have not ended.
    pub(crate) rows: Vec<Row>,
    pub(crate) details: BTreeMap<u32, Box<Detail>>,
    /// Elements with a final state.
    pub(crate) ended: u32,
    pub(crate) succeeded: u32,
    pub(crate) failed: u32,
    /// Cancelled after they had a site.
    pub(crate) cancelled_rows: u32,
    pub(crate) decisions: Vec<Decision>,
    /// Outcomes that came when another had been accepted, and those of them with other outputs.
    pub(crate) superseded: u32,
    pub(crate) diverged: u32,
    /// Elements that have ended well and run once more because their outputs are gone.
    pub(crate) recomputing: ElementSet,
    /// The last times that something went down while an element ran.
    pub(crate) crashes: BTreeMap<u32, Vec<Crash>>,
}

impl StepState {
    pub(crate) fn is_ended(&self) -> bool {
        match self.phase {
            StepPhase::Waiting => false,
            StepPhase::Expanded => self.ended == self.count,
            StepPhase::Skipped | StepPhase::Cancelled => true,
        }
    }

    /// Whether all its elements have succeeded.
    pub(crate) fn has_succeeded(&self) -> bool {
        self.phase == StepPhase::Expanded && self.succeeded == self.count
    }

    pub(crate) fn has_waiting(&self) -> bool {
        !self.ready.is_empty() || !self.again.is_empty()
    }

    /// The attempt that an element without a site will get.
    pub(crate) fn next_attempt(&self, element: u32) -> Attempt {
        self.tries.get(&element).map_or(Attempt::FIRST, |tries| tries.highest)
    }

    pub(crate) fn is_skipped(&self) -> bool {
        self.phase == StepPhase::Skipped
    }

    pub(crate) fn former(&self, element: u32, attempt: Attempt, site: SiteId) -> bool {
        let formers = self.formers.get(&element);
        formers.is_some_and(|all| all.iter().any(|former| former.attempt == attempt && former.site == site))
    }

    pub(crate) fn row(&self, element: u32) -> Option<&Row> {
        self.rows.get(element as usize).filter(|row| row.state != RowState::Open)
    }
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum StepPhase {
    /// What it needs has not ended.
    #[default]
    Waiting,
    /// Its elements are known.
    Expanded,
    Skipped,
    /// The run failed or was cancelled before it began.
    Cancelled,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Active {
    pub(crate) attempt: Attempt,
    pub(crate) site: SiteId,
    pub(crate) phase: ActivePhase,
    pub(crate) fragment: bool,
    /// A cancel was sent.
    pub(crate) cancelling: bool,
    /// The command that dispatched it.
    pub(crate) command: CommandSeq,
    pub(crate) decision: u32,
    pub(crate) placed_at: Timestamp,
    /// Zero until its start was heard of.
    pub(crate) started_at: Timestamp,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) enum ActivePhase {
    Placed,
    Dispatched,
    Running,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Former {
    pub(crate) attempt: Attempt,
    pub(crate) site: SiteId,
}

/// One decision of the placement, and what was chosen for which elements.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Decision {
    pub(crate) sites: Vec<SiteVerdict>,
    pub(crate) at: Timestamp,
    pub(crate) chosen: BTreeMap<SiteId, ElementSet>,
}
