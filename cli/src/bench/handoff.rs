//! One large file, or a tree of many, handed to the next step on the same site.

use anyhow::{Context as _, bail};
use serde_json::{Map, json};

use super::{Findings, Measured, Place};

pub(super) async fn measure(place: &Place, size: &str, files: u64) -> anyhow::Result<Findings> {
    let bytes = atoll_model::units::parse_size(size).map_err(|error| anyhow::anyhow!("{error}"))?;
    let measured = place.start(1).await?;
    let results = run(&measured, bytes, files).await;
    measured.installation.stop().await;
    Ok(Findings { bench: "handoff", settings: json!({ "size_bytes": bytes, "files": files }), results: results? })
}

/// The producer writes every byte, so that blocks exist that could be copied; both steps say which inode they see.
fn workflow(bytes: u64) -> String {
    format!(
        r#"workflow: bench-handoff
steps:
  make:
    run: |
      head -c {bytes} /dev/zero > "$ATOLL_OUTPUTS/big"
      stat -c %i "$ATOLL_OUTPUTS/big" > "$ATOLL_OUTPUTS/inode"
    outputs: {{ big: file, inode: integer }}
  take:
    with: {{ big: "${{{{ steps.make.outputs.big }}}}" }}
    run: |
      stat -L -c %i "$big" > "$ATOLL_OUTPUTS/inode"
      stat -L -c %s "$big" > "$ATOLL_OUTPUTS/size"
    outputs: {{ inode: integer, size: integer }}
"#
    )
}

/// A tree of files that all differ, so that none stands for another; both steps say which inodes they see.
fn tree_workflow(bytes: u64, files: u64) -> String {
    let each = (bytes / files.max(1)).max(1);
    let total = each * files;
    format!(
        r#"workflow: bench-handoff
steps:
  make:
    run: |
      mkdir "$ATOLL_OUTPUTS/big"
      head -c {total} /dev/urandom | split -a 6 -b {each} - "$ATOLL_OUTPUTS/big/f"
      find "$ATOLL_OUTPUTS/big" -type f -printf '%P %i\n' | sort | cksum > "$ATOLL_OUTPUTS/inode"
    outputs: {{ big: directory, inode: string }}
  take:
    with: {{ big: "${{{{ steps.make.outputs.big }}}}" }}
    run: |
      find "$big" -type f -printf '%P %i\n' | sort | cksum > "$ATOLL_OUTPUTS/inode"
      find "$big" -type f -printf '%s\n' | awk '{{ sum += $1 }} END {{ printf "%.0f", sum }}' > "$ATOLL_OUTPUTS/size"
    outputs: {{ inode: string, size: integer }}
"#
    )
}

async fn run(measured: &Measured, bytes: u64, files: u64) -> anyhow::Result<Map<String, serde_json::Value>> {
    let (source, bytes) = match files {
        0 | 1 => (workflow(bytes), bytes),
        files => (tree_workflow(bytes, files), (bytes / files).max(1) * files),
    };
    let run = measured.client.submit_and_wait(&source, "bench.yaml").await?;
    if run.state != "succeeded" {
        bail!("the run ended as {}: {}", run.state, run.error.unwrap_or_default());
    }
    let executions = measured.client.executions(&run.run).await?;
    let of = |step: &str| {
        executions.iter().find(|execution| execution.step == step).with_context(|| format!("the step {step}"))
    };
    let (make, take) = (of("make")?, of("take")?);
    if take.outputs["size"].as_u64() != Some(bytes) {
        bail!("the consumer saw {} bytes instead of {bytes}", take.outputs["size"]);
    }
    let made = make.finished_at.context("the producer's end")?;
    let began = take.started_at.context("the consumer's start")?;
    let same_inode = make.outputs["inode"] == take.outputs["inode"];
    let mut results = Map::new();
    results.insert("seconds".to_owned(), json!(began.saturating_since(made).as_secs_f64()));
    results.insert("bytes_copied".to_owned(), json!(if same_inode { 0 } else { bytes }));
    Ok(results)
}
