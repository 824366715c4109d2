//! Traces over OTLP, built from durable facts when an execution or a run has ended.
//!
//! Under the span of the submission, whose context the run carries and its processes are given, stands one span for the
//! run, and under that one for each attempt that ended. Ids of spans follow from those of runs and executions, so a
//! restart in the middle of a run changes nothing.

use std::collections::HashMap;
use std::time::SystemTime;

use atoll_model::id::{ExecutionId, RunId, SiteId};
use atoll_model::session::{FinishedElement, Outcome};
use atoll_model::time::Timestamp;
use atoll_telemetry::{
    EXPORT_PAUSE, Exporter, ExporterError, TraceContext, attempt_span_id, run_span_id, span, system_time,
};
use control_plane_core::Fact;
use control_plane_core::view::RunState;
use opentelemetry::KeyValue;
use opentelemetry::trace::{SpanId, SpanKind, Status};
use opentelemetry_sdk::trace::SpanData;
use tokio::sync::mpsc;

use crate::config::Telemetry;
use crate::driver::Handle;

/// Batches of facts that wait for the exporter; what comes when it is behind by so many is left out of the traces.
const WAITING_MAX: usize = 1_024;
/// What traces are made of.
#[derive(Debug)]
pub(crate) enum Traced {
    Facts(Vec<Fact>),
    Submit(SubmitSpan),
}

/// A request that submitted a run.
#[derive(Debug)]
pub(crate) struct SubmitSpan {
    pub(crate) run: RunId,
    pub(crate) context: TraceContext,
    pub(crate) parent: Option<TraceContext>,
    pub(crate) began: SystemTime,
}

/// The running exporter.
#[derive(Debug)]
pub(crate) struct Traces {
    exporter: Exporter,
    traced: mpsc::Receiver<Traced>,
    handle: Option<Handle>,
    runs: HashMap<RunId, KnownRun>,
    sites: HashMap<SiteId, String>,
}

#[derive(Debug, Clone)]
struct KnownRun {
    context: TraceContext,
    workflow: String,
    steps: Vec<String>,
    submitted_at: Timestamp,
}

/// Makes the exporter, if one is configured, and the way to it.
///
/// # Errors
/// When its settings cannot be used.
pub(crate) fn start_exporter(settings: &Telemetry) -> Result<Option<(mpsc::Sender<Traced>, Traces)>, ExporterError> {
    let Some(endpoint) = &settings.otlp_endpoint else { return Ok(None) };
    let service = KeyValue::new("service.name", "atoll");
    let exporter = Exporter::new(endpoint, settings.otlp_ca_file.as_deref(), vec![service])?;
    let (sender, traced) = mpsc::channel(WAITING_MAX);
    let traces = Traces { exporter, traced, handle: None, runs: HashMap::new(), sites: HashMap::new() };
    Ok(Some((sender, traces)))
}

impl Traces {
    /// Exports until everybody who has something to tell is gone.
    pub(crate) async fn run(mut self, handle: Handle) {
        self.handle = Some(handle);
        loop {
            match tokio::time::timeout(EXPORT_PAUSE, self.traced.recv()).await {
                Ok(Some(Traced::Submit(submit))) => self.exporter.add(submit_span(&submit)),
                Ok(Some(Traced::Facts(facts))) => {
                    for fact in &facts {
                        self.take(fact).await;
                    }
                }
                Ok(None) => break,
                Err(_) => self.exporter.export().await,
            }
            if self.exporter.is_full() {
                self.exporter.export().await;
            }
        }
        self.exporter.export().await;
    }

    #[expect(clippy::wildcard_enum_match_arm, reason = "most facts have no span, and a new one need not have")]
    async fn take(&mut self, fact: &Fact) {
        match fact {
            Fact::TokenCreated { site, site_id, .. } => {
                self.sites.insert(*site_id, site.to_string());
            }
            Fact::RunSubmitted { run, workflow, traceparent, at, .. } => {
                if let Some(context) = traceparent.as_deref().and_then(|text| text.parse().ok()) {
                    let steps = workflow.steps.iter().map(|step| step.name.clone()).collect();
                    let known = KnownRun { context, workflow: workflow.name.clone(), steps, submitted_at: *at };
                    self.runs.insert(*run, known);
                }
            }
            Fact::ExecutionsFinished { run, step, site, elements } => {
                let Some(known) = self.known(*run).await else { return };
                for finished in elements {
                    let execution = ExecutionId { run: *run, step: *step, element: finished.element };
                    let site = self.site_name(*site, execution).await;
                    self.exporter.add(attempt_span(&known, execution, finished, site));
                }
            }
            Fact::RunEnded { run, state, error, at, .. } => {
                if let Some(known) = self.known(*run).await {
                    let message = error.as_ref().map(|error| error.message.clone());
                    self.exporter.add(run_span(&known, *run, *state, message, *at));
                    self.runs.remove(run);
                }
            }
            _ => {}
        }
    }

    /// What is known of a run: noted when it was submitted, or asked of the core after a restart.
    async fn known(&mut self, run: RunId) -> Option<KnownRun> {
        if let Some(known) = self.runs.get(&run) {
            return Some(known.clone());
        }
        let ask = move |core: &control_plane_core::ControlPlane| core.run(run).zip(core.workflow(run));
        let (view, (workflow, _)) = self.handle.as_ref()?.query(ask).await.ok()??;
        let known = KnownRun {
            context: view.traceparent?.parse().ok()?,
            workflow: view.workflow,
            steps: workflow.steps.iter().map(|step| step.name.clone()).collect(),
            submitted_at: view.submitted_at,
        };
        self.runs.insert(run, known.clone());
        Some(known)
    }

    async fn site_name(&mut self, site: SiteId, execution: ExecutionId) -> Option<String> {
        if let Some(name) = self.sites.get(&site) {
            return Some(name.clone());
        }
        let view = self.handle.as_ref()?.query(move |core| core.execution(execution)).await.ok()??;
        let name = view.site?.to_string();
        self.sites.insert(site, name.clone());
        Some(name)
    }
}

fn submit_span(submit: &SubmitSpan) -> SpanData {
    let mut span = span(submit.context, submit.context.span, "submit");
    span.parent_span_id = submit.parent.map_or(SpanId::INVALID, |parent| parent.span);
    span.parent_span_is_remote = submit.parent.is_some();
    span.span_kind = SpanKind::Server;
    span.start_time = submit.began;
    span.end_time = SystemTime::now();
    span.attributes = vec![KeyValue::new("atoll.run", submit.run.to_string())];
    span
}

fn run_span(known: &KnownRun, run: RunId, state: RunState, message: Option<String>, at: Timestamp) -> SpanData {
    let mut span = span(known.context, run_span_id(run), "run");
    span.parent_span_id = known.context.span;
    span.name = format!("run {}", known.workflow).into();
    (span.start_time, span.end_time) = (system_time(known.submitted_at), system_time(at));
    span.attributes = vec![
        KeyValue::new("atoll.run", run.to_string()),
        KeyValue::new("atoll.workflow", known.workflow.clone()),
        KeyValue::new("atoll.state", crate::api::views::run_state(state)),
    ];
    span.status = match message {
        Some(message) => Status::error(message),
        None => Status::Ok,
    };
    span
}

fn attempt_span(
    known: &KnownRun,
    execution: ExecutionId,
    finished: &FinishedElement,
    site: Option<String>,
) -> SpanData {
    let step = known.steps.get(execution.step.index()).cloned().unwrap_or_else(|| execution.step.to_string());
    let mut span = span(known.context, attempt_span_id(execution, finished.attempt), "execution");
    span.parent_span_id = run_span_id(execution.run);
    span.name = step.clone().into();
    span.start_time = system_time(finished.started_at.unwrap_or(finished.finished_at));
    span.end_time = system_time(finished.finished_at);
    span.attributes = vec![
        KeyValue::new("atoll.run", execution.run.to_string()),
        KeyValue::new("atoll.execution", execution.to_string()),
        KeyValue::new("atoll.step", step),
        KeyValue::new("atoll.attempt", i64::from(finished.attempt.0)),
    ];
    span.attributes.extend(site.map(|site| KeyValue::new("atoll.site", site)));
    span.status = match &finished.outcome {
        Outcome::Succeeded => Status::Ok,
        Outcome::Cancelled => Status::error("cancelled"),
        Outcome::Failed { message, .. } | Outcome::Interrupted { message } | Outcome::NotStarted { message, .. } => {
            Status::error(message.clone())
        }
    };
    span
}
