//! Extractors whose refusals have the shape of every other refusal.

use std::fmt::Display;
use std::str::FromStr;
use std::sync::Arc;

use axum::extract::rejection::{JsonRejection, PathRejection, QueryRejection};
use axum::extract::{FromRequest, FromRequestParts, Request};
use http::request::Parts;
use serde::de::DeserializeOwned;
use tokio::sync::OwnedSemaphorePermit;

use super::App;
use super::error::ApiError;
use crate::admission::Full;

/// A JSON body.
#[derive(Debug)]
pub(crate) struct Body<T>(pub(crate) T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for Body<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> Result<Self, ApiError> {
        match axum::Json::<T>::from_request(request, state).await {
            Ok(axum::Json(body)) => Ok(Self(body)),
            Err(JsonRejection::BytesRejection(_)) => Err(ApiError::TooLarge { limit: super::BODY_BYTES_MAX }),
            Err(rejection) => Err(ApiError::bad_request(rejection.body_text())),
        }
    }
}

/// What stands after the `?`.
#[derive(Debug)]
pub(crate) struct Query<T>(pub(crate) T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequestParts<S> for Query<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let query = axum::extract::Query::<T>::from_request_parts(parts, state).await;
        let refuse = |rejection: QueryRejection| ApiError::bad_request(rejection.body_text());
        query.map(|axum::extract::Query(query)| Self(query)).map_err(refuse)
    }
}

/// The one id or name in the path.
#[derive(Debug)]
pub(crate) struct Id<T>(pub(crate) T);

impl<S: Send + Sync, T> FromRequestParts<S> for Id<T>
where
    T: FromStr<Err: Display> + Send,
{
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let path = axum::extract::Path::<String>::from_request_parts(parts, state).await;
        let axum::extract::Path(text) =
            path.map_err(|rejection: PathRejection| ApiError::bad_request(rejection.body_text()))?;
        parse(&text).map(Self)
    }
}

/// The two names in the path.
pub(super) async fn two_names(parts: &mut Parts, state: &(impl Send + Sync)) -> Result<(String, String), ApiError> {
    let path = axum::extract::Path::<(String, String)>::from_request_parts(parts, state).await;
    let axum::extract::Path(names) =
        path.map_err(|rejection: PathRejection| ApiError::bad_request(rejection.body_text()))?;
    Ok(names)
}

/// Reads an id or a name.
pub(crate) fn parse<T: FromStr<Err: Display>>(text: &str) -> Result<T, ApiError> {
    text.parse().map_err(|error: T::Err| ApiError::bad_request(error.to_string()))
}

/// Somebody who brings a workflow was let in: asked before his body is read.
#[derive(Debug)]
pub(crate) struct Admitted(#[expect(dead_code, reason = "held until the request is answered")] OwnedSemaphorePermit);

impl FromRequestParts<Arc<App>> for Admitted {
    type Rejection = ApiError;

    async fn from_request_parts(_: &mut Parts, app: &Arc<App>) -> Result<Self, ApiError> {
        if app.handle.is_behind() {
            return Err(Full::Journal.into());
        }
        Ok(Self(app.admission.admit()?))
    }
}
