//! What a server answers that stands by: reads from what it has followed, and for everything else where the leader is.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use http::{HeaderValue, Method, StatusCode};

use super::App;
use super::error::ApiError;

/// Header of everything that is refused for this reason.
const STANDBY: &str = "atoll-standby";
/// Header that names the leader's URL.
const LEADER: &str = "atoll-leader";

/// Lets through what can be answered here.
pub(super) async fn name_leader(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    let Some(leader) = app.handle.leader() else { return next.run(request).await };
    // Logs that are not in the bucket are asked of agents, and those speak with the leader.
    let is_read = matches!(*request.method(), Method::GET | Method::HEAD) && !request.uri().path().ends_with("/logs");
    if is_read {
        let response = next.run(request).await;
        if response.status() != StatusCode::SERVICE_UNAVAILABLE {
            return response;
        }
    }
    let url = leader.is_alive.then_some(leader.api_url);
    let header = url.as_deref().and_then(|url| HeaderValue::from_str(url).ok());
    let mut response = ApiError::StandingBy { leader: url }.into_response();
    response.headers_mut().insert(STANDBY, HeaderValue::from_static("true"));
    if let Some(header) = header {
        response.headers_mut().insert(LEADER, header);
    }
    response
}
