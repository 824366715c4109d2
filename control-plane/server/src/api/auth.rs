//! Who asks: the bearer token of a request.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::Response;
use http::{HeaderValue, header};
use utoipa::Modify;
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityScheme};

use super::App;
use super::error::ApiError;
use super::tokens::Scope;

/// Paths that are answered without a token: they show nothing but counts and the description of the API.
const OPEN: [&str; 3] = ["/healthz", "/metrics", "/api/v1/openapi.json"];

/// Lets a request through that has a token with the right scope; handlers find a [`super::tokens::Person`] in it.
pub(super) async fn require_token(
    State(app): State<Arc<App>>,
    mut request: Request,
    next: Next,
) -> Result<Response, ApiError> {
    if OPEN.contains(&request.uri().path()) {
        return Ok(next.run(request).await);
    }
    let header = request.headers().get(header::AUTHORIZATION);
    let header = header.ok_or(ApiError::Unauthenticated { message: "this needs an API token" })?;
    let token = header.to_str().ok().and_then(|header| {
        let (scheme, token) = header.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then_some(token.trim())
    });
    let person = token
        .and_then(|token| app.tokens.person(token))
        .ok_or(ApiError::Unauthenticated { message: "the API token is not known here" })?;
    if !person.scopes.contains(&Scope::Admin) {
        let message = "the API token does not allow this".to_owned();
        return Err(ApiError::Rejected(control_plane_core::Rejection::Forbidden(message)));
    }
    request.extensions_mut().insert(person);
    Ok(next.run(request).await)
}

/// No answer is kept by a proxy, nor taken for anything but what it says it is.
pub(super) async fn guard_answers(request: Request, next: Next) -> Response {
    let mut response = next.run(request).await;
    let headers = response.headers_mut();
    headers.entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

/// Names the scheme in the API's description.
pub(super) struct BearerToken;

impl Modify for BearerToken {
    fn modify(&self, document: &mut utoipa::openapi::OpenApi) {
        let scheme = HttpBuilder::new()
            .scheme(HttpAuthScheme::Bearer)
            .description(Some("An API token: `atoll.<secret>.<pin of the CA>`"))
            .build();
        let components = document.components.get_or_insert_default();
        components.add_security_scheme("token", SecurityScheme::Http(scheme));
    }
}
