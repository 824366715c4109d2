//! Actions: versions that people push, look up, advise against and remove.

use std::collections::BTreeMap;
use std::sync::Arc;

use atoll_model::action::{ActionReference, BundleSignature, MANIFEST_NAME, MANIFEST_NAMES, Manifest, parse};
use atoll_model::id::ObjectId;
use atoll_model::limits::{ACTION_SIGNATURES_MAX, BUNDLE_BYTES_MAX, BUNDLE_ENTRIES_MAX, MANIFEST_BYTES_MAX};
use atoll_model::time::Timestamp;
use atoll_model::value::{ObjectKind, ObjectRef};
use axum::extract::rejection::PathRejection;
use axum::extract::{FromRequestParts, Path, State};
use axum::{Extension, Json};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use control_plane_core::{ActionName, ActionVersion, BucketCopy, Rejection, Request};
use http::StatusCode;
use http::request::Parts;
use serde::{Deserialize, Serialize};
use storage_sync_engine::bucket::BucketError;
use storage_sync_engine::signature::is_valid;
use utoipa::{IntoParams, ToSchema};

use super::App;
use super::error::{ApiError, ErrorBody};
use super::extract::{Body, Id, Query, parse as parse_id};
use super::tokens::Person;
use super::views::{ActionBody, ActionsBody};

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct ListQuery {
    /// Only versions of the action of this name.
    name: Option<String>,
    /// Only those with these labels: `key=value`, several separated by commas.
    label: Option<String>,
}

/// The versions of actions that were pushed to a project
#[utoipa::path(get, path = "/projects/{project}/actions", tag = "actions",
    params(("project" = String, Path, description = "Name of the project"), ListQuery),
    responses((status = 200, body = ActionsBody)))]
pub(super) async fn list(
    State(app): State<Arc<App>>,
    Id(project): Id<String>,
    Query(query): Query<ListQuery>,
) -> Result<Json<ActionsBody>, ApiError> {
    let labels = query.label.as_deref().map(super::runs::labels).transpose()?.unwrap_or_default();
    let (registry, repositories) = app.handle.query(|core| (core.registry(), core.repositories())).await?;
    let fits = |name: &ActionName, version: &ActionVersion| {
        query.name.as_ref().is_none_or(|wanted| *wanted == name.reference.name)
            && labels.iter().all(|(key, value)| version.labels.get(key) == Some(value))
    };
    let mut found: Vec<_> = registry.of_project(&project).filter(|(name, version)| fits(name, version)).collect();
    // Versions as texts are in no order that means anything: 1.10 is not before 1.9.
    found.sort_by(|(a, x), (b, y)| (&a.reference.name, x.pushed_at).cmp(&(&b.reference.name, y.pushed_at)));
    let body = |(name, version)| ActionBody::new(name, version, repositories.origin(name));
    Ok(Json(ActionsBody { actions: found.into_iter().map(body).collect() }))
}

#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct PushActionBody {
    /// The folder, as `PUT /uploads?kind=tree` named it.
    object: String,
    /// By keys that sites may ask for; each is verified.
    #[serde(default)]
    signatures: Vec<SignatureBody>,
}

/// A signature over the digest of a bundle.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct SignatureBody {
    /// `ed25519:…`
    key: String,
    /// In base64url.
    signature: String,
}

/// Push a version of an action
///
/// Its name, its version and everything else stand in the `action.yaml` of the folder. A version never changes: pushed again it
/// must be the same, and gets the signatures that it has not.
#[utoipa::path(post, path = "/projects/{project}/actions", tag = "actions",
    params(("project" = String, Path, description = "Name of the project")), request_body = PushActionBody,
    responses(
        (status = 201, body = ActionBody),
        (status = 409, body = ErrorBody, description = "The version is something else already"),
        (status = 422, body = ErrorBody, description = "The folder is no action, or a signature does not hold"),
    ))]
pub(super) async fn push(
    State(app): State<Arc<App>>,
    Extension(person): Extension<Person>,
    Id(project): Id<String>,
    Body(body): Body<PushActionBody>,
) -> Result<(StatusCode, Json<ActionBody>), ApiError> {
    let object: ObjectId = parse_id(&body.object)?;
    let signatures = signatures(object, &body.signatures)?;
    let (bundle, file, source) = manifest_of(&app, object).await?;
    let Manifest { name, version, kind, description, labels, .. } =
        parse(file, &source).map_err(ApiError::InvalidAction)?;
    let reference = ActionReference { name, version };
    let action = ActionName { project, reference };
    let pushed = ActionVersion {
        kind,
        bundle,
        manifest: Arc::from(source),
        description,
        labels,
        signatures,
        pushed_by: person.name.clone(),
        pushed_at: Timestamp::ZERO,
        deprecated: None,
    };
    let request = Request::PushAction { name: action.clone(), version: Box::new(pushed) };
    app.change(&person, "push action", &action.reference.to_string(), Some(&action.project), request).await?;
    Ok((StatusCode::CREATED, Json(shown(&app, &action).await?)))
}

/// The signatures, each of another key, that hold for this bundle.
fn signatures(bundle: ObjectId, given: &[SignatureBody]) -> Result<Vec<BundleSignature>, ApiError> {
    if given.len() > ACTION_SIGNATURES_MAX {
        return Err(ApiError::bad_request(format!("a version has {ACTION_SIGNATURES_MAX} signatures at most")));
    }
    let mut signatures = BTreeMap::new();
    for SignatureBody { key, signature } in given {
        let key = parse_id(key)?;
        let bytes = URL_SAFE_NO_PAD.decode(signature).unwrap_or_default();
        let signature = BundleSignature::from_bytes(key, &bytes).filter(|signature| is_valid(signature, bundle));
        let no_signature = || Rejection::Invalid(format!("the signature of {key} does not hold for {bundle}"));
        signatures.insert(key, signature.ok_or_else(no_signature)?);
    }
    Ok(signatures.into_values().collect())
}

/// What says what an action is in a folder that was sent in, and its text: what counts is what sites will find there.
async fn manifest_of(app: &App, object: ObjectId) -> Result<(ObjectRef, &'static str, String), ApiError> {
    let invalid = |reason: String| ApiError::from(Rejection::Invalid(reason));
    let (known, encryption) = app.handle.query(move |core| (core.object(object), core.encryption_of(object))).await?;
    let not_sent = || invalid(format!("{object} was not sent in"));
    let bundle = known.ok_or_else(not_sent)?.object;
    if bundle.kind != ObjectKind::Tree {
        return Err(invalid(format!("{object} is no directory")));
    }
    let stored = app.keys.stored(&app.handle, &BucketCopy { object: bundle, encryption }).await?;
    let contents = match app.bucket.contents(stored).await {
        Ok(contents) => contents,
        Err(BucketError::NotFound(_)) => return Err(not_sent()),
        Err(error) => return Err(error.into()),
    };
    if bundle.bytes > BUNDLE_BYTES_MAX || contents.files() > BUNDLE_ENTRIES_MAX {
        let limits = format!("{BUNDLE_BYTES_MAX} bytes or {BUNDLE_ENTRIES_MAX} files");
        return Err(invalid(format!("the folder of an action has no more than {limits}: make data an input")));
    }
    let files: Vec<_> = contents.listing().into_iter().flatten().collect();
    let found = MANIFEST_NAMES
        .into_iter()
        .find_map(|name| Some((name, files.iter().find(|file| file.path == name.as_bytes())?)));
    let (name, file) = found.ok_or_else(|| invalid(format!("there is no {MANIFEST_NAME} in the folder")))?;
    if file.bytes > MANIFEST_BYTES_MAX as u64 {
        return Err(invalid(format!("{name} has {} bytes, more than {MANIFEST_BYTES_MAX}", file.bytes)));
    }
    let bytes = app.bucket.read_file(&contents, file.object).await?;
    let text = String::from_utf8(bytes).map_err(|_| invalid(format!("{name} is no text in UTF-8")))?;
    Ok((bundle, name, text))
}

/// The version that a path names.
#[derive(Debug)]
pub(super) struct Named(ActionName);

impl<S: Send + Sync> FromRequestParts<S> for Named {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let path = Path::<(String, String, String)>::from_request_parts(parts, state).await;
        let Path((project, name, version)) =
            path.map_err(|rejection: PathRejection| ApiError::bad_request(rejection.body_text()))?;
        let reference = parse_id(&format!("{name}@{version}"))?;
        Ok(Self(ActionName { project, reference }))
    }
}

async fn shown(app: &App, action: &ActionName) -> Result<ActionBody, ApiError> {
    let (registry, repositories) = app.handle.query(|core| (core.registry(), core.repositories())).await?;
    let version = registry.get(action).ok_or_else(|| ApiError::not_found(registry.why_missing(action)))?;
    let bundle = version.bundle.id;
    let deployed = app.handle.query(move |core| core.deployed(bundle)).await?;
    Ok(ActionBody::whole(action, version, repositories.origin(action), deployed))
}

/// A version of an action, with the text of its `action.yaml`
#[utoipa::path(get, path = "/projects/{project}/actions/{name}/{version}", tag = "actions",
    params(("project" = String, Path, description = "Name of the project"),
        ("name" = String, Path, description = "Name of the action"), ("version" = String, Path, description = "Its version")),
    responses((status = 200, body = ActionBody), (status = 404, body = ErrorBody)))]
pub(super) async fn show(State(app): State<Arc<App>>, Named(name): Named) -> Result<Json<ActionBody>, ApiError> {
    Ok(Json(shown(&app, &name).await?))
}

#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct DeprecateBody {
    /// Shown with every run that uses it.
    reason: Option<String>,
    /// Take it back.
    #[serde(default)]
    undo: bool,
}

/// Advise against a version: runs that use it say so, and go on working
#[utoipa::path(post, path = "/projects/{project}/actions/{name}/{version}/deprecate", tag = "actions",
    params(("project" = String, Path, description = "Name of the project"),
        ("name" = String, Path, description = "Name of the action"), ("version" = String, Path, description = "Its version")),
    request_body = DeprecateBody,
    responses((status = 200, body = ActionBody), (status = 404, body = ErrorBody)))]
pub(super) async fn deprecate(
    State(app): State<Arc<App>>,
    Extension(person): Extension<Person>,
    Named(name): Named,
    Body(body): Body<DeprecateBody>,
) -> Result<Json<ActionBody>, ApiError> {
    let (what, advice) = match body.undo {
        true => ("undeprecate action", None),
        false => ("deprecate action", Some((body.reason.clone(), person.name.clone()))),
    };
    let request = Request::DeprecateAction { name: name.clone(), advice };
    app.change(&person, what, &name.reference.to_string(), body.reason.as_deref(), request).await?;
    Ok(Json(shown(&app, &name).await?))
}

/// Remove a version that no live run uses
#[utoipa::path(delete, path = "/projects/{project}/actions/{name}/{version}", tag = "actions",
    params(("project" = String, Path, description = "Name of the project"),
        ("name" = String, Path, description = "Name of the action"), ("version" = String, Path, description = "Its version")),
    responses((status = 204), (status = 404, body = ErrorBody),
        (status = 409, body = ErrorBody, description = "A live run uses it; the message says which")))]
pub(super) async fn remove(
    State(app): State<Arc<App>>,
    Extension(person): Extension<Person>,
    Named(name): Named,
) -> Result<StatusCode, ApiError> {
    let (subject, project) = (name.reference.to_string(), name.project.clone());
    app.change(&person, "remove action", &subject, Some(&project), Request::RemoveAction { name }).await?;
    Ok(StatusCode::NO_CONTENT)
}
