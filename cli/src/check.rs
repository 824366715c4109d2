//! `atoll check`, `atoll plan` and the schemas of the files that people write.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use crate::client::Client;
use crate::diagnostics;
use crate::failure::Failure;
use crate::run::Submission;
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

#[derive(Debug, Subcommand)]
pub(crate) enum SchemaCommand {
    /// The JSON Schema of a workflow file.
    Workflow,
    /// The JSON Schema of `action.yaml`.
    Action,
}

/// Checks a file by itself and, where a server is known, against its sites.
///
/// # Errors
/// When the file is invalid, or cannot be read.
pub(crate) async fn check(connection: &Connection, arguments: &CheckArguments) -> anyhow::Result<()> {
    let client = connection.client().ok();
    match checked(client.as_ref(), &arguments.file).await {
        Ok(()) => {
            if arguments.json {
                println!("{}", json!({ "valid": true, "errors": [] }));
            } else {
                let against = if client.is_some() { "" } else { " (by itself: no server is known)" };
                println!("{} is valid{against}", arguments.file.display());
            }
            Ok(())
        }
        Err(error) => {
            if let (true, Some(Failure::Invalid { diagnostics, .. })) = (arguments.json, error.downcast_ref::<Failure>()) {
                println!("{}", json!({ "valid": false, "errors": diagnostics::document(diagnostics) }));
            }
            Err(error)
        }
    }
}

async fn checked(client: Option<&Client>, file: &std::path::Path) -> anyhow::Result<()> {
    let submission = Submission::read(file)?;
    match client {
        Some(client) => submission.check_against(client).await,
        None => Ok(()),
    }
}

/// Prints what placement would do now.
///
/// # Errors
/// When the file is invalid, or the server cannot be reached.
pub(crate) async fn plan(connection: &Connection, arguments: &PlanArguments) -> anyhow::Result<()> {
    let client = connection.client()?;
    let submission = Submission::prepare(&arguments.file, &arguments.inputs)?;
    let document = submission.plan(&client).await?;
    if arguments.json {
        println!("{document}");
        return Ok(());
    }
    let steps: Vec<Vec<String>> = array(&document, "steps").iter().map(step_row).collect();
    table::print(&["STEP", "SITE", "WHY"], &steps);
    println!();
    let edges: Vec<Vec<String>> = array(&document, "edges").iter().map(edge_row).collect();
    table::print(&["FROM", "TO", "BYTES", "ROUTE", "RULE"], &edges);
    Ok(())
}

fn step_row(step: &Value) -> Vec<String> {
    let site = table::field(step, "site");
    let chosen = array(step, "explanation").into_iter().find(|verdict| verdict["site"] == step["site"]);
    vec![table::field(step, "step"), site, chosen.map_or_else(String::new, |verdict| table::field(&verdict, "reason"))]
}

fn edge_row(edge: &Value) -> Vec<String> {
    let expected = edge["bytes_expected"].as_u64().map_or_else(|| "unknown".to_owned(), table::bytes);
    vec![table::field(edge, "from"), table::field(edge, "to"), expected, table::field(edge, "route"), table::field(edge, "rule")]
}

fn array(document: &Value, name: &str) -> Vec<Value> {
    document[name].as_array().cloned().unwrap_or_default()
}

/// Prints a schema.
pub(crate) fn schema(command: &SchemaCommand) {
    let schema = match command {
        SchemaCommand::Workflow => atoll_model::workflow::schema(),
        SchemaCommand::Action => atoll_model::action::schema(),
    };
    println!("{schema:#}");
}
