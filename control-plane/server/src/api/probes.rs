//! Whether the server lives, its figures, and the description of its API.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::response::IntoResponse;
use http::header;
use serde::Serialize;
use utoipa::ToSchema;

use super::App;
use super::error::{ApiError, ErrorBody};

#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct HealthBody {
    /// Always `ok`; anything else is answered with an error.
    status: &'static str,
    version: &'static str,
}

/// Whether the control plane answers, all the way to its journal
#[utoipa::path(get, path = "/healthz", tag = "server", security(()), responses(
    (status = 200, body = HealthBody),
    (status = 503, body = ErrorBody, description = "It is going down"),
))]
pub(super) async fn health(State(app): State<Arc<App>>) -> Result<Json<HealthBody>, ApiError> {
    app.handle.query(|_| ()).await?;
    Ok(Json(HealthBody { status: "ok", version: env!("CARGO_PKG_VERSION") }))
}

/// Figures for Prometheus
#[utoipa::path(get, path = "/metrics", tag = "server", security(()), responses(
    (status = 200, body = String, content_type = "application/openmetrics-text"),
))]
pub(super) async fn metrics(State(app): State<Arc<App>>) -> Result<impl IntoResponse, ApiError> {
    let counters = app.handle.query(|core| core.counters()).await?;
    let text = app.meters.text(counters).map_err(|error| ApiError::internal("the figures cannot be shown", error))?;
    Ok(([(header::CONTENT_TYPE, "application/openmetrics-text; version=1.0.0; charset=utf-8")], text))
}

/// This document
#[utoipa::path(get, path = "/openapi.json", tag = "server", security(()), responses((status = 200, body = Object)))]
pub(super) async fn openapi() -> Json<utoipa::openapi::OpenApi> {
    Json(super::openapi())
}
