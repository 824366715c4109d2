//! Objects on their way in and out of Atoll: `atoll data import`, `atoll data export`.

use std::path::Path;

use anyhow::Context as _;
use atoll_model::id::{ObjectId, SiteName};
use atoll_model::value::{ObjectKind, ObjectRef};
use atoll_model::workflow::{Outside, OutsideUrl, TakenIn};
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

/// `SITE:/PATH` or `SITE:s3://…` (`gs://`, `az://`), unless it is a path of this machine.
fn of_site(to: &str) -> Option<(SiteName, Outside)> {
    let (site, place) = to.split_once(':').filter(|_| to.parse::<OutsideUrl>().is_err())?;
    let place = Outside::from(place.to_owned());
    let is_elsewhere = match &place {
        Outside::Path(path) => path.starts_with('/'),
        Outside::Url(_) => true,
    };
    Some((site.parse().ok()?, place)).filter(|_| is_elsewhere && !Path::new(to).exists())
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
    if to.parse::<OutsideUrl>().is_ok() {
        return Err(Failure::Usage(format!("say which site writes it: SITE:{to}")).into());
    }
    match of_site(to) {
        Some((site, place)) => export_at(client, reference, &site, &place).await?,
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

/// The site publishes it as it publishes the output of a workflow; what is confined is not brought to the bucket, and so does
/// not get there.
async fn export_at(client: &Client, object: ObjectRef, site: &SiteName, to: &Outside) -> anyhow::Result<()> {
    let key = match to {
        Outside::Path(_) => "path",
        Outside::Url(_) => "url",
    };
    let kind = match object.kind {
        ObjectKind::File => "file",
        ObjectKind::Tree => "directory",
    };
    let name = to.to_string();
    let name = name.trim_end_matches('/').rsplit('/').next().filter(|name| !name.is_empty());
    let name = name.ok_or_else(|| Failure::Usage(format!("{to} is no place for a file or directory")))?;
    client.post(&path_of(&object.id.to_string(), "/push"), &json!({})).await?;
    let publish = json!({ "site": site, key: to });
    let source = format!(
        "workflow: export\ninputs: {{ data: {kind} }}\noutputs:\n  data: {{ value: \"${{{{ inputs.data }}}}\", publish: {publish} }}\n"
    );
    let data = json!({ "kind": kind, "object": object.id.to_string(), "bytes": object.bytes, "name": name });
    let body = json!({ "source": source, "file_name": "export.yaml", "inputs": { "data": data }, "actions": {} });
    let submitted = client.submit(&body).await?;
    let finished = client.wait(submitted["run"].as_str().context("the answer names no run")?).await?;
    if finished.state == "succeeded" {
        return Ok(());
    }
    let error = finished.error.unwrap_or_else(|| format!("it has {}", finished.state));
    Err(Failure::Failed(format!("{error} (atoll show {})", finished.run)).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_of_a_site_is_told_from_one_of_this_machine() {
        let site = |text| of_site(text).map(|(site, place)| format!("{site} {place}"));
        assert_eq!(site("edge:/data/a").as_deref(), Some("edge /data/a"));
        assert_eq!(site("edge:s3://survey/a").as_deref(), Some("edge s3://survey/a"));
        for here in ["./edge:/data", "edge:data", "/data/a", "s3://survey/a"] {
            assert_eq!(site(here), None, "{here}");
        }
    }
}
