//! Recorded scientific workflows, placed by the planner that places real runs, beside what a partitioner that only minds
//! bytes and a scheduler that only minds time make of them.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail, ensure};
use clap::{Args, ValueEnum};
use control_plane_core::Config;
use control_plane_core::look_ahead::{Aim, Goal, Links, SITES_MAX};
use control_plane_replay::{Carried, Installation, Reference, Trace, heft, least_bytes, replay};
use serde_json::{Map, Value, json};

use super::Findings;

/// Runs of each trace: the first by a planner that knows nothing of it, the others by one that has seen it before.
const RUNS: u8 = 2;

#[derive(Debug, Args)]
pub(super) struct TraceArguments {
    /// WfCommons instances (WfFormat).
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Sites of equal speed.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u8).range(1..=SITES_MAX as i64))]
    sites: u8,
    /// What is to be little, as a server's `[placement] aim` says it: bytes that cross a border, or time. With `greedy`
    /// the planner does not look ahead.
    #[arg(long, value_enum, default_value_t = Policy::Bytes)]
    policy: Policy,
    /// Of the tasks' run time, what one site may have at most [default: 0.6 of two sites, 0.45 of three].
    #[arg(long)]
    share_max: Option<f64>,
    /// Tasks that a site runs at a time.
    #[arg(long, default_value_t = 48, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    slots: u32,
    /// Bytes in a second between any two sites.
    #[arg(long, default_value = "125MB")]
    bandwidth: String,
    /// Before the first byte of a transfer arrives.
    #[arg(long, default_value_t = 50)]
    latency_ms: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Policy {
    Bytes,
    Time,
    Greedy,
}

impl Policy {
    fn name(self) -> &'static str {
        match self {
            Self::Bytes => "bytes",
            Self::Time => "time",
            Self::Greedy => "greedy",
        }
    }
}

pub(super) fn measure(arguments: &TraceArguments) -> anyhow::Result<Findings> {
    let sites = usize::from(arguments.sites);
    let share_max = arguments.share_max.unwrap_or_else(|| share_default(sites));
    ensure!(share_max > 0.0 && share_max <= 1.0, "--share-max is a share: more than 0, at most 1");
    let bandwidth = atoll_model::units::parse_size(&arguments.bandwidth).map_err(|error| anyhow::anyhow!("{error}"))?;
    ensure!(bandwidth > 0, "--bandwidth must be more than nothing");
    let effort = if arguments.policy == Policy::Greedy { 0 } else { Config::default().goal.effort };
    let aim = if arguments.policy == Policy::Time { Aim::Time } else { Aim::Bytes };
    let installation = Installation {
        sites,
        processors: arguments.slots,
        links: Links { bytes_per_second: bandwidth as f64, latency_micros: u64::from(arguments.latency_ms) * 1_000 },
        goal: Goal { aim, share_max, effort },
    };
    let mut traces = Vec::new();
    for file in &arguments.files {
        traces.push(one(file, &installation).with_context(|| file.display().to_string())?);
    }
    let settings = json!({
        "sites": sites,
        "policy": arguments.policy.name(),
        "share_max": share_max,
        "slots_per_site": arguments.slots,
        "bytes_per_second": bandwidth,
        "latency_ms": arguments.latency_ms,
    });
    let mut results = summary(&traces);
    results.insert("traces".to_owned(), Value::Array(traces));
    Ok(Findings { bench: "trace", settings, results })
}

/// A fifth more than an even share of two sites, and as much again for each further one.
fn share_default(sites: usize) -> f64 {
    let sites = sites as f64;
    (1.0 / sites * (0.9 + 0.15 * sites)).min(1.0)
}

fn one(file: &Path, installation: &Installation) -> anyhow::Result<Value> {
    let text = std::fs::read_to_string(file)?;
    let trace = Trace::parse(&text)?;
    let carried = replay(&trace, installation, RUNS)?;
    let [first, .., known] = carried.as_slice() else { bail!("it was not carried out") };
    let cpu_millis = installation.processors.saturating_mul(1_000);
    let graph = trace.graph(installation.sites, cpu_millis, installation.links);
    let (fewest, soonest) = (least_bytes(&graph, installation.goal.share_max), heft(&graph));
    let produced = trace.produced_bytes();
    let figures = Figures { produced, task_seconds: trace.task_seconds() };
    let mut shown = figures.carried(known);
    shown.insert("trace".to_owned(), json!(file.file_name().unwrap_or_default().to_string_lossy()));
    shown.insert("name".to_owned(), json!(trace.name));
    shown.insert("tasks".to_owned(), json!(trace.tasks.len()));
    shown.insert("task_seconds".to_owned(), json!(trace.task_seconds()));
    shown.insert("bytes_produced".to_owned(), json!(produced));
    shown.insert("bytes_of_min_cut".to_owned(), ratio(known.crossing_bytes as f64, fewest.crossing_bytes as f64));
    shown.insert("makespan_of_heft".to_owned(), ratio(known.makespan_seconds, soonest.makespan_seconds));
    shown.insert("min_cut".to_owned(), figures.reference(&fewest));
    shown.insert("heft".to_owned(), figures.reference(&soonest));
    shown.insert("without_history".to_owned(), Value::Object(figures.carried(first)));
    let name = |site: &usize| format!("site-{}", site + 1);
    let placements: Map<String, Value> =
        trace.tasks.iter().zip(&known.site_of).map(|(task, site)| (task.name.clone(), json!(name(site)))).collect();
    shown.insert("placements".to_owned(), Value::Object(placements));
    Ok(Value::Object(shown))
}

struct Figures {
    produced: u64,
    task_seconds: f64,
}

impl Figures {
    fn carried(&self, carried: &Carried) -> Map<String, Value> {
        let most = carried.site_seconds.iter().copied().fold(0.0, f64::max);
        let mut shown = Map::new();
        shown.insert("bytes_crossing".to_owned(), json!(carried.crossing_bytes));
        shown.insert("share_crossing".to_owned(), self.share(carried.crossing_bytes));
        shown.insert("makespan_seconds".to_owned(), json!(carried.makespan_seconds));
        shown.insert("site_seconds".to_owned(), json!(carried.site_seconds));
        shown.insert("site_share_max".to_owned(), ratio(most, self.task_seconds));
        shown
    }

    fn reference(&self, reference: &Reference) -> Value {
        json!({
            "bytes_crossing": reference.crossing_bytes,
            "share_crossing": self.share(reference.crossing_bytes),
            "makespan_seconds": reference.makespan_seconds,
        })
    }

    fn share(&self, bytes: u64) -> Value {
        ratio(bytes as f64, self.produced as f64)
    }
}

/// One number as so many times another; nothing and nothing are alike, and something is no multiple of nothing.
fn ratio(of: f64, to: f64) -> Value {
    if of == to {
        json!(1.0)
    } else if to > 0.0 {
        json!(of / to)
    } else {
        Value::Null
    }
}

/// Over all traces: what all make together, and the worst of each comparison.
fn summary(traces: &[Value]) -> Map<String, Value> {
    let worst = |field: &str| traces.iter().filter_map(|trace| trace[field].as_f64()).fold(0.0, f64::max);
    let within =
        |field: &str| traces.iter().filter(|trace| trace[field].as_f64().is_some_and(|ratio| ratio <= 1.1)).count();
    let mut summary = Map::new();
    for field in ["share_crossing", "site_share_max", "bytes_of_min_cut", "makespan_of_heft"] {
        summary.insert(format!("{field}_worst"), json!(worst(field)));
    }
    summary.insert("bytes_within_a_tenth_of_min_cut".to_owned(), json!(within("bytes_of_min_cut")));
    summary.insert("makespan_within_a_tenth_of_heft".to_owned(), json!(within("makespan_of_heft")));
    summary
}

/// A line for each trace.
pub(super) fn print(findings: &Findings) {
    println!("trace {}", findings.settings);
    println!(
        "  {:<44} {:>5}  {:>12} {:>8} {:>9}  {:>10} {:>8}  {:>6}",
        "trace", "tasks", "bytes cross", "share", "× min-cut", "makespan s", "× HEFT", "most"
    );
    let number =
        |value: &Value, digits: usize| value.as_f64().map_or("-".to_owned(), |number| format!("{number:.digits$}"));
    for trace in findings.results["traces"].as_array().into_iter().flatten() {
        println!(
            "  {:<44} {:>5}  {:>12} {:>8} {:>9}  {:>10} {:>8}  {:>6}",
            trace["trace"].as_str().unwrap_or("-"),
            trace["tasks"],
            trace["bytes_crossing"],
            number(&trace["share_crossing"], 4),
            number(&trace["bytes_of_min_cut"], 3),
            number(&trace["makespan_seconds"], 1),
            number(&trace["makespan_of_heft"], 3),
            number(&trace["site_share_max"], 3),
        );
    }
}
