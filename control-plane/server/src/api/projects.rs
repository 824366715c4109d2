//! Projects: what each may have, and has.

use std::sync::Arc;

use axum::extract::State;
use axum::{Extension, Json};
use control_plane_core::{ProjectChange, Request};
use serde::{Deserialize, Deserializer};
use utoipa::ToSchema;

use super::App;
use super::error::{ApiError, ErrorBody};
use super::extract::{Body, Id};
use super::tokens::Person;
use super::views::{ProjectBody, ProjectsBody};

/// Projects that have a live run, or settings
#[utoipa::path(get, path = "/projects", tag = "projects", responses((status = 200, body = ProjectsBody)))]
pub(super) async fn list(State(app): State<Arc<App>>) -> Result<Json<ProjectsBody>, ApiError> {
    let views = app.handle.query(|core| core.projects()).await?;
    Ok(Json(ProjectsBody { projects: views.iter().map(ProjectBody::new).collect() }))
}

/// A project
#[utoipa::path(get, path = "/projects/{project}", tag = "projects",
    params(("project" = String, Path, description = "Name of the project")),
    responses((status = 200, body = ProjectBody), (status = 404, body = ErrorBody)))]
pub(super) async fn show(State(app): State<Arc<App>>, Id(project): Id<String>) -> Result<Json<ProjectBody>, ApiError> {
    let name = project.clone();
    let view = app.handle.query(move |core| core.project(&name)).await?;
    let missing = || ApiError::not_found(format!("project {project} has neither live runs nor settings"));
    Ok(Json(ProjectBody::new(&view.ok_or_else(missing)?)))
}

#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct ProjectChangeBody {
    /// Of what there is, beside the shares of the others who want it at the time: 1 to 1,000.
    share: Option<u32>,
    /// The limits are those of runs of this workflow.
    workflow: Option<String>,
    /// Executions at sites at a time; null for no limit.
    #[serde(default, deserialize_with = "given")]
    #[schema(value_type = Option<u32>)]
    max_executions: Option<Option<u32>>,
    /// Runs under way at a time; null for no limit.
    #[serde(default, deserialize_with = "given")]
    #[schema(value_type = Option<u32>)]
    max_runs: Option<Option<u32>>,
}

/// Tells null from what is left out.
fn given<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Option<u32>>, D::Error> {
    Option::deserialize(deserializer).map(Some)
}

/// Change what a project may have; what is left out stays
#[utoipa::path(post, path = "/projects/{project}", tag = "projects",
    params(("project" = String, Path, description = "Name of the project")), request_body = ProjectChangeBody,
    responses((status = 200, body = ProjectBody), (status = 422, body = ErrorBody)))]
pub(super) async fn set(
    State(app): State<Arc<App>>,
    Extension(person): Extension<Person>,
    Id(project): Id<String>,
    Body(body): Body<ProjectChangeBody>,
) -> Result<Json<ProjectBody>, ApiError> {
    let ProjectChangeBody { share, workflow, max_executions, max_runs } = body;
    let change = ProjectChange { share, workflow, max_executions, max_runs };
    let request = Request::SetProject { project: project.clone(), change };
    app.change(&person, "set project", &project, None, request).await?;
    show(State(app), Id(project)).await
}
