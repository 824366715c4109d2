//! Repositories that a project gets actions from.

use std::sync::Arc;
use std::time::Duration;

use atoll_model::repository::{RepositoryError, RepositoryName, RepositorySource};
use axum::extract::{FromRequestParts, State};
use axum::{Extension, Json};
use control_plane_core::{ImportMode, Request};
use http::StatusCode;
use http::request::Parts;
use serde::Deserialize;
use utoipa::ToSchema;

use super::App;
use super::error::{ApiError, ErrorBody};
use super::extract::{Body, Id, parse, two_names};
use super::tokens::Person;
use super::views::{RepositoriesBody, RepositoryBody, RepositoryLogBody};

/// The repositories of a project
#[utoipa::path(get, path = "/projects/{project}/repositories", tag = "actions",
    params(("project" = String, Path, description = "Name of the project")),
    responses((status = 200, body = RepositoriesBody)))]
pub(super) async fn list(
    State(app): State<Arc<App>>,
    Id(project): Id<String>,
) -> Result<Json<RepositoriesBody>, ApiError> {
    let known = app.handle.query(|core| core.repositories()).await?;
    let repositories = known.of_project(&project).map(|(name, repository)| RepositoryBody::new(name, repository));
    Ok(Json(RepositoriesBody { repositories: repositories.collect() }))
}

#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct AddRepositoryBody {
    /// The last part of the address unless given.
    name: Option<String>,
    /// An absolute path at the server, or a URL with `file`, `https`, `http` or `ssh`; without a password.
    url: String,
    /// A branch or a tag; the repository's own choice unless given.
    branch: Option<String>,
    /// A folder of it; the whole unless given.
    subdir: Option<String>,
    /// From one import to the next; without it, only when somebody asks.
    every_seconds: Option<u64>,
}

/// Add a repository to a project
///
/// It is looked at right away: scanned, or imported if it is to be imported every so often. The answer does not wait for that.
#[utoipa::path(post, path = "/projects/{project}/repositories", tag = "actions",
    params(("project" = String, Path, description = "Name of the project")), request_body = AddRepositoryBody,
    responses((status = 201, body = RepositoryBody), (status = 400, body = ErrorBody),
        (status = 409, body = ErrorBody, description = "There is another one of this name")))]
pub(super) async fn add(
    State(app): State<Arc<App>>,
    Extension(person): Extension<Person>,
    Id(project): Id<String>,
    Body(body): Body<AddRepositoryBody>,
) -> Result<(StatusCode, Json<RepositoryBody>), ApiError> {
    let wrong = |error: RepositoryError| ApiError::bad_request(error.to_string());
    let source = RepositorySource::new(parse(&body.url)?, body.branch.as_deref(), body.subdir.as_deref());
    let source = source.map_err(wrong)?;
    let name = body.name.unwrap_or_else(|| source.url.suggested_name());
    let name = RepositoryName::new(&project, &name).map_err(wrong)?;
    let every = body.every_seconds.map(Duration::from_secs);
    let url = source.url.to_string();
    let request = Request::AddRepository { name: name.clone(), source, every, by: person.name.clone() };
    app.change(&person, "add repository", &name.name, Some(&url), request).await?;
    Ok((StatusCode::CREATED, shown(&app, &name).await?))
}

/// The repository that a path names.
#[derive(Debug)]
pub(super) struct Named(RepositoryName);

impl<S: Send + Sync> FromRequestParts<S> for Named {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let (project, name) = two_names(parts, state).await?;
        let name = RepositoryName::new(&project, &name);
        Ok(Self(name.map_err(|error| ApiError::bad_request(error.to_string()))?))
    }
}

async fn shown(app: &App, name: &RepositoryName) -> Result<Json<RepositoryBody>, ApiError> {
    let repositories = app.handle.query(|core| core.repositories()).await?;
    let repository = repositories.get(name).ok_or_else(|| ApiError::not_found(repositories.why_missing(name)))?;
    Ok(Json(RepositoryBody::new(name, repository)))
}

/// A repository: what goes on with it, and what the last look has found
#[utoipa::path(get, path = "/projects/{project}/repositories/{name}", tag = "actions",
    params(("project" = String, Path, description = "Name of the project"),
        ("name" = String, Path, description = "Name of the repository")),
    responses((status = 200, body = RepositoryBody), (status = 404, body = ErrorBody)))]
pub(super) async fn show(State(app): State<Arc<App>>, Named(name): Named) -> Result<Json<RepositoryBody>, ApiError> {
    shown(&app, &name).await
}

/// Look what a repository holds, and push nothing
///
/// The answer does not wait for the end: `under_way` is over when `last` has its number. What goes on already is not begun anew.
#[utoipa::path(post, path = "/projects/{project}/repositories/{name}/scan", tag = "actions",
    params(("project" = String, Path, description = "Name of the project"),
        ("name" = String, Path, description = "Name of the repository")),
    responses((status = 202, body = RepositoryBody), (status = 404, body = ErrorBody),
        (status = 409, body = ErrorBody, description = "It is being imported")))]
pub(super) async fn scan(
    State(app): State<Arc<App>>,
    Extension(person): Extension<Person>,
    Named(name): Named,
) -> Result<(StatusCode, Json<RepositoryBody>), ApiError> {
    look(&app, &person, name, ImportMode::Scan).await
}

/// Push each version that a repository holds and the project does not know
///
/// The answer does not wait for the end: `under_way` is over when `last` has its number. What goes on already is not begun anew.
#[utoipa::path(post, path = "/projects/{project}/repositories/{name}/import", tag = "actions",
    params(("project" = String, Path, description = "Name of the project"),
        ("name" = String, Path, description = "Name of the repository")),
    responses((status = 202, body = RepositoryBody), (status = 404, body = ErrorBody),
        (status = 409, body = ErrorBody, description = "It is being scanned")))]
pub(super) async fn import(
    State(app): State<Arc<App>>,
    Extension(person): Extension<Person>,
    Named(name): Named,
) -> Result<(StatusCode, Json<RepositoryBody>), ApiError> {
    look(&app, &person, name, ImportMode::Import).await
}

async fn look(
    app: &App,
    person: &Person,
    name: RepositoryName,
    mode: ImportMode,
) -> Result<(StatusCode, Json<RepositoryBody>), ApiError> {
    let what = match mode {
        ImportMode::Scan => "ask for scan",
        ImportMode::Import => "ask for import",
    };
    let request = Request::LookAtRepository { name: name.clone(), mode, by: person.name.clone() };
    app.change(person, what, &name.name, None, request).await?;
    Ok((StatusCode::ACCEPTED, shown(app, &name).await?))
}

/// End what goes on with a repository; what it has pushed by then stays
#[utoipa::path(post, path = "/projects/{project}/repositories/{name}/cancel", tag = "actions",
    params(("project" = String, Path, description = "Name of the project"),
        ("name" = String, Path, description = "Name of the repository")),
    responses((status = 200, body = RepositoryBody), (status = 404, body = ErrorBody)))]
pub(super) async fn cancel(
    State(app): State<Arc<App>>,
    Extension(person): Extension<Person>,
    Named(name): Named,
) -> Result<Json<RepositoryBody>, ApiError> {
    let request = Request::CancelImport { name: name.clone(), by: person.name.clone() };
    app.change(&person, "cancel import", &name.name, None, request).await?;
    shown(&app, &name).await
}

/// What was said while a repository was looked at: now, or the last time
#[utoipa::path(get, path = "/projects/{project}/repositories/{name}/log", tag = "actions",
    params(("project" = String, Path, description = "Name of the project"),
        ("name" = String, Path, description = "Name of the repository")),
    responses((status = 200, body = RepositoryLogBody), (status = 404, body = ErrorBody)))]
pub(super) async fn log(State(app): State<Arc<App>>, Named(name): Named) -> Result<Json<RepositoryLogBody>, ApiError> {
    let repositories = app.handle.query(|core| core.repositories()).await?;
    let repository = repositories.get(&name).ok_or_else(|| ApiError::not_found(repositories.why_missing(&name)))?;
    let number = repository.under_way.as_ref().map(|import| import.number);
    let log = match number {
        Some(number) => app.imports.log(number).unwrap_or_default(),
        None => repository.last.as_ref().map(|last| last.report.log.clone()).unwrap_or_default(),
    };
    Ok(Json(RepositoryLogBody { goes_on: number.is_some(), log }))
}

/// Forget a repository; the versions that came from it stay
#[utoipa::path(delete, path = "/projects/{project}/repositories/{name}", tag = "actions",
    params(("project" = String, Path, description = "Name of the project"),
        ("name" = String, Path, description = "Name of the repository")),
    responses((status = 204), (status = 404, body = ErrorBody)))]
pub(super) async fn remove(
    State(app): State<Arc<App>>,
    Extension(person): Extension<Person>,
    Named(name): Named,
) -> Result<StatusCode, ApiError> {
    let (subject, project) = (name.name.clone(), name.project.clone());
    app.change(&person, "remove repository", &subject, Some(&project), Request::RemoveRepository { name }).await?;
    Ok(StatusCode::NO_CONTENT)
}
