//! Projects: what each may have, and has.

use clap::{Args, Subcommand};
use serde_json::{Map, Value, json};

use crate::client::segment;
use crate::output::{self, outln};
use crate::settings::Connection;
use crate::table;

#[derive(Debug, Subcommand)]
pub(crate) enum ProjectCommand {
    /// List projects that have live runs, or settings.
    List {
        /// Print one JSON document.
        #[arg(long)]
        json: bool,
    },
    /// Show what a project may have, and has.
    Show(ProjectArguments),
    /// Change what a project may have; what is left out stays.
    Set {
        #[command(flatten)]
        project: ProjectArguments,
        /// Of what there is, beside the shares of the others who want it at the time: 1 to 1000.
        #[arg(long)]
        share: Option<u32>,
        /// Executions at sites at a time: a number, or `none`.
        #[arg(long, value_name = "N", value_parser = limit)]
        max_executions: Option<Limit>,
        /// Runs under way at a time: a number, or `none`.
        #[arg(long, value_name = "N", value_parser = limit)]
        max_runs: Option<Limit>,
        /// The limits are those of runs of this workflow.
        #[arg(long)]
        workflow: Option<String>,
    },
}

#[derive(Debug, Args)]
pub(crate) struct ProjectArguments {
    project: String,
    /// Print one JSON document.
    #[arg(long)]
    json: bool,
}

/// A limit that is given: a number, or that there is none.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limit(Option<u32>);

fn limit(text: &str) -> Result<Limit, String> {
    match text {
        "none" => Ok(Limit(None)),
        number => number.parse().map(|number| Limit(Some(number))).map_err(|_| "a number, or `none`".to_owned()),
    }
}

pub(crate) async fn project(connection: &Connection, command: ProjectCommand) -> anyhow::Result<()> {
    let client = connection.client()?;
    let (document, as_json) = match command {
        ProjectCommand::List { json } => {
            let document = client.get("/projects").await?;
            if json {
                output::json(&document);
            } else {
                let rows: Vec<_> = document["projects"].as_array().into_iter().flatten().map(row).collect();
                table::print(&["PROJECT", "SHARE", "RUNS", "MAX", "EXECUTIONS", "MAX", "WAITING"], &rows);
            }
            return Ok(());
        }
        ProjectCommand::Show(ProjectArguments { project, json }) => {
            (client.get(&format!("/projects/{}", segment(&project))).await?, json)
        }
        ProjectCommand::Set { project, share, max_executions, max_runs, workflow } => {
            let mut body = Map::new();
            body.extend(share.map(|share| ("share".to_owned(), json!(share))));
            body.extend(max_executions.map(|Limit(most)| ("max_executions".to_owned(), json!(most))));
            body.extend(max_runs.map(|Limit(most)| ("max_runs".to_owned(), json!(most))));
            body.extend(workflow.map(|workflow| ("workflow".to_owned(), json!(workflow))));
            let path = format!("/projects/{}", segment(&project.project));
            (client.post(&path, &Value::Object(body)).await?, project.json)
        }
    };
    if as_json {
        output::json(&document);
    } else {
        describe(&document);
    }
    Ok(())
}

fn most(document: &Value, name: &str) -> String {
    document[name].as_u64().map_or_else(|| "none".to_owned(), |most| most.to_string())
}

fn row(project: &Value) -> Vec<String> {
    vec![
        table::field(project, "project"),
        table::field(project, "share"),
        table::field(project, "runs"),
        most(project, "max_runs"),
        table::field(project, "executions"),
        most(project, "max_executions"),
        table::field(project, "executions_waiting"),
    ]
}

fn describe(project: &Value) {
    outln!("project:    {}", table::field(project, "project"));
    outln!("share:      {}", table::field(project, "share"));
    let (runs, live) = (table::field(project, "runs"), table::field(project, "runs_live"));
    outln!("runs:       {runs} under way of {live}, at most {}", most(project, "max_runs"));
    let (executions, waiting) = (table::field(project, "executions"), table::field(project, "executions_waiting"));
    outln!("executions: {executions} at sites, {waiting} ready, at most {}", most(project, "max_executions"));
    let workflows = project["workflows"].as_object().into_iter().flatten();
    let rows: Vec<Vec<String>> = workflows
        .map(|(name, usage)| {
            let of = |field| table::field(usage, field);
            vec![name.clone(), of("runs"), most(usage, "max_runs"), of("executions"), most(usage, "max_executions")]
        })
        .collect();
    if !rows.is_empty() {
        outln!();
        table::print(&["WORKFLOW", "RUNS", "MAX", "EXECUTIONS", "MAX"], &rows);
    }
}
