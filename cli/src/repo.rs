//! `atoll repo`: git repositories that actions are imported from.

mod found;

use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;
use atoll_model::units::{format_duration, parse_duration};
use clap::{Args, Subcommand};
use serde_json::{Value, json};

use crate::client::{Client, segment};
use crate::failure::Failure;
use crate::output::{self, outln};
use crate::run::PROJECT;
use crate::settings::Connection;
use crate::table;

/// How often it is asked whether a look at a repository has ended.
const ASK_AGAIN: Duration = Duration::from_millis(200);

#[derive(Debug, Subcommand)]
pub(crate) enum RepoCommand {
    /// Add a repository, and say what it holds; with `--every`, import it.
    Add(AddArguments),
    /// List the repositories of a project.
    List {
        #[arg(long, default_value = PROJECT)]
        project: String,
        /// Print one JSON document.
        #[arg(long)]
        json: bool,
    },
    /// Show a repository, and what the last look at it has found.
    Show(RepoArguments),
    /// Say which actions a repository holds now, and what is wrong with them.
    Scan(LookArguments),
    /// Push each version that a repository holds and the project does not know.
    Import(LookArguments),
    /// End the scan or the import that goes on; what was pushed by then stays.
    Cancel(RepoArguments),
    /// Print what was said while a repository was looked at: now, or the last time.
    Logs(RepoArguments),
    /// Forget a repository; the versions that came from it stay.
    Remove(RepoArguments),
}

#[derive(Debug, Args)]
pub(crate) struct AddArguments {
    /// `https://…`, `ssh://…`, or a folder of the server's machine.
    #[arg(value_name = "GIT_URL")]
    address: String,
    /// A branch or a tag; what the repository itself says unless given.
    #[arg(long)]
    branch: Option<String>,
    /// Only what is in this folder of it.
    #[arg(long)]
    subdir: Option<String>,
    /// What it is called here; the last part of the address unless given.
    #[arg(long)]
    name: Option<String>,
    /// Import it by the clock, from now on: `1h`.
    #[arg(long, value_name = "DURATION")]
    every: Option<String>,
    #[arg(long, default_value = PROJECT)]
    project: String,
    /// Do not wait for what it holds.
    #[arg(long)]
    no_wait: bool,
    /// Print one JSON document.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct RepoArguments {
    #[arg(value_name = "NAME")]
    repository: String,
    #[arg(long, default_value = PROJECT)]
    project: String,
    /// Print one JSON document.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct LookArguments {
    #[command(flatten)]
    repository: RepoArguments,
    /// Do not wait for the end.
    #[arg(long)]
    no_wait: bool,
}

/// Does what was asked for; whether all that was found is right.
///
/// # Errors
/// When it cannot be done.
pub(crate) async fn repo(connection: &Connection, command: RepoCommand) -> anyhow::Result<bool> {
    let client = connection.client()?;
    match command {
        RepoCommand::Add(arguments) => return add(&client, &arguments).await,
        RepoCommand::Scan(arguments) => return look(&client, &arguments, "scan").await,
        RepoCommand::Import(arguments) => return look(&client, &arguments, "import").await,
        RepoCommand::List { project, json } => list(&client, &project, json).await?,
        RepoCommand::Show(arguments) => {
            let document = client.get(&path_of(&arguments)).await?;
            print(&document, arguments.json);
        }
        RepoCommand::Cancel(arguments) => {
            let document = client.post(&format!("{}/cancel", path_of(&arguments)), &json!({})).await?;
            print(&document, arguments.json);
        }
        RepoCommand::Logs(arguments) => {
            let document = client.get(&format!("{}/log", path_of(&arguments))).await?;
            if arguments.json {
                output::json(&document);
            } else {
                output::text(document["log"].as_str().unwrap_or_default());
            }
        }
        RepoCommand::Remove(arguments) => {
            client.delete(&path_of(&arguments)).await?;
            let RepoArguments { repository, project, json } = arguments;
            if json {
                output::json(&json!({ "repository": repository, "project": project, "removed": true }));
            } else {
                outln!("repository {repository} was removed from project {project}");
            }
        }
    }
    Ok(true)
}

fn path(project: &str, repository: &str) -> String {
    format!("/projects/{}/repositories/{}", segment(project), segment(repository))
}

fn path_of(arguments: &RepoArguments) -> String {
    path(&arguments.project, &arguments.repository)
}

async fn add(client: &Client, arguments: &AddArguments) -> anyhow::Result<bool> {
    let every = arguments.every.as_deref().map(parse_duration).transpose();
    let every = every.map_err(|error| Failure::Usage(format!("--every: {error}")))?;
    let body = json!({
        "name": arguments.name,
        "url": absolute(&arguments.address)?,
        "branch": arguments.branch,
        "subdir": arguments.subdir,
        "every_seconds": every.map(|every| every.as_secs()),
    });
    let document = client.post(&format!("/projects/{}/repositories", segment(&arguments.project)), &body).await?;
    finish(client, document, arguments.no_wait, arguments.json).await
}

/// A folder is named as the server, which is elsewhere in the file system, finds it.
fn absolute(url: &str) -> anyhow::Result<String> {
    let is_short_ssh = url.contains('@') && url.contains(':');
    if url.contains("://") || url.starts_with('/') || is_short_ssh {
        return Ok(url.to_owned());
    }
    let path = Path::new(url).canonicalize().with_context(|| format!("cannot open the folder {url}"))?;
    Ok(path.display().to_string())
}

async fn look(client: &Client, arguments: &LookArguments, what: &str) -> anyhow::Result<bool> {
    let path = format!("{}/{what}", path_of(&arguments.repository));
    let document = client.post(&path, &json!({})).await?;
    finish(client, document, arguments.no_wait, arguments.repository.json).await
}

/// Waits for the end of what goes on, unless nobody wants that, and prints it.
async fn finish(client: &Client, document: Value, no_wait: bool, as_json: bool) -> anyhow::Result<bool> {
    let document = if no_wait { document } else { wait(client, document).await? };
    print(&document, as_json);
    Ok(no_wait || found::is_right(&document["last"]))
}

async fn wait(client: &Client, mut document: Value) -> anyhow::Result<Value> {
    let number = |import: &Value| import["number"].as_u64().unwrap_or(0);
    let wanted = number(&document["under_way"]);
    let field = |name: &str| document[name].as_str().unwrap_or_default().to_owned();
    let path = path(&field("project"), &field("repository"));
    while number(&document["last"]) < wanted {
        tokio::time::sleep(ASK_AGAIN).await;
        document = client.get(&path).await?;
    }
    Ok(document)
}

async fn list(client: &Client, project: &str, as_json: bool) -> anyhow::Result<()> {
    let document = client.get(&format!("/projects/{}/repositories", segment(project))).await?;
    if as_json {
        output::json(&document);
        return Ok(());
    }
    let row = |repository: &Value| {
        let last = &repository["last"];
        let state = match repository["under_way"]["what"].as_str() {
            Some(what) => format!("{what} goes on"),
            None => found::summary(last),
        };
        vec![
            table::field(repository, "repository"),
            table::field(repository, "url"),
            every(repository),
            table::time(last, "ended_at"),
            found::short_commit(last),
            state,
        ]
    };
    let rows: Vec<Vec<String>> = document["repositories"].as_array().into_iter().flatten().map(row).collect();
    table::print(&["REPOSITORY", "URL", "EVERY", "LAST LOOK", "COMMIT", ""], &rows);
    Ok(())
}

fn every(repository: &Value) -> String {
    let every = repository["every_seconds"].as_u64().map(Duration::from_secs);
    every.map_or_else(|| "–".to_owned(), format_duration)
}

fn print(document: &Value, as_json: bool) {
    if as_json {
        output::json(document);
        return;
    }
    let field = |name: &str| document[name].as_str().unwrap_or_default();
    outln!("{} in project {}: {}", field("repository"), field("project"), field("url"));
    let parts = [("branch", "branch"), ("subdir", "folder")];
    for (name, shown) in parts.into_iter().filter(|(name, _)| !document[*name].is_null()) {
        outln!("  {shown} {}", field(name));
    }
    if !document["every_seconds"].is_null() {
        outln!("  imported every {}", every(document));
    }
    outln!("  added by {} at {}", field("added_by"), table::time(document, "added_at"));
    let under_way = &document["under_way"];
    if let Some(what) = under_way["what"].as_str() {
        outln!("  {what} since {}, asked for by {}", table::time(under_way, "asked_at"), found::by(under_way));
    }
    found::print(&document["last"]);
}
