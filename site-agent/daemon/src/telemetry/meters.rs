//! Figures for Prometheus.

use std::fmt;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Metric, Registry};

use crate::shim::protocol::EndKind;

/// Counted where it happens, shown by the listener.
#[derive(Debug)]
pub(crate) struct Meters {
    registry: Registry,
    pub(crate) executions_started: Counter,
    pub(crate) executions_present: Gauge,
    executions_ended: Family<[(&'static str, &'static str); 1], Counter>,
    pub(crate) shims: Gauge,
    pub(crate) fetched_bytes: Counter,
    pub(crate) evicted_bytes: Counter,
    pub(crate) copied_bytes: Counter,
    pub(crate) pushed_bytes: Counter,
    pub(crate) taken_bytes: Counter,
    pub(crate) given_bytes: Counter,
    pub(crate) transfers_failed: Counter,
    pub(crate) link_up: Gauge,
    pub(crate) sessions: Counter,
    pub(crate) barrier_seconds: Histogram,
    pub(crate) journal_live_bytes: Gauge,
    pub(crate) checkpoints: Counter,
    pub(crate) store_objects: Gauge,
    pub(crate) store_bytes: Gauge,
    pub(crate) disk_free_bytes: Gauge,
    pub(crate) cpu_millis_offered: Gauge,
    pub(crate) memory_bytes_offered: Gauge,
    pub(crate) load_millis: Gauge,
    pub(crate) closed: Gauge,
    pub(crate) untraced_spans: Counter,
    pub(crate) jobs_waiting: Gauge,
    pub(crate) jobs_running: Gauge,
    pub(crate) job_wait_seconds: Histogram,
}

impl Meters {
    pub(crate) fn new() -> Self {
        let mut registry = Registry::with_prefix("atoll_agent");
        let of = &mut registry;
        Self {
            executions_started: counter(of, "executions_started", "Processes started, or found running"),
            executions_present: gauge(of, "executions_present", "Attempts in the hands of the executor"),
            executions_ended: registered(of, "executions_ended", "Attempts that have ended here", Family::default()),
            shims: gauge(of, "shims", "Shims that live"),
            fetched_bytes: counter(of, "fetched_bytes", "Bytes that came from the bucket or another site"),
            evicted_bytes: counter(of, "evicted_bytes", "Bytes that the store has let go of to make room"),
            copied_bytes: counter(
                of,
                "copied_bytes",
                "Bytes copied within the site because they could not be moved, linked or cloned",
            ),
            pushed_bytes: counter(of, "pushed_bytes", "Bytes that went to the bucket"),
            taken_bytes: counter(of, "direct_taken_bytes", "Bytes that came straight from other sites"),
            given_bytes: counter(of, "direct_given_bytes", "Bytes that went straight to other sites"),
            transfers_failed: counter(of, "transfers_failed", "Fetches and pushes that came to nothing"),
            link_up: gauge(of, "link_up", "Whether the stream to the control plane is open"),
            sessions: counter(of, "sessions", "Streams opened to the control plane"),
            barrier_seconds: registered(
                of,
                "journal_barrier_seconds",
                "Time to make facts durable",
                Histogram::new(exponential_buckets(0.000_1, 2.0, 15)),
            ),
            journal_live_bytes: gauge(of, "journal_live_bytes", "Bytes of facts after the last checkpoint"),
            checkpoints: counter(of, "journal_checkpoints", "Checkpoints of the journal"),
            store_objects: gauge(of, "store_objects", "Objects in the site's store"),
            store_bytes: gauge(of, "store_bytes", "Bytes in the site's store"),
            disk_free_bytes: gauge(of, "disk_free_bytes", "Room on the disk of the data directory"),
            cpu_millis_offered: gauge(of, "cpu_millis_offered", "CPUs offered to work, in thousandths"),
            memory_bytes_offered: gauge(of, "memory_bytes_offered", "Memory offered to work"),
            load_millis: gauge(of, "load_millis", "Load average over a minute, in thousandths"),
            closed: gauge(of, "closed", "Whether the site takes no new work"),
            untraced_spans: counter(of, "untraced_spans", "Spans lost because the exporter was behind"),
            jobs_waiting: gauge(of, "jobs_waiting", "Jobs of the batch system that have not begun"),
            jobs_running: gauge(of, "jobs_running", "Jobs of the batch system that have begun and not ended"),
            job_wait_seconds: registered(
                of,
                "job_wait_seconds",
                "Time from the submission of a job to its begin",
                Histogram::new(exponential_buckets(0.1, 2.0, 18)),
            ),
            registry,
        }
    }

    pub(crate) fn ended(&self, how: &EndKind) {
        let how = match how {
            EndKind::Code(0) | EndKind::Returned { .. } => "succeeded",
            EndKind::Code(_) | EndKind::Failed { .. } => "failed",
            EndKind::Signal(_) => "signal",
            EndKind::TimedOut => "timed_out",
            EndKind::OutOfMemory => "out_of_memory",
            EndKind::Killed => "killed",
            EndKind::NotStarted { .. } => "not_started",
            EndKind::Interrupted { .. } => "interrupted",
        };
        self.executions_ended.get_or_create(&[("how", how)]).inc();
    }

    /// Everything in the text format of Prometheus.
    pub(crate) fn text(&self) -> Result<String, fmt::Error> {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry)?;
        Ok(text)
    }
}

fn counter(registry: &mut Registry, name: &str, help: &str) -> Counter {
    registered(registry, name, help, Counter::default())
}

fn gauge(registry: &mut Registry, name: &str, help: &str) -> Gauge {
    registered(registry, name, help, Gauge::default())
}

fn registered<M: Metric + Clone>(registry: &mut Registry, name: &str, help: &str, metric: M) -> M {
    registry.register(name, help, metric.clone());
    metric
}

/// As a gauge takes it.
pub(crate) fn level(value: impl TryInto<i64>) -> i64 {
    value.try_into().unwrap_or(i64::MAX)
}
