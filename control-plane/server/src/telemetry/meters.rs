//! Figures for Prometheus: of the shell, counted here; of the core, read when somebody asks.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use control_plane_core::view::Counters;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric as _};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

use crate::api::views::{execution_state, run_state, site_state};

/// Counted by the driver, shown by the API.
#[derive(Debug)]
pub(crate) struct Meters {
    registry: Registry,
    core: Arc<CoreFigures>,
    pub(crate) driver_batch: Histogram,
    pub(crate) barrier_seconds: Histogram,
    pub(crate) barrier_facts: Histogram,
    pub(crate) journal_live_bytes: Gauge,
    pub(crate) journal_disk_bytes: Gauge,
    pub(crate) checkpoints: Counter,
    pub(crate) untraced_batches: Counter,
    /// The journal's thread would like the core's thread to hand it a snapshot.
    snapshot_wish: AtomicBool,
}

impl Meters {
    pub(crate) fn new() -> Self {
        let mut registry = Registry::with_prefix("atoll");
        let core = Arc::new(CoreFigures::default());
        registry.register_collector(Box::new(Arc::clone(&core)));
        let sizes = || Histogram::new(exponential_buckets(1.0, 2.0, 13));
        Self {
            core,
            driver_batch: registered(
                &mut registry,
                "driver_batch_inputs",
                "Events and questions handled in one turn",
                sizes(),
            ),
            barrier_seconds: registered(
                &mut registry,
                "journal_barrier_seconds",
                "Time to make facts durable",
                Histogram::new(exponential_buckets(0.000_1, 2.0, 15)),
            ),
            barrier_facts: registered(&mut registry, "journal_barrier_facts", "Facts made durable at once", sizes()),
            journal_live_bytes: registered(
                &mut registry,
                "journal_live_bytes",
                "Bytes of the checkpoint and of what follows it",
                Gauge::default(),
            ),
            journal_disk_bytes: registered(
                &mut registry,
                "journal_disk_bytes",
                "Bytes of the journal on disk",
                Gauge::default(),
            ),
            checkpoints: registered(
                &mut registry,
                "journal_checkpoints",
                "Checkpoints of the journal",
                Counter::default(),
            ),
            untraced_batches: registered(
                &mut registry,
                "untraced_batches",
                "Batches left out of the traces because the exporter was behind",
                Counter::default(),
            ),
            snapshot_wish: AtomicBool::new(false),
            registry,
        }
    }

    pub(crate) fn wish_for_snapshot(&self) {
        self.snapshot_wish.store(true, Ordering::Relaxed);
    }

    pub(crate) fn take_snapshot_wish(&self) -> bool {
        self.snapshot_wish.load(Ordering::Relaxed) && self.snapshot_wish.swap(false, Ordering::Relaxed)
    }

    /// Everything in the text format of Prometheus, with these figures of the core.
    pub(crate) fn text(&self, counters: Counters) -> Result<String, fmt::Error> {
        *self.core.0.lock().unwrap_or_else(PoisonError::into_inner) = counters;
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry)?;
        Ok(text)
    }
}

fn registered<M>(registry: &mut Registry, name: &str, help: &str, metric: M) -> M
where
    M: prometheus_client::registry::Metric + Clone,
{
    registry.register(name, help, metric.clone());
    metric
}

/// What the core has counted when it was last asked.
#[derive(Debug, Default)]
struct CoreFigures(Mutex<Counters>);

impl Collector for CoreFigures {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let counters = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let counted = [
            ("runs_submitted", "Runs submitted", counters.runs_submitted),
            ("executions_dispatched", "Attempts handed to agents", counters.executions_dispatched),
            ("executions_started", "Attempts started", counters.executions_started),
            ("executions_returned", "Attempts followed by another", counters.executions_returned),
            ("executions_reused", "Executions that took what others had made", counters.executions_reused),
            ("late_outcomes", "Outcomes that came when another had been accepted", counters.late_outcomes),
            ("bucket_written_bytes", "Bytes that sites sent to the bucket", counters.bytes_to_bucket),
            ("bucket_read_bytes", "Bytes that sites read from the bucket", counters.bytes_from_bucket),
            ("sessions_opened", "Sessions of agents", counters.sessions_opened),
            ("agents_lost", "Agents declared lost", counters.agents_lost),
        ];
        for (name, help, value) in counted {
            let counter = ConstCounter::new(value);
            counter.encode(encoder.encode_descriptor(name, help, None, MetricType::Counter)?)?;
        }
        let present = [
            ("runs_live", "Runs that have not ended", counters.runs_live),
            ("executions_waiting", "Executions that wait to be placed", counters.executions_waiting),
            ("executions_outstanding", "Executions that agents have", counters.executions_outstanding),
            ("bucket_objects", "Objects in the bucket", counters.objects_in_bucket),
            ("expired_objects", "Objects whose time is over and that are still somewhere", counters.objects_expired),
            ("expired_objects_undecided", "Objects whose time is over, by rules that ask", counters.objects_asking),
            ("lacking_copies_objects", "Objects that lack copies which rules want", counters.objects_lacking_copies),
            ("late_copies_objects", "Objects whose copies are not there in time", counters.objects_late),
            (
                "sites_held_back",
                "Sites not declared lost because too many fell silent together",
                counters.sites_held_back,
            ),
            ("transfers_live", "Transfers on their way", counters.transfers_live),
        ];
        for (name, help, value) in present {
            let gauge = ConstGauge::new(value as i64);
            gauge.encode(encoder.encode_descriptor(name, help, None, MetricType::Gauge)?)?;
        }
        let runs: Vec<_> = counters.runs_ended.iter().map(|(state, count)| (run_state(*state), *count)).collect();
        families(&mut encoder, "runs_ended", "Runs that have ended", MetricType::Counter, &runs)?;
        let ended = counters.executions_ended.iter();
        let ended: Vec<_> = ended.map(|(state, count)| (execution_state(*state), *count)).collect();
        families(&mut encoder, "executions_ended", "Executions that have ended", MetricType::Counter, &ended)?;
        let sites: Vec<_> = counters.sites_by_state.iter().map(|(state, count)| (site_state(*state), *count)).collect();
        families(&mut encoder, "sites", "Sites", MetricType::Gauge, &sites)
    }
}

fn families(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    kind: MetricType,
    by_state: &[(&'static str, u64)],
) -> fmt::Result {
    let mut descriptor = encoder.encode_descriptor(name, help, None, kind)?;
    for (state, count) in by_state {
        let labels = [("state", *state)];
        let metric = descriptor.encode_family(&labels)?;
        match kind {
            MetricType::Counter => ConstCounter::new(*count).encode(metric)?,
            MetricType::Gauge | MetricType::Histogram | MetricType::Info | MetricType::Unknown => {
                ConstGauge::new(*count as i64).encode(metric)?;
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use control_plane_core::view::RunState;

    #[test]
    fn the_cores_figures_stand_beside_the_shells() {
        let meters = Meters::new();
        meters.barrier_facts.observe(3.0);
        let counters = Counters {
            runs_submitted: 5,
            runs_ended: [(RunState::Failed, 2)].into(),
            executions_waiting: 7,
            ..Counters::default()
        };
        let text = meters.text(counters).expect("it can be encoded");
        for line in [
            "atoll_runs_submitted_total 5",
            "atoll_runs_ended_total{state=\"failed\"} 2",
            "atoll_executions_waiting 7",
            "atoll_journal_barrier_facts_count 1",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is missing in\n{text}");
        }
    }
}
