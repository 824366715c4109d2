//! Executions per second through everything: placed, journaled, dispatched, journaled, run, reported, journaled,
//! acknowledged.

use anyhow::{Context as _, bail};
use futures::{StreamExt as _, TryStreamExt as _};
use serde_json::{Map, json};

use super::shape::Shape;
use super::{ExecutorKind, Findings, Measured, Place, counting, machine};

/// Long enough that the warm-up of a spawn loop does not count.
const BARE_SPAWNS: u32 = 3_000;
/// Of runs, where a shape has many.
const RUNS_AT_ONCE: usize = 64;

pub(super) async fn measure(
    place: &Place,
    executions: u32,
    sites: u32,
    executor: ExecutorKind,
    shape: Shape,
) -> anyhow::Result<Findings> {
    // Before and after: the machine may be faster at one time than at another.
    let bare =
        |executor| if executor == ExecutorKind::Process { machine::bare_spawn_rate(BARE_SPAWNS) } else { Ok(0.0) };
    let bare_before = bare(executor)?;
    let measured = place.start(sites).await?;
    let results = run(&measured, executions, executor, shape).await;
    measured.installation.stop().await;
    let mut results = results?;
    if executor == ExecutorKind::Process {
        let bare = f64::midpoint(bare_before, bare(executor)?);
        let reached = results["per_second"].as_f64().unwrap_or(0.0);
        results.insert("bare_spawns_per_second".to_owned(), json!(bare));
        results.insert("share_of_bare_spawns".to_owned(), json!(reached / bare));
    }
    let executor = executor.name();
    let store = place.store_name();
    let settings = json!({
        "executions": executions, "sites": sites, "executor": executor, "store": store, "shape": shape.name(),
    });
    Ok(Findings { bench: "engine", settings, results })
}

async fn run(
    measured: &Measured,
    executions: u32,
    executor: ExecutorKind,
    shape: Shape,
) -> anyhow::Result<Map<String, serde_json::Value>> {
    if executor == ExecutorKind::Python {
        counting::push(&measured.client).await?;
    }
    all(measured, &shape.workflows(executions.min(1_000), executor)).await?;
    let (server_before, agents_before) = used(measured)?;
    let workflows = shape.workflows(executions, executor);
    let executions: u32 = workflows.iter().map(|(_, executions)| executions).sum();
    let seconds = all(measured, &workflows).await?;
    let (server, agents) = used(measured)?;
    let mut results = Map::new();
    results.insert("executions".to_owned(), json!(executions));
    results.insert("seconds".to_owned(), json!(seconds));
    results.insert("per_second".to_owned(), json!(f64::from(executions) / seconds));
    results.insert("server_cpu_seconds".to_owned(), json!(server.cpu_seconds - server_before.cpu_seconds));
    results.insert("agent_cpu_seconds".to_owned(), json!(agents.cpu_seconds - agents_before.cpu_seconds));
    results.insert("server_max_rss_bytes".to_owned(), json!(server.max_rss_bytes));
    Ok(results)
}

/// Submits these, as many at a time as people might, and waits for all. Seconds from the first submission to the last end.
async fn all(measured: &Measured, workflows: &[(String, u32)]) -> anyhow::Result<f64> {
    let runs: Vec<_> = futures::stream::iter(workflows)
        .map(|(source, _)| finished(measured, source))
        .buffer_unordered(RUNS_AT_ONCE)
        .try_collect()
        .await?;
    let began = runs.iter().map(|run| run.submitted_at).min().context("nothing was submitted")?;
    let ends = runs.iter().map(|run| run.finished_at.context("a run without an end"));
    let ended = ends.collect::<anyhow::Result<Vec<_>>>()?.into_iter().max().unwrap_or(began);
    Ok(ended.saturating_since(began).as_secs_f64())
}

async fn finished(measured: &Measured, source: &str) -> anyhow::Result<crate::client::Finished> {
    let run = measured.client.submit_and_wait(source, "bench.yaml").await?;
    if run.state != "succeeded" {
        bail!("the run ended as {}: {}", run.state, run.error.unwrap_or_default());
    }
    Ok(run)
}

fn used(measured: &Measured) -> anyhow::Result<(machine::Used, machine::Used)> {
    let server = machine::used(measured.installation.server_pid())?;
    let mut agents = machine::Used::default();
    for pid in measured.installation.agent_pids().values() {
        let agent = machine::used(*pid)?;
        agents.cpu_seconds += agent.cpu_seconds;
        agents.max_rss_bytes = agents.max_rss_bytes.max(agent.max_rss_bytes);
    }
    Ok((server, agents))
}
