//! Executions per second through everything: placed, journaled, dispatched, journaled, run, reported, journaled,
//! acknowledged.

use anyhow::bail;
use serde_json::{Map, json};

use super::{ExecutorKind, Findings, Measured, Place, machine};

/// Long enough that the warm-up of a spawn loop does not count.
const BARE_SPAWNS: u32 = 3_000;

pub(super) async fn measure(
    place: &Place,
    executions: u32,
    sites: u32,
    executor: ExecutorKind,
) -> anyhow::Result<Findings> {
    // Before and after: the machine may be faster at one time than at another.
    let bare =
        |executor| if executor == ExecutorKind::Process { machine::bare_spawn_rate(BARE_SPAWNS) } else { Ok(0.0) };
    let bare_before = bare(executor)?;
    let measured = place.start(sites).await?;
    let results = run(&measured, executions, executor).await;
    measured.installation.stop().await;
    let mut results = results?;
    if executor == ExecutorKind::Process {
        let bare = f64::midpoint(bare_before, bare(executor)?);
        let reached = results["per_second"].as_f64().unwrap_or(0.0);
        results.insert("bare_spawns_per_second".to_owned(), json!(bare));
        results.insert("share_of_bare_spawns".to_owned(), json!(reached / bare));
    }
    let executor = if executor == ExecutorKind::Null { "null" } else { "process" };
    let store = place.store_name();
    let settings = json!({ "executions": executions, "sites": sites, "executor": executor, "store": store });
    Ok(Findings { bench: "engine", settings, results })
}

async fn run(
    measured: &Measured,
    executions: u32,
    executor: ExecutorKind,
) -> anyhow::Result<Map<String, serde_json::Value>> {
    let warm_up = workflow(executions.min(1_000), executor);
    finished(measured, &warm_up).await?;
    let (server_before, agents_before) = used(measured)?;
    let source = workflow(executions, executor);
    let run = finished(measured, &source).await?;
    let (server, agents) = used(measured)?;
    let seconds = run.seconds()?;
    let mut results = Map::new();
    results.insert("executions".to_owned(), json!(executions));
    results.insert("seconds".to_owned(), json!(seconds));
    results.insert("per_second".to_owned(), json!(f64::from(executions) / seconds));
    results.insert("server_cpu_seconds".to_owned(), json!(server.cpu_seconds - server_before.cpu_seconds));
    results.insert("agent_cpu_seconds".to_owned(), json!(agents.cpu_seconds - agents_before.cpu_seconds));
    results.insert("server_max_rss_bytes".to_owned(), json!(server.max_rss_bytes));
    Ok(results)
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

fn workflow(executions: u32, executor: ExecutorKind) -> String {
    let work = match executor {
        ExecutorKind::Null => "executor: \"null\"",
        ExecutorKind::Process => "command: [/bin/true]",
    };
    format!("workflow: bench-engine\nsteps:\n  each:\n    foreach: ${{{{ range({executions}) }}}}\n    {work}\n")
}
