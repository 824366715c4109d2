//! What an attempt left, as it is told with its end or taken in later; outputs that a worker answered as values.

use std::sync::Arc;

use atoll_model::session::{FailureReason, Logs, StepTemplate};
use atoll_model::value::{Value, from_json};
use atoll_telemetry::Work;
use serde_json::{Map, Value as Json};
use site_agent_core::event::{OutputFailure, StoredOutputs};

use super::Local;
use super::attempts::Place;
use super::collect::Collection;
use crate::clock::wall_clock;
use crate::shim::KEPT;
use crate::shim::protocol::{End, EndKind, Key, Left};

impl Local {
    /// What an attempt left, if that is nothing but values: then it is told with its end, and nobody has to ask for it.
    pub(super) fn values_of(&self, place: Place, key: Key, end: &End) -> Option<StoredOutputs> {
        let template = self.attempts.get(key)?.template.clone()?;
        if let EndKind::Returned { outputs } = &end.how {
            // What is wrong with them is told when they are asked for.
            let outputs = returned(&template, outputs).ok()?;
            if let Some(spans) = &self.spans {
                spans.ran(&template, key, end);
            }
            return Some(StoredOutputs { outputs, logs: Logs::default(), bytes_out: 0 });
        }
        let outputs = end.how == EndKind::Code(0);
        let collection = self.collection(place, key, template, outputs, end.left.clone());
        let values = collection.values()?;
        if let Some(spans) = &self.spans {
            spans.ran(&collection.template, key, end);
            if !values.outputs.is_empty() {
                spans.done(&collection.template, key, Work::Outputs, collection.since, wall_clock());
            }
        }
        Some(values)
    }

    pub(super) fn collection(
        &self,
        place: Place,
        key: Key,
        template: Arc<StepTemplate>,
        outputs: bool,
        left: Left,
    ) -> Collection {
        let kept = self.folder(place, key).join(KEPT).join(key.folder());
        let log_bytes_max = self.surroundings.log_bytes_max;
        Collection { key, kept, template, outputs, left, log_bytes_max, since: wall_clock() }
    }
}

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
