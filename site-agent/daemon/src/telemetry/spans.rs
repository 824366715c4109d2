//! Spans of what the site does for an attempt: under the attempt's own, which the control plane exports, one each for
//! making its inputs ready, for its process, and for taking in what that left.

use std::sync::Arc;

use anyhow::Context as _;
use atoll_model::id::SiteName;
use atoll_model::session::StepTemplate;
use atoll_model::time::Timestamp;
use atoll_telemetry::{EXPORT_PAUSE, Exporter, TraceContext, Work, attempt_span_id, span, system_time, work_span_id};
use opentelemetry::KeyValue;
use opentelemetry::trace::Status;
use opentelemetry_sdk::trace::SpanData;
use tokio::sync::mpsc;

use super::Meters;
use crate::config::Config;
use crate::link::Identity;
use crate::shim::protocol::{End, EndKind, Key};

/// Spans that wait for the exporter; what comes when it is behind by so many is left out of the traces.
const WAITING_MAX: usize = 8_192;

/// The way to the exporter. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Spans {
    sender: mpsc::Sender<SpanData>,
    site: SiteName,
    meters: Arc<Meters>,
}

/// The exporter, not yet running.
#[derive(Debug)]
pub(crate) struct Traces {
    exporter: Exporter,
    spans: mpsc::Receiver<SpanData>,
}

/// Makes the exporter, if one is configured, and the way to it. To be called within a runtime.
pub(crate) fn start_exporter(
    config: &Config,
    identity: &Identity,
    meters: &Arc<Meters>,
) -> anyhow::Result<Option<(Spans, Traces)>> {
    let Some(endpoint) = &config.otlp else { return Ok(None) };
    let attributes = vec![
        KeyValue::new("service.name", "atoll-agent"),
        KeyValue::new("service.instance.id", identity.agent.to_string()),
        KeyValue::new("atoll.site", identity.site.to_string()),
    ];
    let exporter =
        Exporter::new(endpoint, config.otlp_ca_file.as_deref(), attributes).context("traces cannot be exported")?;
    let (sender, spans) = mpsc::channel(WAITING_MAX);
    let way = Spans { sender, site: identity.site.clone(), meters: Arc::clone(meters) };
    Ok(Some((way, Traces { exporter, spans })))
}

impl Traces {
    /// Exports until everybody who has something to tell is gone.
    pub(crate) async fn run(mut self) {
        loop {
            match tokio::time::timeout(EXPORT_PAUSE, self.spans.recv()).await {
                Ok(Some(span)) => self.exporter.add(span),
                Ok(None) => break,
                Err(_) => self.exporter.export().await,
            }
            if self.exporter.is_full() {
                self.exporter.export().await;
            }
        }
        self.exporter.export().await;
    }
}

/// The context that the process of an attempt is given: what it tells of itself stands under its own span.
pub(crate) fn process_context(template: &StepTemplate, key: Key) -> Option<TraceContext> {
    let context: TraceContext = template.origin.traceparent.as_deref()?.parse().ok()?;
    Some(TraceContext { span: work_span_id(key.execution, key.attempt, Work::Process), ..context })
}

impl Spans {
    /// Tells of work that has been done for an attempt.
    pub(crate) fn done(&self, template: &StepTemplate, key: Key, work: Work, since: Timestamp, until: Timestamp) {
        if let Some(span) = self.span(template, key, work, since, until) {
            self.send(span);
        }
    }

    /// Tells of the process of an attempt.
    pub(crate) fn ran(&self, template: &StepTemplate, key: Key, end: &End) {
        let Some(mut span) = self.span(template, key, Work::Process, end.started_at, end.finished_at) else { return };
        span.attributes.extend([
            KeyValue::new("atoll.cpu_seconds", end.spent.cpu_micros as f64 / 1e6),
            KeyValue::new("atoll.max_rss_bytes", end.spent.max_rss_bytes.cast_signed()),
            KeyValue::new("atoll.disk_read_bytes", end.spent.disk_read_bytes.cast_signed()),
            KeyValue::new("atoll.disk_written_bytes", end.spent.disk_written_bytes.cast_signed()),
        ]);
        if let EndKind::Code(code) = end.how {
            span.attributes.push(KeyValue::new("process.exit.code", i64::from(code)));
        }
        span.status = match &end.how {
            EndKind::Code(0) | EndKind::Returned { .. } => Status::Ok,
            EndKind::Code(code) => Status::error(format!("exit code {code}")),
            EndKind::Signal(signal) => Status::error(format!("killed by signal {signal}")),
            EndKind::TimedOut => Status::error("it ran for longer than its time limit"),
            EndKind::OutOfMemory => Status::error("it used more memory than it may"),
            EndKind::Killed => Status::error("cancelled"),
            EndKind::NotStarted { message, .. }
            | EndKind::Interrupted { message }
            | EndKind::Failed { message, .. } => Status::error(message.clone()),
        };
        self.send(span);
    }

    fn span(
        &self,
        template: &StepTemplate,
        key: Key,
        work: Work,
        since: Timestamp,
        until: Timestamp,
    ) -> Option<SpanData> {
        let context: TraceContext = template.origin.traceparent.as_deref()?.parse().ok()?;
        if !context.flags.is_sampled() {
            return None;
        }
        let Key { execution, attempt } = key;
        let name = match work {
            Work::Inputs => "inputs",
            Work::Process => "process",
            Work::Outputs => "outputs",
        };
        let mut span = span(context, work_span_id(execution, attempt, work), name);
        span.parent_span_id = attempt_span_id(execution, attempt);
        span.parent_span_is_remote = true;
        (span.start_time, span.end_time) = (system_time(since), system_time(until));
        span.attributes = vec![
            KeyValue::new("atoll.run", execution.run.to_string()),
            KeyValue::new("atoll.execution", execution.to_string()),
            KeyValue::new("atoll.step", template.step_name.clone()),
            KeyValue::new("atoll.attempt", i64::from(attempt.0)),
            KeyValue::new("atoll.site", self.site.to_string()),
        ];
        Some(span)
    }

    fn send(&self, span: SpanData) {
        if self.sender.try_send(span).is_err() {
            self.meters.untraced_spans.inc();
        }
    }
}
