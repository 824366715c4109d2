//! Runs: listed, shown, cancelled.

use std::sync::Arc;

use atoll_model::id::RunId;
use atoll_model::placement::Labels;
use atoll_model::time::Timestamp;
use axum::extract::State;
use axum::{Extension, Json};
use control_plane_core::Request;
use control_plane_core::view::{ExecutionPage, RunFilter};
use serde::Deserialize;
use utoipa::{IntoParams, ToSchema};

use super::App;
use super::error::{ApiError, ErrorBody};
use super::extract::{Body, Id, Query, parse};
use super::tokens::Person;
use super::views::{ExecutionBody, RunBody, RunsBody, parse_run_state};

/// Runs in one answer, unless another number is asked for.
const RUNS_DEFAULT: usize = 100;
const RUNS_MAX: usize = 10_000;
/// Executions in one answer.
const EXECUTIONS_DEFAULT: usize = 1_000;
const EXECUTIONS_MAX: usize = 10_000;

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct ListQuery {
    /// Only runs in this state.
    state: Option<String>,
    /// Only runs of this workflow.
    workflow: Option<String>,
    /// Only runs with an execution that is, or was, at this site.
    site: Option<String>,
    /// Only runs of this project.
    project: Option<String>,
    /// Only runs with these labels: `key=value`, several separated by commas.
    label: Option<String>,
    /// Only runs that were submitted then (RFC 3339) or later.
    since: Option<String>,
    /// Only runs that were submitted before then (RFC 3339).
    until: Option<String>,
    /// At most so many; 100 unless given, 10,000 at most.
    limit: Option<usize>,
    /// Only runs that are listed after this one: what an answer says is `next`.
    before: Option<String>,
}

/// Runs, newest first, those of long ago included
#[utoipa::path(get, path = "/runs", tag = "runs", params(ListQuery), responses(
    (status = 200, body = RunsBody),
    (status = 400, body = ErrorBody),
))]
pub(super) async fn list(
    State(app): State<Arc<App>>,
    Query(query): Query<ListQuery>,
) -> Result<Json<RunsBody>, ApiError> {
    let state = query.state.as_deref().map(|text| {
        parse_run_state(text).ok_or_else(|| {
            let help = "a state is submitted, running, cancelling, succeeded, failed or cancelled";
            ApiError::with_help(format!("{text:?} is no state of a run"), help)
        })
    });
    let before = match query.before.as_deref().map(parse).transpose()? {
        Some(run) => Some(app.place(run).await?.ok_or_else(|| no_such_run(run))?),
        None => None,
    };
    let limit = query.limit.unwrap_or(RUNS_DEFAULT).min(RUNS_MAX);
    let filter = RunFilter {
        state: state.transpose()?,
        workflow: query.workflow,
        site: query.site.as_deref().map(parse).transpose()?,
        project: query.project,
        labels: query.label.as_deref().map(labels).transpose()?.unwrap_or_default(),
        since: query.since.as_deref().map(time).transpose()?,
        until: query.until.as_deref().map(time).transpose()?,
        before,
        limit: Some(limit),
    };
    let runs = app.runs(filter).await?;
    // There may be no more; then the next page is empty.
    let next = runs.last().filter(|_| runs.len() == limit).map(|run| run.run.to_string());
    Ok(Json(RunsBody { runs: runs.iter().map(RunBody::new).collect(), next }))
}

pub(super) fn labels(text: &str) -> Result<Labels, ApiError> {
    let pair = |pair: &str| {
        let (name, value) = pair.split_once('=').ok_or_else(|| {
            ApiError::with_help(
                format!("{pair:?} is no label"),
                "a label is key=value; several are separated by commas",
            )
        })?;
        Ok((name.to_owned(), value.to_owned()))
    };
    text.split(',').map(pair).collect()
}

fn time(text: &str) -> Result<Timestamp, ApiError> {
    Timestamp::parse_rfc3339(text).map_err(|_| {
        ApiError::with_help(format!("{text:?} is no time"), "a time is written as in RFC 3339: 2026-01-31T12:00:00Z")
    })
}

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct ShowQuery {
    /// Whether to show its executions; `true` unless given.
    executions: Option<bool>,
    /// Leave out so many of its executions, which are in the order of steps and elements.
    offset: Option<usize>,
    /// Begin after this execution; cheaper than an offset.
    after: Option<String>,
    /// At most so many executions; 1,000 unless given, 10,000 at most.
    limit: Option<usize>,
    /// Only executions of this step.
    step: Option<String>,
}

/// A run, with a page of its executions
#[utoipa::path(get, path = "/runs/{run}", tag = "runs",
    params(("run" = String, Path, description = "Id of the run"), ShowQuery),
    responses((status = 200, body = RunBody), (status = 404, body = ErrorBody)))]
pub(super) async fn show(
    State(app): State<Arc<App>>,
    Id(run): Id<RunId>,
    Query(query): Query<ShowQuery>,
) -> Result<Json<RunBody>, ApiError> {
    let offset = query.offset.unwrap_or(0);
    let limit = query.limit.unwrap_or(EXECUTIONS_DEFAULT).min(EXECUTIONS_MAX);
    let page = ExecutionPage {
        after: query.after.as_deref().map(parse).transpose()?,
        limit: Some(offset.saturating_add(limit)),
        step: query.step,
    };
    let wanted = query.executions.unwrap_or(true);
    let (view, executions, warnings) = app
        .look(run, move |core| {
            let executions = wanted.then(|| core.executions(run, &page)).flatten();
            core.run(run).map(|view| (view, executions, core.deprecations(run)))
        })
        .await?
        .ok_or_else(|| no_such_run(run))?;
    let mut body = RunBody { warnings: Some(warnings), ..RunBody::new(&view) };
    body.executions = executions.map(|executions| executions.iter().skip(offset).map(ExecutionBody::new).collect());
    Ok(Json(body))
}

#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct CancelBody {
    /// Shown with the run.
    reason: Option<String>,
}

/// Cancel a run: what runs is stopped, what waits is not started
#[utoipa::path(post, path = "/runs/{run}/cancel", tag = "runs",
    params(("run" = String, Path, description = "Id of the run")), request_body = CancelBody,
    responses((status = 200, body = RunBody), (status = 404, body = ErrorBody), (status = 409, body = ErrorBody)))]
pub(super) async fn cancel(
    State(app): State<Arc<App>>,
    Extension(person): Extension<Person>,
    Id(run): Id<RunId>,
    Body(body): Body<CancelBody>,
) -> Result<Json<RunBody>, ApiError> {
    let reason = body.reason.unwrap_or_else(|| format!("cancelled by {}", person.name));
    let request = Request::CancelRun { run, reason: reason.clone() };
    app.change(&person, "cancel run", &run.to_string(), Some(&reason), request).await?;
    let view = app.look(run, move |core| core.run(run)).await?.ok_or_else(|| no_such_run(run))?;
    Ok(Json(RunBody::new(&view)))
}

pub(super) fn no_such_run(run: RunId) -> ApiError {
    ApiError::not_found(format!("there is no run {run}"))
}
