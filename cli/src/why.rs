//! Reasons: `atoll why` and `atoll ledger`.

use std::time::Duration;

use atoll_model::units::format_size;
use clap::Args;
use serde_json::Value;

use crate::client::segment;
use crate::crashes;
use crate::output::{self, outln};
use crate::settings::Connection;
use crate::table;

#[derive(Debug, Args)]
pub(crate) struct WhyArguments {
    #[arg(value_name = "EXECUTION_OR_OBJECT")]
    of: String,
    /// Print one JSON document.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct LedgerArguments {
    /// Only what crossed for this run.
    #[arg(long)]
    run: Option<String>,
    /// Only what crossed this site's border.
    #[arg(long)]
    site: Option<String>,
    /// Print one JSON document.
    #[arg(long)]
    json: bool,
}

pub(crate) async fn why(connection: &Connection, arguments: &WhyArguments) -> anyhow::Result<()> {
    let client = connection.client()?;
    let id = segment(&arguments.of);
    let object = arguments.of.starts_with("b3:");
    let path = if object { format!("/objects/{id}") } else { format!("/executions/{id}/why") };
    let document = client.get(&path).await?;
    if arguments.json {
        output::json(&document);
    } else if object {
        let replicas: Vec<String> = document["replicas"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
            .map(str::to_owned)
            .collect();
        outln!(
            "{} is at: {}\n",
            arguments.of,
            if replicas.is_empty() { "nowhere".to_owned() } else { replicas.join(", ") }
        );
        if let Some(key) = document["encrypted"].as_str() {
            outln!("encrypted in the bucket by {key}");
        }
        for (field, heading) in [("rules", "rules"), ("copies", "copies"), ("withheld", "withheld by")] {
            for line in document[field].as_array().into_iter().flatten().filter_map(Value::as_str) {
                outln!("{heading}: {line}");
            }
        }
        crate::data::expiry_lines(&document).iter().for_each(|line| outln!("expires: {line}"));
        print_entries(&document["ledger"]);
    } else if let Some(made_by) = document["reused"]["made_by"].as_str() {
        let seconds = document["reused"]["seconds"].as_f64().unwrap_or_default();
        let took = table::duration(Duration::from_secs_f64(seconds.max(0.0)));
        outln!("it did not run: {made_by} had made the same, in {took} (atoll run --no-cache makes it anew)");
    } else {
        outln!("chosen: {}\n", table::field(&document, "chosen"));
        let rows: Vec<Vec<String>> = document["sites"].as_array().into_iter().flatten().map(verdict_row).collect();
        table::print(&["SITE", "FEASIBLE", "REASON", "TERMS"], &rows);
        if let Some(bytes) = document["memory_limit_bytes"].as_u64() {
            outln!("\nattempt {} may use {} of memory", table::field(&document, "attempt"), format_size(bytes));
        }
        if let Some(waiting_for) = document["waiting_for"].as_str() {
            outln!("\nit waits for {waiting_for}");
        }
        crashes::print_of(&document);
    }
    Ok(())
}

fn verdict_row(verdict: &Value) -> Vec<String> {
    let terms = verdict["terms"].as_object().into_iter().flatten();
    let terms: Vec<String> =
        terms.map(|(name, value)| format!("{name} {:.3}", value.as_f64().unwrap_or(f64::NAN))).collect();
    let feasible = if verdict["feasible"] == true { "yes" } else { "no" };
    vec![table::field(verdict, "site"), feasible.to_owned(), table::field(verdict, "reason"), terms.join(", ")]
}

pub(crate) async fn ledger(connection: &Connection, arguments: &LedgerArguments) -> anyhow::Result<()> {
    let client = connection.client()?;
    let filters = [("run", &arguments.run), ("site", &arguments.site)];
    let query: Vec<String> =
        filters.iter().filter_map(|(name, value)| Some(format!("{name}={}", segment(value.as_deref()?)))).collect();
    let document = client.get(&format!("/ledger?{}", query.join("&"))).await?;
    if arguments.json {
        output::json(&document);
        return Ok(());
    }
    print_entries(&document["entries"]);
    outln!("\n{} in all", table::bytes(document["bytes_total"].as_u64().unwrap_or(0)));
    Ok(())
}

fn print_entries(entries: &Value) {
    let rows: Vec<Vec<String>> = entries.as_array().into_iter().flatten().map(entry_row).collect();
    table::print(&["AT (UTC)", "OBJECT", "BYTES", "FROM", "TO", "FOR", "RULE"], &rows);
}

fn entry_row(entry: &Value) -> Vec<String> {
    let object = table::field(entry, "object");
    vec![
        table::time(entry, "at"),
        object.chars().take(15).collect(),
        table::bytes(entry["bytes"].as_u64().unwrap_or(0)),
        table::field(entry, "from"),
        table::field(entry, "to"),
        table::field(entry, "for_execution"),
        table::field(entry, "rule"),
    ]
}
