//! `/metrics`, for a Prometheus beside the agent. Plain HTTP: it is off unless an address is given, and who gives one that
//! others reach decides that they may read it.

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::Context as _;
use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::Meters;

/// What Prometheus wants to be told of the format.
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Takes the address, so that one that is taken already is said at the start.
pub(crate) async fn listen(address: SocketAddr) -> anyhow::Result<TcpListener> {
    let listener = TcpListener::bind(address).await.with_context(|| format!("cannot serve /metrics at {address}"))?;
    tracing::info!(address = %listener.local_addr()?, "figures are served at /metrics");
    Ok(listener)
}

pub(crate) async fn serve(listener: TcpListener, meters: Arc<Meters>, shutdown: CancellationToken) {
    let router = Router::new().route("/metrics", get(metrics)).with_state(meters);
    let served = axum::serve(listener, router).with_graceful_shutdown(shutdown.cancelled_owned()).await;
    if let Err(error) = served {
        tracing::error!(%error, "/metrics is not served any more");
    }
}

async fn metrics(State(meters): State<Arc<Meters>>) -> Response {
    match meters.text() {
        Ok(text) => ([(CONTENT_TYPE, OPEN_METRICS)], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}
