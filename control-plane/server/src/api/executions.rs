//! Executions: shown, explained, decided where nobody else can.

use std::sync::Arc;

use atoll_model::id::ExecutionId;
use axum::extract::State;
use axum::{Extension, Json};
use control_plane_core::Request;
use serde::Deserialize;
use utoipa::ToSchema;

use super::App;
use super::error::{ApiError, ErrorBody};
use super::extract::{Body, Id};
use super::tokens::Person;
use super::views::{ExecutionBody, ExplanationBody};

/// An execution
#[utoipa::path(get, path = "/executions/{execution}", tag = "executions",
    params(("execution" = String, Path, description = "Id of the execution")),
    responses((status = 200, body = ExecutionBody), (status = 404, body = ErrorBody)))]
pub(super) async fn show(
    State(app): State<Arc<App>>,
    Id(execution): Id<ExecutionId>,
) -> Result<Json<ExecutionBody>, ApiError> {
    let view = app.look(execution.run, move |core| core.execution(execution)).await?;
    Ok(Json(ExecutionBody::new(&view.ok_or_else(|| no_such_execution(execution))?)))
}

/// Why an execution is where it is
#[utoipa::path(get, path = "/executions/{execution}/why", tag = "executions",
    params(("execution" = String, Path, description = "Id of the execution")),
    responses((status = 200, body = ExplanationBody), (status = 404, body = ErrorBody)))]
pub(super) async fn why(
    State(app): State<Arc<App>>,
    Id(execution): Id<ExecutionId>,
) -> Result<Json<ExplanationBody>, ApiError> {
    let seen = app.look(execution.run, move |core| core.why_execution(execution).zip(core.execution(execution)));
    let (explanation, view) = seen.await?.ok_or_else(|| no_such_execution(execution))?;
    Ok(Json(ExplanationBody::new(&explanation, &view)))
}

#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct ResolveBody {
    /// Whether to run it again; otherwise it counts as failed.
    run_again: bool,
}

/// Decide the fate of an execution that is `unknown`
#[utoipa::path(post, path = "/executions/{execution}/resolve", tag = "executions",
    params(("execution" = String, Path, description = "Id of the execution")), request_body = ResolveBody,
    responses((status = 200, body = ExecutionBody), (status = 404, body = ErrorBody), (status = 409, body = ErrorBody)))]
pub(super) async fn resolve(
    State(app): State<Arc<App>>,
    Extension(person): Extension<Person>,
    Id(execution): Id<ExecutionId>,
    Body(body): Body<ResolveBody>,
) -> Result<Json<ExecutionBody>, ApiError> {
    let detail = if body.run_again { "run again" } else { "failed" };
    let request = Request::ResolveUnknown { execution, run_again: body.run_again };
    app.change(&person, "resolve execution", &execution.to_string(), Some(detail), request).await?;
    show(State(app), Id(execution)).await
}

pub(super) fn no_such_execution(execution: ExecutionId) -> ApiError {
    ApiError::not_found(format!("there is no execution {execution}"))
}
