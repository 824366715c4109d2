//! Outputs that a worker answered as values.

use atoll_model::session::{FailureReason, Logs, StepTemplate};
use atoll_model::value::{Value, from_json};
use serde_json::{Map, Value as Json};
use site_agent_core::event::OutputFailure;

/// The outputs of a step, in its order, of what was answered as a JSON object.
#[expect(clippy::result_large_err, reason = "it goes into an event as it is")]
pub(super) fn returned(template: &StepTemplate, answered: &[u8]) -> Result<Vec<Value>, OutputFailure> {
    let failed = |reason, message| OutputFailure { reason, message, logs: Logs::default() };
    let values: Map<String, Json> = serde_json::from_slice(answered)
        .map_err(|error| failed(FailureReason::InvalidOutput, format!("the outputs cannot be read: {error}")))?;
    let outputs = template.outputs.iter().map(|output| match values.get(&output.name) {
        None | Some(Json::Null) if output.optional => Ok(Value::Null),
        None => Err(failed(FailureReason::MissingOutput, format!("the output {} is missing", output.name))),
        Some(value) => from_json(value, &output.r#type)
            .map_err(|mismatch| failed(FailureReason::InvalidOutput, format!("the output {} {mismatch}", output.name))),
    });
    outputs.collect()
}
