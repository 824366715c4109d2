//! Reports from when they are decided to when the control plane has them.

use std::collections::VecDeque;
use std::sync::Arc;

use atoll_model::elements::ElementSet;
use atoll_model::id::{Attempt, ExecutionId, ReportSeq, RunId, StepIndex};
use atoll_model::limits::REPORTS_KEPT_BYTES;
use atoll_model::session::{FinishedElement, Logs, Outcome, Report, StartedElement, Usage};
use atoll_model::time::Timestamp;
use atoll_model::value::Value;
use serde::{Deserialize, Serialize};

use super::{AttemptKey, StepKey};

/// Numbered reports, and what is still to be gathered into reports.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Outbox {
    /// Every report up to this one is acknowledged, and trimmed.
    acknowledged: ReportSeq,
    numbered: VecDeque<Vec<Part>>,
    pending: Vec<Part>,
    bytes: u64,
    /// The last reports that are acknowledged, for a control plane that is set back to a time before it had them (B6).
    kept: VecDeque<Arc<Vec<Part>>>,
    kept_bytes: u64,
}

/// What becomes a report, alone or with others of its step.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) enum Part {
    /// Elements that ended in the same way, without outputs, logs or usage.
    Same {
        run: RunId,
        step: StepIndex,
        attempt: Attempt,
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
    Started {
        run: RunId,
        step: StepIndex,
        elements: Vec<StartedElement>,
    },
    Other(Box<Report>),
}

impl Part {
    /// The step whose ends it tells of.
    pub(crate) fn ended_step(&self) -> Option<StepKey> {
        match self {
            Self::Same { run, step, .. } | Self::Finished { run, step, .. } => Some((*run, *step)),
            Self::Started { .. } | Self::Other(_) => None,
        }
    }

    /// The run of which nothing that comes after it may be told before it.
    pub(crate) fn divides(&self) -> Option<RunId> {
        match self {
            Self::Other(report) => match &**report {
                Report::Retried { run, .. } | Report::DelegationEnded { run, .. } => Some(*run),
                Report::Started { .. }
                | Report::Finished { .. }
                | Report::Fetched { .. }
                | Report::Pushed { .. }
                | Report::PushFailed { .. }
                | Report::Fault { .. }
                | Report::Evictable { .. }
                | Report::Evicted { .. }
                | Report::Verified { .. }
                | Report::ReplicaEnded { .. }
                | Report::Unknown { .. } => None,
            },
            Self::Same { .. } | Self::Finished { .. } | Self::Started { .. } => None,
        }
    }

    pub(crate) fn elements(&self) -> usize {
        match self {
            Self::Same { elements, .. } => elements.len() as usize,
            Self::Started { elements, .. } => elements.len(),
            Self::Finished { .. } | Self::Other(_) => 1,
        }
    }

    /// About how many bytes it takes in a frame: rather too many than too few.
    pub(crate) fn bytes(&self) -> u64 {
        match self {
            Self::Same { elements, outcome, .. } => 64 + 48 * u64::from(elements.len()) + message_bytes(outcome),
            Self::Finished { element, .. } => {
                let objects = [element.logs.stdout, element.logs.stderr].iter().flatten().count() as u64 * 48;
                128 + objects + message_bytes(&element.outcome) + element.outputs.iter().map(value_bytes).sum::<u64>()
            }
            Self::Started { elements, .. } => 64 + 24 * elements.len() as u64,
            Self::Other(report) => 256 + objects_of(report) * 64,
        }
    }

    /// About how many bytes it takes in memory.
    fn kept_bytes(&self) -> u64 {
        match self {
            Self::Same { outcome, .. } => 256 + message_bytes(outcome),
            Self::Finished { .. } => 256 + self.bytes(),
            Self::Started { .. } | Self::Other(_) => self.bytes(),
        }
    }

    fn visit_ended(&self, visit: &mut dyn FnMut(AttemptKey)) {
        match self {
            Self::Same { run, step, attempt, elements, .. } => {
                let execution = |element| ExecutionId { run: *run, step: *step, element };
                elements.iter().for_each(|element| visit((execution(element), *attempt)));
            }
            Self::Finished { run, step, element } => {
                visit((ExecutionId { run: *run, step: *step, element: element.element }, element.attempt));
            }
            Self::Other(report) => {
                if let Report::Retried { run, step, elements } = &**report {
                    let execution = |element| ExecutionId { run: *run, step: *step, element };
                    elements.iter().for_each(|ended| visit((execution(ended.element), ended.attempt)));
                }
            }
            Self::Started { .. } => {}
        }
    }
}

impl Outbox {
    pub(crate) fn acknowledged(&self) -> ReportSeq {
        self.acknowledged
    }

    /// The first report that is still there.
    pub(crate) fn first(&self) -> ReportSeq {
        ReportSeq(self.acknowledged.0 + 1 - self.kept.len() as u64)
    }

    /// The last report that has a number.
    pub(crate) fn last(&self) -> ReportSeq {
        ReportSeq(self.acknowledged.0 + self.numbered.len() as u64)
    }

    pub(crate) fn pending(&self) -> &[Part] {
        &self.pending
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Calls `visit` for each attempt whose end is in the outbox.
    pub(crate) fn visit_ended(&self, visit: &mut dyn FnMut(AttemptKey)) {
        self.numbered.iter().flatten().chain(&self.pending).for_each(|part| part.visit_ended(visit));
    }

    /// About how many bytes the report takes in a frame.
    pub(crate) fn report_bytes(&self, report: ReportSeq) -> u64 {
        self.parts(report).iter().map(Part::bytes).sum()
    }

    pub(crate) fn report(&self, report: ReportSeq) -> Report {
        let parts = self.parts(report);
        match &parts[0] {
            Part::Other(report) => (**report).clone(),
            Part::Started { run, step, elements } => {
                Report::Started { run: *run, step: *step, elements: elements.clone() }
            }
            Part::Same { run, step, .. } | Part::Finished { run, step, .. } => {
                let mut elements = Vec::with_capacity(parts.iter().map(Part::elements).sum());
                for part in parts {
                    extend_finished(&mut elements, part);
                }
                Report::Finished { run: *run, step: *step, elements }
            }
        }
    }

    fn parts(&self, report: ReportSeq) -> &[Part] {
        &self.numbered[usize::try_from(report.0 - self.acknowledged.0 - 1).expect("an outbox fits into memory")]
    }

    pub(super) fn push(&mut self, part: Part) {
        self.bytes += part.bytes();
        self.pending.push(part);
    }

    pub(super) fn number(
        &mut self,
        first: ReportSeq,
        started: &[(RunId, StepIndex, Vec<StartedElement>)],
        batches: &[Vec<u32>],
    ) {
        assert_eq!(first, self.last().next(), "reports are numbered without gaps");
        for (run, step, elements) in started {
            let part = Part::Started { run: *run, step: *step, elements: elements.clone() };
            self.bytes += part.bytes();
            self.numbered.push_back(vec![part]);
        }
        let mut pending: Vec<Option<Part>> = std::mem::take(&mut self.pending).into_iter().map(Some).collect();
        for batch in batches {
            let parts: Vec<Part> = batch.iter().filter_map(|place| pending[*place as usize].take()).collect();
            assert_eq!(parts.len(), batch.len(), "each part is in one batch");
            self.numbered.push_back(parts);
        }
        assert!(pending.iter().all(Option::is_none), "no part is left out");
    }

    pub(super) fn trim(&mut self, through: ReportSeq) {
        assert!(through <= self.last(), "only what was sent is acknowledged");
        while self.acknowledged < through {
            let parts = self.numbered.pop_front().expect("it is not after the last");
            self.bytes -= parts.iter().map(Part::bytes).sum::<u64>();
            self.kept_bytes += parts.iter().map(Part::kept_bytes).sum::<u64>();
            self.kept.push_back(Arc::new(parts));
            self.acknowledged = self.acknowledged.next();
        }
        while self.kept_bytes > REPORTS_KEPT_BYTES
            && let Some(parts) = self.kept.pop_front()
        {
            self.kept_bytes -= parts.iter().map(Part::kept_bytes).sum::<u64>();
        }
    }

    /// What comes after this report is to be sent again, as if it had never been acknowledged.
    pub(super) fn rewind(&mut self, after: ReportSeq) {
        assert!(self.first() <= after.next(), "only what is still there is sent again");
        while self.acknowledged > after {
            let parts = self.kept.pop_back().expect("it is not before the first");
            self.kept_bytes -= parts.iter().map(Part::kept_bytes).sum::<u64>();
            self.bytes += parts.iter().map(Part::bytes).sum::<u64>();
            self.numbered.push_front(Arc::unwrap_or_clone(parts));
            self.acknowledged.0 -= 1;
        }
    }
}

fn extend_finished(elements: &mut Vec<FinishedElement>, part: &Part) {
    match part {
        Part::Same { attempt, elements: same, started_at, finished_at, outcome, .. } => {
            elements.extend(same.iter().map(|element| FinishedElement {
                element,
                attempt: *attempt,
                started_at: *started_at,
                finished_at: *finished_at,
                outcome: outcome.clone(),
                outputs: Vec::new(),
                usage: Usage::default(),
                logs: Logs::default(),
            }));
        }
        Part::Finished { element, .. } => elements.push((**element).clone()),
        Part::Started { .. } | Part::Other(_) => unreachable!("a batch holds ends of one step"),
    }
}

fn message_bytes(outcome: &Outcome) -> u64 {
    match outcome {
        Outcome::Succeeded | Outcome::Cancelled => 0,
        Outcome::Failed { message, .. } | Outcome::Interrupted { message } | Outcome::NotStarted { message, .. } => {
            message.len() as u64
        }
    }
}

fn value_bytes(value: &Value) -> u64 {
    match value {
        Value::Null | Value::Boolean(_) => 2,
        Value::Integer(_) | Value::Number(_) => 10,
        Value::String(text) => 8 + text.len() as u64,
        Value::List(values) => 8 + values.iter().map(value_bytes).sum::<u64>(),
        Value::Object(fields) => {
            8 + fields.iter().map(|(name, value)| 8 + name.len() as u64 + value_bytes(value)).sum::<u64>()
        }
        Value::File(file) => 64 + file.name.as_bytes().len() as u64,
        Value::Directory(tree) => {
            let listed = tree.listing.iter().flat_map(|files| files.iter());
            80 + tree.name.as_bytes().len() as u64 + listed.map(|file| 64 + file.path.len() as u64).sum::<u64>()
        }
    }
}

fn objects_of(report: &Report) -> u64 {
    let count = match report {
        Report::Evictable { objects, .. } => objects.len(),
        Report::Evicted { gone, kept } => gone.len() + kept.len(),
        Report::Started { .. }
        | Report::Finished { .. }
        | Report::Fetched { .. }
        | Report::Pushed { .. }
        | Report::PushFailed { .. }
        | Report::Fault { .. }
        | Report::Verified { .. }
        | Report::Retried { .. }
        | Report::DelegationEnded { .. }
        | Report::ReplicaEnded { .. }
        | Report::Unknown { .. } => 0,
    };
    count as u64
}
