//! How an element of a step ends.

use std::sync::Arc;

use atoll_model::id::{Attempt, ExecutionId, SiteId, StepIndex};
use atoll_model::session::{FinishedElement, Outcome};
use atoll_model::value::Value;

use super::{Active, Detail, Row, RowState, Run, StepState};

impl StepState {
    pub(super) fn set_row(&mut self, element: u32, row: Row) {
        let place = element as usize;
        if self.rows.len() <= place {
            self.rows.resize(place + 1, Row::OPEN);
        }
        self.rows[place] = row;
    }

    pub(super) fn remove_former(&mut self, element: u32, attempt: Attempt, site: SiteId) {
        if let Some(formers) = self.formers.get_mut(&element) {
            formers.retain(|former| former.attempt != attempt || former.site != site);
            if formers.is_empty() {
                self.formers.remove(&element);
            }
        }
    }

    /// Whether what is made again to stand for what was lost is something else.
    pub(super) fn makes_otherwise(&self, finished: &FinishedElement) -> bool {
        self.recomputing.contains(finished.element)
            && finished.outcome == Outcome::Succeeded
            && self.details.get(&finished.element).is_none_or(|before| before.outputs != finished.outputs)
    }

    pub(super) fn end_element(&mut self, finished: &FinishedElement, active: &Active) {
        let element = finished.element;
        let (state, exit_code, error) = match &finished.outcome {
            Outcome::Succeeded => (RowState::Succeeded, None, None),
            Outcome::Failed { reason: _, exit_code, message } => (RowState::Failed, *exit_code, Some(message)),
            Outcome::Cancelled => (RowState::Cancelled, None, None),
            Outcome::Interrupted { message } => (RowState::Failed, None, Some(message)),
            Outcome::NotStarted { reason: _, message } => (RowState::Cancelled, None, Some(message)),
        };
        if self.recomputing.remove(element) {
            // Already counted; only a new success changes what is known of it.
            if state != RowState::Succeeded {
                return;
            }
        } else {
            self.ended += 1;
            match state {
                RowState::Succeeded => self.succeeded += 1,
                RowState::Failed => self.failed += 1,
                RowState::Cancelled | RowState::Open => self.cancelled_rows += 1,
            }
        }
        let started_at = finished.started_at.unwrap_or(active.started_at);
        let row = Row {
            state,
            attempt: finished.attempt,
            site: active.site,
            placed_at: active.placed_at,
            started_at,
            finished_at: finished.finished_at,
        };
        self.set_row(element, row);
        let detail = Detail {
            outputs: finished.outputs.clone(),
            usage: finished.usage,
            logs: finished.logs,
            exit_code,
            error: error.map(|message| Arc::from(message.as_str())),
        };
        if !detail.is_empty() {
            self.details.insert(element, Box::new(detail));
        }
    }
}

impl Run {
    /// The attempts of what a step needs that have not ended.
    pub(super) fn bound_to(&self, step: StepIndex) -> Vec<(StepIndex, Attempt)> {
        let needs = &self.workflow.step(step).needs;
        needs.iter().filter_map(|need| Some((*need, self.steps[need.index()].active.get(&0)?.attempt))).collect()
    }

    /// Whether all of an element's outputs are these.
    pub(crate) fn has_outputs(&self, execution: ExecutionId, outputs: &[Value]) -> bool {
        let known = self.steps[execution.step.index()].details.get(&execution.element);
        known.map_or(outputs.is_empty(), |detail| detail.outputs == outputs)
    }
}
