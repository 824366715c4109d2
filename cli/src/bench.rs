//! `atoll bench`: what Atoll costs, measured on installations that it starts itself: server and agents as processes of
//! their own, mutual TLS on loopback, durable journals, defaults.

mod agents;
mod chain;
mod counting;
mod engine;
mod fleet;
mod handoff;
mod latency;
mod machine;
mod python;
mod queue;
mod shape;
mod trace;
mod transfer;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use clap::{Args, Subcommand, ValueEnum};
use serde_json::{Map, Value, json};

use shape::Shape;

use crate::client::Client;
use crate::installation::{Installation, Options};

#[derive(Debug, Args)]
pub(crate) struct BenchArguments {
    #[command(subcommand)]
    what: Bench,
    /// Print one JSON document instead of a table.
    #[arg(long, global = true)]
    json: bool,
    /// Where the installations that are measured keep their data: the disk under it is part of what is measured.
    #[arg(long, global = true)]
    data_dir: Option<PathBuf>,
    /// Store of the control plane's journal: sled, redb or postgres://… (in a schema of its own, which is removed).
    #[arg(long, global = true)]
    store: Option<String>,
    /// Bucket of the installations that are measured, if it is not to be a directory of theirs: s3://…, gs://…, az://…
    #[arg(long, global = true)]
    bucket: Option<String>,
}

#[derive(Debug, Subcommand)]
enum Bench {
    /// Executions per second, from submit to the last one's recorded outcome.
    Engine {
        #[arg(long, default_value_t = 100_000)]
        executions: u32,
        #[arg(long, default_value_t = 1)]
        sites: u32,
        /// What an execution does: nothing, a process of `/bin/true`, or a call of a handler in Python.
        #[arg(long, value_enum, default_value_t = ExecutorKind::Null)]
        executor: ExecutorKind,
        /// How the executions depend on one another.
        #[arg(long, value_enum, default_value_t = Shape::Fan)]
        shape: Shape,
    },
    /// One run of one step, from the submit to its end, over and over.
    Latency {
        #[arg(long, default_value_t = 200)]
        runs: u32,
    },
    /// The time that one step of a chain takes.
    Chain {
        #[arg(long, default_value_t = 200)]
        steps: u32,
        /// What a step does: nothing, or a process or a handler in Python that adds one to what it was handed.
        #[arg(long, value_enum, default_value_t = ExecutorKind::Process)]
        executor: ExecutorKind,
        /// With more than one, the steps alternate between them.
        #[arg(long, default_value_t = 1)]
        sites: u32,
    },
    /// Calls of a handler in Python, at an executor alone: the first, one after the other, and many at once.
    Python {
        #[arg(long, default_value_t = 1_000)]
        calls: u32,
        #[arg(long, default_value_t = 30_000)]
        at_once: u32,
    },
    /// Memory that waiting executions take, and the time to recover them.
    Queue {
        #[arg(long, default_value_t = 1_000_000)]
        executions: u32,
    },
    /// Memory and CPU that connected agents without work take, and the time until all are back after a restart.
    Agents {
        #[arg(long, default_value_t = 10_000)]
        count: u32,
        /// Processes that simulate the agents.
        #[arg(long, default_value_t = 2)]
        processes: u32,
        /// How long the server is watched while nothing happens.
        #[arg(long, default_value_t = 30)]
        idle_seconds: u32,
    },
    /// A process of simulated agents; started by `agents`.
    #[command(hide = true)]
    Fleet,
    /// Handing a file, or a directory of files, to the next step on another site.
    Transfer {
        /// Of the file, or of all files together.
        #[arg(long, default_value = "1GiB")]
        size: String,
        /// A directory of so many files instead of one file.
        #[arg(long)]
        files: Option<u32>,
        #[arg(long, value_enum, default_value_t = Route::Direct)]
        route: Route,
    },
    /// Recorded workflows of WfCommons, replayed through the planner that places real runs: bytes that cross, and makespan.
    Trace(trace::TraceArguments),
    /// Handing one file to the next step on the same site.
    Handoff {
        #[arg(long, default_value = "10GiB")]
        size: String,
        /// As a tree of so many files, together of that size.
        #[arg(long, default_value_t = 1)]
        files: u64,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum ExecutorKind {
    Null,
    Process,
    Python,
}

impl ExecutorKind {
    fn name(self) -> &'static str {
        match self {
            Self::Null => "null",
            Self::Process => "process",
            Self::Python => "python",
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Route {
    Direct,
    Bucket,
}

/// What one benchmark found, and with which settings.
#[derive(Debug)]
struct Findings {
    bench: &'static str,
    settings: Value,
    results: Map<String, Value>,
}

/// Runs one benchmark and prints what it found.
///
/// # Errors
/// When the installation cannot be started, or a run of the benchmark fails.
pub(crate) async fn bench(arguments: BenchArguments) -> anyhow::Result<()> {
    let place = Place { data_dir: arguments.data_dir, store: arguments.store, bucket: arguments.bucket };
    let findings = match arguments.what {
        Bench::Engine { executions, sites, executor, shape } => {
            engine::measure(&place, executions, sites, executor, shape).await?
        }
        Bench::Latency { runs } => latency::measure(&place, runs).await?,
        Bench::Chain { steps, executor, sites } => chain::measure(&place, steps, executor, sites).await?,
        Bench::Python { calls, at_once } => python::measure(&place, calls, at_once).await?,
        Bench::Queue { executions } => queue::measure(&place, executions).await?,
        Bench::Agents { count, processes, idle_seconds } => {
            let idle = Duration::from_secs(u64::from(idle_seconds));
            agents::measure(&place, agents::Scale { count, processes, idle }).await?
        }
        Bench::Fleet => return fleet::serve().await,
        Bench::Transfer { size, files, route } => transfer::measure(&place, &size, files, route).await?,
        Bench::Trace(trace) => trace::measure(&trace)?,
        Bench::Handoff { size, files } => handoff::measure(&place, &size, files).await?,
    };
    let document = json!({
        "bench": findings.bench,
        "settings": findings.settings,
        "results": findings.results,
        "machine": machine::describe(),
        "version": env!("CARGO_PKG_VERSION"),
    });
    if arguments.json {
        println!("{document}");
    } else if findings.bench == "trace" {
        trace::print(&findings);
    } else {
        print_table(&findings);
    }
    Ok(())
}

fn print_table(findings: &Findings) {
    println!("{} {}", findings.bench, findings.settings);
    let width = findings.results.keys().map(String::len).max().unwrap_or(0);
    for (name, value) in &findings.results {
        let shown = match value {
            Value::Number(number) if number.is_f64() => format!("{:.3}", number.as_f64().unwrap_or(f64::NAN)),
            Value::Object(fields) => fields
                .iter()
                .map(|(name, value)| format!("{name} {:.3}", value.as_f64().unwrap_or(f64::NAN)))
                .collect::<Vec<_>>()
                .join("   "),
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_) => value.to_string(),
        };
        println!("  {name:<width$}  {shown}");
    }
}

/// Where installations are started, and with which store.
#[derive(Debug)]
struct Place {
    data_dir: Option<PathBuf>,
    store: Option<String>,
    bucket: Option<String>,
}

/// An installation that is stopped, and its directory removed, when the measurement is over.
#[derive(Debug)]
struct Measured {
    installation: Installation,
    client: Client,
    _directory: tempfile::TempDir,
    _schema: Option<Schema>,
}

/// What an installation keeps in a database: a schema of its own, removed with it.
#[derive(Debug)]
struct Schema(control_plane_postgres::Address);

impl Drop for Schema {
    fn drop(&mut self) {
        let address = self.0.clone();
        // A connection needs a thread that no runtime is on.
        let dropped = std::thread::spawn(move || control_plane_postgres::drop_schema(&address)).join();
        if !matches!(dropped, Ok(Ok(()))) {
            eprintln!("the schema {} could not be removed from the database", self.0.schema());
        }
    }
}

impl Place {
    async fn start(&self, sites: u32) -> anyhow::Result<Measured> {
        self.start_with(sites, Vec::new()).await
    }

    async fn start_with(&self, sites: u32, agent_arguments: Vec<String>) -> anyhow::Result<Measured> {
        let parent = self.data_dir.clone().unwrap_or_else(std::env::temp_dir);
        std::fs::create_dir_all(&parent).with_context(|| format!("{} cannot be made", parent.display()))?;
        let directory = tempfile::Builder::new().prefix("atoll-bench-").tempdir_in(parent)?;
        let schema = match &self.store {
            Some(store) if store.contains("://") => {
                let address: control_plane_postgres::Address = store.parse()?;
                Some(Schema(address.with_schema(&format!("atoll_bench_{}", uuid::Uuid::now_v7().simple()))?))
            }
            Some(_) | None => None,
        };
        let store = schema.as_ref().map(|schema| schema.0.to_string()).or_else(|| self.store.clone());
        let options = Options {
            directory: directory.path().to_owned(),
            sites: (1..=sites).map(site_name).collect(),
            listen: ([127, 0, 0, 1], 0).into(),
            bucket: self.bucket.clone(),
            store,
            agent_arguments,
        };
        let installation = Installation::start(options).await?;
        let client = Client::new(installation.url(), installation.token())?;
        Ok(Measured { installation, client, _directory: directory, _schema: schema })
    }

    /// The store, without where it is.
    fn store_name(&self) -> &str {
        let store = self.store.as_deref().unwrap_or("sled");
        store.split_once("://").map_or(store, |(scheme, _)| scheme)
    }
}

fn site_name(number: u32) -> String {
    format!("site{number}")
}

/// The `share` quantile (0 to 1) of what was measured, by nearest rank.
fn quantile(sorted: &[f64], share: f64) -> f64 {
    let rank = (share * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.saturating_sub(1)).copied().unwrap_or(f64::NAN)
}

/// The median and the 99th percentile.
fn spread(mut measured: Vec<f64>) -> Value {
    measured.sort_by(f64::total_cmp);
    json!({ "p50": quantile(&measured, 0.5), "p99": quantile(&measured, 0.99) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_of_the_nearest_rank() {
        let measured: Vec<f64> = (1..=100).map(f64::from).collect();
        assert_eq!(quantile(&measured, 0.5), 50.0);
        assert_eq!(quantile(&measured, 0.99), 99.0);
        assert_eq!(quantile(&measured[..1], 0.99), 1.0);
        assert!(quantile(&[], 0.5).is_nan());
    }
}
