//! A file, or a directory of files, made at one site and read at another.

use anyhow::{Context as _, bail};
use serde_json::{Map, json};

use super::{Findings, Measured, Place, Route, machine, site_name};

pub(super) async fn measure(place: &Place, size: &str, files: Option<u32>, route: Route) -> anyhow::Result<Findings> {
    let bytes = atoll_model::units::parse_size(size).map_err(|error| anyhow::anyhow!("{error}"))?;
    let (name, arguments) = match route {
        Route::Direct => ("direct", vec!["--direct-listen".to_owned(), "127.0.0.1:0".to_owned()]),
        Route::Bucket => ("bucket", Vec::new()),
    };
    let measured = place.start_with(2, arguments).await?;
    let results = run(&measured, bytes, files, route).await;
    measured.installation.stop().await;
    let settings = json!({ "size_bytes": bytes, "files": files.unwrap_or(1), "route": name });
    Ok(Findings { bench: "transfer", settings, results: results? })
}

/// Noise, so that nothing is gained by packing it; the reader says how much it sees.
fn workflow(bytes: u64, files: Option<u32>) -> String {
    let (maker, reader) = (site_name(1), site_name(2));
    let make = match files {
        None => format!("head -c {bytes} /dev/urandom > \"$ATOLL_OUTPUTS/made\""),
        Some(files) => {
            let each = bytes / u64::from(files.max(1));
            format!(
                "mkdir \"$ATOLL_OUTPUTS/made\"; head -c {} /dev/urandom | split -b {each} -a 6 - \"$ATOLL_OUTPUTS/made/\"",
                each * u64::from(files)
            )
        }
    };
    let kind = if files.is_some() { "directory" } else { "file" };
    format!(
        r#"workflow: bench-transfer
steps:
  make:
    site: {maker}
    run: |
      {make}
    outputs: {{ made: {kind} }}
  take:
    site: {reader}
    with: {{ made: "${{{{ steps.make.outputs.made }}}}" }}
    run: |
      find -L "$made" -type f -printf '%s\n' | awk '{{ s += $1 }} END {{ printf "%.0f", s }}' > "$ATOLL_OUTPUTS/size"
    outputs: {{ size: integer }}
"#
    )
}

async fn run(
    measured: &Measured,
    bytes: u64,
    files: Option<u32>,
    route: Route,
) -> anyhow::Result<Map<String, serde_json::Value>> {
    let pids: Vec<u32> = measured.installation.agent_pids().into_values().collect();
    let used =
        || -> anyhow::Result<f64> { pids.iter().map(|pid| machine::used(*pid).map(|used| used.cpu_seconds)).sum() };
    let before = used()?;
    let run = measured.client.submit_and_wait(&workflow(bytes, files), "bench.yaml").await?;
    if run.state != "succeeded" {
        bail!("the run ended as {}: {}", run.state, run.error.unwrap_or_default());
    }
    let cpu_seconds = used()? - before;
    let executions = measured.client.executions(&run.run).await?;
    let of = |step: &str| {
        executions.iter().find(|execution| execution.step == step).with_context(|| format!("the step {step}"))
    };
    let (make, take) = (of("make")?, of("take")?);
    let seen = take.outputs["size"].as_u64().context("the reader's size")?;
    if seen > bytes || seen < bytes - u64::from(files.unwrap_or(1)) {
        bail!("the reader saw {seen} bytes instead of {bytes}");
    }
    let ledger = measured.client.ledger(&run.run).await?;
    let from_bucket = ledger.iter().any(|entry| entry.from == "bucket");
    if from_bucket != (route == Route::Bucket) {
        bail!("the bytes took another way than the one that is measured");
    }
    let made = make.finished_at.context("the producer's end")?;
    let began = take.started_at.context("the consumer's start")?;
    let seconds = began.saturating_since(made).as_secs_f64();
    let mut results = Map::new();
    results.insert("seconds".to_owned(), json!(seconds));
    results.insert("bytes_per_second".to_owned(), json!(seen as f64 / seconds));
    results.insert("cpu_seconds".to_owned(), json!(cpu_seconds));
    Ok(results)
}
