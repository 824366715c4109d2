//! A chain of steps, each after the one before; those that do something hand a value to the next.

use std::fmt::Write as _;

use anyhow::{Context as _, bail};
use serde_json::{Map, json};

use super::counting::{self, ACTION};
use super::{ExecutorKind, Findings, Measured, Place, site_name, spread};

pub(super) async fn measure(place: &Place, steps: u32, executor: ExecutorKind, sites: u32) -> anyhow::Result<Findings> {
    let measured = place.start(sites).await?;
    let results = run(&measured, steps, executor, sites).await;
    measured.installation.stop().await;
    Ok(Findings {
        bench: "chain",
        settings: json!({ "steps": steps, "executor": executor.name(), "sites": sites }),
        results: results?,
    })
}

async fn run(
    measured: &Measured,
    steps: u32,
    executor: ExecutorKind,
    sites: u32,
) -> anyhow::Result<Map<String, serde_json::Value>> {
    if executor == ExecutorKind::Python {
        counting::push(&measured.client).await?;
    }
    let mut per_hop = Vec::new();
    // The first one warms up the slots of every site.
    for warm in [false, true] {
        let run = measured.client.submit_and_wait(&workflow(steps, executor, sites), "bench.yaml").await?;
        if run.state != "succeeded" {
            bail!("the run ended as {}: {}", run.state, run.error.unwrap_or_default());
        }
        if warm {
            let executions = measured.client.executions(&run.run).await?;
            let mut ends = executions
                .iter()
                .map(|execution| execution.finished_at.context("an execution without an end"))
                .collect::<anyhow::Result<Vec<_>>>()?;
            ends.sort_unstable();
            per_hop = ends.windows(2).map(|pair| pair[1].saturating_since(pair[0]).as_secs_f64() * 1e3).collect();
        }
    }
    let mut results = Map::new();
    let mean = per_hop.iter().sum::<f64>() / per_hop.len() as f64;
    results.insert("per_hop_ms".to_owned(), spread(per_hop));
    results.insert("per_hop_ms_mean".to_owned(), json!(mean));
    Ok(results)
}

fn workflow(steps: u32, executor: ExecutorKind, sites: u32) -> String {
    let mut text = "workflow: bench-chain\nsteps:\n".to_owned();
    for step in 0..steps {
        let site = site_name(step % sites + 1);
        if executor == ExecutorKind::Null {
            let after = step.checked_sub(1).map_or(String::new(), |previous| format!("    after: [s{previous}]\n"));
            write!(text, "  s{step}:\n    site: {site}\n    executor: \"null\"\n{after}")
                .expect("writing to a string cannot fail");
            continue;
        }
        let previous = match step.checked_sub(1) {
            None => "0".to_owned(),
            Some(previous) => format!("\"${{{{ steps.s{previous}.outputs.hops }}}}\""),
        };
        let work = match executor {
            ExecutorKind::Python => format!("action: {ACTION}"),
            ExecutorKind::Null | ExecutorKind::Process => {
                "run: echo $((hops + 1)) > \"$ATOLL_OUTPUTS/hops\"\n    outputs: { hops: integer }".to_owned()
            }
        };
        write!(text, "  s{step}:\n    site: {site}\n    with: {{ hops: {previous} }}\n    {work}\n")
            .expect("writing to a string cannot fail");
    }
    text
}
