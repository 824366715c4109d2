//! Bindings of inputs. Their names are told once, however many elements use them.

use std::collections::HashMap;

use atoll_model::id::{ExecutionId, RunId};
use atoll_model::session::{Binding, BindingSource};

use crate::columns::same_length;
use crate::error::{WireError, required};
use crate::types::{read_attempt, read_step, step};
use crate::v1 as wire;
use crate::v1::binding_source::Source;

/// Collects bindings into one message.
#[derive(Debug)]
pub(crate) struct BindingsWriter {
    run: RunId,
    message: wire::Bindings,
    places: HashMap<String, u32>,
}

impl BindingsWriter {
    /// `run` is what the message that holds the bindings names.
    pub(crate) fn new(run: RunId) -> Self {
        Self { run, message: wire::Bindings::default(), places: HashMap::new() }
    }

    pub(crate) fn write(&mut self, binding: Binding) {
        let name = self.place(binding.name);
        let source = match binding.source {
            BindingSource::Value(value) => Source::Value(value.into()),
            BindingSource::Output { execution, attempt, output } => Source::Output(wire::OutputReference {
                run: (execution.run != self.run).then(|| execution.run.into()),
                step: step(execution.step),
                element: execution.element,
                attempt: attempt.0,
                output: self.place(output),
            }),
        };
        self.message.name.push(name);
        self.message.sources.push(wire::BindingSource { source: Some(source) });
    }

    pub(crate) fn finish(self) -> wire::Bindings {
        self.message
    }

    fn place(&mut self, name: String) -> u32 {
        if let Some(place) = self.places.get(&name) {
            return *place;
        }
        let place = self.message.names.len() as u32;
        self.message.names.push(name.clone());
        self.places.insert(name, place);
        place
    }
}

/// The bindings of a message, in order.
pub(crate) fn read_bindings(
    message: Option<wire::Bindings>,
    run: RunId,
) -> Result<impl ExactSizeIterator<Item = Result<Binding, WireError>>, WireError> {
    let wire::Bindings { names, name, sources } = message.unwrap_or_default();
    same_length("bindings.sources", name.len(), sources.len())?;
    let named =
        move |place: u32| names.get(place as usize).cloned().ok_or(WireError::OutOfRange { field: "bindings.names" });
    Ok(name.into_iter().zip(sources).map(move |(name, source)| {
        let source = match source.source.ok_or(WireError::UnknownKind { field: "bindings.sources" })? {
            Source::Value(value) => BindingSource::Value(value.try_into()?),
            Source::Output(output) => BindingSource::Output {
                execution: ExecutionId {
                    run: output.run.map_or(run, Into::into),
                    step: read_step(output.step)?,
                    element: output.element,
                },
                attempt: read_attempt(u64::from(output.attempt))?,
                output: named(output.output)?,
            },
        };
        Ok(Binding { name: named(name)?, source })
    }))
}

/// The run that a message names.
pub(crate) fn read_run(run: Option<wire::Id>) -> Result<RunId, WireError> {
    required(run, "run").map(Into::into)
}
