//! A run of one step with a real process, one after the other.

use std::time::Instant;

use anyhow::bail;
use serde_json::{Map, json};

use super::{Findings, Measured, Place, spread};

/// Runs that warm everything up and do not count.
const WARM_UP: u32 = 10;
const WORKFLOW: &str = "workflow: bench-latency\nsteps:\n  only:\n    run: \":\"\n";

pub(super) async fn measure(place: &Place, runs: u32) -> anyhow::Result<Findings> {
    let measured = place.start(1).await?;
    let results = repeat(&measured, runs).await;
    measured.installation.stop().await;
    Ok(Findings { bench: "latency", settings: json!({ "runs": runs }), results: results? })
}

async fn repeat(measured: &Measured, runs: u32) -> anyhow::Result<Map<String, serde_json::Value>> {
    let (mut to_finished, mut to_started) = (Vec::new(), Vec::new());
    for number in 0..runs + WARM_UP {
        let began = Instant::now();
        let run = measured.client.submit_and_wait(WORKFLOW, "bench.yaml").await?;
        let elapsed = began.elapsed();
        if run.state != "succeeded" {
            bail!("a run ended as {}: {}", run.state, run.error.unwrap_or_default());
        }
        if number >= WARM_UP {
            to_finished.push(elapsed.as_secs_f64() * 1e3);
            let executions = measured.client.executions(&run.run).await?;
            let Some(started) = executions.first().and_then(|execution| execution.started_at) else {
                bail!("the run's execution has no start");
            };
            to_started.push(started.saturating_since(run.submitted_at).as_secs_f64() * 1e3);
        }
    }
    let mut results = Map::new();
    results.insert("submit_to_finished_ms".to_owned(), spread(to_finished));
    results.insert("submit_to_started_ms".to_owned(), spread(to_started));
    Ok(results)
}
