//! The history in tables of PostgreSQL, which every server of the installation shares.

use atoll_model::id::RunId;
use atoll_model::time::Timestamp;
use control_plane_core::FinishedRun;
use control_plane_core::view::{ExecutionPage, ExecutionView, RunFilter, RunView};
use control_plane_postgres::{Address, EndedRun, Fence, Listed, Query, StoreError};
use serde_json::{Value, json};

use super::encoding::{LIST_FORMAT, decode_head, decode_run, encode_head, encode_run};
use super::{History, HistoryError, Retention};
use crate::api::views::{execution_state, run_state};

/// Executions that are sent at once.
const ROWS: usize = 10_000;
/// Runs that are looked at together when some are to go.
const PAGE: i64 = 256;

#[derive(Debug)]
pub(crate) struct PostgresHistory {
    tables: control_plane_postgres::History,
}

impl PostgresHistory {
    pub(crate) fn new(address: Address, fence: Fence) -> Self {
        Self { tables: control_plane_postgres::History::new(address, fence) }
    }

    fn page(&self, query: &Query) -> Result<Vec<RunView>, HistoryError> {
        let listed = self.tables.list(query)?;
        listed.into_iter().filter_map(|listed| self.view(&listed).transpose()).collect()
    }

    /// Of one that another version has written, from all of the run; nothing if it was removed meanwhile.
    fn view(&self, listed: &Listed) -> Result<Option<RunView>, HistoryError> {
        if let Some((format, head)) = listed.head.split_first_chunk::<2>()
            && u16::from_be_bytes(*format) == LIST_FORMAT
        {
            return decode_head(&listed.run, head).map(Some);
        }
        let document = self.tables.document(&listed.run)?;
        document.map(|document| Ok(decode_run(&listed.run, &document)?.view())).transpose()
    }
}

impl From<StoreError> for HistoryError {
    fn from(error: StoreError) -> Self {
        Self::Store(Box::new(error))
    }
}

impl History for PostgresHistory {
    fn wants_ended_runs(&self) -> bool {
        true
    }

    fn keep(&self, runs: &[FinishedRun]) -> Result<(), HistoryError> {
        let ended: Vec<EndedRun> = runs.iter().map(ended_run).collect::<Result<_, _>>()?;
        Ok(self.tables.keep(&ended)?)
    }

    fn runs(&self, filter: &RunFilter) -> Result<Vec<RunView>, HistoryError> {
        let labels = (!filter.labels.is_empty()).then(|| clean(json!(filter.labels)).to_string());
        let query = Query {
            state: filter.state.map(|state| run_state(state).to_owned()),
            workflow: filter.workflow.clone(),
            project: filter.project.clone(),
            site: filter.site.as_ref().map(ToString::to_string),
            labels,
            since: filter.since.map(Timestamp::micros),
            until: filter.until.map(Timestamp::micros),
            finished_before: None,
            after: filter.before.map(|place| (place.submitted_at.micros(), place.run.to_string())),
            limit: filter.limit.map(|limit| i64::try_from(limit).unwrap_or(i64::MAX)),
        };
        self.page(&query)
    }

    fn run(&self, run: RunId) -> Result<Option<FinishedRun>, HistoryError> {
        let name = run.to_string();
        self.tables.document(&name)?.map(|document| decode_run(&name, &document)).transpose()
    }

    fn expire(&self, retention: &Retention, now: Timestamp) -> Result<u64, HistoryError> {
        let mut query = Query { finished_before: Some(now.micros()), limit: Some(PAGE), ..Query::default() };
        let mut removed = 0;
        loop {
            let views = self.page(&query)?;
            let Some(last) = views.last() else { return Ok(removed) };
            query.after = Some((last.submitted_at.micros(), last.run.to_string()));
            let over = views.iter().filter(|view| retention.ends(view).is_some_and(|end| end <= now));
            let over: Vec<String> = over.map(|view| view.run.to_string()).collect();
            if !over.is_empty() {
                self.tables.remove(&over)?;
                removed += over.len() as u64;
            }
        }
    }
}

fn ended_run(run: &FinishedRun) -> Result<EndedRun, HistoryError> {
    let core = run.open();
    let view = run.view();
    let outputs: serde_json::Map<String, Value> =
        view.outputs.iter().map(|(name, value)| (name.clone(), value.to_json())).collect();
    let counts: serde_json::Map<String, Value> =
        view.counts.iter().map(|(state, count)| (execution_state(*state).to_owned(), json!(count))).collect();
    let row = json!({
        "workflow": view.workflow,
        "project": view.tags.project,
        "state": run_state(view.state),
        "submitted_by": view.submitted_by,
        "submitted_at": view.submitted_at.micros(),
        "started_at": view.started_at.map(Timestamp::micros),
        "finished_at": run.finished_at().micros(),
        "labels": view.tags.labels,
        "sites": view.sites.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "outputs": outputs,
        "error_step": view.error.as_ref().map(|error| &error.step),
        "error": view.error.as_ref().map(|error| &error.message),
        "executions": counts,
    });
    let mut executions = Vec::new();
    let mut page = ExecutionPage { limit: Some(ROWS), ..ExecutionPage::default() };
    loop {
        let rows = core.executions(run.id(), &page).unwrap_or_default();
        let Some(last) = rows.last() else { break };
        page.after = Some(last.execution);
        executions.push(clean(Value::Array(rows.iter().map(execution_row).collect())).to_string());
    }
    Ok(EndedRun {
        run: run.id().to_string(),
        row: clean(row).to_string(),
        head: [&LIST_FORMAT.to_be_bytes()[..], &encode_head(&view)].concat(),
        document: encode_run(run)?,
        executions,
    })
}

fn execution_row(view: &ExecutionView) -> Value {
    json!({
        "step": view.step,
        "element": view.execution.element,
        "attempt": view.attempt.0,
        "state": execution_state(view.state),
        "site": view.site.as_ref().map(ToString::to_string),
        "submitted_at": view.submitted_at.micros(),
        "placed_at": view.placed_at.map(Timestamp::micros),
        "started_at": view.started_at.map(Timestamp::micros),
        "finished_at": view.finished_at.map(Timestamp::micros),
        "exit_code": view.exit_code,
        "error": view.error,
        "cpu_seconds": view.usage.cpu_micros as f64 / 1e6,
        "memory_bytes": view.usage.max_rss_bytes,
        "disk_read_bytes": view.usage.disk_read_bytes,
        "disk_written_bytes": view.usage.disk_written_bytes,
    })
}

/// PostgreSQL knows no NUL in a text; nobody may keep a run from being kept by one.
fn clean(value: Value) -> Value {
    let text = |text: String| if text.contains('\0') { text.replace('\0', "\u{fffd}") } else { text };
    match value {
        Value::String(found) => Value::String(text(found)),
        Value::Array(values) => Value::Array(values.into_iter().map(clean).collect()),
        Value::Object(fields) => {
            Value::Object(fields.into_iter().map(|(name, value)| (text(name), clean(value))).collect())
        }
        plain @ (Value::Null | Value::Bool(_) | Value::Number(_)) => plain,
    }
}
