//! Sites: `atoll sites`, `atoll site …`.

mod doctor;
mod idmap;

use std::collections::BTreeMap;

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use crate::client::{Client, segment};
use crate::failure::Failure;
use crate::output::{self, outln};
use crate::settings::Connection;
use crate::table;
use crate::worker::{WorkerTokenArguments, worker_token};

#[derive(Debug, Args)]
pub(crate) struct SitesArguments {
    /// Print one JSON document.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum SiteCommand {
    /// Tokens with which a site joins.
    #[command(subcommand)]
    Token(TokenCommand),
    /// Show one site.
    Show(SiteArguments),
    /// Send nothing new there; what runs goes on.
    Drain(SiteArguments),
    /// Take a drained site back.
    Undrain(SiteArguments),
    /// End a site's identity: its session is closed, its certificate refused.
    Revoke {
        #[command(flatten)]
        site: SiteArguments,
        #[arg(long, default_value = "revoked by a person")]
        reason: String,
    },
    /// Say that a silent site is gone for good: what it had is given to others.
    Lost(SiteArguments),
    /// Forget a site.
    Remove(SiteArguments),
    /// Look, on the machine of a site, at all that its agent needs: before it joins, and ever after.
    Doctor(Box<doctor::DoctorArguments>),
    /// The local accounts that executions run as, on the machine of a site.
    #[command(subcommand)]
    Idmap(idmap::IdmapCommand),
    /// Print the token with which further machines join the agent of this one (`atoll worker`).
    WorkerToken(WorkerTokenArguments),
}

#[derive(Debug, Args)]
pub(crate) struct SiteArguments {
    site: String,
    /// Print one JSON document.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum TokenCommand {
    /// Make a token for one join, and print the command to run at the site.
    Create {
        site: String,
        /// How long it may be used.
        #[arg(long, default_value = "1h")]
        ttl: String,
        /// A label of the site: KEY=VALUE.
        #[arg(long = "label", value_name = "KEY=VALUE")]
        labels: Vec<String>,
        /// Print one JSON document.
        #[arg(long)]
        json: bool,
    },
}

pub(crate) async fn sites(connection: &Connection, arguments: &SitesArguments) -> anyhow::Result<()> {
    let document = connection.client()?.get("/sites").await?;
    if arguments.json {
        output::json(&document);
        return Ok(());
    }
    let rows: Vec<Vec<String>> = document["sites"].as_array().into_iter().flatten().map(site_row).collect();
    table::print(&["SITE", "STATE", "LABELS", "CPUS", "MEMORY", "RUNNING", "QUEUED", "STORE", "AGENT"], &rows);
    for site in document["sites"].as_array().into_iter().flatten() {
        if let Some(warning) = site["warning"].as_str() {
            outln!("{}: {warning}", table::field(site, "site"));
        }
    }
    Ok(())
}

fn site_row(site: &Value) -> Vec<String> {
    let labels = site["labels"].as_object().into_iter().flatten();
    let labels: Vec<String> =
        labels.map(|(key, value)| format!("{key}={}", value.as_str().unwrap_or_default())).collect();
    vec![
        table::field(site, "site"),
        table::field(site, "state"),
        labels.join(","),
        known(site["capacity"]["cpus"].as_f64().filter(|cpus| *cpus > 0.0).map(|cpus| cpus.to_string())),
        known(site["capacity"]["memory_bytes"].as_u64().filter(|bytes| *bytes > 0).map(table::bytes)),
        table::field(site, "running"),
        table::field(site, "queued"),
        known(site["store"]["bytes"].as_u64().map(table::bytes)),
        table::field(site, "agent_version"),
    ]
}

/// A site that was never connected has nothing that is known.
fn known(text: Option<String>) -> String {
    text.unwrap_or_else(|| "–".to_owned())
}

/// Whether what was asked for has succeeded.
pub(crate) async fn site(connection: &Connection, command: SiteCommand) -> anyhow::Result<bool> {
    if let SiteCommand::Doctor(arguments) = command {
        return doctor::doctor(connection, *arguments).await;
    }
    if let SiteCommand::Idmap(command) = command {
        return idmap::idmap(command);
    }
    if let SiteCommand::WorkerToken(arguments) = command {
        return worker_token(arguments).map(|()| true);
    }
    ask(&connection.client()?, command).await?;
    Ok(true)
}

async fn ask(client: &Client, command: SiteCommand) -> anyhow::Result<()> {
    match command {
        SiteCommand::Doctor(_) | SiteCommand::WorkerToken(_) | SiteCommand::Idmap(_) => {
            unreachable!("they ask the machine that they run on")
        }
        SiteCommand::Token(TokenCommand::Create { site, ttl, labels, json }) => {
            create_token(client, &site, &ttl, &labels, json).await
        }
        SiteCommand::Show(arguments) => {
            let document = client.get(&format!("/sites/{}", segment(&arguments.site))).await?;
            if arguments.json {
                output::json(&document);
            } else {
                describe(&document);
            }
            Ok(())
        }
        SiteCommand::Drain(arguments) => change(client, &arguments, "drain", "takes nothing new", &json!({})).await,
        SiteCommand::Undrain(arguments) => change(client, &arguments, "undrain", "takes work again", &json!({})).await,
        SiteCommand::Revoke { site, reason } => {
            change(client, &site, "revoke", "is revoked", &json!({ "reason": reason })).await
        }
        SiteCommand::Lost(arguments) => change(client, &arguments, "lost", "is declared lost", &json!({})).await,
        SiteCommand::Remove(arguments) => {
            client.delete(&format!("/sites/{}", segment(&arguments.site))).await?;
            if arguments.json {
                output::json(&json!({ "site": arguments.site, "removed": true }));
            } else {
                outln!("{} is forgotten", arguments.site);
            }
            Ok(())
        }
    }
}

fn describe(site: &Value) {
    for (title, name) in [("site", "site"), ("state", "state"), ("agent", "agent_version")] {
        outln!("{title:<10} {}", table::field(site, name));
    }
    outln!("{:<10} {}", "connected", table::time(site, "connected_since"));
    for name in ["reason", "warning"] {
        if let Some(text) = site[name].as_str() {
            outln!("{name:<10} {text}");
        }
    }
    let labels = site["labels"].as_object().into_iter().flatten();
    for (key, value) in labels {
        outln!("{:<10} {key}={}", "label", value.as_str().unwrap_or_default());
    }
    for (title, name) in [("capacity", "capacity"), ("free", "free"), ("store", "store")] {
        let parts: Vec<String> = site[name].as_object().into_iter().flatten().map(quantity).collect();
        outln!("{title:<10} {}", parts.join(", "));
    }
    for name in ["running", "queued"] {
        outln!("{name:<10} {}", table::field(site, name));
    }
    if let Some(wait) = site["batch_wait_seconds"].as_f64() {
        outln!("{:<10} {wait:.1} s for the batch system", "wait");
    }
}

fn quantity((name, value): (&String, &Value)) -> String {
    match (name.strip_suffix("_bytes").or((name == "bytes").then_some("bytes")), value.as_u64()) {
        (Some(name), Some(size)) => format!("{} {}", name.replace('_', " "), table::bytes(size)),
        (Some(_) | None, Some(_) | None) => format!("{} {value}", name.replace('_', " ")),
    }
}

async fn change(
    client: &Client,
    arguments: &SiteArguments,
    verb: &str,
    done: &str,
    body: &Value,
) -> anyhow::Result<()> {
    let document = client.post(&format!("/sites/{}/{verb}", segment(&arguments.site)), body).await?;
    if arguments.json {
        output::json(&document);
    } else {
        outln!("{} {done}", arguments.site);
    }
    Ok(())
}

async fn create_token(client: &Client, site: &str, ttl: &str, labels: &[String], json: bool) -> anyhow::Result<()> {
    let lifetime =
        atoll_model::units::parse_duration(ttl).map_err(|error| Failure::Usage(format!("--ttl {ttl}: {error}")))?;
    let mut given = BTreeMap::new();
    for label in labels {
        let (key, value) =
            label.split_once('=').ok_or_else(|| Failure::Usage(format!("--label {label}: a label is KEY=VALUE")))?;
        given.insert(key.to_owned(), value.to_owned());
    }
    let body = json!({ "ttl_seconds": lifetime.as_secs(), "labels": given });
    let document = client.post(&format!("/sites/{}/tokens", segment(site)), &body).await?;
    if json {
        output::json(&document);
    } else {
        outln!(
            "Run this at {site}, until {}:\n\n  {}",
            table::time(&document, "expires_at"),
            table::field(&document, "join_command")
        );
    }
    Ok(())
}
