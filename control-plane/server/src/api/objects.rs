//! Copies of objects: listed, pinned, brought into the bucket, let go, read again.

use std::sync::Arc;
use std::time::Duration;

use atoll_model::id::{ObjectId, SiteName};
use axum::extract::State;
use axum::response::Response;
use axum::{Extension, Json};
use control_plane_core::view::ObjectFilter;
use control_plane_core::{PinPlace, Rejection, Request};
use serde::Deserialize;
use utoipa::{IntoParams, ToSchema};

use super::App;
use super::error::{ApiError, ErrorBody};
use super::extract::{Body, Id, Query, parse};
use super::outputs::send;
use super::tokens::Person;
use super::views::{ObjectBody, ObjectsBody, VerificationBody};

/// Objects of one page.
const PAGE_MAX: usize = 1_000;
/// How long an object that is brought into the bucket stays there, unless more is said.
const HOLD_DEFAULT: Duration = Duration::from_secs(3_600);

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct ObjectsQuery {
    /// Only those that this site has.
    site: Option<String>,
    /// Only those that this run knows.
    run: Option<String>,
    /// Only those that somebody has pinned.
    #[serde(default)]
    pinned: bool,
    /// Only those whose time is over by a rule.
    #[serde(default)]
    expired: bool,
    /// Only those after this one: the `next` of the page before.
    after: Option<String>,
    /// At most so many; 1,000 unless given.
    limit: Option<usize>,
}

/// Objects, and where they are
#[utoipa::path(get, path = "/objects", tag = "data", params(ObjectsQuery), responses(
    (status = 200, body = ObjectsBody),
    (status = 400, body = ErrorBody),
))]
pub(super) async fn list(
    State(app): State<Arc<App>>,
    Query(query): Query<ObjectsQuery>,
) -> Result<Json<ObjectsBody>, ApiError> {
    let limit = query.limit.unwrap_or(PAGE_MAX).clamp(1, PAGE_MAX);
    let filter = ObjectFilter {
        site: query.site.as_deref().map(parse).transpose()?,
        run: query.run.as_deref().map(parse).transpose()?,
        pinned: query.pinned,
        expired: query.expired,
        after: query.after.as_deref().map(parse).transpose()?,
        limit,
    };
    let rows = app.handle.query(move |core| core.objects(&filter)).await?;
    Ok(Json(ObjectsBody::new(&rows, limit)))
}

#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct PlaceBody {
    /// The name of a site, `bucket`, or nothing for any place.
    at: Option<String>,
}

impl PlaceBody {
    fn place(&self) -> Result<PinPlace, ApiError> {
        Ok(match self.at.as_deref() {
            None => PinPlace::Anywhere,
            Some("bucket") => PinPlace::Bucket,
            Some(site) => PinPlace::Site(parse(site)?),
        })
    }

    fn shown(&self) -> Option<&str> {
        self.at.as_deref()
    }
}

/// Keep a copy of an object, at a site, in the bucket, or wherever there is one
#[utoipa::path(post, path = "/objects/{object}/pin", tag = "data",
    params(("object" = String, Path, description = "Id of the object (`b3:…`)")), request_body = PlaceBody,
    responses((status = 200, body = ObjectBody), (status = 404, body = ErrorBody),
        (status = 403, body = ErrorBody, description = "A rule keeps it from coming there"),
        (status = 409, body = ErrorBody, description = "There is no copy, or none can come there")))]
pub(super) async fn pin(
    State(app): State<Arc<App>>,
    Extension(person): Extension<Person>,
    Id(object): Id<ObjectId>,
    Body(body): Body<PlaceBody>,
) -> Result<Json<ObjectBody>, ApiError> {
    let request = Request::PinObject { object, at: body.place()?, by: person.name.clone() };
    app.change(&person, "pin object", &object.to_string(), body.shown(), request).await?;
    super::data::object(State(app), Id(object)).await
}

/// Do not keep it any more
#[utoipa::path(post, path = "/objects/{object}/unpin", tag = "data",
    params(("object" = String, Path, description = "Id of the object (`b3:…`)")), request_body = PlaceBody,
    responses((status = 204), (status = 404, body = ErrorBody)))]
pub(super) async fn unpin(
    State(app): State<Arc<App>>,
    Extension(person): Extension<Person>,
    Id(object): Id<ObjectId>,
    Body(body): Body<PlaceBody>,
) -> Result<http::StatusCode, ApiError> {
    let request = Request::UnpinObject { object, at: body.place()? };
    app.change(&person, "unpin object", &object.to_string(), body.shown(), request).await?;
    Ok(http::StatusCode::NO_CONTENT)
}

/// Let go of a copy: of the one at a site, which says later what became of it, or of the one in the bucket
#[utoipa::path(post, path = "/objects/{object}/evict", tag = "data",
    params(("object" = String, Path, description = "Id of the object (`b3:…`)")), request_body = PlaceBody,
    responses((status = 204), (status = 404, body = ErrorBody),
        (status = 409, body = ErrorBody, description = "Somebody needs it there; the message says who")))]
pub(super) async fn evict(
    State(app): State<Arc<App>>,
    Extension(person): Extension<Person>,
    Id(object): Id<ObjectId>,
    Body(body): Body<PlaceBody>,
) -> Result<http::StatusCode, ApiError> {
    let site = match body.place()? {
        PinPlace::Site(site) => Some(site),
        PinPlace::Bucket => None,
        PinPlace::Anywhere => return Err(ApiError::with_help("`at` is missing", "give a site, or `bucket`")),
    };
    let request = Request::EvictObject { object, site };
    app.change(&person, "evict object", &object.to_string(), body.shown(), request).await?;
    Ok(http::StatusCode::NO_CONTENT)
}

/// Let go of an object whose time is over by a rule that asks, wherever it is
#[utoipa::path(post, path = "/objects/{object}/expire", tag = "data",
    params(("object" = String, Path, description = "Id of the object (`b3:…`)")),
    responses((status = 204), (status = 404, body = ErrorBody),
        (status = 409, body = ErrorBody, description = "Its time is not over, or a rule holds it")))]
pub(super) async fn expire(
    State(app): State<Arc<App>>,
    Extension(person): Extension<Person>,
    Id(object): Id<ObjectId>,
) -> Result<http::StatusCode, ApiError> {
    let request = Request::LetExpiredGo { object };
    app.change(&person, "let expired object go", &object.to_string(), None, request).await?;
    Ok(http::StatusCode::NO_CONTENT)
}

#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct PushBody {
    /// How long it stays in the bucket at least, at most a day; an hour unless given.
    hold_seconds: Option<u64>,
}

/// Bring an object into the bucket; answered when it is there
#[utoipa::path(post, path = "/objects/{object}/push", tag = "data",
    params(("object" = String, Path, description = "Id of the object (`b3:…`)")), request_body = PushBody,
    responses((status = 200, body = ObjectBody), (status = 404, body = ErrorBody),
        (status = 403, body = ErrorBody, description = "A rule confines it to its sites"),
        (status = 503, body = ErrorBody, description = "The site that has it is not there now")))]
pub(super) async fn push(
    State(app): State<Arc<App>>,
    Extension(person): Extension<Person>,
    Id(object): Id<ObjectId>,
    Body(body): Body<PushBody>,
) -> Result<Json<ObjectBody>, ApiError> {
    let (reference, run) = known(&app, object).await?;
    let hold = body.hold_seconds.map_or(HOLD_DEFAULT, Duration::from_secs);
    let request = Request::StageForClient { run, object: reference, hold, kept: None };
    app.change(&person, "push object", &object.to_string(), None, request).await?;
    super::data::object(State(app), Id(object)).await
}

/// The bytes of an object: of a file, or the canonical stream of a directory
#[utoipa::path(get, path = "/objects/{object}/content", tag = "data",
    params(("object" = String, Path, description = "Id of the object (`b3:…`)")),
    responses((status = 200, content_type = "application/octet-stream"), (status = 404, body = ErrorBody),
        (status = 403, body = ErrorBody, description = "A rule confines it to its sites"),
        (status = 503, body = ErrorBody, description = "The site that has it is not there now")))]
pub(super) async fn content(State(app): State<Arc<App>>, Id(object): Id<ObjectId>) -> Result<Response, ApiError> {
    let (reference, run) = known(&app, object).await?;
    send(&app, run, reference).await
}

/// An object, and a run in whose name it moves.
async fn known(
    app: &App,
    object: ObjectId,
) -> Result<(atoll_model::value::ObjectRef, atoll_model::id::RunId), ApiError> {
    let view = app.handle.query(move |core| core.object(object)).await?;
    let view = view.ok_or_else(|| ApiError::not_found(format!("there is no object {object}")))?;
    let run = view.runs.first().copied();
    let run = run.ok_or_else(|| Rejection::Conflict(format!("no run that is remembered knows {object}")))?;
    Ok((view.object, run))
}

#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct VerifyBody {
    /// Ids of objects; all that the site has if there are none.
    #[serde(default)]
    objects: Vec<String>,
}

/// Have a site read objects again; what it finds is shown later
#[utoipa::path(post, path = "/sites/{site}/verification", tag = "data",
    params(("site" = String, Path, description = "Name of the site")), request_body = VerifyBody,
    responses((status = 202, body = VerificationBody), (status = 404, body = ErrorBody)))]
pub(super) async fn verify(
    State(app): State<Arc<App>>,
    Extension(person): Extension<Person>,
    Id(site): Id<SiteName>,
    Body(body): Body<VerifyBody>,
) -> Result<(http::StatusCode, Json<VerificationBody>), ApiError> {
    let objects = body.objects.iter().map(|object| parse(object)).collect::<Result<Vec<ObjectId>, _>>()?;
    let request = Request::VerifySite { site: site.clone(), objects };
    app.change(&person, "verify site", site.as_str(), None, request).await?;
    Ok((http::StatusCode::ACCEPTED, verification(State(app), Id(site)).await?))
}

/// What came of the last time that a site was asked to read its store again
#[utoipa::path(get, path = "/sites/{site}/verification", tag = "data",
    params(("site" = String, Path, description = "Name of the site")),
    responses((status = 200, body = VerificationBody), (status = 404, body = ErrorBody)))]
pub(super) async fn verification(
    State(app): State<Arc<App>>,
    Id(site): Id<SiteName>,
) -> Result<Json<VerificationBody>, ApiError> {
    let name = site.clone();
    let view = app.handle.query(move |core| core.verification(&name)).await?;
    let view = view.ok_or_else(|| ApiError::not_found(format!("{site} was never asked to read its store again")))?;
    Ok(Json(VerificationBody::new(&view)))
}
