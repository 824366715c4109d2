//! A workflow as a graph to look ahead in: what is known of a run, and what is expected of the rest.

use atoll_model::expression::Form;
use atoll_model::id::{SiteId, StepIndex};
use atoll_model::value::{Type, Value};
use atoll_model::workflow::{Step, Work, Workflow};
use indexmap::IndexMap;

use crate::estimates::Estimates;
use crate::look_ahead::Graph;
use crate::plan::RunPlan;
use crate::state::{Run, StepPhase, StepState};

/// What a workflow looks like before and while it runs.
#[derive(Debug)]
pub(crate) struct Sketch<'a> {
    pub(crate) workflow: &'a Workflow,
    pub(crate) plan: &'a RunPlan,
    pub(crate) inputs: &'a IndexMap<String, Value>,
    /// Nothing while it has not begun.
    pub(crate) run: Option<&'a Run>,
    pub(crate) estimates: &'a Estimates,
}

/// A site that work may be given to.
#[derive(Debug)]
pub(crate) struct Place {
    pub(crate) site: SiteId,
    pub(crate) cpu_millis: u32,
    /// Until what is out there has ended, roughly.
    pub(crate) busy_micros: u64,
    /// Steps that may be placed there.
    pub(crate) admits: Vec<bool>,
}

/// The graph, and which of its units are which elements.
#[derive(Debug)]
pub(crate) struct Drawing {
    pub(crate) graph: Graph,
    pub(crate) steps: Vec<Parts>,
    /// Bytes of something are not known and were guessed.
    pub(crate) is_guess: bool,
}

/// The units of one step: `len` from `first`, for `count` elements.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Parts {
    pub(crate) first: u32,
    pub(crate) len: u32,
    pub(crate) count: u32,
}

impl Parts {
    pub(super) fn unit(&self, element: u32) -> Option<u32> {
        if self.len == 0 {
            return None;
        }
        let part = u64::from(element.min(self.count - 1)) * u64::from(self.len) / u64::from(self.count);
        Some(self.first + u32::try_from(part).expect("less than the number of parts"))
    }

    pub(crate) fn units(&self) -> std::ops::Range<u32> {
        self.first..self.first + self.len
    }
}

impl Sketch<'_> {
    /// Bytes that the steps hand to one another, and of the inputs; nothing if some are not known.
    pub(crate) fn bytes_handed_on(&self) -> Option<u64> {
        let mut bytes = 0.0;
        for step in &self.workflow.steps {
            let planned = &self.plan.steps[step.index.index()];
            if planned.successors.is_empty() || matches!(step.work, Work::Null) {
                continue;
            }
            for (place, (_, output)) in (0..u16::MAX).zip(&step.outputs) {
                if may_hold_files(&output.r#type) {
                    let count = if step.foreach.is_some() { self.estimates.count(planned.load.kind)? } else { 1 };
                    bytes += self.estimates.output_bytes(planned.load.kind, place)? * f64::from(count);
                }
            }
        }
        self.inputs.values().for_each(|value| value.visit_objects(&mut |object| bytes += object.bytes as f64));
        // Saturates.
        Some(bytes as u64)
    }

    pub(super) fn state(&self, step: StepIndex) -> Option<&StepState> {
        self.run.map(|run| &run.steps[step.index()])
    }

    /// How many elements a step has, as far as can be told.
    pub(super) fn count(&self, step: &Step, known: &[Parts]) -> u32 {
        if let Some(state) = self.state(step.index)
            && state.phase == StepPhase::Expanded
        {
            return state.count;
        }
        let Some(foreach) = &step.foreach else { return 1 };
        let given = match &foreach.form {
            Form::Literal(Value::List(values)) => Some(values.len()),
            Form::Input(name) => match self.inputs.get(name) {
                Some(Value::List(values)) => Some(values.len()),
                Some(_) | None => None,
            },
            Form::Output { step: maker, .. } if self.workflow.step(*maker).foreach.is_some() => {
                known.get(maker.index()).map(|parts| parts.count as usize)
            }
            Form::Literal(_)
            | Form::Output { .. }
            | Form::Item
            | Form::Index
            | Form::Cel(_)
            | Form::Template(_)
            | Form::List(_)
            | Form::Object(_) => None,
        };
        let given = given.map(|count| u32::try_from(count).unwrap_or(u32::MAX));
        given.or_else(|| self.estimates.count(self.plan.steps[step.index.index()].load.kind)).unwrap_or(1)
    }

    pub(super) fn has_ended(&self, step: StepIndex) -> bool {
        self.state(step).is_some_and(StepState::is_ended)
    }
}

fn may_hold_files(r#type: &Type) -> bool {
    match r#type {
        Type::File | Type::Directory | Type::Object | Type::Any | Type::List(None) => true,
        Type::List(Some(element)) => may_hold_files(element),
        Type::String | Type::Integer | Type::Number | Type::Boolean | Type::Enum(_) => false,
    }
}
