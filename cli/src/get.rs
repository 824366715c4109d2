//! `atoll get`: outputs of a run, as files.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use atoll_model::id::ObjectId;
use atoll_model::value::{ObjectKind, ObjectRef};
use clap::Args;
use futures::StreamExt as _;
use serde_json::Value;
use storage_sync_engine::stream::Unpacker;

use crate::client::{Client, segment};
use crate::failure::Failure;
use crate::settings::Connection;

#[derive(Debug, Args)]
pub(crate) struct GetArguments {
    run: String,
    /// One output; all of them if none is named.
    output: Option<String>,
    /// Where it goes: the path of one output, or a folder for all.
    #[arg(short = 'o', long = "output", value_name = "PATH")]
    to: PathBuf,
}

pub(crate) async fn get(connection: &Connection, arguments: &GetArguments) -> anyhow::Result<()> {
    let client = connection.client()?;
    match &arguments.output {
        None => all_outputs(&client, &arguments.run, &arguments.to).await,
        Some(output) => {
            let outputs = outputs(&client, &arguments.run).await?;
            let Some(value) = outputs.get(output) else {
                let known: Vec<&str> = outputs.keys().map(String::as_str).collect();
                return Err(Failure::Usage(format!("the run has no output {output}: it has {}", known.join(", "))).into());
            };
            one_output(&client, &arguments.run, output, value, &arguments.to).await
        }
    }
}

/// Downloads every output of a run into a folder, each under its name.
///
/// # Errors
/// When one cannot be had, or its place is taken.
pub(crate) async fn all_outputs(client: &Client, run: &str, folder: &Path) -> anyhow::Result<()> {
    let outputs = outputs(client, run).await?;
    std::fs::create_dir_all(folder).with_context(|| format!("cannot make the folder {}", folder.display()))?;
    for (name, value) in &outputs {
        one_output(client, run, name, value, &folder.join(name)).await?;
    }
    Ok(())
}

async fn outputs(client: &Client, run: &str) -> anyhow::Result<serde_json::Map<String, Value>> {
    let document = client.get(&format!("/runs/{}?executions=false", segment(run))).await?;
    if document["state"] != "succeeded" {
        let state = document["state"].as_str().unwrap_or_default();
        return Err(Failure::Failed(format!("{run} has no outputs: it is {state}")).into());
    }
    Ok(document["outputs"].as_object().cloned().unwrap_or_default())
}

async fn one_output(client: &Client, run: &str, name: &str, value: &Value, to: &Path) -> anyhow::Result<()> {
    let kind = match value["kind"].as_str() {
        Some("file") => ObjectKind::File,
        Some("directory") => ObjectKind::Tree,
        Some(_) | None => {
            let text = match value {
                Value::String(text) => text.clone(),
                other => other.to_string(),
            };
            return std::fs::write(to, format!("{text}\n")).with_context(|| format!("cannot write {}", to.display()));
        }
    };
    let id: ObjectId = value["object"].as_str().context("an output without its object")?.parse()?;
    let object = ObjectRef { id, kind, bytes: value["bytes"].as_u64().unwrap_or(0) };
    if to.exists() {
        bail!("{} exists already", to.display());
    }
    let path = format!("/runs/{}/outputs/{}", segment(run), segment(name));
    let mut chunks = client.stream(&path).await?.bytes_stream();
    let mut unpacker = Unpacker::new(object, to)?;
    while let Some(chunk) = chunks.next().await {
        let chunk = chunk.context("the download broke off")?;
        unpacker = tokio::task::spawn_blocking(move || unpacker.push(&chunk).map(|()| unpacker)).await??;
    }
    tokio::task::spawn_blocking(move || unpacker.finish()).await??;
    Ok(())
}
