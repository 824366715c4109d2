//! Objects on their way in and out of Atoll: `atoll data import`, `atoll data export`.

use std::path::Path;

use anyhow::Context as _;
use atoll_model::id::{ObjectId, SiteName};
use atoll_model::value::{ObjectKind, ObjectRef};
use atoll_model::workflow::TakenIn;
use serde_json::{Value, json};
use storage_sync_engine::stream::Unpacker;

use super::{ObjectArguments, path_of};
use crate::client::Client;
use crate::failure::Failure;
use crate::output::{self, outln};
use crate::run::taken_in;
use crate::run::upload::{self, Purpose};

pub(super) async fn import(client: &Client, from: &str, directory: bool, pin: bool, json: bool) -> anyhow::Result<()> {
    let (value, at) = match taken_in(from) {
        Some(taken_in) => {
            let Some(site) = taken_in.site() else {
                return Err(Failure::Usage(format!("say which site fetches it: SITE:{from}")).into());
            };
            (import_at(client, site, &taken_in, directory).await?, site.to_string())
        }
        None => (upload::send(client, Path::new(from), &Purpose::default()).await?, "bucket".to_owned()),
    };
    let object = value["object"].as_str().context("the server names the object")?.to_owned();
    if pin {
        client.post(&path_of(&object, "/pin"), &json!({ "at": at })).await?;
    }
    if json {
        output::json(&json!({ "object": object, "at": at, "pinned": pin, "value": value }));
    } else {
        outln!("{object} at {at}");
    }
    Ok(())
}

/// `SITE:/PATH`, unless it is a path of this machine.
fn of_site(from: &str) -> Option<(SiteName, &str)> {
    let (site, path) = from.split_once(':')?;
    Some((site.parse().ok()?, path)).filter(|(_, path)| path.starts_with('/') && !Path::new(from).exists())
}

/// The site takes it in as it takes in the input of a workflow: by a run whose only step does nothing.
async fn import_at(client: &Client, site: &SiteName, from: &TakenIn, directory: bool) -> anyhow::Result<Value> {
    let kind = if directory { "directory" } else { "file" };
    let from = serde_json::to_string(from)?;
    let source = format!(
        "workflow: import\ninputs:\n  data: {{ type: {kind}, default: {from} }}\nsteps:\n  taken: {{ site: {site}, with: {{ data: \"${{{{ inputs.data }}}}\" }}, run: \":\" }}\noutputs:\n  data: ${{{{ inputs.data }}}}\n"
    );
    let finished = client.submit_and_wait(&source, "import.yaml").await?;
    match finished.outputs.get("data") {
        Some(value) if finished.state == "succeeded" => Ok(value.clone()),
        Some(_) | None => {
            let error = finished.error.unwrap_or_else(|| format!("{} has {}", finished.run, finished.state));
            Err(Failure::Failed(error).into())
        }
    }
}

pub(super) async fn export(client: &Client, object: &ObjectArguments, to: &str) -> anyhow::Result<()> {
    let id: ObjectId = object.object.parse().map_err(|error| Failure::Usage(format!("{}: {error}", object.object)))?;
    let document = client.get(&path_of(&object.object, "")).await?;
    let kind = if document["kind"] == "tree" { ObjectKind::Tree } else { ObjectKind::File };
    let bytes = document["bytes"].as_u64().context("the server says how large it is")?;
    let reference = ObjectRef { id, kind, bytes };
    match of_site(to) {
        Some((site, path)) => export_at(client, reference, &site, path).await?,
        None => {
            let unpacker = Unpacker::new(reference, Path::new(to))?;
            crate::get::download(client, &path_of(&object.object, "/content"), unpacker).await?;
        }
    }
    if object.json {
        output::json(&json!({ "object": object.object, "bytes": bytes, "path": to }));
    } else {
        outln!("{to}");
    }
    Ok(())
}

/// Nothing stands at the path before all of it does.
const EXPORT: &str = r#"workflow: export
inputs: { data: KIND, to: string }
steps:
  export:
    site: SITE
    with: { data: "${{ inputs.data }}", to: "${{ inputs.to }}" }
    run: |
      if [ -e "$to" ] || [ -L "$to" ]; then echo "$to exists already" >&2; exit 1; fi
      mkdir -p -- "$(dirname -- "$to")"
      trap 'rm -rf -- "$to.partial-$ATOLL_EXECUTION"' EXIT
      cp -R -- "$data" "$to.partial-$ATOLL_EXECUTION"
      chmod -R u+w -- "$to.partial-$ATOLL_EXECUTION"
      mv -T -- "$to.partial-$ATOLL_EXECUTION" "$to"
"#;

/// A run writes it there, as the agent's user; what is confined is not brought to the bucket, and so does not get there.
async fn export_at(client: &Client, object: ObjectRef, site: &SiteName, path: &str) -> anyhow::Result<()> {
    client.post(&path_of(&object.id.to_string(), "/push"), &json!({})).await?;
    let kind = match object.kind {
        ObjectKind::File => "file",
        ObjectKind::Tree => "directory",
    };
    let name = Path::new(path).file_name().and_then(|name| name.to_str());
    let name = name.ok_or_else(|| Failure::Usage(format!("{path} is no path of a file or directory")))?;
    let source = EXPORT.replace("KIND", kind).replace("SITE", site.as_str());
    let data = json!({ "kind": kind, "object": object.id.to_string(), "bytes": object.bytes, "name": name });
    let inputs = json!({ "data": data, "to": path });
    let body = json!({ "source": source, "file_name": "export.yaml", "inputs": inputs, "actions": {} });
    let submitted = client.submit(&body).await?;
    let finished = client.wait(submitted["run"].as_str().context("the answer names no run")?).await?;
    if finished.state == "succeeded" {
        return Ok(());
    }
    let error = finished.error.unwrap_or_else(|| format!("it has {}", finished.state));
    Err(Failure::Failed(format!("{error} (atoll logs {})", finished.run)).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_of_a_site_is_told_from_one_of_this_machine() {
        let site = |text| of_site(text).map(|(site, path)| (site.to_string(), path));
        assert_eq!(site("edge:/data/a"), Some(("edge".to_owned(), "/data/a")));
        assert_eq!((site("./edge:/data"), site("edge:data"), site("/data/a")), (None, None, None));
    }
}
