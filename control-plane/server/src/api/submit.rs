//! Workflows that are sent in: run, planned, checked.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::SystemTime;

use atoll_model::diagnostic::Diagnostic;
use atoll_model::id::RunId;
use atoll_model::limits::{PRIORITY_MAX, PRIORITY_MIN, RUN_LABEL_BYTES_MAX, RUN_LABELS_MAX};
use atoll_model::value::{DirectoryRef, ObjectKind, ObjectRef, Value};
use atoll_model::workflow::{Workflow, check_sites, parse};
use atoll_telemetry::TraceContext;
use axum::extract::State;
use axum::{Extension, Json};
use control_plane_core::view::RunTags;
use control_plane_core::{BucketCopy, Rejection, Request, Response};
use futures::FutureExt as _;
use futures::future::BoxFuture;
use http::{HeaderMap, StatusCode};
use indexmap::IndexMap;
use serde::Deserialize;
use storage_sync_engine::bucket::BucketError;
use utoipa::ToSchema;
use uuid::Uuid;

use super::App;
use super::error::{ApiError, ErrorBody};
use super::extract::{Admitted, Body};
use super::runs::no_such_run;
use super::surroundings::{Sent, SentAction};
use super::tokens::Person;
use super::views::{CheckBody, PlanBody, RunBody};
use crate::telemetry::{SubmitSpan, Traced};

/// Names the run that a request makes: repeated with the same key, it answers as it did the first time.
const IDEMPOTENCY_KEY: &str = "idempotency-key";
/// A file above this size is parsed on a thread of its own, so that it holds nobody else up.
const PARSED_IN_PLACE_BYTES: usize = 64 << 10;

#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct WorkflowBody {
    /// The text of the workflow file.
    source: String,
    /// What the file is called in messages.
    #[serde(default = "unnamed")]
    file_name: String,
    /// Values by name. A file or directory is what `PUT /uploads` answered, or `{"site", "path"}` where a site holds it.
    #[serde(default)]
    #[schema(value_type = Object)]
    inputs: IndexMap<String, serde_json::Value>,
    /// The actions that the file names, by what stands after `action:`.
    #[serde(default)]
    actions: BTreeMap<String, SentAction>,
    /// What the run is counted to; `default` unless given.
    project: Option<String>,
    /// What it is to be found by.
    #[serde(default)]
    labels: BTreeMap<String, String>,
    /// Instead of the one that the workflow says: from -100 to 100, and what is more comes first.
    priority: Option<i64>,
    /// Whether steps with `cache` run although others have made the same before.
    #[serde(default)]
    no_cache: bool,
    /// W3C trace context that the run belongs under; the header `traceparent` counts too.
    traceparent: Option<String>,
}

fn unnamed() -> String {
    "workflow.yaml".to_owned()
}

/// Run a workflow
///
/// The answer comes when the run is durable. With the header `Idempotency-Key` (a UUID, or the id of a run) a request may
/// be repeated: it makes one run. After the control plane was restored from a backup that lacks the run, a repeat makes one
/// with another id.
#[utoipa::path(post, path = "/runs", tag = "runs", request_body = WorkflowBody,
    params(("Idempotency-Key" = Option<String>, Header, description = "A UUID, or the id that the run is to have")),
    responses(
        (status = 201, body = RunBody),
        (status = 400, body = ErrorBody),
        (status = 413, body = ErrorBody),
        (status = 422, body = ErrorBody, description = "The workflow is not valid, or cannot run on any site"),
        (status = 429, body = ErrorBody, description = "Something is full, which `code` names; nothing was done",
            headers(("Retry-After" = u64, description = "Seconds after which to ask again"))),
    ))]
pub(super) async fn submit(
    State(app): State<Arc<App>>,
    Extension(person): Extension<Person>,
    headers: HeaderMap,
    _admitted: Admitted,
    Body(body): Body<WorkflowBody>,
) -> Result<(StatusCode, Json<RunBody>), ApiError> {
    let began = SystemTime::now();
    let mut run = run_id(&headers)?;
    if headers.contains_key(IDEMPOTENCY_KEY) {
        for name in app.handle.query(move |core| core.names_of(run)).await? {
            if let Some(view) = app.look(name, move |core| core.run(name)).await? {
                // Of a run that only the history knows the core would make another.
                return Ok((StatusCode::CREATED, Json(RunBody::new(&view))));
            }
            run = name;
        }
    }
    let (parent, context) = trace_context(&headers, body.traceparent.as_deref())?;
    let tags = tags(&body)?;
    let no_cache = body.no_cache;
    let mut checked = Checked::new(&app, body).await?;
    if no_cache {
        checked.workflow.make_all_anew();
    }
    let inputs = checked.inputs(&app).await?;
    let workflow_name = checked.workflow.name.clone();
    let request = Request::Submit {
        run,
        workflow: Arc::new(checked.workflow),
        source: Arc::from(checked.source),
        inputs,
        submitted_by: person.name.clone(),
        traceparent: Some(context.to_string()),
        tags,
    };
    let response = app.change(&person, "submit run", &run.to_string(), Some(&workflow_name), request).await?;
    let run = match response {
        Response::Submitted { run } => run,
        Response::Enrolled { .. }
        | Response::Certify { .. }
        | Response::Authorised { .. }
        | Response::Offered { .. }
        | Response::Staged { .. }
        | Response::ProjectKey { .. }
        | Response::Emitted { .. }
        | Response::Done => run,
    };
    tracing::info!(%run, workflow = workflow_name, "a run was submitted");
    if let Some(traced) = &app.traced
        && traced.try_send(Traced::Submit(SubmitSpan { run, context, parent, began })).is_err()
    {
        app.meters.untraced_batches.inc();
    }
    let look = move |core: &control_plane_core::ControlPlane| core.run(run).map(|view| (view, core.deprecations(run)));
    let (view, warnings) = app.look(run, look).await?.ok_or_else(|| no_such_run(run))?;
    Ok((StatusCode::CREATED, Json(RunBody { warnings: Some(warnings), ..RunBody::new(&view) })))
}

/// A project and labels are names, not texts: lists and the history's index hold them for each run.
fn tags(body: &WorkflowBody) -> Result<RunTags, ApiError> {
    let project = body.project.clone().unwrap_or_else(|| RunTags::PROJECT.to_owned());
    let texts = || std::iter::once(&project).chain(body.labels.iter().flat_map(|(name, value)| [name, value]));
    if project.is_empty() || body.labels.keys().any(|name| name.is_empty() || name.contains(['=', ','])) {
        let help = "a project and the key of a label have at least one letter, and no = or comma in a key";
        return Err(ApiError::with_help("the project or a label has no usable name", help));
    }
    if body.labels.len() > RUN_LABELS_MAX || texts().any(|text| text.len() > RUN_LABEL_BYTES_MAX) {
        return Err(ApiError::bad_request(format!(
            "a run has at most {RUN_LABELS_MAX} labels, each name and value of at most {RUN_LABEL_BYTES_MAX} bytes"
        )));
    }
    let range = PRIORITY_MIN..=PRIORITY_MAX;
    let priority = body.priority.map(|priority| i8::try_from(priority).ok().filter(|given| range.contains(given)));
    if priority == Some(None) {
        return Err(ApiError::bad_request(format!("a priority is a number from {PRIORITY_MIN} to {PRIORITY_MAX}")));
    }
    Ok(RunTags { project, labels: body.labels.clone(), priority: priority.flatten() })
}

fn run_id(headers: &HeaderMap) -> Result<RunId, ApiError> {
    let Some(key) = headers.get(IDEMPOTENCY_KEY) else {
        return Ok(RunId::from_bits(Uuid::now_v7().as_u128()));
    };
    let text = key.to_str().unwrap_or_default();
    let uuid = || text.parse::<Uuid>().ok().map(|uuid| RunId::from_bits(uuid.as_u128()));
    text.parse().ok().or_else(uuid).ok_or_else(|| {
        ApiError::with_help("the Idempotency-Key is not usable", "send a UUID, or the id of a run (run_…)")
    })
}

/// What the run belongs under, if anything, and the context that it is given.
fn trace_context(headers: &HeaderMap, given: Option<&str>) -> Result<(Option<TraceContext>, TraceContext), ApiError> {
    let parent = match given {
        Some(text) => Some(text.parse().map_err(|error| ApiError::bad_request(format!("traceparent: {error}")))?),
        // A header that proxies may have mangled is not the person's mistake.
        None => headers.get("traceparent").and_then(|header| header.to_str().ok()).and_then(|text| text.parse().ok()),
    };
    let mut random = [0; 24];
    aws_lc_rs::rand::fill(&mut random)
        .map_err(|_| ApiError::internal("no trace can be begun", anyhow::anyhow!("the system has no randomness")))?;
    Ok((parent, TraceContext::begin(parent, random)))
}

/// What placement would do with a workflow, before anything runs
#[utoipa::path(post, path = "/plan", tag = "workflows", request_body = WorkflowBody, responses(
    (status = 200, body = PlanBody),
    (status = 400, body = ErrorBody),
    (status = 422, body = ErrorBody),
))]
pub(super) async fn plan(
    State(app): State<Arc<App>>,
    _admitted: Admitted,
    Body(body): Body<WorkflowBody>,
) -> Result<Json<PlanBody>, ApiError> {
    let tags = tags(&body)?;
    let checked = Checked::new(&app, body).await?;
    let inputs = checked.inputs(&app).await?;
    let plan = app.handle.query(move |core| core.plan(&checked.workflow, &inputs, &tags)).await?;
    Ok(Json(PlanBody::new(&plan)))
}

/// Whether a workflow is valid and can run on the sites that there are
#[utoipa::path(post, path = "/check", tag = "workflows", request_body = WorkflowBody, responses(
    (status = 200, body = CheckBody),
    (status = 400, body = ErrorBody),
))]
pub(super) async fn check(
    State(app): State<Arc<App>>,
    _admitted: Admitted,
    Body(body): Body<WorkflowBody>,
) -> Result<Json<CheckBody>, ApiError> {
    match Checked::new(&app, body).await {
        Ok(_) => Ok(Json(CheckBody::new(&[]))),
        Err(ApiError::InvalidWorkflow(diagnostics)) => Ok(Json(CheckBody::new(&diagnostics))),
        Err(other) => Err(other),
    }
}

/// A workflow that is valid, with what came with it.
struct Checked {
    workflow: Workflow,
    source: String,
    sent: Sent,
}

impl Checked {
    async fn new(app: &App, body: WorkflowBody) -> Result<Self, ApiError> {
        let WorkflowBody { source, file_name, inputs, actions, project, .. } = body;
        let project = project.unwrap_or_else(|| RunTags::PROJECT.to_owned());
        let is_large = source.len() > PARSED_IN_PLACE_BYTES;
        let (sites, registry) = app.handle.query(|core| (core.site_facts(), core.registry())).await?;
        let sent = Sent::new(actions, inputs, registry, project);
        let check = move || -> Result<Self, Vec<Diagnostic>> {
            let workflow = parse(&file_name, &source, &sent)?;
            let diagnostics = check_sites(&workflow, &file_name, &sites);
            if diagnostics.is_empty() { Ok(Self { workflow, source, sent }) } else { Err(diagnostics) }
        };
        let checked = if is_large {
            tokio::task::spawn_blocking(check)
                .await
                .map_err(|error| ApiError::internal("the workflow could not be read", error))?
        } else {
            check()
        };
        checked.map_err(ApiError::InvalidWorkflow)
    }

    /// The values that were sent, with the files of the directories that expressions list.
    async fn inputs(&self, app: &App) -> Result<IndexMap<String, Value>, ApiError> {
        let mut inputs = self.sent.values(&self.workflow)?;
        for (name, value) in &mut inputs {
            if self.workflow.inputs.get(name).is_some_and(|input| input.listed) {
                *value = listed(app, name, value.clone()).await?;
            }
        }
        Ok(inputs)
    }
}

/// The value with the files of each directory in it, as the directory itself names them in the bucket.
fn listed<'a>(app: &'a App, name: &'a str, value: Value) -> BoxFuture<'a, Result<Value, ApiError>> {
    async move {
        Ok(match value {
            Value::Directory(sent) => {
                let tree = ObjectRef { id: sent.object, kind: ObjectKind::Tree, bytes: sent.bytes };
                let encryption = app.handle.query(move |core| core.encryption_of(tree.id)).await?;
                let stored = app.keys.stored(&app.handle, &BucketCopy { object: tree, encryption }).await?;
                let contents = match app.bucket.contents(stored).await {
                    Ok(contents) => contents,
                    Err(BucketError::NotFound(_)) => {
                        let reason = format!("the input {name} is {}, which was not sent in", tree.id);
                        return Err(Rejection::Invalid(reason).into());
                    }
                    Err(error) => return Err(error.into()),
                };
                let listing = contents.listing().map(|files| Arc::new(files.to_vec()));
                Value::Directory(DirectoryRef { files: contents.files(), listing, ..sent })
            }
            Value::List(values) => {
                let mut each = Vec::with_capacity(values.len());
                for value in values.iter() {
                    each.push(listed(app, name, value.clone()).await?);
                }
                Value::list(each)
            }
            other @ (Value::Null
            | Value::Boolean(_)
            | Value::Integer(_)
            | Value::Number(_)
            | Value::String(_)
            | Value::Object(_)
            | Value::File(_)) => other,
        })
    }
    .boxed()
}
