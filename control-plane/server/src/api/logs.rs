//! What executions write, from where it is: the sites send it when somebody looks.

use std::collections::HashSet;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use atoll_model::id::{Attempt, ExecutionId, RunId};
use atoll_model::value::ObjectRef;
use atoll_proto::LogStream;
use axum::body::Body;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use control_plane_core::view::{ExecutionPage, ExecutionState, ExecutionView};
use futures::StreamExt as _;
use http::header;
use serde::Deserialize;
use serde_json::json;
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::task::AbortOnDropHandle;
use utoipa::IntoParams;

use super::App;
use super::error::{ApiError, ErrorBody};
use super::executions::no_such_execution;
use super::extract::{Id, Query};
use super::log_lines::Lines;
use super::runs::no_such_run;
use super::views::{execution_has_ended, has_ended};
use crate::agents::LogQuery;
use crate::driver::{Changed, wall_clock};

/// Executions whose logs are read at a time when a run is followed.
const FOLLOWED_MAX: usize = 32;
/// Executions that are looked at in one question to the core.
const PAGE: usize = 1_000;
/// A run that is followed is looked through this often at most.
const PAUSE: Duration = Duration::from_millis(200);
/// Pieces that wait for a slow reader.
const QUEUE: usize = 16;

#[derive(Debug, Clone, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct LogsQuery {
    /// Go on until it has ended.
    #[serde(default)]
    follow: bool,
    /// `stdout` or `stderr`; both unless given.
    stream: Option<String>,
}

/// What the executions of a run have written, a line of JSON each: `{"at","execution","stream","line"}`
#[utoipa::path(get, path = "/runs/{run}/logs", tag = "runs",
    params(("run" = String, Path, description = "Id of the run"), LogsQuery),
    responses((status = 200, body = String, content_type = "application/x-ndjson",
        description = "A log that cannot be read makes a line `{\"error\":{\"message\",\"execution\"}}`"),
        (status = 404, body = ErrorBody)))]
pub(super) async fn run(
    State(app): State<Arc<App>>,
    Id(run): Id<RunId>,
    Query(query): Query<LogsQuery>,
) -> Result<Response, ApiError> {
    let streams = streams(&query)?;
    app.look(run, move |core| core.run(run).map(|_| ())).await?.ok_or_else(|| no_such_run(run))?;
    Ok(answer(&app, streams, query.follow, move |reading| async move { reading.run(run).await }))
}

/// What an execution has written, a line of JSON each: `{"at","execution","stream","line"}`
#[utoipa::path(get, path = "/executions/{execution}/logs", tag = "executions",
    params(("execution" = String, Path, description = "Id of the execution"), LogsQuery),
    responses((status = 200, body = String, content_type = "application/x-ndjson",
        description = "A log that cannot be read makes a line `{\"error\":{\"message\",\"execution\"}}`"),
        (status = 404, body = ErrorBody)))]
pub(super) async fn execution(
    State(app): State<Arc<App>>,
    Id(execution): Id<ExecutionId>,
    Query(query): Query<LogsQuery>,
) -> Result<Response, ApiError> {
    let streams = streams(&query)?;
    let there = app.look(execution.run, move |core| core.execution(execution).map(|_| ())).await?;
    there.ok_or_else(|| no_such_execution(execution))?;
    Ok(answer(&app, streams, query.follow, move |reading| async move { reading.execution(execution).await }))
}

fn streams(query: &LogsQuery) -> Result<Vec<LogStream>, ApiError> {
    match query.stream.as_deref() {
        None => Ok(vec![LogStream::Stdout, LogStream::Stderr]),
        Some("stdout") => Ok(vec![LogStream::Stdout]),
        Some("stderr") => Ok(vec![LogStream::Stderr]),
        Some(other) => {
            Err(ApiError::with_help(format!("{other:?} is no stream of a log"), "a stream is stdout or stderr"))
        }
    }
}

fn answer<F>(app: &Arc<App>, streams: Vec<LogStream>, follow: bool, read: impl FnOnce(Reading) -> F) -> Response
where
    F: Future<Output = Option<()>> + Send + 'static,
{
    let (lines, receiver) = mpsc::channel(QUEUE);
    let changes = app.handle.changes();
    let reading = Reading { app: Arc::clone(app), streams, follow, lines, changes };
    // Ends with the answer: whoever goes away ends the reading.
    let task = AbortOnDropHandle::new(app.tasks.spawn(read(reading)));
    let stream = futures::stream::unfold((receiver, task), |(mut receiver, task)| async move {
        let lines = receiver.recv().await?;
        Some((Ok::<Bytes, io::Error>(lines), (receiver, task)))
    });
    ([(header::CONTENT_TYPE, "application/x-ndjson")], Body::from_stream(stream)).into_response()
}

/// Somebody who looks at logs. Functions return nothing when he has gone, or the control plane goes down.
struct Reading {
    app: Arc<App>,
    streams: Vec<LogStream>,
    follow: bool,
    lines: mpsc::Sender<Bytes>,
    changes: Receiver<Changed>,
}

impl Reading {
    async fn execution(mut self, execution: ExecutionId) -> Option<()> {
        let mut read = None;
        loop {
            let view = self.app.look(execution.run, move |core| core.execution(execution)).await.ok()??;
            if has_started(&view) && read != Some(view.attempt) {
                read = Some(view.attempt);
                self.reader().attempt(view).await?;
                if self.follow {
                    continue;
                }
                return Some(());
            }
            if !self.follow || execution_has_ended(view.state) {
                return Some(());
            }
            self.wait(execution.run).await?;
        }
    }

    async fn run(mut self, run: RunId) -> Option<()> {
        let mut read: HashSet<(ExecutionId, Attempt)> = HashSet::new();
        let mut readers = JoinSet::new();
        loop {
            let state = self.app.look(run, move |core| core.run(run).map(|view| view.state)).await.ok()??;
            let mut after = None;
            loop {
                let page = ExecutionPage { after, limit: Some(PAGE), step: None };
                let views = self.app.look(run, move |core| core.executions(run, &page)).await.ok()??;
                let whole = views.len() == PAGE;
                after = views.last().map(|view| view.execution);
                for view in views {
                    if !has_started(&view) || !read.insert((view.execution, view.attempt)) {
                        continue;
                    }
                    if !self.follow {
                        self.reader().attempt(view).await?;
                        continue;
                    }
                    while readers.len() >= FOLLOWED_MAX {
                        readers.join_next().await;
                    }
                    readers.spawn(self.reader().attempt(view));
                }
                if !whole {
                    break;
                }
            }
            if !self.follow || has_ended(state) {
                while readers.join_next().await.is_some() {}
                return Some(());
            }
            self.wait(run).await?;
        }
    }

    fn reader(&self) -> Reader {
        Reader {
            app: Arc::clone(&self.app),
            streams: self.streams.clone(),
            follow: self.follow,
            lines: self.lines.clone(),
        }
    }

    /// Waits until something about the run is new, and a moment longer for what comes together.
    async fn wait(&mut self, run: RunId) -> Option<()> {
        news(&mut self.changes, run).await?;
        tokio::time::sleep(PAUSE).await;
        Some(())
    }
}

/// Whether there can be anything to read of it, at a site.
fn has_started(view: &ExecutionView) -> bool {
    let at_work = view.state == ExecutionState::Running || execution_has_ended(view.state);
    at_work && view.site.is_some() && view.started_at.is_some()
}

/// Reads the logs of attempts.
struct Reader {
    app: Arc<App>,
    streams: Vec<LogStream>,
    follow: bool,
    lines: mpsc::Sender<Bytes>,
}

impl Reader {
    async fn attempt(self, view: ExecutionView) -> Option<()> {
        if execution_has_ended(view.state) {
            for stream in &self.streams {
                self.stream(&view, *stream).await?;
            }
            return Some(());
        }
        let streams = self.streams.iter().map(|stream| self.stream(&view, *stream));
        futures::future::join_all(streams).await.into_iter().collect()
    }

    async fn stream(&self, view: &ExecutionView, stream: LogStream) -> Option<()> {
        let mut lines = Lines::new(view.execution, name_of(stream));
        let (mut view, mut offset) = (view.clone(), 0);
        loop {
            let ended = execution_has_ended(view.state);
            let written = written(&view, stream).filter(|_| ended);
            // What the site has shown while it was written may be all of it.
            if ended && written.is_none_or(|written| written.bytes <= offset) {
                return self.send(lines.finish(view.finished_at.unwrap_or_else(wall_clock))).await;
            }
            let site = view.site.as_ref()?;
            let query = LogQuery {
                execution: view.execution,
                attempt: view.attempt,
                stream,
                offset,
                follow: self.follow && !ended,
                object: written,
            };
            let mut log = match self.app.logs.read(site, query) {
                Ok(log) => log,
                Err(error) => return self.tell(view.execution, &error.to_string()).await,
            };
            let at = || view.finished_at.filter(|_| ended).unwrap_or_else(wall_clock);
            while let Some(bytes) = log.next().await {
                match bytes {
                    Ok(bytes) => {
                        offset += bytes.len() as u64;
                        self.send(lines.push(&bytes, at())).await?;
                    }
                    Err(error) => {
                        self.send(lines.finish(at())).await?;
                        return self.tell(view.execution, &error.to_string()).await;
                    }
                }
            }
            // A log is on its way into the site's store when its attempt ends: the rest is read from there.
            let later = if ended { None } else { self.ended(&view).await? };
            match later {
                Some(later) => view = later,
                None => return self.send(lines.finish(at())).await,
            }
        }
    }

    /// The execution once this attempt of it has ended, if it has or somebody waits for it.
    async fn ended(&self, known: &ExecutionView) -> Option<Option<ExecutionView>> {
        let (execution, attempt) = (known.execution, known.attempt);
        let mut changes = self.app.handle.changes();
        loop {
            let view = self.app.look(execution.run, move |core| core.execution(execution)).await.ok()?;
            let Some(view) = view.filter(|view| view.attempt == attempt) else { return Some(None) };
            if execution_has_ended(view.state) {
                return Some(Some(view));
            }
            if !self.follow {
                return Some(None);
            }
            news(&mut changes, execution.run).await?;
        }
    }

    async fn tell(&self, execution: ExecutionId, message: &str) -> Option<()> {
        let error = json!({ "error": { "message": message, "execution": execution.to_string() } });
        self.send(format!("{error}\n").into_bytes()).await
    }

    async fn send(&self, lines: Vec<u8>) -> Option<()> {
        if lines.is_empty() {
            return Some(());
        }
        self.lines.send(lines.into()).await.ok()
    }
}

/// Waits until something about the run is new, or may be.
async fn news(changes: &mut Receiver<Changed>, run: RunId) -> Option<()> {
    loop {
        match changes.recv().await {
            Ok(change) if change.concerns(run) => return Some(()),
            Ok(_) => {}
            Err(RecvError::Lagged(_)) => return Some(()),
            Err(RecvError::Closed) => return None,
        }
    }
}

fn name_of(stream: LogStream) -> &'static str {
    match stream {
        LogStream::Stdout => "stdout",
        LogStream::Stderr => "stderr",
    }
}

fn written(view: &ExecutionView, stream: LogStream) -> Option<ObjectRef> {
    match stream {
        LogStream::Stdout => view.logs.stdout,
        LogStream::Stderr => view.logs.stderr,
    }
}
