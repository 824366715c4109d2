//! What executions cost that wait: memory of the control plane, and the time to recover them after it was killed.

use anyhow::bail;
use serde_json::{Map, json};

use super::{Findings, Measured, Place, machine, site_name};

pub(super) async fn measure(place: &Place, executions: u32) -> anyhow::Result<Findings> {
    let mut measured = place.start(1).await?;
    let results = run(&mut measured, executions).await;
    measured.installation.stop().await;
    Ok(Findings { bench: "queue", settings: json!({ "executions": executions }), results: results? })
}

async fn run(measured: &mut Measured, executions: u32) -> anyhow::Result<Map<String, serde_json::Value>> {
    // A run that ends has everything allocated that any run needs.
    let first = measured.client.submit_and_wait(&workflow(1_000), "bench.yaml").await?;
    if first.state != "succeeded" {
        bail!("the run ended as {}: {}", first.state, first.error.unwrap_or_default());
    }
    // At a site that takes no new work all of them wait.
    measured.client.post(&format!("/sites/{}/drain", site_name(1)), &json!({})).await?;
    let before = machine::resident_bytes(measured.installation.server_pid())?;
    let run = measured.client.submit_source(&workflow(executions), "bench.yaml").await?;
    check(measured, &run, executions).await?;
    let after = machine::resident_bytes(measured.installation.server_pid())?;
    let recovery = measured.installation.kill_server().await?;
    check(measured, &run, executions).await?;
    let mut results = Map::new();
    results.insert("executions".to_owned(), json!(executions));
    results.insert("server_rss_bytes_before".to_owned(), json!(before));
    results.insert("server_rss_bytes_after".to_owned(), json!(after));
    let bytes = after.saturating_sub(before) as f64 / f64::from(executions);
    results.insert("bytes_per_execution".to_owned(), json!(bytes));
    results.insert("recovery_seconds".to_owned(), json!(recovery.as_secs_f64()));
    Ok(results)
}

/// That every execution of the run is there and waits.
async fn check(measured: &Measured, run: &str, executions: u32) -> anyhow::Result<()> {
    let shown = measured.client.get(&format!("/runs/{run}")).await?;
    let counts = &shown["counts"];
    let waiting = ["waiting", "ready"].iter().filter_map(|state| counts[state].as_u64()).sum::<u64>();
    if waiting != u64::from(executions) {
        bail!("{waiting} executions wait instead of {executions}: {counts}");
    }
    Ok(())
}

fn workflow(executions: u32) -> String {
    format!(
        "workflow: bench-queue\nsteps:\n  each:\n    foreach: ${{{{ range({executions}) }}}}\n    \
         with: {{ number: \"${{{{ item }}}}\" }}\n    executor: \"null\"\n"
    )
}
