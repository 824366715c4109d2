//! `atoll site doctor`: what is wrong with the machine of a site, and what to do about it.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use serde_json::{Value, json};
use site_agent_daemon::{Check, CheckState, Diagnosis, Overrides};

use crate::failure::Failure;
use crate::output::{self, outln};
use crate::serve::{load_agent, read_token};
use crate::settings::Connection;
use crate::table;

const API_PATIENCE: Duration = Duration::from_secs(20);

#[derive(Debug, Args)]
pub(crate) struct DoctorArguments {
    /// The server that the site is to join: HOST:PORT, or its join token, which `-` reads from standard input. A site that has
    /// joined knows it.
    #[arg(long, value_name = "HOST:PORT or TOKEN")]
    server: Option<String>,
    /// Where the agent keeps everything, or is to.
    #[arg(long)]
    data_dir: Option<PathBuf>,
    /// Where executions are to work, if not there.
    #[arg(long)]
    work_dir: Option<PathBuf>,
    /// The agent's TOML file; flags win over it.
    #[arg(long)]
    config: Option<PathBuf>,
    /// Where agents of other sites may ask this one for objects (TCP and UDP).
    #[arg(long, value_name = "ADDRESS:PORT")]
    direct_listen: Option<SocketAddr>,
    /// Print one JSON document.
    #[arg(long)]
    json: bool,
}

/// Whether nothing is a problem.
pub(crate) async fn doctor(connection: &Connection, arguments: DoctorArguments) -> anyhow::Result<bool> {
    let DoctorArguments { server, data_dir, work_dir, config, direct_listen, json } = arguments;
    let (server, token) = match server {
        Some(text) if text == "-" => (None, Some(read_token()?)),
        Some(text) if text.starts_with("atoll-join.") => (None, Some(text)),
        other => (other, None),
    };
    let flags = Overrides { data_dir, work_dir, server, direct_listen, ..Overrides::default() };
    let config = load_agent(config.as_deref(), flags)?;
    let diagnosis = site_agent_daemon::diagnose(&config, token.as_deref()).await;
    let mut diagnosis = diagnosis.map_err(|error| Failure::Usage(format!("--server: {error}")))?;
    let after = diagnosis.checks.iter().rposition(|check| matches!(check.name, "agent-port" | "server-identity"));
    diagnosis.checks.insert(after.map_or(0, |at| at + 1), look_at_api(connection).await);
    if json {
        output::json(&document(&diagnosis)?);
    } else {
        show(&diagnosis);
    }
    Ok(diagnosis.count(CheckState::Problem) == 0)
}

/// The port that people use. An agent never does, so that a site works without.
async fn look_at_api(connection: &Connection) -> Check {
    let name = "api-port";
    let Ok(client) = connection.client() else {
        return Check::skipped(name, "no agent needs it; it is looked at where ATOLL_URL and ATOLL_TOKEN are set");
    };
    let url = client.url();
    match tokio::time::timeout(API_PATIENCE, client.get("/sites")).await {
        Ok(Ok(_)) => Check::ok(name, format!("{url} answers")),
        Ok(Err(error)) if matches!(error.downcast_ref::<Failure>(), Some(Failure::Unauthorised(_))) => {
            let advice = "give a token that is still good (ATOLL_TOKEN, or `atoll login`)";
            Check::warning(name, format!("{url} is reached and refuses the token"), advice)
        }
        Ok(Err(error)) => Check::warning(name, format!("{error:#}"), closed(&url)),
        Err(_) => Check::warning(name, format!("{url}: no answer within {} s", API_PATIENCE.as_secs()), closed(&url)),
    }
}

fn closed(url: &str) -> String {
    format!("people on this machine cannot use the server: let it connect to {url}; the agent does not need it")
}

fn document(diagnosis: &Diagnosis) -> anyhow::Result<Value> {
    let mut document = serde_json::to_value(diagnosis)?;
    document["problems"] = json!(diagnosis.count(CheckState::Problem));
    document["warnings"] = json!(diagnosis.count(CheckState::Warning));
    Ok(document)
}

fn show(diagnosis: &Diagnosis) {
    let rows: Vec<Vec<String>> = diagnosis
        .checks
        .iter()
        .map(|check| vec![check.name.to_owned(), shown(check.state).to_owned(), check.found.clone()])
        .collect();
    table::print(&["CHECK", "STATE", "FOUND"], &rows);
    let advised = diagnosis.checks.iter().filter_map(|check| Some((check.name, check.advice.as_ref()?)));
    for (number, (name, advice)) in advised.enumerate() {
        if number == 0 {
            outln!("\nWhat to do:");
        }
        outln!("  {name}: {advice}");
    }
    let count = |state, one: &str| match diagnosis.count(state) {
        1 => format!("1 {one}"),
        more => format!("{more} {one}s"),
    };
    outln!("\n{}, {}", count(CheckState::Problem, "problem"), count(CheckState::Warning, "warning"));
}

const fn shown(state: CheckState) -> &'static str {
    match state {
        CheckState::Ok => "ok",
        CheckState::Warning => "warning",
        CheckState::Problem => "problem",
        CheckState::Skipped => "skipped",
    }
}
