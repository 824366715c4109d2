//! What the API answers, as far as commands look into it.

use std::time::Duration;

use anyhow::Context as _;
use atoll_model::diagnostic::{Diagnostic, Place};
use atoll_model::time::Timestamp;
use serde_json::{Map, Value};

/// A run that has ended.
#[derive(Debug, Clone)]
pub(crate) struct Finished {
    pub(crate) run: String,
    pub(crate) workflow: String,
    pub(crate) state: String,
    pub(crate) error: Option<String>,
    pub(crate) submitted_at: Timestamp,
    pub(crate) started_at: Option<Timestamp>,
    pub(crate) finished_at: Option<Timestamp>,
    pub(crate) outputs: Map<String, Value>,
    /// The whole answer.
    pub(crate) document: Value,
}

impl Finished {
    pub(super) fn from_document(document: Value) -> anyhow::Result<Self> {
        let error = &document["error"];
        let described = error["message"].as_str().map(|message| match error["step"].as_str() {
            Some(step) => format!("{step}: {message}"),
            None => message.to_owned(),
        });
        Ok(Self {
            run: text(&document, "run")?,
            workflow: text(&document, "workflow")?,
            state: text(&document, "state")?,
            error: described,
            submitted_at: time(&document, "submitted_at")?.context("the answer has no submitted_at")?,
            started_at: time(&document, "started_at")?,
            finished_at: time(&document, "finished_at")?,
            outputs: document["outputs"].as_object().cloned().unwrap_or_default(),
            document,
        })
    }
}

/// An execution.
#[derive(Debug, Clone)]
pub(crate) struct ExecutionRow {
    pub(crate) execution: String,
    pub(crate) step: String,
    pub(crate) element: u64,
    pub(crate) attempt: u64,
    pub(crate) state: String,
    pub(crate) site: Option<String>,
    pub(crate) started_at: Option<Timestamp>,
    pub(crate) finished_at: Option<Timestamp>,
    pub(crate) outputs: Map<String, Value>,
    pub(crate) bytes_out: u64,
}

impl ExecutionRow {
    pub(super) fn from_document(document: &Value) -> anyhow::Result<Self> {
        Ok(Self {
            execution: text(document, "execution")?,
            step: text(document, "step")?,
            element: document["element"].as_u64().unwrap_or(0),
            attempt: document["attempt"].as_u64().unwrap_or(1),
            state: text(document, "state")?,
            site: document["site"].as_str().map(str::to_owned),
            started_at: time(document, "started_at")?,
            finished_at: time(document, "finished_at")?,
            outputs: document["outputs"].as_object().cloned().unwrap_or_default(),
            bytes_out: document["usage"]["bytes_out"].as_u64().unwrap_or(0),
        })
    }

    pub(crate) fn took(&self) -> Option<Duration> {
        Some(self.finished_at?.saturating_since(self.started_at?))
    }
}

/// One crossing of a border.
#[derive(Debug, Clone)]
pub(crate) struct LedgerRow {
    pub(crate) bytes: u64,
    pub(crate) from: String,
    pub(crate) to: String,
    pub(crate) for_execution: Option<String>,
    pub(crate) rule: String,
}

impl LedgerRow {
    pub(super) fn from_document(document: &Value) -> anyhow::Result<Self> {
        Ok(Self {
            bytes: document["bytes"].as_u64().context("an entry without bytes")?,
            from: text(document, "from")?,
            to: text(document, "to")?,
            for_execution: document["for_execution"].as_str().map(str::to_owned),
            rule: text(document, "rule")?,
        })
    }
}

/// A diagnostic that the server made.
pub(super) fn diagnostic(document: &Value) -> Diagnostic {
    let number = |name: &str| document[name].as_u64().and_then(|number| u32::try_from(number).ok()).unwrap_or(0);
    Diagnostic {
        file: document["file"].as_str().unwrap_or_default().to_owned(),
        place: Place { line: number("line"), column: number("column"), start: number("start"), end: number("end") },
        message: document["message"].as_str().unwrap_or_default().to_owned(),
        help: document["help"].as_str().map(str::to_owned),
    }
}

fn text(document: &Value, name: &str) -> anyhow::Result<String> {
    Ok(document[name].as_str().with_context(|| format!("the answer has no {name}"))?.to_owned())
}

fn time(document: &Value, name: &str) -> anyhow::Result<Option<Timestamp>> {
    match document[name].as_str() {
        Some(text) => Ok(Some(Timestamp::parse_rfc3339(text).with_context(|| format!("{name} of the answer"))?)),
        None => Ok(None),
    }
}
