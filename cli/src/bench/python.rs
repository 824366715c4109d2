//! Handlers in Python that are called in processes which stay.

use serde_json::{Map, json};

use super::{Findings, Place, spread};

pub(super) async fn measure(place: &Place, calls: u32, at_once: u32) -> anyhow::Result<Findings> {
    let parent = place.data_dir.clone().unwrap_or_else(std::env::temp_dir);
    let directory = tempfile::Builder::new().prefix("atoll-bench-").tempdir_in(parent)?;
    let path = directory.path().to_owned();
    let measured =
        tokio::task::spawn_blocking(move || site_agent_daemon::measure_calls(&path, calls, at_once)).await??;
    let mut results = Map::new();
    results.insert("cold_start_ms".to_owned(), json!(measured.cold_start.as_secs_f64() * 1e3));
    let alone = measured.alone.iter().map(|took| took.as_secs_f64() * 1e3).collect();
    results.insert("order_to_end_ms".to_owned(), spread(alone));
    results.insert("per_second".to_owned(), json!(measured.per_second));
    results.insert("lanes".to_owned(), json!(measured.lanes));
    Ok(Findings { bench: "python", settings: json!({ "calls": calls, "at_once": at_once }), results })
}
