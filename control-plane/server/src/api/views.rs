//! What people are shown, as JSON: the one translation from the core's views.

use std::collections::BTreeMap;

use atoll_model::diagnostic::Diagnostic;
use atoll_model::placement::{Explanation, SiteVerdict};
use atoll_model::resources::Capacity;
use atoll_model::time::Timestamp;
use atoll_model::value::{ObjectKind, ObjectRef, Value};
use control_plane_core::view::{
    ExecutionState, ExecutionView, LedgerView, ObjectView, PlanView, PlannedEdge, RunState, RunView, SiteState,
    SiteView,
};
use indexmap::IndexMap;
use serde::Serialize;
use serde_json::{Map, Value as Json};
use utoipa::ToSchema;

use super::error::DiagnosticBody;

pub(crate) fn time(at: Timestamp) -> String {
    at.to_string()
}

fn values(values: &IndexMap<String, Value>) -> Map<String, Json> {
    values.iter().map(|(name, value)| (name.clone(), value.to_json())).collect()
}

pub(crate) const fn run_state(state: RunState) -> &'static str {
    match state {
        RunState::Submitted => "submitted",
        RunState::Running => "running",
        RunState::Cancelling => "cancelling",
        RunState::Succeeded => "succeeded",
        RunState::Failed => "failed",
        RunState::Cancelled => "cancelled",
    }
}

pub(crate) fn parse_run_state(text: &str) -> Option<RunState> {
    let states = [
        RunState::Submitted,
        RunState::Running,
        RunState::Cancelling,
        RunState::Succeeded,
        RunState::Failed,
        RunState::Cancelled,
    ];
    states.into_iter().find(|state| run_state(*state) == text)
}

pub(crate) const fn has_ended(state: RunState) -> bool {
    match state {
        RunState::Submitted | RunState::Running | RunState::Cancelling => false,
        RunState::Succeeded | RunState::Failed | RunState::Cancelled => true,
    }
}

pub(crate) const fn execution_state(state: ExecutionState) -> &'static str {
    match state {
        ExecutionState::Waiting => "waiting",
        ExecutionState::Ready => "ready",
        ExecutionState::Placed => "placed",
        ExecutionState::Dispatched => "dispatched",
        ExecutionState::Running => "running",
        ExecutionState::Succeeded => "succeeded",
        ExecutionState::Failed => "failed",
        ExecutionState::Cancelled => "cancelled",
        ExecutionState::Skipped => "skipped",
        ExecutionState::Unknown => "unknown",
    }
}

pub(crate) const fn execution_has_ended(state: ExecutionState) -> bool {
    match state {
        ExecutionState::Waiting
        | ExecutionState::Ready
        | ExecutionState::Placed
        | ExecutionState::Dispatched
        | ExecutionState::Running
        | ExecutionState::Unknown => false,
        ExecutionState::Succeeded | ExecutionState::Failed | ExecutionState::Cancelled | ExecutionState::Skipped => {
            true
        }
    }
}

pub(crate) const fn site_state(state: SiteState) -> &'static str {
    match state {
        SiteState::Expected => "expected",
        SiteState::Ready => "ready",
        SiteState::Syncing => "syncing",
        SiteState::Suspect => "suspect",
        SiteState::Disconnected => "disconnected",
        SiteState::Lost => "lost",
        SiteState::Draining => "draining",
        SiteState::Revoked => "revoked",
        SiteState::Quarantined => "quarantined",
    }
}

pub(crate) const fn object_kind(kind: ObjectKind) -> &'static str {
    match kind {
        ObjectKind::File => "file",
        ObjectKind::Tree => "tree",
    }
}

/// A run.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct RunBody {
    pub(crate) run: String,
    /// `submitted`, `running`, `cancelling`, `succeeded`, `failed` or `cancelled`.
    pub(crate) state: &'static str,
    pub(crate) workflow: String,
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

impl RunBody {
    pub(crate) fn new(view: &RunView) -> Self {
        Self {
            run: view.run.to_string(),
            state: run_state(view.state),
            workflow: view.workflow.clone(),
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
            executions: None,
        }
    }
}

#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct RunsBody {
    pub(crate) runs: Vec<RunBody>,
}

/// One execution of a step.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ExecutionBody {
    execution: String,
    step: String,
    element: u32,
    attempt: u32,
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
}

#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct UsageBody {
    cpu_seconds: f64,
    max_rss_bytes: u64,
    bytes_in: u64,
    bytes_out: u64,
}

/// The objects that hold what it wrote; nothing where nothing was written, or it has not ended.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct LogsBody {
    stdout: Option<String>,
    stderr: Option<String>,
}

impl ExecutionBody {
    pub(crate) fn new(view: &ExecutionView) -> Self {
        Self {
            execution: view.execution.to_string(),
            step: view.step.clone(),
            element: view.execution.element,
            attempt: view.attempt.0,
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
            },
            logs: LogsBody {
                stdout: view.logs.stdout.map(|object| object.id.to_string()),
                stderr: view.logs.stderr.map(|object| object.id.to_string()),
            },
            waiting_for: view.waiting_for.clone(),
        }
    }
}

/// Why an execution is where it is.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ExplanationBody {
    chosen: Option<String>,
    sites: Vec<SiteVerdictBody>,
}

#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct SiteVerdictBody {
    site: String,
    feasible: bool,
    reason: String,
    /// Lower is better.
    terms: BTreeMap<String, f64>,
}

fn verdicts(sites: &[SiteVerdict]) -> Vec<SiteVerdictBody> {
    let verdict = |site: &SiteVerdict| SiteVerdictBody {
        site: site.site.to_string(),
        feasible: site.feasible,
        reason: site.reason.clone(),
        terms: site.terms.clone(),
    };
    sites.iter().map(verdict).collect()
}

impl ExplanationBody {
    pub(crate) fn new(explanation: &Explanation) -> Self {
        Self { chosen: explanation.chosen.as_ref().map(ToString::to_string), sites: verdicts(&explanation.sites) }
    }
}

/// One crossing of a border.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct LedgerEntryBody {
    pub(crate) object: String,
    pub(crate) bytes: u64,
    /// A site's name, `bucket`, or `client`.
    pub(crate) from: String,
    pub(crate) to: String,
    pub(crate) route: String,
    pub(crate) for_execution: Option<String>,
    pub(crate) run: Option<String>,
    /// Which rule asked for it, or `when-needed`.
    pub(crate) rule: String,
    pub(crate) at: String,
}

impl LedgerEntryBody {
    pub(crate) fn new(view: &LedgerView) -> Self {
        Self {
            object: view.object.to_string(),
            bytes: view.bytes,
            from: view.from.clone(),
            to: view.to.clone(),
            route: view.route.clone(),
            for_execution: view.for_execution.map(|execution| execution.to_string()),
            run: view.run.map(|run| run.to_string()),
            rule: view.rule.clone(),
            at: time(view.at),
        }
    }
}

#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct LedgerBody {
    entries: Vec<LedgerEntryBody>,
    bytes_total: u64,
}

impl LedgerBody {
    pub(crate) fn new(entries: &[LedgerView]) -> Self {
        Self {
            entries: entries.iter().map(LedgerEntryBody::new).collect(),
            bytes_total: entries.iter().map(|entry| entry.bytes).sum(),
        }
    }
}

/// Where an object is, and how it came there.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ObjectBody {
    object: String,
    /// `file` or `tree`.
    kind: &'static str,
    bytes: u64,
    /// Names of sites, and `bucket`.
    replicas: Vec<String>,
    ledger: Vec<LedgerEntryBody>,
    /// The only sites that it may be at; nothing if it may be anywhere.
    confined_to: Option<Vec<String>>,
}

impl ObjectBody {
    pub(crate) fn new(view: &ObjectView) -> Self {
        let ObjectRef { id, kind, bytes } = view.object;
        Self {
            object: id.to_string(),
            kind: object_kind(kind),
            bytes,
            replicas: view.replicas.clone(),
            ledger: view.ledger.iter().map(LedgerEntryBody::new).collect(),
            confined_to: view.confined_to.as_ref().map(|sites| sites.iter().map(ToString::to_string).collect()),
        }
    }
}

#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct SitesBody {
    pub(crate) sites: Vec<SiteBody>,
}

/// A site and its agent.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct SiteBody {
    site: String,
    /// `expected`, `ready`, `syncing`, `suspect`, `disconnected`, `lost`, `draining`, `revoked` or `quarantined`.
    state: &'static str,
    labels: BTreeMap<String, String>,
    agent_version: Option<String>,
    connected_since: Option<String>,
    last_heard: Option<String>,
    capacity: CapacityBody,
    free: CapacityBody,
    running: u64,
    queued: u64,
    store: StoreBody,
    /// Why it takes no work, if it does not.
    reason: Option<String>,
}

#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct CapacityBody {
    cpus: f64,
    memory_bytes: u64,
    disk_free_bytes: u64,
}

#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct StoreBody {
    objects: u64,
    bytes: u64,
}

impl CapacityBody {
    fn new(capacity: &Capacity) -> Self {
        Self {
            cpus: f64::from(capacity.cpu_millis) / 1_000.0,
            memory_bytes: capacity.memory_bytes,
            disk_free_bytes: capacity.disk_free_bytes,
        }
    }
}

impl SiteBody {
    pub(crate) fn new(view: &SiteView) -> Self {
        Self {
            site: view.site.to_string(),
            state: site_state(view.state),
            labels: view.labels.clone(),
            agent_version: view.agent_version.clone(),
            connected_since: view.connected_since.map(time),
            last_heard: view.last_heard.map(time),
            capacity: CapacityBody::new(&view.capacity),
            free: CapacityBody::new(&view.free),
            running: view.running,
            queued: view.queued,
            store: StoreBody { objects: view.store_objects, bytes: view.store_bytes },
            reason: view.reason.clone(),
        }
    }
}

/// What placement would do.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct PlanBody {
    steps: Vec<PlannedStepBody>,
    edges: Vec<PlannedEdgeBody>,
}

#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct PlannedStepBody {
    step: String,
    site: Option<String>,
    explanation: Vec<SiteVerdictBody>,
}

#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct PlannedEdgeBody {
    from: String,
    to: String,
    bytes_expected: Option<u64>,
    /// `local` or `bucket`.
    route: String,
    rule: String,
}

impl PlanBody {
    pub(crate) fn new(view: &PlanView) -> Self {
        let step = |(step, explanation): &(String, Explanation)| PlannedStepBody {
            step: step.clone(),
            site: explanation.chosen.as_ref().map(ToString::to_string),
            explanation: verdicts(&explanation.sites),
        };
        let edge = |edge: &PlannedEdge| PlannedEdgeBody {
            from: edge.from.clone(),
            to: edge.to.clone(),
            bytes_expected: edge.bytes_expected,
            route: edge.route.clone(),
            rule: edge.rule.clone(),
        };
        Self { steps: view.steps.iter().map(step).collect(), edges: view.edges.iter().map(edge).collect() }
    }
}

/// What is wrong with a workflow, if anything is.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct CheckBody {
    valid: bool,
    errors: Vec<DiagnosticBody>,
}

impl CheckBody {
    pub(crate) fn new(diagnostics: &[Diagnostic]) -> Self {
        Self { valid: diagnostics.is_empty(), errors: diagnostics.iter().map(DiagnosticBody::new).collect() }
    }
}
