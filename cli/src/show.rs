//! Runs and their executions.

use std::time::Duration;

use atoll_model::time::Timestamp;
use atoll_model::units::{format_size, parse_duration};
use clap::Args;
use serde_json::{Value, json};

use crate::client::segment;
use crate::crashes;
use crate::failure::Failure;
use crate::output::{self, outln};
use crate::settings::Connection;
use crate::table;

/// More executions than this are summed up by step, unless all are asked for.
const LISTED_MAX: usize = 200;

#[derive(Debug, Args)]
pub(crate) struct RunsArguments {
    /// Only runs in this state.
    #[arg(long)]
    state: Option<String>,
    /// Only runs of this workflow.
    #[arg(long)]
    workflow: Option<String>,
    /// Only runs with an execution at this site.
    #[arg(long)]
    site: Option<String>,
    /// Only runs of this project.
    #[arg(long)]
    project: Option<String>,
    /// Only runs with this label; may be given more than once.
    #[arg(long = "label", value_name = "KEY=VALUE")]
    labels: Vec<String>,
    /// Only runs that were submitted then or later: a time (RFC 3339), or how long ago (`2h`, `7d`).
    #[arg(long, value_name = "WHEN")]
    since: Option<String>,
    /// Only runs that were submitted before then.
    #[arg(long, value_name = "WHEN")]
    until: Option<String>,
    /// Only runs that are listed after this one.
    #[arg(long, value_name = "RUN")]
    before: Option<String>,
    #[arg(long, default_value_t = 50)]
    limit: u32,
    /// Print one JSON document.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct ShowArguments {
    run: String,
    /// Print one JSON document.
    #[arg(long)]
    json: bool,
    /// List every execution, however many there are.
    #[arg(long)]
    all: bool,
}

#[derive(Debug, Args)]
pub(crate) struct CancelArguments {
    run: String,
    #[arg(long, default_value = "cancelled by a person")]
    reason: String,
    /// Print one JSON document.
    #[arg(long)]
    json: bool,
}

pub(crate) async fn runs(connection: &Connection, arguments: &RunsArguments) -> anyhow::Result<()> {
    let client = connection.client()?;
    let mut path = format!("/runs?limit={}", arguments.limit);
    let since = arguments.since.as_deref().map(|text| moment("--since", text)).transpose()?;
    let until = arguments.until.as_deref().map(|text| moment("--until", text)).transpose()?;
    let label = (!arguments.labels.is_empty()).then(|| arguments.labels.join(","));
    let wanted = [
        ("state", &arguments.state),
        ("workflow", &arguments.workflow),
        ("site", &arguments.site),
        ("project", &arguments.project),
        ("label", &label),
        ("since", &since),
        ("until", &until),
        ("before", &arguments.before),
    ];
    for (name, value) in wanted {
        if let Some(value) = value {
            path.push_str(&format!("&{name}={}", segment(value)));
        }
    }
    let document = client.get(&path).await?;
    if arguments.json {
        output::json(&document);
        return Ok(());
    }
    let runs = document["runs"].as_array().cloned().unwrap_or_default();
    let rows: Vec<Vec<String>> = runs
        .iter()
        .map(|run| {
            vec![
                table::field(run, "run"),
                table::field(run, "workflow"),
                table::field(run, "state"),
                table::time(run, "submitted_at"),
                table::between(run, "started_at", "finished_at"),
            ]
        })
        .collect();
    table::print(&["RUN", "WORKFLOW", "STATE", "SUBMITTED (UTC)", "TOOK"], &rows);
    Ok(())
}

/// A time as the server reads it, from one or from a duration before now.
fn moment(flag: &str, text: &str) -> anyhow::Result<String> {
    if Timestamp::parse_rfc3339(text).is_ok() {
        return Ok(text.to_owned());
    }
    let ago = parse_duration(text).map_err(|_| {
        Failure::Usage(format!("{flag} {text}: a time is 2026-01-31T12:00:00Z, or how long ago it was: 90m, 2h, 7d"))
    })?;
    let at = std::time::SystemTime::now().checked_sub(ago).unwrap_or(std::time::UNIX_EPOCH);
    let micros = at.duration_since(std::time::UNIX_EPOCH).unwrap_or_default().as_micros();
    Ok(Timestamp(i64::try_from(micros).unwrap_or(i64::MAX)).to_string())
}

pub(crate) async fn show(connection: &Connection, arguments: &ShowArguments) -> anyhow::Result<()> {
    let client = connection.client()?;
    let run = segment(&arguments.run);
    let mut document = client.get(&format!("/runs/{run}?offset=0&limit=10000")).await?;
    let mut executions = document["executions"].as_array().cloned().unwrap_or_default();
    let mut page = executions.len();
    while page == 10_000 {
        let next = client.get(&format!("/runs/{run}?offset={}&limit=10000", executions.len())).await?;
        let more = next["executions"].as_array().cloned().unwrap_or_default();
        page = more.len();
        executions.extend(more);
    }
    document["executions"] = Value::Array(executions);
    if arguments.json {
        output::json(&document);
        return Ok(());
    }
    describe(&document, arguments.all);
    Ok(())
}

fn describe(document: &Value, all: bool) {
    for name in ["run", "workflow", "state"] {
        outln!("{name:<10} {}", table::field(document, name));
    }
    outln!("{:<10} {} (UTC)", "submitted", table::time(document, "submitted_at"));
    outln!("{:<10} {}", "took", table::between(document, "started_at", "finished_at"));
    if let Some(error) = document["error"].as_object() {
        let of = |name: &str| error.get(name).and_then(Value::as_str).unwrap_or("–").to_owned();
        outln!("{:<10} {}: {}", "error", of("step"), of("message"));
    }
    for (name, value) in document["outputs"].as_object().into_iter().flatten() {
        outln!("{:<10} {name} = {}", "output", shown_value(value));
    }
    for moving in document["moving"].as_array().into_iter().flatten() {
        outln!("{:<10} {}", "moving", shown_moving(moving));
    }
    let executions = document["executions"].as_array().cloned().unwrap_or_default();
    outln!();
    if executions.len() > LISTED_MAX && !all {
        describe_by_step(&executions);
    } else {
        list(&executions);
    }
    crashes::print_of_all(&executions);
}

fn list(executions: &[Value]) {
    let rows: Vec<Vec<String>> = executions
        .iter()
        .map(|execution| {
            let why = ["error", "waiting_for"].iter().find_map(|name| execution[*name].as_str()).unwrap_or_default();
            let reused = execution["reused"]["made_by"].as_str().map(|made_by| format!("made by {made_by}"));
            vec![
                table::field(execution, "execution"),
                table::field(execution, "step"),
                table::field(execution, "state"),
                table::field(execution, "site"),
                shown_attempt(execution),
                table::between(execution, "started_at", "finished_at"),
                reused.unwrap_or_else(|| why.lines().next().unwrap_or_default().to_owned()),
            ]
        })
        .collect();
    table::print(&["EXECUTION", "STEP", "STATE", "SITE", "ATTEMPT", "TOOK", ""], &rows);
}

/// Which attempt it is; of a further one also what it may use, for that may have grown.
fn shown_attempt(execution: &Value) -> String {
    let attempt = table::field(execution, "attempt");
    match execution["memory_limit_bytes"].as_u64().filter(|_| execution["attempt"].as_u64() > Some(1)) {
        Some(bytes) => format!("{attempt} ({})", format_size(bytes)),
        None => attempt,
    }
}

/// How far an object is on its way.
fn shown_moving(moving: &Value) -> String {
    let number = |name: &str| moving[name].as_u64().unwrap_or_default();
    let (bytes, moved) = (number("bytes"), number("moved_bytes"));
    let left = moving["seconds_left"].as_u64().map_or_else(
        || "stands still".to_owned(),
        |seconds| format!("{} left", table::duration(Duration::from_secs(seconds))),
    );
    format!(
        "{} from {} to {}: {} of {} ({} %), {}/s, {left}",
        table::field(moving, "object"),
        table::field(moving, "from"),
        table::field(moving, "to"),
        table::bytes(moved),
        table::bytes(bytes),
        (moved as f64 / bytes.max(1) as f64 * 100.0) as u64,
        table::bytes(number("bytes_per_second")),
    )
}

fn describe_by_step(executions: &[Value]) {
    let mut counts: indexmap::IndexMap<(String, String, String), usize> = indexmap::IndexMap::new();
    for execution in executions {
        let key = (table::field(execution, "step"), table::field(execution, "state"), table::field(execution, "site"));
        *counts.entry(key).or_default() += 1;
    }
    let rows: Vec<Vec<String>> =
        counts.into_iter().map(|((step, state, site), count)| vec![step, state, site, count.to_string()]).collect();
    table::print(&["STEP", "STATE", "SITE", "EXECUTIONS"], &rows);
    outln!("\n`--all` lists every execution.");
}

/// A value for people: files and directories by name and size.
pub(crate) fn shown_value(value: &Value) -> String {
    match (value["kind"].as_str(), value["bytes"].as_u64()) {
        (Some(kind @ ("file" | "directory")), Some(size)) => {
            format!("{kind} {} ({})", value["name"].as_str().unwrap_or_default(), table::bytes(size))
        }
        (Some(_) | None, Some(_) | None) => value.to_string(),
    }
}

pub(crate) async fn cancel(connection: &Connection, arguments: &CancelArguments) -> anyhow::Result<()> {
    let client = connection.client()?;
    let path = format!("/runs/{}/cancel", segment(&arguments.run));
    let document = client.post(&path, &json!({ "reason": arguments.reason })).await?;
    if arguments.json {
        output::json(&document);
    } else {
        outln!("{} is {}", arguments.run, table::field(&document, "state"));
    }
    Ok(())
}
