//! What a run has made, for people to take out.

use std::sync::Arc;

use atoll_model::id::RunId;
use atoll_model::value::{ObjectKind, ObjectRef, Value};
use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::response::{IntoResponse, Response as HttpResponse};
use bytes::Bytes;
use control_plane_core::view::RunView;
use control_plane_core::{Rejection, Request, Response};
use futures::{Stream, StreamExt as _};
use http::{HeaderName, HeaderValue, header};
use serde::Deserialize;
use storage_sync_engine::bucket::ByteStream;
use utoipa::IntoParams;

use super::error::{ApiError, ErrorBody};
use super::extract::Query;
use super::runs::no_such_run;
use super::views::{has_ended, object_kind, run_state};
use super::{App, CLIENT_HOLD};
use crate::driver::Handle;

/// The outputs of a run, by name
#[utoipa::path(get, path = "/runs/{run}/outputs", tag = "runs",
    params(("run" = String, Path, description = "Id of the run")),
    responses((status = 200, body = Object), (status = 404, body = ErrorBody), (status = 409, body = ErrorBody)))]
pub(super) async fn list(
    State(app): State<Arc<App>>,
    super::extract::Id(run): super::extract::Id<RunId>,
) -> Result<Json<serde_json::Value>, ApiError> {
    let view = ended_run(&app, run).await?;
    let outputs = view.outputs.iter().map(|(name, value)| (name.clone(), value.to_json()));
    Ok(Json(serde_json::Value::Object(outputs.collect())))
}

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct DownloadQuery {
    /// Which part of a list or an object: a JSON pointer, such as `/0/table`.
    at: Option<String>,
}

/// An output: the bytes of a file, the canonical stream of a directory, JSON for anything else
///
/// The headers `x-atoll-kind` (`file`, `tree` or `value`) and `x-atoll-object` say what it is.
#[utoipa::path(get, path = "/runs/{run}/outputs/{name}", tag = "runs",
    params(
        ("run" = String, Path, description = "Id of the run"),
        ("name" = String, Path, description = "Name of the output"),
        DownloadQuery,
    ),
    responses(
        (status = 200, body = Object),
        (status = 404, body = ErrorBody),
        (status = 409, body = ErrorBody),
        (status = 503, body = ErrorBody, description = "The site that has it is not there now"),
    ))]
pub(super) async fn download(
    State(app): State<Arc<App>>,
    axum::extract::Path((run, name)): axum::extract::Path<(String, String)>,
    Query(query): Query<DownloadQuery>,
) -> Result<HttpResponse, ApiError> {
    let run = super::extract::parse(&run)?;
    let view = ended_run(&app, run).await?;
    let output = view.outputs.get(&name).ok_or_else(|| {
        let known: Vec<&str> = view.outputs.keys().map(String::as_str).collect();
        ApiError::not_found(format!("the run has no output {name}; it has {}", known.join(", ")))
    })?;
    let pointer = query.at.unwrap_or_default();
    let value = part(output, &pointer)
        .ok_or_else(|| ApiError::not_found(format!("the output {name} has nothing at {pointer:?}")))?;
    let mut object = None;
    if matches!(value, Value::File(_) | Value::Directory(_)) {
        value.visit_objects(&mut |found| object = Some(found));
    }
    match object {
        None => Ok(([(KIND, HeaderValue::from_static("value"))], Json(value.to_json())).into_response()),
        Some(object) => send(&app, run, object).await,
    }
}

const KIND: HeaderName = HeaderName::from_static("x-atoll-kind");
const OBJECT: HeaderName = HeaderName::from_static("x-atoll-object");
const BYTES: HeaderName = HeaderName::from_static("x-atoll-bytes");

/// Waits until the object is in the bucket, and sends it from there.
pub(super) async fn send(app: &App, run: RunId, object: ObjectRef) -> Result<HttpResponse, ApiError> {
    // Of a run that has left the memory the site may still have the bytes.
    let is_known = app.handle.query(move |core| core.run(run).is_some()).await?;
    let kept = if is_known { None } else { app.kept(run).await?.map(Box::new) };
    let staged = app.handle.request(Request::StageForClient { run, object, hold: CLIENT_HOLD, kept }).await?;
    let stored = match &staged {
        Response::Staged { copy } => app.keys.stored(&app.handle, copy).await?,
        Response::Submitted { .. }
        | Response::Enrolled { .. }
        | Response::Certify { .. }
        | Response::Authorised { .. }
        | Response::Offered { .. }
        | Response::ProjectKey { .. }
        | Response::Emitted { .. }
        | Response::Done => unreachable!("an object that is there is what was asked for"),
    };
    let stream = app.bucket.get_stream(stored, None).await?;
    let recorded = Recorded { inner: stream, taken: Taken { handle: app.handle.clone(), run, object, bytes: 0 } };
    let content_type = match object.kind {
        ObjectKind::File => "application/octet-stream",
        ObjectKind::Tree => "application/vnd.atoll.tree",
    };
    let header = |text: String| HeaderValue::try_from(text).expect("ids and numbers are plain text");
    // No length is announced: the stream ends when the ledger has it.
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static(content_type)),
        (KIND, HeaderValue::from_static(object_kind(object.kind))),
        (OBJECT, header(object.id.to_string())),
        (BYTES, header(object.bytes.to_string())),
    ];
    Ok((headers, Body::from_stream(recorded.into_stream())).into_response())
}

/// A download on its way to a person.
struct Recorded {
    inner: ByteStream,
    taken: Taken,
}

/// How much of it has gone out; recorded at its end, and when the person goes away before.
struct Taken {
    handle: Handle,
    run: RunId,
    object: ObjectRef,
    bytes: u64,
}

impl Recorded {
    fn into_stream(self) -> impl Stream<Item = std::io::Result<Bytes>> {
        futures::stream::unfold(Some(self), |state| async move {
            let mut this = state?;
            match this.inner.next().await {
                Some(Ok(bytes)) => {
                    this.taken.bytes += bytes.len() as u64;
                    Some((Ok(bytes), Some(this)))
                }
                Some(Err(error)) => {
                    this.taken.record().await;
                    Some((Err(error), None))
                }
                None => {
                    this.taken.record().await;
                    None
                }
            }
        })
    }
}

impl Taken {
    async fn record(&mut self) {
        let bytes = std::mem::take(&mut self.bytes);
        let request = Request::RecordDownload { run: self.run, object: self.object, bytes };
        if let Err(rejection) = self.handle.request(request).await {
            tracing::warn!(run = %self.run, object = %self.object.id, %rejection, "a download is not in the ledger");
        }
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        if self.bytes == 0 {
            return;
        }
        let bytes = self.bytes;
        let request = Request::RecordDownload { run: self.run, object: self.object, bytes };
        if !self.handle.request_in_passing(request) {
            tracing::warn!(run = %self.run, object = %self.object.id, bytes, "a download is not in the ledger");
        }
    }
}

async fn ended_run(app: &App, run: RunId) -> Result<RunView, ApiError> {
    let view = app.look(run, move |core| core.run(run)).await?.ok_or_else(|| no_such_run(run))?;
    if has_ended(view.state) {
        return Ok(view);
    }
    let message = format!("{run} is {}: it has outputs when it has ended", run_state(view.state));
    Err(Rejection::Conflict(message).into())
}

/// What a JSON pointer (RFC 6901) leads to.
fn part<'value>(value: &'value Value, pointer: &str) -> Option<&'value Value> {
    if pointer.is_empty() {
        return Some(value);
    }
    pointer.strip_prefix('/')?.split('/').try_fold(value, |value, token| {
        let token = token.replace("~1", "/").replace("~0", "~");
        match value {
            Value::List(values) => values.get(token.parse::<usize>().ok()?),
            Value::Object(fields) => fields.get(&token),
            Value::Null
            | Value::Boolean(_)
            | Value::Integer(_)
            | Value::Number(_)
            | Value::String(_)
            | Value::File(_)
            | Value::Directory(_) => None,
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pointer_leads_into_lists_and_objects() {
        let object = Value::Object(Arc::new([("a/b".to_owned(), Value::Integer(7))].into_iter().collect()));
        let value = Value::list(vec![Value::Null, object]);
        assert_eq!(part(&value, ""), Some(&value));
        assert_eq!(part(&value, "/1/a~1b"), Some(&Value::Integer(7)));
        for nowhere in ["/2", "/1/c", "/1/a~1b/0", "1", "/x"] {
            assert_eq!(part(&value, nowhere), None, "{nowhere}");
        }
    }
}
