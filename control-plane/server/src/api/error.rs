//! What is answered when something is refused: one shape, and one place that says which status it has.

use std::time::Duration;

use atoll_model::diagnostic::Diagnostic;
use axum::Json;
use axum::response::{IntoResponse, Response};
use control_plane_core::Rejection;
use http::{HeaderValue, StatusCode, header};
use serde::Serialize;
use storage_sync_engine::bucket::BucketError;
use utoipa::ToSchema;

use crate::admission::Full;
use crate::history::HistoryError;
use crate::keys::KeyError;

/// When to come again where runs have to end before.
const RUNS_END: Duration = Duration::from_secs(2);

/// Why a request is not answered with what it asked for.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ApiError {
    #[error("{message}")]
    Unauthenticated { message: &'static str },
    #[error("{0}")]
    Rejected(#[from] Rejection),
    /// The request itself is malformed.
    #[error("{message}")]
    BadRequest { message: String, help: Option<String> },
    #[error("the workflow is not valid")]
    InvalidWorkflow(Vec<Diagnostic>),
    #[error("the action is not valid")]
    InvalidAction(Vec<Diagnostic>),
    #[error("the policy is not valid")]
    InvalidPolicy(Vec<Diagnostic>),
    #[error("the body is larger than {limit} bytes")]
    TooLarge { limit: usize },
    #[error("there is nothing at this path")]
    NoSuchRoute,
    #[error("this path does not take this method")]
    MethodNotAllowed,
    /// This server follows another, and that one is to be asked.
    #[error("this server stands by: {}", match .leader { Some(url) => format!("ask {url}, which leads"), None => "none leads at the moment".to_owned() })]
    StandingBy { leader: Option<String> },
    /// Something is full, and nothing was done.
    #[error(transparent)]
    Full(#[from] Full),
    #[error("the bucket cannot be used now")]
    Bucket(#[from] BucketError),
    #[error("a key of the project cannot be used now")]
    Key(#[from] KeyError),
    #[error(transparent)]
    History(#[from] HistoryError),
    #[error("{what}")]
    Internal {
        what: &'static str,
        #[source]
        source: anyhow::Error,
    },
}

impl ApiError {
    pub(crate) fn bad_request(message: impl Into<String>) -> Self {
        Self::BadRequest { message: message.into(), help: None }
    }

    pub(crate) fn with_help(message: impl Into<String>, help: impl Into<String>) -> Self {
        Self::BadRequest { message: message.into(), help: Some(help.into()) }
    }

    pub(crate) fn not_found(message: impl Into<String>) -> Self {
        Self::Rejected(Rejection::NotFound(message.into()))
    }

    pub(crate) fn internal(what: &'static str, source: impl Into<anyhow::Error>) -> Self {
        Self::Internal { what, source: source.into() }
    }

    fn status(&self) -> (StatusCode, &'static str) {
        match self {
            Self::Unauthenticated { .. } => (StatusCode::UNAUTHORIZED, "unauthenticated"),
            Self::Rejected(Rejection::NotFound(_)) => (StatusCode::NOT_FOUND, "not_found"),
            Self::Rejected(Rejection::Conflict(_)) => (StatusCode::CONFLICT, "conflict"),
            Self::Rejected(Rejection::Invalid(_)) => (StatusCode::UNPROCESSABLE_ENTITY, "invalid"),
            Self::Rejected(Rejection::Forbidden(_)) => (StatusCode::FORBIDDEN, "forbidden"),
            Self::Rejected(Rejection::Busy(_)) => (StatusCode::TOO_MANY_REQUESTS, "too_many_runs"),
            Self::Full(full) => (StatusCode::TOO_MANY_REQUESTS, full.code()),
            Self::Rejected(Rejection::Unavailable(_)) => (StatusCode::SERVICE_UNAVAILABLE, "unavailable"),
            Self::StandingBy { .. } => (StatusCode::SERVICE_UNAVAILABLE, "standing_by"),
            Self::BadRequest { .. } => (StatusCode::BAD_REQUEST, "bad_request"),
            Self::InvalidAction(_) => (StatusCode::UNPROCESSABLE_ENTITY, "invalid_action"),
            Self::InvalidPolicy(_) => (StatusCode::UNPROCESSABLE_ENTITY, "invalid_policy"),
            Self::InvalidWorkflow(_) => (StatusCode::UNPROCESSABLE_ENTITY, "invalid_workflow"),
            Self::TooLarge { .. } => (StatusCode::PAYLOAD_TOO_LARGE, "too_large"),
            Self::NoSuchRoute => (StatusCode::NOT_FOUND, "no_such_route"),
            Self::MethodNotAllowed => (StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed"),
            Self::Bucket(BucketError::NotFound(_)) => (StatusCode::NOT_FOUND, "not_in_bucket"),
            Self::Bucket(BucketError::Corrupt { .. } | BucketError::Incomplete { .. } | BucketError::Source(_)) => {
                (StatusCode::UNPROCESSABLE_ENTITY, "damaged_upload")
            }
            Self::Bucket(BucketError::NoSpace) => (StatusCode::INSUFFICIENT_STORAGE, "no_space"),
            Self::Bucket(
                BucketError::Settings(_)
                | BucketError::Unusable { .. }
                | BucketError::Store(_)
                | BucketError::Io { .. },
            ) => (StatusCode::BAD_GATEWAY, "bucket"),
            Self::Key(KeyError::Kept(Rejection::Unavailable(_))) => (StatusCode::SERVICE_UNAVAILABLE, "key"),
            Self::Key(_) => (StatusCode::INTERNAL_SERVER_ERROR, "key"),
            Self::History(_) => (StatusCode::INTERNAL_SERVER_ERROR, "history"),
            Self::Internal { .. } => (StatusCode::INTERNAL_SERVER_ERROR, "internal"),
        }
    }

    /// The message, and for what lies with the sender its chain of causes.
    fn message(&self) -> String {
        if let Self::Bucket(error) = self { format!("{self}: {error}") } else { self.to_string() }
    }

    /// When to ask again, if that may be of use.
    fn retry_after(&self) -> Option<Duration> {
        if let Self::Full(full) = self {
            Some(full.retry_after())
        } else {
            matches!(self, Self::Rejected(Rejection::Busy(_))).then_some(RUNS_END)
        }
    }

    fn help(&self) -> Option<String> {
        match self {
            Self::Unauthenticated { .. } => {
                Some("send `Authorization: Bearer TOKEN`; the first token is in the server's data directory".to_owned())
            }
            Self::BadRequest { help, .. } => help.clone(),
            Self::NoSuchRoute => Some("the routes are in /api/v1/openapi.json".to_owned()),
            Self::History(_) | Self::Key(_) | Self::Internal { .. } => Some("the server's log says more".to_owned()),
            Self::Rejected(_)
            | Self::Full(_)
            | Self::InvalidWorkflow(_)
            | Self::InvalidAction(_)
            | Self::InvalidPolicy(_)
            | Self::TooLarge { .. }
            | Self::MethodNotAllowed
            | Self::StandingBy { .. }
            | Self::Bucket(_) => None,
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let (status, code) = self.status();
        if status.is_server_error() && !matches!(self, Self::StandingBy { .. }) {
            tracing::warn!(error = &self as &dyn std::error::Error, %status, "a request could not be answered");
        }
        let diagnostics = if let Self::InvalidWorkflow(diagnostics)
        | Self::InvalidAction(diagnostics)
        | Self::InvalidPolicy(diagnostics) = &self
        {
            diagnostics.iter().map(DiagnosticBody::new).collect()
        } else {
            Vec::new()
        };
        let again = self.retry_after();
        let error = ErrorDetail { code: code.to_owned(), message: self.message(), help: self.help(), diagnostics };
        let mut response = (status, Json(ErrorBody { error })).into_response();
        if let Some(again) = again {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(again.as_secs()));
        }
        if status == StatusCode::UNAUTHORIZED {
            response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

/// Every answer that is no success.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ErrorBody {
    error: ErrorDetail,
}

#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ErrorDetail {
    /// For programs; never changes its meaning.
    code: String,
    /// For people.
    message: String,
    /// What would be right.
    help: Option<String>,
    /// What is wrong with the workflow, each with its place.
    diagnostics: Vec<DiagnosticBody>,
}

/// One thing that is wrong with a file.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct DiagnosticBody {
    file: String,
    /// From 1.
    line: u32,
    /// In characters, from 1.
    column: u32,
    /// The bytes that it is about.
    start: u32,
    end: u32,
    message: String,
    help: Option<String>,
}

impl DiagnosticBody {
    pub(crate) fn new(diagnostic: &Diagnostic) -> Self {
        Self {
            file: diagnostic.file.clone(),
            line: diagnostic.place.line,
            column: diagnostic.place.column,
            start: diagnostic.place.start,
            end: diagnostic.place.end,
            message: diagnostic.message.clone(),
            help: diagnostic.help.clone(),
        }
    }
}
