//! Workflows that are deployed in a project.

use std::collections::BTreeMap;
use std::sync::Arc;

use atoll_model::diagnostic::Diagnostic;
use atoll_model::id::RunId;
use atoll_model::workflow::{Deployable, check_sites, parse_deployable};
use axum::extract::{FromRequestParts, State};
use axum::{Extension, Json};
use control_plane_core::{Deployed, DeploymentName, Request};
use http::StatusCode;
use http::request::Parts;
use indexmap::IndexMap;
use serde::Deserialize;
use utoipa::ToSchema;
use uuid::Uuid;

use super::App;
use super::error::{ApiError, ErrorBody};
use super::extract::{Admitted, Body, Id, two_names};
use super::surroundings::Sent;
use super::tokens::Person;
use super::views::{DeploymentBody, DeploymentsBody};

/// The deployed workflows of a project
#[utoipa::path(get, path = "/projects/{project}/workflows", tag = "workflows",
    params(("project" = String, Path, description = "Name of the project")),
    responses((status = 200, body = DeploymentsBody)))]
pub(super) async fn list(
    State(app): State<Arc<App>>,
    Id(project): Id<String>,
) -> Result<Json<DeploymentsBody>, ApiError> {
    let known = app.handle.query(move |core| core.deployments(&project)).await?;
    Ok(Json(DeploymentsBody { workflows: known.iter().map(DeploymentBody::new).collect() }))
}

#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct DeployBody {
    /// The text of the workflow file. Its actions are `name@version`, pushed before.
    source: String,
    /// What the file is called in messages.
    file_name: Option<String>,
}

/// Deploy a workflow, in place of the one of its name if there is one
///
/// The answer does not wait for its source to run: `state` becomes `ready` then.
#[utoipa::path(post, path = "/projects/{project}/workflows", tag = "workflows",
    params(("project" = String, Path, description = "Name of the project")), request_body = DeployBody,
    responses((status = 201, body = DeploymentBody), (status = 400, body = ErrorBody),
        (status = 422, body = ErrorBody, description = "The workflow is not valid, or cannot run on any site")))]
pub(super) async fn deploy(
    State(app): State<Arc<App>>,
    Extension(person): Extension<Person>,
    Id(project): Id<String>,
    _admitted: Admitted,
    Body(body): Body<DeployBody>,
) -> Result<(StatusCode, Json<DeploymentBody>), ApiError> {
    let file = body.file_name.unwrap_or_else(|| "workflow.yaml".to_owned());
    let (sites, registry) = app.handle.query(|core| (core.site_facts(), core.registry())).await?;
    let sent = Sent::new(BTreeMap::new(), IndexMap::new(), registry, project.clone());
    let text: Arc<str> = Arc::from(body.source);
    let parsed = Arc::clone(&text);
    let check = move || -> Result<Deployable, Vec<Diagnostic>> {
        let deployable = parse_deployable(&file, &parsed, &sent)?;
        let all = [Some(&deployable.workflow), deployable.emitter.as_ref()];
        let wrong: Vec<_> = all.into_iter().flatten().flat_map(|one| check_sites(one, &file, &sites)).collect();
        if wrong.is_empty() { Ok(deployable) } else { Err(wrong) }
    };
    let checked = tokio::task::spawn_blocking(check).await;
    let checked = checked.map_err(|error| ApiError::internal("the workflow could not be read", error))?;
    let Deployable { workflow, emitter } = checked.map_err(ApiError::InvalidWorkflow)?;
    let name = DeploymentName { project, name: workflow.name.clone() };
    let run = RunId::from_bits(Uuid::now_v7().as_u128());
    let emitter = emitter.map(|emitter| (Arc::new(emitter), run));
    let deployed = Box::new(Deployed { workflow: Arc::new(workflow), text, emitter, by: person.name.clone() });
    let request = Request::DeployWorkflow { name: name.clone(), deployed };
    app.change(&person, "deploy workflow", &name.name, Some(&name.project), request).await?;
    Ok((StatusCode::CREATED, shown(&app, name).await?))
}

/// The workflow that a path names.
#[derive(Debug)]
pub(super) struct Named(DeploymentName);

impl<S: Send + Sync> FromRequestParts<S> for Named {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let (project, name) = two_names(parts, state).await?;
        Ok(Self(DeploymentName { project, name }))
    }
}

async fn shown(app: &App, name: DeploymentName) -> Result<Json<DeploymentBody>, ApiError> {
    let look = move |core: &control_plane_core::ControlPlane| {
        core.deployment(&name).ok_or_else(|| core.why_not_deployed(&name))
    };
    let view = app.handle.query(look).await?.map_err(ApiError::not_found)?;
    Ok(Json(DeploymentBody::new(&view)))
}

/// A deployed workflow: how its source does, and what that has emitted
#[utoipa::path(get, path = "/projects/{project}/workflows/{name}", tag = "workflows",
    params(("project" = String, Path, description = "Name of the project"),
        ("name" = String, Path, description = "Name of the workflow")),
    responses((status = 200, body = DeploymentBody), (status = 404, body = ErrorBody)))]
pub(super) async fn show(State(app): State<Arc<App>>, Named(name): Named) -> Result<Json<DeploymentBody>, ApiError> {
    shown(&app, name).await
}

/// End the source of a deployed workflow, which is gone then; runs that have begun go on
#[utoipa::path(delete, path = "/projects/{project}/workflows/{name}", tag = "workflows",
    params(("project" = String, Path, description = "Name of the project"),
        ("name" = String, Path, description = "Name of the workflow")),
    responses((status = 204), (status = 404, body = ErrorBody)))]
pub(super) async fn undeploy(
    State(app): State<Arc<App>>,
    Extension(person): Extension<Person>,
    Named(name): Named,
) -> Result<StatusCode, ApiError> {
    let (subject, project) = (name.name.clone(), name.project.clone());
    app.change(&person, "undeploy workflow", &subject, Some(&project), Request::UndeployWorkflow { name }).await?;
    Ok(StatusCode::NO_CONTENT)
}
