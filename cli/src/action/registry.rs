//! Versions of actions at a server.

use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use clap::Args;
use serde_json::{Value, json};

use super::folder::Folder;
use super::key;
use crate::client::{Client, segment};
use crate::failure::Failure;
use crate::output::{self, outln};
use crate::run::PROJECT;
use crate::run::upload::{Purpose, send_packed};
use crate::table;

use atoll_model::action::ActionReference;

#[derive(Debug, Args)]
pub(crate) struct PushArguments {
    folder: PathBuf,
    #[arg(long, default_value = PROJECT)]
    project: String,
    /// A key that signs it; may be given more than once.
    #[arg(long = "key", value_name = "FILE")]
    keys: Vec<PathBuf>,
    /// Print one JSON document.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct ListArguments {
    /// Only versions of this action.
    name: Option<String>,
    #[arg(long, default_value = PROJECT)]
    project: String,
    /// Only those with this label; may be given more than once.
    #[arg(long = "label", value_name = "KEY=VALUE")]
    labels: Vec<String>,
    /// Print one JSON document.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct VersionArguments {
    #[arg(value_name = "NAME@VERSION")]
    action: String,
    #[arg(long, default_value = PROJECT)]
    project: String,
    /// Print one JSON document.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct DeprecateArguments {
    #[command(flatten)]
    version: VersionArguments,
    /// What to use instead, or why not this.
    #[arg(long)]
    reason: Option<String>,
    /// Take it back.
    #[arg(long, conflicts_with = "reason")]
    undo: bool,
}

impl VersionArguments {
    fn path(&self) -> anyhow::Result<String> {
        let parsed = self.action.parse::<ActionReference>();
        let reference = parsed.map_err(|error| Failure::Usage(error.to_string()))?;
        Ok(version_path(&self.project, &reference))
    }

    fn print(&self, document: &Value) {
        if self.json {
            output::json(document);
        } else {
            describe(document);
        }
    }
}

/// Where the API shows a version.
pub(crate) fn version_path(project: &str, reference: &ActionReference) -> String {
    let [project, name, version] = [project, &reference.name, &reference.version].map(segment);
    format!("/projects/{project}/actions/{name}/{version}")
}

pub(super) async fn push(client: &Client, arguments: &PushArguments) -> anyhow::Result<()> {
    let document = push_folder(client, &arguments.folder, &arguments.project, &arguments.keys).await?;
    if arguments.json {
        output::json(&document);
    } else {
        describe(&document);
    }
    Ok(())
}

/// Sends the folder of an action and has it registered, with a signature of each of the keys in these files.
///
/// # Errors
/// When it is not valid, or the server does not take it.
pub(crate) async fn push_folder(
    client: &Client,
    folder: &Path,
    project: &str,
    keys: &[PathBuf],
) -> anyhow::Result<Value> {
    let folder = Folder::at(folder.to_owned());
    let packed = tokio::task::spawn_blocking(move || folder.pack()).await??;
    let bundle = packed.bundle.object().id;
    let mut signatures = Vec::new();
    for file in keys {
        let signature = key::read(file)?.sign(bundle);
        let bytes = URL_SAFE_NO_PAD.encode(signature.bytes());
        signatures.push(json!({ "key": signature.key.to_string(), "signature": bytes }));
    }
    let purpose = Purpose { project: Some(project), encrypted: false };
    send_packed(client, packed.bundle, (b"action".to_vec(), true), &purpose).await?;
    let path = format!("/projects/{}/actions", segment(project));
    client.post(&path, &json!({ "object": bundle.to_string(), "signatures": signatures })).await
}

pub(super) async fn list(client: &Client, arguments: &ListArguments) -> anyhow::Result<()> {
    let mut query: Vec<String> = arguments.name.iter().map(|name| format!("name={}", segment(name))).collect();
    if !arguments.labels.is_empty() {
        query.push(format!("label={}", segment(&arguments.labels.join(","))));
    }
    let path = format!("/projects/{}/actions?{}", segment(&arguments.project), query.join("&"));
    let document = client.get(&path).await?;
    if arguments.json {
        output::json(&document);
        return Ok(());
    }
    let row = |action: &Value| {
        let deprecated = if action["deprecated"].is_null() { "" } else { "deprecated" };
        let signed = action["signed_by"].as_array().map_or(0, Vec::len);
        vec![
            table::field(action, "action"),
            table::field(action, "version"),
            table::field(action, "kind"),
            action["bytes"].as_u64().map_or_else(String::new, table::bytes),
            table::time(action, "pushed_at"),
            table::field(action, "pushed_by"),
            signed.to_string(),
            deprecated.to_owned(),
        ]
    };
    let rows: Vec<Vec<String>> = document["actions"].as_array().into_iter().flatten().map(row).collect();
    table::print(&["ACTION", "VERSION", "KIND", "BYTES", "PUSHED", "BY", "SIGNATURES", ""], &rows);
    Ok(())
}

pub(super) async fn show(client: &Client, arguments: &VersionArguments) -> anyhow::Result<()> {
    let document = client.get(&arguments.path()?).await?;
    arguments.print(&document);
    if !arguments.json {
        outln!();
        output::text(document["manifest"].as_str().unwrap_or_default());
    }
    Ok(())
}

pub(super) async fn deprecate(client: &Client, arguments: &DeprecateArguments) -> anyhow::Result<()> {
    let path = format!("{}/deprecate", arguments.version.path()?);
    let document = client.post(&path, &json!({ "reason": arguments.reason, "undo": arguments.undo })).await?;
    arguments.version.print(&document);
    Ok(())
}

pub(super) async fn remove(client: &Client, arguments: &VersionArguments) -> anyhow::Result<()> {
    client.delete(&arguments.path()?).await?;
    if arguments.json {
        output::json(&json!({ "action": arguments.action, "project": arguments.project, "removed": true }));
    } else {
        outln!("{} was removed from project {}", arguments.action, arguments.project);
    }
    Ok(())
}

fn describe(action: &Value) {
    let field = |name| table::field(action, name);
    outln!("{} {} in project {}", field("action"), field("version"), field("project"));
    outln!("  {}, {}", field("digest"), action["bytes"].as_u64().map_or_else(String::new, table::bytes));
    outln!("  pushed by {} at {}", field("pushed_by"), table::time(action, "pushed_at"));
    for key in action["signed_by"].as_array().into_iter().flatten().filter_map(Value::as_str) {
        outln!("  signed by {key}");
    }
    let origin = &action["origin"];
    if !origin.is_null() {
        let [repository, url, commit, path] =
            ["repository", "url", "commit", "path"].map(|name| table::field(origin, name));
        outln!("  from {path} at commit {commit} of repository {repository} ({url})");
    }
    let deprecation = &action["deprecated"];
    if !deprecation.is_null() {
        let reason = deprecation["reason"].as_str().map(|reason| format!(": {reason}")).unwrap_or_default();
        outln!("  deprecated by {} at {}{reason}", table::field(deprecation, "by"), table::time(deprecation, "at"));
    }
    for site in action["sites"].as_array().into_iter().flatten() {
        let reason = site["reason"].as_str().map(|reason| format!(": {reason}")).unwrap_or_default();
        let [name, state] = ["site", "state"].map(|name| table::field(site, name));
        outln!("  {state} at {name} since {}{reason}", table::time(site, "since"));
    }
}
