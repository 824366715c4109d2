//! Runs and their executions.

use std::collections::BTreeMap;

use atoll_model::session::Logs;
use control_plane_core::view::{CrashView, ExecutionView, MovingView, ReusedView, RunView};
use serde::Serialize;
use serde_json::{Map, Value as Json};
use utoipa::ToSchema;

use super::{execution_state, run_state, time, values};

/// A run.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct RunBody {
    pub(crate) run: String,
    /// `submitted`, `running`, `cancelling`, `succeeded`, `failed` or `cancelled`.
    pub(crate) state: &'static str,
    pub(crate) workflow: String,
    pub(crate) project: String,
    pub(crate) labels: BTreeMap<String, String>,
    /// What it was submitted with, if anything; else its workflow's counts.
    pub(crate) priority: Option<i8>,
    pub(crate) submitted_by: String,
    pub(crate) submitted_at: String,
    pub(crate) started_at: Option<String>,
    pub(crate) finished_at: Option<String>,
    #[schema(value_type = Object)]
    pub(crate) outputs: Map<String, Json>,
    pub(crate) error: Option<RunErrorBody>,
    /// Executions by state.
    pub(crate) counts: BTreeMap<&'static str, u64>,
    /// W3C trace context that the run was submitted with, or was given.
    pub(crate) traceparent: Option<String>,
    /// What moves for it, as sites have told last.
    pub(crate) moving: Vec<MovingBody>,
    /// What it uses that somebody advises against, where one run was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) warnings: Option<Vec<String>>,
    /// A page of its executions, where they were asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) executions: Option<Vec<ExecutionBody>>,
}

#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct RunErrorBody {
    step: String,
    execution: Option<String>,
    message: String,
}

/// An object on its way.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct MovingBody {
    object: String,
    /// A site, or `bucket`.
    from: String,
    to: String,
    /// That were to be moved when it began.
    bytes: u64,
    moved_bytes: u64,
    bytes_per_second: u64,
    /// At this rate; nothing while it stands still.
    seconds_left: Option<u64>,
}

impl MovingBody {
    fn new(view: &MovingView) -> Self {
        let left = view.bytes.saturating_sub(view.moved_bytes);
        Self {
            object: view.object.to_string(),
            from: view.from.clone(),
            to: view.to.clone(),
            bytes: view.bytes,
            moved_bytes: view.moved_bytes,
            bytes_per_second: view.bytes_per_second,
            seconds_left: (view.bytes_per_second > 0).then(|| left.div_ceil(view.bytes_per_second)),
        }
    }
}

impl RunBody {
    pub(crate) fn new(view: &RunView) -> Self {
        Self {
            run: view.run.to_string(),
            state: run_state(view.state),
            workflow: view.workflow.clone(),
            project: view.tags.project.clone(),
            labels: view.tags.labels.clone(),
            priority: view.tags.priority,
            submitted_by: view.submitted_by.clone(),
            submitted_at: time(view.submitted_at),
            started_at: view.started_at.map(time),
            finished_at: view.finished_at.map(time),
            outputs: values(&view.outputs),
            error: view.error.as_ref().map(|error| RunErrorBody {
                step: error.step.clone(),
                execution: error.execution.map(|execution| execution.to_string()),
                message: error.message.clone(),
            }),
            counts: view.counts.iter().map(|(state, count)| (execution_state(*state), *count)).collect(),
            traceparent: view.traceparent.clone(),
            moving: view.moving.iter().map(MovingBody::new).collect(),
            warnings: None,
            executions: None,
        }
    }
}

#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct RunsBody {
    pub(crate) runs: Vec<RunBody>,
    /// The run after which the next page begins, if there may be one.
    pub(crate) next: Option<String>,
}

/// One execution of a step.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ExecutionBody {
    execution: String,
    step: String,
    element: u32,
    attempt: u32,
    /// How much memory the attempt may use, where its step says so: more than that, where it has grown.
    memory_limit_bytes: Option<u64>,
    /// `waiting`, `ready`, `placed`, `dispatched`, `running`, `succeeded`, `failed`, `cancelled`, `skipped` or `unknown`.
    state: &'static str,
    site: Option<String>,
    submitted_at: String,
    placed_at: Option<String>,
    started_at: Option<String>,
    finished_at: Option<String>,
    #[schema(value_type = Object)]
    inputs: Map<String, Json>,
    #[schema(value_type = Object)]
    outputs: Map<String, Json>,
    exit_code: Option<i32>,
    error: Option<String>,
    usage: UsageBody,
    logs: LogsBody,
    /// Why it waits, if it does.
    waiting_for: Option<String>,
    /// The times that something went down while it ran.
    crashes: Vec<CrashBody>,
    /// It did not run: another execution had made the same.
    reused: Option<ReusedBody>,
}

/// Whose outputs an execution has taken.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ReusedBody {
    /// The execution that made them.
    made_by: String,
    /// How long that took.
    seconds: f64,
}

impl ReusedBody {
    pub(crate) fn new(view: &ReusedView) -> Self {
        Self { made_by: view.made_by.to_string(), seconds: view.took.as_secs_f64() }
    }
}

/// What watched over an attempt went down while it ran.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct CrashBody {
    at: String,
    attempt: u32,
    site: String,
    /// Which process of the site's agent has told of it.
    incarnation: u64,
    message: String,
    /// What it had written until then.
    logs: LogsBody,
}

impl CrashBody {
    pub(crate) fn new(view: &CrashView) -> Self {
        Self {
            at: time(view.at),
            attempt: view.attempt.0,
            site: view.site.clone(),
            incarnation: view.incarnation,
            message: view.message.clone(),
            logs: LogsBody::new(&view.logs),
        }
    }
}

#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct UsageBody {
    cpu_seconds: f64,
    max_rss_bytes: u64,
    bytes_in: u64,
    bytes_out: u64,
    /// Read from disks; what was in memory already is not among them.
    disk_read_bytes: u64,
    disk_written_bytes: u64,
}

/// The objects that hold what it wrote; nothing where nothing was written, or it has not ended.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct LogsBody {
    stdout: Option<String>,
    stderr: Option<String>,
}

impl LogsBody {
    fn new(logs: &Logs) -> Self {
        Self {
            stdout: logs.stdout.map(|object| object.id.to_string()),
            stderr: logs.stderr.map(|object| object.id.to_string()),
        }
    }
}

impl ExecutionBody {
    pub(crate) fn new(view: &ExecutionView) -> Self {
        Self {
            execution: view.execution.to_string(),
            step: view.step.clone(),
            element: view.execution.element,
            attempt: view.attempt.0,
            memory_limit_bytes: view.memory_limit_bytes,
            state: execution_state(view.state),
            site: view.site.as_ref().map(ToString::to_string),
            submitted_at: time(view.submitted_at),
            placed_at: view.placed_at.map(time),
            started_at: view.started_at.map(time),
            finished_at: view.finished_at.map(time),
            inputs: values(&view.inputs),
            outputs: values(&view.outputs),
            exit_code: view.exit_code,
            error: view.error.clone(),
            usage: UsageBody {
                cpu_seconds: view.usage.cpu_micros as f64 / 1e6,
                max_rss_bytes: view.usage.max_rss_bytes,
                bytes_in: view.usage.bytes_in,
                bytes_out: view.usage.bytes_out,
                disk_read_bytes: view.usage.disk_read_bytes,
                disk_written_bytes: view.usage.disk_written_bytes,
            },
            logs: LogsBody::new(&view.logs),
            waiting_for: view.waiting_for.clone(),
            crashes: view.crashes.iter().map(CrashBody::new).collect(),
            reused: view.reused.as_ref().map(ReusedBody::new),
        }
    }
}
