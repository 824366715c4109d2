//! Policies: the rules of a project for where its data may go.

use std::sync::Arc;

use atoll_model::id::RunId;
use atoll_model::policy::{Policy, parse};
use axum::extract::State;
use axum::{Extension, Json};
use control_plane_core::{PolicyApplication, Request};
use serde::Deserialize;
use utoipa::ToSchema;

use super::App;
use super::error::{ApiError, ErrorBody};
use super::extract::{Body, Id};
use super::runs::no_such_run;
use super::tokens::Person;
use super::views::{PolicyBody, RunRulesBody};

/// The rules that hold for a project, and the versions that held before
#[utoipa::path(get, path = "/projects/{project}/policy", tag = "policies",
    params(("project" = String, Path, description = "Name of the project")),
    responses((status = 200, body = PolicyBody)))]
pub(super) async fn show(State(app): State<Arc<App>>, Id(project): Id<String>) -> Result<Json<PolicyBody>, ApiError> {
    let name = project.clone();
    let versions = app.handle.query(move |core| core.policies(&name).to_vec()).await?;
    Ok(Json(PolicyBody::new(&project, &versions)))
}

#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct PolicyFileBody {
    /// The text of the policy file.
    source: String,
    /// What the file is called where a rule is named.
    #[serde(default = "unnamed")]
    file_name: String,
    /// The version that was looked at before, 0 for none: if another one holds now, nothing is done.
    instead_of: Option<u32>,
}

pub(super) fn unnamed() -> String {
    "policy.yaml".to_owned()
}

pub(super) fn policy(file_name: &str, source: &str) -> Result<Policy, ApiError> {
    parse(file_name, source).map_err(ApiError::InvalidPolicy)
}

/// Give a project other rules, which hold for its live runs too
#[utoipa::path(put, path = "/projects/{project}/policy", tag = "policies",
    params(("project" = String, Path, description = "Name of the project")), request_body = PolicyFileBody,
    responses((status = 200, body = PolicyBody), (status = 409, body = ErrorBody), (status = 422, body = ErrorBody)))]
pub(super) async fn apply(
    State(app): State<Arc<App>>,
    Extension(person): Extension<Person>,
    Id(project): Id<String>,
    Body(body): Body<PolicyFileBody>,
) -> Result<Json<PolicyBody>, ApiError> {
    let application = PolicyApplication {
        project: project.clone(),
        policy: policy(&body.file_name, &body.source)?,
        source: Arc::from(body.source.as_str()),
        applied_by: person.name.clone(),
        instead_of: body.instead_of,
    };
    let request = Request::ApplyPolicy { application: Box::new(application) };
    app.change(&person, "apply policy", &project, Some(&body.file_name), request).await?;
    show(State(app), Id(project)).await
}

/// What the rules say of the data of a run
#[utoipa::path(get, path = "/runs/{run}/rules", tag = "policies",
    params(("run" = String, Path, description = "Id of the run")),
    responses((status = 200, body = RunRulesBody), (status = 404, body = ErrorBody)))]
pub(super) async fn of_run(State(app): State<Arc<App>>, Id(run): Id<RunId>) -> Result<Json<RunRulesBody>, ApiError> {
    let view = app.handle.query(move |core| core.run_rules(run)).await?.ok_or_else(|| no_such_run(run))?;
    Ok(Json(RunRulesBody::new(&view)))
}
