//! `atoll policy`: files that say where data may go, and what a site lets others have.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use atoll_model::policy::{Policy, PolicyRule, SitePolicy, SiteRule, parse, policy_schema};
use clap::{Args, Subcommand};
use serde_json::{Value, json};

use crate::client::segment;
use crate::diagnostics;
use crate::failure::{Failure, SourceText};
use crate::output::{self, outln};
use crate::run::PROJECT;
use crate::settings::Connection;
use crate::table;

#[derive(Debug, Subcommand)]
pub(crate) enum PolicyCommand {
    /// Say what is wrong with a policy file.
    Check(CheckArguments),
    /// Print the JSON Schema of a policy file, for editors.
    Schema,
    /// Give a project the rules of a file; they hold for its live runs too.
    Apply(ApplyArguments),
    /// Say what recorded runs of a project would move, take and cost under the rules of a file; nothing is changed.
    Simulate(SimulateArguments),
    /// Show the rules that hold for a project, or what they say of the data of a run.
    Show(ShowArguments),
}

#[derive(Debug, Args)]
pub(crate) struct ApplyArguments {
    file: PathBuf,
    #[arg(long, default_value = PROJECT)]
    project: String,
    /// Only if this version holds until then (0: none at all).
    #[arg(long, value_name = "VERSION")]
    instead_of: Option<u32>,
    /// Print one JSON document.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct SimulateArguments {
    file: PathBuf,
    #[arg(long, default_value = PROJECT)]
    project: String,
    /// Only runs of this workflow.
    #[arg(long)]
    workflow: Option<String>,
    /// The last so many runs that have succeeded.
    #[arg(long, default_value_t = 20)]
    runs: u32,
    /// Print one JSON document.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct ShowArguments {
    #[arg(long, default_value = PROJECT)]
    project: String,
    /// What the rules of its project and its workflow say of each of its outputs and inputs.
    #[arg(long, conflicts_with = "project")]
    run: Option<String>,
    /// Print the file as it was applied, and nothing else.
    #[arg(long, conflicts_with_all = ["run", "json"])]
    source: bool,
    /// Print one JSON document.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct CheckArguments {
    file: PathBuf,
    /// The file is the policy of a site's own administrator, for its agent.
    #[arg(long)]
    site: bool,
    /// Print one JSON document.
    #[arg(long)]
    json: bool,
}

/// # Errors
/// When a file is invalid, or cannot be read.
pub(crate) async fn policy(connection: &Connection, command: PolicyCommand) -> anyhow::Result<()> {
    match command {
        PolicyCommand::Apply(arguments) => apply(connection, &arguments).await,
        PolicyCommand::Simulate(arguments) => simulate(connection, &arguments).await,
        PolicyCommand::Show(arguments) => show(connection, &arguments).await,
        PolicyCommand::Check(arguments) => check(&arguments),
        PolicyCommand::Schema => {
            output::json(&policy_schema());
            Ok(())
        }
    }
}

/// A file that is wrong is shown here, with its text; the server reads it once more.
fn valid(file: &Path) -> anyhow::Result<Value> {
    let (file, text) = (file.display().to_string(), read(file)?);
    match parse(&file, &text) {
        Ok(_) => Ok(json!({ "source": text, "file_name": file })),
        Err(diagnostics) => Err(Failure::Invalid { diagnostics, source_text: Some(SourceText { file, text }) }.into()),
    }
}

async fn apply(connection: &Connection, arguments: &ApplyArguments) -> anyhow::Result<()> {
    let mut body = valid(&arguments.file)?;
    body["instead_of"] = json!(arguments.instead_of);
    let path = format!("/projects/{}/policy", segment(&arguments.project));
    let document = connection.client()?.put_document(&path, &body).await?;
    if arguments.json {
        output::json(&document);
    } else {
        describe(&document);
    }
    Ok(())
}

async fn simulate(connection: &Connection, arguments: &SimulateArguments) -> anyhow::Result<()> {
    let mut body = valid(&arguments.file)?;
    body["workflow"] = json!(arguments.workflow);
    body["runs"] = json!(arguments.runs);
    let path = format!("/projects/{}/policy/simulate", segment(&arguments.project));
    let document = connection.client()?.post(&path, &body).await?;
    if arguments.json {
        output::json(&document);
        return Ok(());
    }
    let runs: Vec<&Value> = document["runs"].as_array().into_iter().flatten().collect();
    let mut rows: Vec<Vec<String>> = runs
        .iter()
        .map(|run| {
            differences(&table::field(run, "run"), &table::field(run, "workflow"), &run["before"], &run["after"])
        })
        .collect();
    rows.push(differences("all", "", &document["before"], &document["after"]));
    table::print(&["RUN", "WORKFLOW", "BYTES", "THEN", "SECONDS", "THEN", "MONEY", "THEN"], &rows);
    for run in runs {
        if let Some(error) = run["error_after"].as_str() {
            outln!("\n{} would not succeed: {error}", table::field(run, "run"));
        }
    }
    let left_out = document["left_out"].as_array().map_or(0, Vec::len);
    if left_out > 0 {
        outln!("\n{left_out} runs are too large, or too little is known of them");
    }
    Ok(())
}

fn differences(run: &str, workflow: &str, before: &Value, after: &Value) -> Vec<String> {
    let bytes = |figures: &Value| figures["bytes"].as_u64().map_or_else(|| "-".to_owned(), table::bytes);
    let number = |figures: &Value, name: &str, digits: usize| {
        figures[name].as_f64().map_or_else(|| "-".to_owned(), |number| format!("{number:.digits$}"))
    };
    let mut row = vec![run.to_owned(), workflow.to_owned(), bytes(before), bytes(after)];
    for (name, digits) in [("seconds", 1), ("money", 2)] {
        row.extend([number(before, name, digits), number(after, name, digits)]);
    }
    row
}

async fn show(connection: &Connection, arguments: &ShowArguments) -> anyhow::Result<()> {
    let client = connection.client()?;
    let document = match &arguments.run {
        Some(run) => client.get(&format!("/runs/{}/rules", segment(run))).await?,
        None => client.get(&format!("/projects/{}/policy", segment(&arguments.project))).await?,
    };
    if arguments.json {
        output::json(&document);
    } else if arguments.source {
        output::text(document["source"].as_str().unwrap_or_default());
    } else if arguments.run.is_some() {
        describe_data(&document);
    } else {
        describe(&document);
    }
    Ok(())
}

fn describe(policy: &Value) {
    let field = |name| table::field(policy, name);
    if policy["version"] == 0 {
        outln!("project {} has no policy", field("project"));
        return;
    }
    let (version, file) = (field("version"), field("file"));
    let (by, at) = (field("applied_by"), table::time(policy, "applied_at"));
    outln!("project {}: version {version} of {file}, applied by {by} at {at}", field("project"));
    outln!("policy {}\n", field("hash"));
    let rules = policy["rules"].as_array().into_iter().flatten();
    let rows: Vec<Vec<String>> = rules
        .map(|rule| {
            let matches = rule["matches"].as_str().filter(|matches| !matches.is_empty()).unwrap_or("everything");
            let place = format!("{}:{}", table::field(rule, "file"), rule["line"]);
            vec![place, matches.to_owned(), words(&rule["says"])]
        })
        .collect();
    table::print(&["RULE", "MATCHES", "SAYS"], &rows);
}

fn describe_data(document: &Value) {
    let rows: Vec<Vec<String>> = document["data"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|data| {
            let sites = if data["sites"].is_null() { "any".to_owned() } else { words(&data["sites"]) };
            let rules = ["confined_by", "push_rule", "bucket_closed", "direct_closed", "encrypted", "expires"];
            let mut named: Vec<String> = rules
                .iter()
                .flat_map(|field| match &data[*field] {
                    Value::Array(rules) => rules.iter().filter_map(Value::as_str).map(str::to_owned).collect(),
                    Value::String(rule) => vec![rule.clone()],
                    Value::Null | Value::Bool(_) | Value::Number(_) | Value::Object(_) => Vec::new(),
                })
                .collect();
            named.sort_unstable();
            named.dedup();
            vec![table::field(data, "data"), sites, table::field(data, "push"), named.join("; ")]
        })
        .collect();
    table::print(&["DATA", "SITES", "PUSH", "RULES"], &rows);
}

fn words(list: &Value) -> String {
    list.as_array().into_iter().flatten().filter_map(Value::as_str).collect::<Vec<_>>().join(", ")
}

fn check(arguments: &CheckArguments) -> anyhow::Result<()> {
    let file = arguments.file.display().to_string();
    let text = read(&arguments.file)?;
    let checked = if arguments.site {
        SitePolicy::parse(&file, &text).map(|policy| (site_lines(&policy), None))
    } else {
        parse(&file, &text).map(|policy| (lines(&policy), Some(hash(&policy))))
    };
    match checked {
        Ok((lines, hash)) if arguments.json => {
            output::json(&json!({ "valid": true, "errors": [], "rules": lines, "hash": hash }));
            Ok(())
        }
        Ok((lines, hash)) => {
            outln!("{file} is valid");
            lines.iter().for_each(|line| outln!("  {line}"));
            if let Some(hash) = hash {
                outln!("policy {hash}");
            }
            Ok(())
        }
        Err(problems) => {
            if arguments.json {
                output::json(&json!({ "valid": false, "errors": diagnostics::document(&problems) }));
            }
            let source_text = Some(SourceText { file, text });
            Err(Failure::Invalid { diagnostics: problems, source_text }.into())
        }
    }
}

fn read(file: &Path) -> anyhow::Result<String> {
    std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))
}

fn hash(policy: &Policy) -> String {
    policy.hash().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// What each rule speaks of, by its line.
fn lines(policy: &Policy) -> Vec<String> {
    let speaks = |rule: &PolicyRule| format!("line {}: {}", rule.place.line, rule.fields().join(", "));
    policy.rules.iter().map(speaks).collect()
}

fn site_lines(policy: &SitePolicy) -> Vec<String> {
    let line = |what: &str, rule: &SiteRule| {
        let verb = if rule.refuses { "refuses" } else { "allows" };
        format!("line {}: {verb} {what}", rule.place.line)
    };
    let run = policy.run.iter().map(|rule| line("what runs", rule));
    let leave = policy.leave.iter().map(|rule| line("what leaves", rule));
    let disk = policy
        .disk
        .iter()
        .map(|(bytes, place)| format!("line {}: {} of disk", place.line, atoll_model::units::format_size(*bytes)));
    let link = policy.link.iter().map(|(bytes, place)| {
        format!("line {}: {}/s to other sites", place.line, atoll_model::units::format_size(*bytes))
    });
    run.chain(leave).chain(disk).chain(link).collect()
}
