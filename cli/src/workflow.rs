//! `atoll workflow`: workflows that are deployed, what starts their runs, and what is kept running for them.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use atoll_model::workflow::workflow_schema;
use clap::{Args, Subcommand};
use serde_json::{Value, json};

use crate::client::{Client, segment};
use crate::output::{self, outln};
use crate::run::{PROJECT, Registered, Submission};
use crate::settings::Connection;
use crate::table;

/// How often it is asked whether what is deployed runs, or has ended.
const ASK_AGAIN: Duration = Duration::from_millis(200);
/// How long that may take before it is said how far it is.
const PATIENCE: Duration = Duration::from_secs(60);

#[derive(Debug, Subcommand)]
pub(crate) enum WorkflowCommand {
    /// Deploy a workflow, in place of the one of its name: its source and its services run from now on.
    Deploy(DeployArguments),
    /// List the deployed workflows of a project.
    List {
        #[arg(long, default_value = PROJECT)]
        project: String,
        /// Print one JSON document.
        #[arg(long)]
        json: bool,
    },
    /// Show a deployed workflow: how its source and its services do, and what was emitted.
    Show(WorkflowArguments),
    /// End the source and the services of a deployed workflow; runs that have begun go on.
    Undeploy(UndeployArguments),
    /// Print the file that a workflow was deployed from.
    Export(WorkflowArguments),
    /// Print the JSON Schema of a workflow file, for editors.
    Schema,
}

#[derive(Debug, Args)]
pub(crate) struct DeployArguments {
    /// The workflow file.
    file: PathBuf,
    #[arg(long, default_value = PROJECT)]
    project: String,
    /// Do not wait until its source runs and its services are well.
    #[arg(long)]
    no_wait: bool,
    /// Print one JSON document.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct WorkflowArguments {
    #[arg(value_name = "NAME")]
    workflow: String,
    #[arg(long, default_value = PROJECT)]
    project: String,
    /// Print one JSON document.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct UndeployArguments {
    #[command(flatten)]
    workflow: WorkflowArguments,
    /// Do not wait until all of it has ended.
    #[arg(long)]
    no_wait: bool,
}

/// Does what was asked for; whether it has come to be.
///
/// # Errors
/// When it cannot be done.
pub(crate) async fn workflow(connection: &Connection, command: WorkflowCommand) -> anyhow::Result<bool> {
    match command {
        WorkflowCommand::Schema => output::json(&workflow_schema()),
        WorkflowCommand::Deploy(arguments) => return deploy(&connection.client()?, &arguments).await,
        WorkflowCommand::Undeploy(arguments) => return undeploy(&connection.client()?, &arguments).await,
        WorkflowCommand::List { project, json } => list(&connection.client()?, &project, json).await?,
        WorkflowCommand::Show(arguments) => {
            let document = connection.client()?.get(&path_of(&arguments)).await?;
            print(&document, arguments.json);
        }
        WorkflowCommand::Export(arguments) => {
            let document = connection.client()?.get(&path_of(&arguments)).await?;
            if arguments.json {
                output::json(&json!({ "workflow": document["workflow"], "text": document["text"] }));
            } else {
                output::text(document["text"].as_str().context("the answer has no text")?);
            }
        }
    }
    Ok(true)
}

/// Where a deployed workflow is asked for.
pub(crate) fn deployed_path(project: &str, workflow: &str) -> String {
    format!("/projects/{}/workflows/{}", segment(project), segment(workflow))
}

fn path_of(arguments: &WorkflowArguments) -> String {
    deployed_path(&arguments.project, &arguments.workflow)
}

async fn deploy(client: &Client, arguments: &DeployArguments) -> anyhow::Result<bool> {
    let registered = Registered { client: Some(client), project: &arguments.project };
    let submission = Submission::read(&arguments.file, registered).await?;
    let mut document = submission.deploy(client, &arguments.project).await?;
    let workflow = document["workflow"].as_str().context("the answer names no workflow")?.to_owned();
    let path = deployed_path(&arguments.project, &workflow);
    let began = Instant::now();
    while !arguments.no_wait && document["state"] == "deploying" && began.elapsed() < PATIENCE {
        let services = document["services"].as_array().into_iter().flatten();
        if services.chain([&document["source"]]).any(|standing| !standing["last_error"].is_null()) {
            break;
        }
        tokio::time::sleep(ASK_AGAIN).await;
        document = client.get(&path).await?;
    }
    print(&document, arguments.json);
    // A source may have come to its end by now, with all that it had to emit.
    Ok(arguments.no_wait || document["state"] == "ready" || document["state"] == "ended")
}

async fn undeploy(client: &Client, arguments: &UndeployArguments) -> anyhow::Result<bool> {
    let WorkflowArguments { workflow, project, json } = &arguments.workflow;
    let path = path_of(&arguments.workflow);
    client.delete(&path).await?;
    let began = Instant::now();
    let mut is_gone = false;
    while !is_gone && !arguments.no_wait && began.elapsed() < PATIENCE {
        is_gone = client.look_up(&path).await?.is_err();
        if !is_gone {
            tokio::time::sleep(ASK_AGAIN).await;
        }
    }
    let state = if is_gone { "gone" } else { "draining" };
    if *json {
        output::json(&json!({ "workflow": workflow, "project": project, "state": state }));
    } else {
        outln!("workflow {workflow} of project {project}: {state}");
    }
    Ok(is_gone || arguments.no_wait)
}

async fn list(client: &Client, project: &str, as_json: bool) -> anyhow::Result<()> {
    let document = client.get(&format!("/projects/{}/workflows", segment(project))).await?;
    if as_json {
        output::json(&document);
        return Ok(());
    }
    let row = |workflow: &Value| {
        let source = &workflow["source"];
        vec![
            table::field(workflow, "workflow"),
            table::field(workflow, "state"),
            table::field(workflow, "generation"),
            table::field(source, "action"),
            table::field(source, "site"),
            table::field(source, "restarts"),
            ready_services(workflow),
            table::field(workflow, "emitted"),
            table::time(workflow, "last_emitted_at"),
        ]
    };
    let rows: Vec<Vec<String>> = document["workflows"].as_array().into_iter().flatten().map(row).collect();
    table::print(
        &["WORKFLOW", "STATE", "GENERATION", "SOURCE", "SITE", "RESTARTS", "SERVICES", "EMITTED", "LAST"],
        &rows,
    );
    Ok(())
}

/// How many of its services are ready, of how many.
fn ready_services(workflow: &Value) -> String {
    let services = workflow["services"].as_array().map(Vec::as_slice).unwrap_or_default();
    let ready = services.iter().filter(|service| service["state"] == "ready").count();
    if services.is_empty() { "-".to_owned() } else { format!("{ready}/{}", services.len()) }
}

fn print(document: &Value, as_json: bool) {
    if as_json {
        output::json(document);
        return;
    }
    let field = |name: &str| table::field(document, name);
    outln!("{} in project {}: {}", field("workflow"), field("project"), field("state"));
    if let Some(reason) = document["reason"].as_str() {
        outln!("  {reason}");
    }
    let (by, at) = (field("deployed_by"), table::time(document, "deployed_at"));
    outln!("  generation {}, deployed by {by} at {at}", field("generation"));
    for service in document["services"].as_array().into_iter().flatten() {
        let field = |name: &str| table::field(service, name);
        outln!("  service {} ({}) at {}: {}", field("service"), field("action"), field("site"), field("state"));
        outln!("    its logs: atoll logs {}", field("execution"));
        if let Some(error) = service["last_error"].as_str() {
            outln!("    the last time it failed: {error}");
        }
    }
    let source = &document["source"];
    if source.is_null() {
        outln!("  no source: `atoll run {}` starts a run", field("workflow"));
        return;
    }
    let of_source = |name: &str| table::field(source, name);
    outln!("  source {} at {}, restarted {} times", of_source("action"), of_source("site"), of_source("restarts"));
    outln!("  its logs: atoll logs {}", of_source("run"));
    if let Some(error) = source["last_error"].as_str() {
        outln!("  the last time it failed: {error}");
    }
    outln!("  emitted {}, the last at {}", field("emitted"), table::time(document, "last_emitted_at"));
    if !document["offset"].is_null() {
        outln!("  offset {}", document["offset"]);
    }
}
