//! Reports: gathered, numbered, sent as far as credits reach, trimmed when they are acknowledged.

use std::collections::BTreeMap;

use atoll_model::id::{ReportSeq, RunId};
use atoll_model::limits::FRAME_BYTES_MAX;
use atoll_model::session::{AgentBody, StartedElement};
use atoll_model::time::Timestamp;

use crate::agent::{Agent, Step};
use crate::config::{OUTBOX_EMPTIED_PERCENT, REPORT_BYTES_MAX, REPORT_ELEMENTS_MAX, REPORTS_EAGER};
use crate::fact::Fact;
use crate::state::{Part, StepKey};

impl Agent {
    /// Numbers and sends what there is to report. While few reports are on their way that is at once; else they gather.
    pub(crate) fn report(&mut self, now: Timestamp, step: &mut Step) {
        if !self.session.may_report() {
            return;
        }
        let starts_due = self.report_starts_at.is_some_and(|at| at <= now);
        if self.may_gather() && (starts_due || !self.state.outbox.pending().is_empty()) {
            self.gather(starts_due, step);
        }
        self.send_reports(step);
    }

    /// Whether so few reports are on their way that another may follow at once.
    pub(crate) fn may_gather(&self) -> bool {
        let on_their_way = self.state.outbox.last().0 - self.state.outbox.acknowledged().0;
        self.session.may_report() && on_their_way < REPORTS_EAGER
    }

    /// Gives numbers to all that is waiting to be reported, starts included.
    pub(crate) fn number_reports(&mut self, step: &mut Step) {
        self.gather(true, step);
    }

    /// The control plane has every report up to this one.
    pub(crate) fn acknowledged(&mut self, through: ReportSeq, step: &mut Step) {
        let outbox = &self.state.outbox;
        // A repeated or overtaken acknowledgement says nothing new; one of reports that were never made is not ours.
        if through > outbox.acknowledged() && through <= outbox.last() {
            self.decide(step, Fact::ReportsAcknowledged { through });
            self.session.sent = self.session.sent.max(through);
        }
    }

    /// Says that the outbox is full, or is not any more, as soon as it is so.
    pub(crate) fn note_outbox(&mut self, now: Timestamp, step: &mut Step) {
        let (bytes, most) = (self.state.outbox.bytes(), self.config.outbox_bytes_max);
        let full = bytes >= most || self.outbox_full && bytes > most / 100 * OUTBOX_EMPTIED_PERCENT;
        if full != self.outbox_full {
            self.outbox_full = full;
            self.send_heartbeat(now, step);
        }
    }

    fn gather(&mut self, with_starts: bool, step: &mut Step) {
        let started = if with_starts { self.take_starts() } else { Vec::new() };
        let batches = batches(self.state.outbox.pending());
        if !batches.is_empty() {
            // Before the starts: those may be of steps that only these ends let begin.
            let (first, started) = (self.state.outbox.last().next(), Vec::new());
            self.decide(step, Fact::Reported { first, started, batches });
        }
        if !started.is_empty() {
            let (first, batches) = (self.state.outbox.last().next(), Vec::new());
            self.decide(step, Fact::Reported { first, started, batches });
        }
    }

    fn take_starts(&mut self) -> Vec<(RunId, atoll_model::id::StepIndex, Vec<StartedElement>)> {
        self.report_starts_at = None;
        let mut by_step: BTreeMap<StepKey, Vec<StartedElement>> = BTreeMap::new();
        for ((execution, attempt), at) in std::mem::take(&mut self.unreported) {
            let started = StartedElement { element: execution.element, attempt, at };
            by_step.entry((execution.run, execution.step)).or_default().push(started);
        }
        by_step.into_iter().map(|((run, step), elements)| (run, step, elements)).collect()
    }

    fn send_reports(&mut self, step: &mut Step) {
        let outbox = &self.state.outbox;
        let limit = outbox.last().0.min(outbox.acknowledged().0 + self.session.credits);
        while self.session.sent.0 < limit {
            let outbox = &self.state.outbox;
            let first = self.session.sent.next();
            let mut next = first;
            let mut reports = Vec::new();
            let mut bytes = 0;
            while next.0 <= limit {
                bytes += outbox.report_bytes(next);
                if !reports.is_empty() && bytes > FRAME_BYTES_MAX as u64 {
                    break;
                }
                reports.push(outbox.report(next));
                next = next.next();
            }
            self.session.sent = ReportSeq(next.0 - 1);
            self.send(AgentBody::Reports { first, reports }, step);
        }
    }
}

/// Which parts make a report together: ends of one step that no other end of their run comes between, so that nobody hears
/// of an execution before he hears of what it waited for.
fn batches(pending: &[Part]) -> Vec<Vec<u32>> {
    let mut batches: Vec<Vec<u32>> = Vec::new();
    let mut open: BTreeMap<RunId, (StepKey, usize, usize, u64)> = BTreeMap::new();
    for (place, part) in pending.iter().enumerate() {
        let place = u32::try_from(place).expect("what waits to be reported fits into memory");
        let Some(step) = part.ended_step() else {
            if let Some(run) = part.divides() {
                open.remove(&run);
            }
            batches.push(vec![place]);
            continue;
        };
        let (elements, bytes) = (part.elements(), part.bytes());
        match open.get_mut(&step.0) {
            Some((of, batch, held, held_bytes))
                if *of == step
                    && *held + elements <= REPORT_ELEMENTS_MAX
                    && *held_bytes + bytes <= REPORT_BYTES_MAX =>
            {
                batches[*batch].push(place);
                *held += elements;
                *held_bytes += bytes;
            }
            Some(_) | None => {
                open.insert(step.0, (step, batches.len(), elements, bytes));
                batches.push(vec![place]);
            }
        }
    }
    batches
}
