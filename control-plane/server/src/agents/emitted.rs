//! What sources emit: records become the inputs of runs here, and runs in the core.

use std::sync::Arc;

use atoll_model::id::{AgentId, Attempt, ExecutionId, RunId};
use atoll_model::limits::{EMITTED_AT_ONCE_MAX, EMITTED_BYTES_MAX, EMITTED_KEY_BYTES_MAX, OFFSET_BYTES_MAX};
use atoll_model::value::from_json;
use atoll_model::workflow::Workflow;
use atoll_proto::v1::{self, EmitRequest, EmitResponse};
use control_plane_core::{EmittedRecord, Request, Response};
use indexmap::IndexMap;
use serde::Deserialize;
use serde_json::Value as Json;
use tonic::Status;
use uuid::Uuid;

use super::Agents;
use super::status::{of_rejection, of_wire_error};

/// A record as a source says it.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Said {
    values: IndexMap<String, Json>,
    #[serde(default)]
    offset: Json,
    key: Option<String>,
}

impl Agents {
    pub(super) async fn emit(&self, agent: AgentId, request: EmitRequest) -> Result<EmitResponse, Status> {
        let EmitRequest { execution, attempt, records } = request;
        let execution = execution.ok_or_else(|| Status::invalid_argument("no execution is named"))?;
        let execution = ExecutionId::try_from(execution).map_err(|error| of_wire_error(&error))?;
        if records.len() > EMITTED_AT_ONCE_MAX {
            return Err(Status::invalid_argument(format!("at most {EMITTED_AT_ONCE_MAX} records go in one call")));
        }
        let run = execution.run;
        let workflow = self.0.handle.query(move |core| core.emits_for(run)).await.map_err(of_rejection)?;
        // Whoever is not asked to emit is told so by the core.
        let read = |said: v1::EmittedRecord| match &workflow {
            Some(workflow) => read_record(workflow, &said),
            None => Err(String::new()),
        };
        let (mut taken, mut wrong) = (Vec::with_capacity(records.len()), None);
        for said in records {
            match read(said) {
                Ok(record) => taken.push(record),
                Err(why) => {
                    wrong = Some(why);
                    break;
                }
            }
        }
        let last = taken.last().map(|record| record.number);
        let request = Request::Emit { agent, execution, attempt: Attempt(attempt), records: taken };
        let answer = self.0.handle.request(request).await.map_err(of_rejection)?;
        let Response::Emitted { through, offset, refused } = answer else {
            return Err(Status::internal("the answer does not fit the request"));
        };
        let reached_it = last.is_none_or(|last| through >= last);
        let refused = refused.or(wrong.filter(|_| reached_it));
        Ok(EmitResponse { through, offset: offset.map(|offset| offset.to_string()), refused })
    }
}

/// The record as the core takes it, or why it starts no run.
fn read_record(workflow: &Workflow, said: &v1::EmittedRecord) -> Result<EmittedRecord, String> {
    let bytes = said.record.len();
    if bytes > EMITTED_BYTES_MAX {
        return Err(format!("the record has {bytes} bytes; it may have {EMITTED_BYTES_MAX}"));
    }
    let Said { values, offset, key } =
        serde_json::from_slice(&said.record).map_err(|error| format!("the record cannot be read: {error}"))?;
    let offset = (!offset.is_null()).then(|| offset.to_string());
    if let Some(offset) = offset.as_ref().filter(|offset| offset.len() > OFFSET_BYTES_MAX) {
        return Err(format!("the offset has {} bytes as JSON; it may have {OFFSET_BYTES_MAX}", offset.len()));
    }
    if let Some(key) = key.as_ref().filter(|key| key.is_empty() || key.len() > EMITTED_KEY_BYTES_MAX) {
        return Err(format!("the key has {} bytes; it may have 1 to {EMITTED_KEY_BYTES_MAX}", key.len()));
    }
    let mut inputs = IndexMap::new();
    for (name, json) in &values {
        // A source may tell more than a workflow asks for.
        let Some(input) = workflow.inputs.get(name).filter(|input| input.imported_by.is_none()) else { continue };
        if json.is_null() && input.default.is_some() {
            continue;
        }
        let value = from_json(json, &input.r#type).map_err(|mismatch| format!("the input {name}: {mismatch}"))?;
        inputs.insert(name.clone(), value);
    }
    let (number, run) = (said.number, RunId::from_bits(Uuid::now_v7().as_u128()));
    Ok(EmittedRecord { number, run, inputs, offset: offset.map(Arc::from), key })
}

#[cfg(test)]
mod tests {
    use atoll_model::value::Value;
    use atoll_model::workflow::{Surroundings, Work, parse};

    use super::*;

    struct Nothing;

    impl Surroundings for Nothing {
        fn action(&self, reference: &str) -> Result<Work, String> {
            Err(format!("there is no action {reference}"))
        }
    }

    fn read(record: &str) -> Result<EmittedRecord, String> {
        let file = "workflow: w\ninputs: { level: number, place: { type: string, default: here } }\nsteps: { a: { run: 'true' } }\n";
        let workflow = parse("w.yaml", file, &Nothing).expect("it is valid");
        read_record(&workflow, &v1::EmittedRecord { number: 7, record: record.as_bytes().to_vec().into() })
    }

    #[test]
    fn a_record_becomes_the_inputs_of_its_run_and_what_is_not_asked_for_is_passed_over() {
        let record =
            read(r#"{"values":{"level":3,"place":null,"more":1},"offset":{"line":2},"key":"k"}"#).expect("read");
        let inputs: Vec<_> = record.inputs.into_iter().collect();
        assert_eq!(inputs, [("level".to_owned(), Value::Number(3.0))]);
        assert_eq!((record.number, record.offset.as_deref()), (7, Some(r#"{"line":2}"#)));
        assert_eq!(record.key.as_deref(), Some("k"));
    }

    #[test]
    fn a_record_that_fits_no_run_is_refused_with_the_reason() {
        for (record, expected) in [
            (r#"{"values":{"level":"high"}}"#.to_owned(), "the input level: "),
            ("{}".to_owned(), "cannot be read"),
            (r#"{"values":{},"key":""}"#.to_owned(), "the key has 0 bytes"),
            (format!(r#"{{"values":{{}},"offset":"{}"}}"#, "x".repeat(OFFSET_BYTES_MAX)), "the offset has"),
            (format!(r#"{{"values":{{"more":"{}"}}}}"#, "x".repeat(EMITTED_BYTES_MAX)), "the record has"),
        ] {
            let why = read(&record).expect_err("refused");
            assert!(why.contains(expected), "{why}");
        }
    }
}
