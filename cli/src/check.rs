//! `atoll check` and `atoll plan`: what a workflow file says, before anything runs.

use std::path::{Path, PathBuf};

use clap::Args;
use serde_json::{Value, json};

use crate::diagnostics;
use crate::failure::Failure;
use crate::output::{self, outln};
use crate::run::{PROJECT, Registered, Submission};
use crate::settings::Connection;
use crate::table;

#[derive(Debug, Args)]
pub(crate) struct CheckArguments {
    file: PathBuf,
    /// Print one JSON document.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct PlanArguments {
    file: PathBuf,
    /// An input: NAME=VALUE, or NAME=@PATH for a file or a directory.
    #[arg(short = 'i', long = "input", value_name = "NAME=VALUE")]
    inputs: Vec<String>,
    /// Print one JSON document.
    #[arg(long)]
    json: bool,
}

/// Checks a file by itself and, where a server is known and there, against its sites.
///
/// # Errors
/// When the file is invalid, or cannot be read.
pub(crate) async fn check(connection: &Connection, arguments: &CheckArguments) -> anyhow::Result<()> {
    match checked(connection, &arguments.file).await {
        Ok(alone) => {
            if arguments.json {
                output::json(&json!({ "valid": true, "errors": [] }));
            } else {
                outln!("{} is valid", arguments.file.display());
            }
            if let Some(reason) = alone {
                eprintln!("it was checked by itself, not against sites: {reason}");
            }
            Ok(())
        }
        Err(error) => {
            if let (true, Some(Failure::Invalid { diagnostics, .. })) =
                (arguments.json, error.downcast_ref::<Failure>())
            {
                output::json(&json!({ "valid": false, "errors": diagnostics::document(diagnostics) }));
            }
            Err(error)
        }
    }
}

/// Why it was not checked against sites, if it was not.
async fn checked(connection: &Connection, file: &Path) -> anyhow::Result<Option<String>> {
    let client = connection.client();
    let registered = Registered { client: client.as_ref().ok(), project: PROJECT };
    let submission = Submission::read(file, registered).await?;
    let client = match client {
        Ok(client) => client,
        Err(error) => return Ok(Some(error.to_string())),
    };
    match submission.check_against(&client).await {
        Ok(()) => Ok(None),
        Err(error) => match error.downcast::<Failure>()? {
            Failure::Unreachable(reason) => Ok(Some(reason)),
            other @ (Failure::Failed(_)
            | Failure::NotFound(_)
            | Failure::Usage(_)
            | Failure::Invalid { .. }
            | Failure::Unauthorised(_)) => Err(other.into()),
        },
    }
}

/// Prints what placement would do now.
///
/// # Errors
/// When the file is invalid, or the server cannot be reached.
pub(crate) async fn plan(connection: &Connection, arguments: &PlanArguments) -> anyhow::Result<()> {
    let client = connection.client()?;
    let registered = Registered { client: Some(&client), project: PROJECT };
    let submission = Submission::prepare(&arguments.file, &arguments.inputs, registered).await?;
    let document = submission.plan(&client).await?;
    if arguments.json {
        output::json(&document);
        return Ok(());
    }
    let steps: Vec<Vec<String>> = array(&document, "steps").iter().map(step_row).collect();
    table::print(&["STEP", "SITE", "WHY"], &steps);
    outln!();
    let edges: Vec<Vec<String>> = array(&document, "edges").iter().map(edge_row).collect();
    table::print(&["FROM", "TO", "BYTES", "SECONDS", "MONEY", "ROUTE", "RULE"], &edges);
    Ok(())
}

/// The reason for the choice; for a step that has none, what keeps it from every site.
fn step_row(step: &Value) -> Vec<String> {
    let verdicts = array(step, "explanation");
    let chosen = verdicts.iter().find(|verdict| verdict["site"] == step["site"]);
    let why = match chosen {
        Some(verdict) => table::field(verdict, "reason"),
        None => {
            let reasons = verdicts
                .iter()
                .map(|verdict| format!("{}: {}", table::field(verdict, "site"), table::field(verdict, "reason")));
            reasons.collect::<Vec<_>>().join("; ")
        }
    };
    vec![table::field(step, "step"), table::field(step, "site"), why]
}

fn edge_row(edge: &Value) -> Vec<String> {
    let expected = edge["bytes_expected"].as_u64().map_or_else(|| "unknown".to_owned(), table::bytes);
    let number =
        |name: &str, digits: usize| edge[name].as_f64().map_or("-".to_owned(), |value| format!("{value:.digits$}"));
    vec![
        table::field(edge, "from"),
        table::field(edge, "to"),
        expected,
        number("seconds_expected", 1),
        number("money_expected", 4),
        table::field(edge, "route"),
        table::field(edge, "rule"),
    ]
}

fn array(document: &Value, name: &str) -> Vec<Value> {
    document[name].as_array().cloned().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_without_a_site_says_what_keeps_it_from_each() {
        let verdict = |site: &str, reason: &str| json!({ "site": site, "feasible": false, "reason": reason });
        let verdicts = json!([verdict("edge", "drained"), verdict("hpc", "too little memory")]);
        let nowhere = json!({ "step": "fit", "site": null, "explanation": verdicts });
        assert_eq!(step_row(&nowhere), ["fit", "–", "edge: drained; hpc: too little memory"]);
        let placed = json!({ "step": "fit", "site": "hpc", "explanation": [verdict("hpc", "the only one")] });
        assert_eq!(step_row(&placed), ["fit", "hpc", "the only one"]);
    }
}
