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
                return Err(
                    Failure::Usage(format!("the run has no output {output}: it has {}", known.join(", "))).into()
                );
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

/// Downloads one output; files inside of lists and objects go into a folder.
async fn one_output(client: &Client, run: &str, name: &str, value: &Value, to: &Path) -> anyhow::Result<()> {
    let place = if to.is_dir() { to.join(name) } else { to.to_owned() };
    for part in parts(value, &place) {
        if part.to.symlink_metadata().is_ok() {
            bail!("{} exists already", part.to.display());
        }
        if let Some(folder) = part.to.parent() {
            std::fs::create_dir_all(folder).with_context(|| format!("cannot make the folder {}", folder.display()))?;
        }
        match part.content {
            Content::Text(text) => {
                std::fs::write(&part.to, text).with_context(|| format!("cannot write {}", part.to.display()))?;
            }
            Content::Object { object, executable } => {
                let path = format!("/runs/{}/outputs/{}?at={}", segment(run), segment(name), segment(&part.pointer));
                let unpacker = Unpacker::new(object?, &part.to)?.executable(executable);
                download(client, &path, unpacker).await?;
            }
        }
    }
    Ok(())
}

pub(crate) async fn download(client: &Client, path: &str, mut unpacker: Unpacker) -> anyhow::Result<()> {
    let mut chunks = client.stream(path).await?.bytes_stream();
    while let Some(chunk) = chunks.next().await {
        let chunk = chunk.context("the download broke off")?;
        unpacker = tokio::task::spawn_blocking(move || unpacker.push(&chunk).map(|()| unpacker)).await??;
    }
    tokio::task::spawn_blocking(move || unpacker.finish()).await??;
    Ok(())
}

/// One file or directory to be written.
#[derive(Debug)]
struct Part {
    /// Which part of the output: a JSON pointer.
    pointer: String,
    to: PathBuf,
    content: Content,
}

#[derive(Debug)]
enum Content {
    Object { object: anyhow::Result<ObjectRef>, executable: bool },
    Text(String),
}

fn parts(value: &Value, to: &Path) -> Vec<Part> {
    let mut parts = Vec::new();
    collect(value, String::new(), to, &mut parts);
    parts
}

fn collect(value: &Value, pointer: String, to: &Path, parts: &mut Vec<Part>) {
    let to = to.to_owned();
    if let Some(kind) = kind(value) {
        let executable = value["executable"].as_bool().unwrap_or(false);
        let content = Content::Object { object: object(value, kind), executable };
        parts.push(Part { pointer, to, content });
        return;
    }
    match value {
        Value::Array(items) if holds_objects(value) => {
            let digits = items.len().saturating_sub(1).to_string().len();
            for (index, item) in items.iter().enumerate() {
                let mut name = format!("{index:0digits$}");
                if let (Some(_), Some(own)) = (kind(item), item["name"].as_str()) {
                    // What a file is called at a site is not to say where it goes here.
                    name = format!("{name}-{}", own.replace(['/', '\0'], "_"));
                }
                collect(item, format!("{pointer}/{index}"), &to.join(name), parts);
            }
        }
        Value::Object(fields) if holds_objects(value) => {
            for (number, (name, field)) in fields.iter().enumerate() {
                let plain = !name.is_empty() && !name.starts_with('.') && !name.contains(['/', '\0']);
                let file = if plain { name.clone() } else { number.to_string() };
                let escaped = name.replace('~', "~0").replace('/', "~1");
                collect(field, format!("{pointer}/{escaped}"), &to.join(file), parts);
            }
        }
        Value::String(text) => parts.push(Part { pointer, to, content: Content::Text(format!("{text}\n")) }),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_) => {
            parts.push(Part { pointer, to, content: Content::Text(format!("{value}\n")) });
        }
    }
}

fn holds_objects(value: &Value) -> bool {
    kind(value).is_some()
        || value.as_array().is_some_and(|items| items.iter().any(holds_objects))
        || value.as_object().is_some_and(|fields| fields.values().any(holds_objects))
}

fn kind(value: &Value) -> Option<ObjectKind> {
    value["object"].as_str()?;
    match value["kind"].as_str()? {
        "file" => Some(ObjectKind::File),
        "directory" => Some(ObjectKind::Tree),
        _ => None,
    }
}

fn object(value: &Value, kind: ObjectKind) -> anyhow::Result<ObjectRef> {
    let id: ObjectId = value["object"].as_str().context("an output without its object")?.parse()?;
    let bytes = value["bytes"].as_u64().context("an output without its size")?;
    Ok(ObjectRef { id, kind, bytes })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn check(value: &Value, expected: &[(&str, &str)]) {
        let parts = parts(value, Path::new("out"));
        let found: Vec<(String, String)> =
            parts.iter().map(|part| (part.pointer.clone(), part.to.display().to_string())).collect();
        let expected: Vec<(String, String)> =
            expected.iter().map(|(pointer, to)| ((*pointer).to_owned(), (*to).to_owned())).collect();
        assert_eq!(found, expected);
    }

    fn file(name: &str) -> Value {
        json!({ "kind": "file", "object": format!("b3:{}", "0".repeat(64)), "bytes": 1, "name": name })
    }

    #[test]
    fn a_file_goes_where_it_is_wanted() {
        check(&file("x"), &[("", "out")]);
    }

    #[test]
    fn files_in_lists_and_objects_go_into_a_folder() {
        let list: Vec<Value> = (0..11).map(|number| if number == 2 { json!(null) } else { file("x.csv") }).collect();
        let names: Vec<(String, String)> = (0..11)
            .map(|number| {
                let name = if number == 2 { "out/02".to_owned() } else { format!("out/{number:02}-x.csv") };
                (format!("/{number}"), name)
            })
            .collect();
        let names: Vec<(&str, &str)> = names.iter().map(|(pointer, to)| (pointer.as_str(), to.as_str())).collect();
        check(&json!(list), &names);
        check(
            &json!({ "a": [file("f")], "b/c": file("g"), "..": file("h") }),
            &[("/a/0", "out/a/0-f"), ("/b~1c", "out/1"), ("/..", "out/2")],
        );
    }

    #[test]
    fn a_name_from_a_site_leads_nowhere_else() {
        check(&json!([file("../../etc/passwd")]), &[("/0", "out/0-.._.._etc_passwd")]);
    }

    #[test]
    fn values_are_written_as_text() {
        let text = |value: Value| match &parts(&value, Path::new("out"))[0].content {
            Content::Text(text) => text.clone(),
            Content::Object { .. } => panic!("a text"),
        };
        assert_eq!(text(json!("a\nb")), "a\nb\n");
        assert_eq!(text(json!([1, "x"])), "[1,\"x\"]\n");
        assert_eq!(text(json!(3)), "3\n");
    }
}
