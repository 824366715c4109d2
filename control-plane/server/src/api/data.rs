//! Objects and the ledger of what crossed a border.

use std::sync::Arc;

use atoll_model::id::ObjectId;
use axum::Json;
use axum::extract::State;
use control_plane_core::ControlPlane;
use control_plane_core::view::LedgerFilter;
use serde::Deserialize;
use utoipa::IntoParams;

use super::App;
use super::error::{ApiError, ErrorBody};
use super::extract::{Id, Query, parse};
use super::views::{LedgerBody, ObjectBody};

/// Where an object is, and how it came there
#[utoipa::path(get, path = "/objects/{object}", tag = "data",
    params(("object" = String, Path, description = "Id of the object (`b3:…`)")),
    responses((status = 200, body = ObjectBody), (status = 404, body = ErrorBody)))]
pub(super) async fn object(
    State(app): State<Arc<App>>,
    Id(object): Id<ObjectId>,
) -> Result<Json<ObjectBody>, ApiError> {
    let view = app.handle.query(move |core| core.object(object)).await?;
    let view = view.ok_or_else(|| ApiError::not_found(format!("there is no object {object}")))?;
    Ok(Json(ObjectBody::new(&view)))
}

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct LedgerQuery {
    /// Only crossings for this run.
    run: Option<String>,
    /// Only crossings from or to this site.
    site: Option<String>,
    /// Only crossings of this object.
    object: Option<String>,
}

/// Every byte that crossed a site's border, in order of time
#[utoipa::path(get, path = "/ledger", tag = "data", params(LedgerQuery), responses(
    (status = 200, body = LedgerBody),
    (status = 400, body = ErrorBody),
))]
pub(super) async fn ledger(
    State(app): State<Arc<App>>,
    Query(query): Query<LedgerQuery>,
) -> Result<Json<LedgerBody>, ApiError> {
    let filter = LedgerFilter {
        run: query.run.as_deref().map(parse).transpose()?,
        site: query.site.as_deref().map(parse).transpose()?,
        object: query.object.as_deref().map(parse).transpose()?,
    };
    let entries = match filter.run {
        Some(run) => {
            let of_run = move |core: &ControlPlane| core.run(run).map(|_| core.ledger(&filter));
            app.look(run, of_run).await?.unwrap_or_default()
        }
        None => app.handle.query(move |core| core.ledger(&filter)).await?,
    };
    Ok(Json(LedgerBody::new(&entries)))
}
