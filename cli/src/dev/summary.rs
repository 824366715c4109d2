//! What `atoll dev --run` says at the end, for people.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;

use crate::client::{ExecutionRow, Finished, LedgerRow};
use crate::table::{bytes, duration};

/// More executions of one step than this are shown as one line.
const LISTED_ELEMENTS_MAX: usize = 12;

pub(super) fn describe(
    outcome: &Finished,
    executions: &[ExecutionRow],
    ledger: &[LedgerRow],
    results: Option<&Path>,
) -> String {
    let mut text = String::new();
    let took = outcome.finished_at.zip(outcome.started_at).map(|(end, start)| end.saturating_since(start));
    let took = took.map_or_else(String::new, |took| format!(" in {}", duration(took)));
    let _ = writeln!(text, "\n{} {}{took}  ({})\n", outcome.workflow, outcome.state, outcome.run);
    describe_executions(&mut text, executions);
    describe_ledger(&mut text, executions, ledger);
    if let Some(error) = &outcome.error {
        let _ = writeln!(text, "\nIt failed at {error}");
    }
    if let Some(directory) = results {
        let _ = writeln!(text, "\nThe result is in {}", directory.display());
        for name in outcome.outputs.keys() {
            let _ = writeln!(text, "  {name}");
        }
    }
    text
}

fn describe_executions(text: &mut String, executions: &[ExecutionRow]) {
    let _ = writeln!(text, "What ran where");
    let mut steps: Vec<(&str, Vec<&ExecutionRow>)> = Vec::new();
    for execution in executions {
        match steps.last_mut() {
            Some((step, rows)) if *step == execution.step => rows.push(execution),
            Some(_) | None => steps.push((&execution.step, vec![execution])),
        }
    }
    let width = steps.iter().map(|(step, _)| step.len()).max().unwrap_or(0) + 8;
    for (step, rows) in steps {
        if rows.len() > LISTED_ELEMENTS_MAX {
            let mut sites: BTreeMap<&str, usize> = BTreeMap::new();
            rows.iter().for_each(|row| *sites.entry(row.site.as_deref().unwrap_or("–")).or_default() += 1);
            let sites: Vec<String> = sites.into_iter().map(|(site, count)| format!("{count} at {site}")).collect();
            let total: Duration = rows.iter().filter_map(|row| row.took()).sum();
            let _ = writeln!(text, "  {step:<width$} {:<24} {} in all", sites.join(", "), duration(total));
            continue;
        }
        for row in &rows {
            let name = if rows.len() > 1 { format!("{step}[{}]", row.element) } else { step.to_owned() };
            let took = row.took().map_or_else(|| row.state.clone(), duration);
            let state = if row.state == "succeeded" { String::new() } else { format!("  {}", row.state) };
            let again = if row.attempt > 1 { format!("  (attempt {})", row.attempt) } else { String::new() };
            let _ =
                writeln!(text, "  {name:<width$} {:<12} {took:>9}{state}{again}", row.site.as_deref().unwrap_or("–"));
        }
    }
}

fn describe_ledger(text: &mut String, executions: &[ExecutionRow], ledger: &[LedgerRow]) {
    let made: u64 = executions.iter().map(|execution| execution.bytes_out).sum();
    // By way of the bucket an object makes two entries; it left its site once.
    let left: u64 =
        ledger.iter().filter(|entry| entry.to == "bucket" && entry.from != "client").map(|entry| entry.bytes).sum();
    let _ = writeln!(
        text,
        "\nWhat stayed: {} of {} that the steps made never left the site they were made at.",
        bytes(made.saturating_sub(left)),
        bytes(made)
    );
    if ledger.is_empty() {
        let _ = writeln!(text, "What crossed a border: nothing.");
        return;
    }
    let _ = writeln!(text, "What crossed a border");
    let mut crossings: BTreeMap<(&str, &str, String, &str), (usize, u64)> = BTreeMap::new();
    for entry in ledger {
        let step =
            entry.for_execution.as_deref().and_then(|id| executions.iter().find(|execution| execution.execution == id));
        let reader = match step {
            Some(step) => format!("because {} at {} reads it", step.step, step.site.as_deref().unwrap_or("–")),
            None if entry.to == "client" || entry.to == "bucket" => "because it was asked for".to_owned(),
            None => String::new(),
        };
        let crossing = crossings.entry((&entry.from, &entry.to, reader, &entry.rule)).or_default();
        crossing.0 += 1;
        crossing.1 += entry.bytes;
    }
    for ((from, to, reader, rule), (objects, total)) in crossings {
        let way = format!("{from} → {to}");
        let noun = if objects == 1 { "object" } else { "objects" };
        let _ = writeln!(text, "  {way:<18} {objects:>4} {noun:<8} {:>10}  {reader} ({rule})", bytes(total));
    }
}
