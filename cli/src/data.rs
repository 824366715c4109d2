//! Objects and their copies: `atoll data …`.

mod moving;

use std::time::Duration;

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use crate::client::{Client, segment};
use crate::failure::Failure;
use crate::output::{self, outln};
use crate::settings::Connection;
use crate::table;

/// Between two looks at whether a site has read its store.
const LOOK: Duration = Duration::from_millis(500);

#[derive(Debug, Subcommand)]
pub(crate) enum DataCommand {
    /// List objects, and where they are.
    Ls(LsArguments),
    /// Say where an object is, and why it stays there.
    Where(ObjectArguments),
    /// Keep a copy: at a site or in the bucket, where one is brought to if there is none, or wherever there is one.
    Pin(PlaceArguments),
    /// Keep it no longer.
    Unpin(PlaceArguments),
    /// Bring an object into the bucket, and hold it there for a while.
    Push {
        #[command(flatten)]
        object: ObjectArguments,
        /// How long, at most a day.
        #[arg(long, default_value = "1h")]
        hold: String,
    },
    /// Let go of the copy at a site, of the one in the bucket, or of all that is left of what has expired.
    Evict(EvictArguments),
    /// Take in a file or a directory: of this machine; as SITE:PATH one of a site's, which stays there; or as SITE:URL one
    /// that the site fetches (https, http, s3, gs, az).
    Import {
        #[arg(value_name = "PATH, SITE:PATH or SITE:URL")]
        from: String,
        /// It is a directory (of a site's path that cannot be told).
        #[arg(long)]
        directory: bool,
        /// Keep it, in the bucket or at the site.
        #[arg(long)]
        pin: bool,
        /// Print one JSON document.
        #[arg(long)]
        json: bool,
    },
    /// Write an object to a path: of this machine; as SITE:PATH to one of a site's; or as SITE:URL to a bucket (s3) that the
    /// site has the keys of.
    Export {
        #[command(flatten)]
        object: ObjectArguments,
        /// Where it goes; nothing else may be there.
        #[arg(short = 'o', long = "output", value_name = "PATH, SITE:PATH or SITE:URL")]
        to: String,
    },
    /// Have a site read objects again, or all it has; fails if anything is damaged.
    Verify {
        site: String,
        /// Only these.
        objects: Vec<String>,
        /// Do not wait for the end.
        #[arg(long)]
        no_wait: bool,
        /// Print one JSON document.
        #[arg(long)]
        json: bool,
    },
}

#[derive(Debug, Args)]
pub(crate) struct LsArguments {
    /// Only what this site has.
    #[arg(long)]
    site: Option<String>,
    /// Only what this run knows.
    #[arg(long)]
    run: Option<String>,
    /// Only what somebody has pinned.
    #[arg(long)]
    pinned: bool,
    /// Only that whose time is over by a rule (`expire`).
    #[arg(long)]
    expired: bool,
    /// Only what comes after this object.
    #[arg(long)]
    after: Option<String>,
    #[arg(long, default_value_t = 1_000)]
    limit: usize,
    /// Print one JSON document.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct ObjectArguments {
    object: String,
    /// Print one JSON document.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct PlaceArguments {
    object: String,
    /// At this site.
    #[arg(long, conflicts_with = "bucket")]
    site: Option<String>,
    /// In the bucket.
    #[arg(long)]
    bucket: bool,
    /// Print one JSON document.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct EvictArguments {
    #[command(flatten)]
    place: PlaceArguments,
    /// Wherever it is: its time is over by a rule that asks.
    #[arg(long, conflicts_with_all = ["site", "bucket"])]
    expired: bool,
}

impl PlaceArguments {
    fn at(&self) -> Option<&str> {
        if self.bucket { Some("bucket") } else { self.site.as_deref() }
    }
}

/// Carries out a command; whether what it was asked for is well.
///
/// # Errors
/// When it is used wrongly, or the server refuses or cannot be reached.
pub(crate) async fn data(connection: &Connection, command: DataCommand) -> anyhow::Result<bool> {
    let client = connection.client()?;
    match command {
        DataCommand::Ls(arguments) => list(&client, &arguments).await?,
        DataCommand::Where(arguments) => {
            let document = client.get(&path_of(&arguments.object, "")).await?;
            if arguments.json { output::json(&document) } else { describe(&document) }
        }
        DataCommand::Pin(arguments) => change(&client, &arguments, "pin", "stays").await?,
        DataCommand::Unpin(arguments) => change(&client, &arguments, "unpin", "is not pinned any more").await?,
        DataCommand::Evict(EvictArguments { place, expired: true }) => {
            change_by(&client, &place, ("expire", &Value::Null), "may go").await?
        }
        DataCommand::Evict(EvictArguments { place, expired: false }) => {
            if place.at().is_none() {
                return Err(Failure::Usage("say from where: --site SITE, --bucket or --expired".to_owned()).into());
            }
            change(&client, &place, "evict", "may go").await?;
        }
        DataCommand::Push { object, hold } => push(&client, &object, &hold).await?,
        DataCommand::Import { from, directory, pin, json } => {
            moving::import(&client, &from, directory, pin, json).await?;
        }
        DataCommand::Export { object, to } => moving::export(&client, &object, &to).await?,
        DataCommand::Verify { site, objects, no_wait, json } => {
            return verify(&client, &site, &objects, no_wait, json).await;
        }
    }
    Ok(true)
}

fn path_of(object: &str, action: &str) -> String {
    format!("/objects/{}{action}", segment(object))
}

async fn list(client: &Client, arguments: &LsArguments) -> anyhow::Result<()> {
    let mut query = vec![format!("limit={}", arguments.limit)];
    let given = [("site", &arguments.site), ("run", &arguments.run), ("after", &arguments.after)];
    query.extend(given.iter().filter_map(|(name, value)| Some(format!("{name}={}", segment(value.as_deref()?)))));
    if arguments.pinned {
        query.push("pinned=true".to_owned());
    }
    if arguments.expired {
        query.push("expired=true".to_owned());
    }
    let document = client.get(&format!("/objects?{}", query.join("&"))).await?;
    if arguments.json {
        output::json(&document);
        return Ok(());
    }
    let rows: Vec<Vec<String>> = document["objects"].as_array().into_iter().flatten().map(object_row).collect();
    table::print(&["OBJECT", "KIND", "BYTES", "AT", "PINNED", "EXPIRES"], &rows);
    if let Some(next) = document["next"].as_str() {
        outln!("there are more: --after {next}");
    }
    Ok(())
}

fn object_row(object: &Value) -> Vec<String> {
    let pins = object["pins"].as_array().into_iter().flatten().map(|pin| table::field(pin, "at"));
    vec![
        table::field(object, "object"),
        table::field(object, "kind"),
        table::bytes(object["bytes"].as_u64().unwrap_or(0)),
        names(&object["replicas"]),
        pins.collect::<Vec<_>>().join(", "),
        expires(&object["expiry"]),
    ]
}

/// When the time of an object is over, and what becomes of it.
fn expires(expiry: &Value) -> String {
    if expiry.is_null() {
        return String::new();
    }
    let at = if expiry["at"].is_null() { "after its run".to_owned() } else { table::time(expiry, "at") };
    let what = if expiry["state"] == "pending" { "then" } else { "state" };
    format!("{at}, {}", table::field(expiry, what))
}

/// The same with the rule, and what keeps it, each a line.
pub(crate) fn expiry_lines(object: &Value) -> Vec<String> {
    let expiry = &object["expiry"];
    if expiry.is_null() {
        return Vec::new();
    }
    let id = table::field(object, "object");
    let what = match expiry["state"].as_str() {
        Some("asking") => {
            format!(": somebody is to decide: atoll data evict {id} --expired, or atoll data pin {id}")
        }
        Some("going") => ": it goes".to_owned(),
        _ => String::new(),
    };
    let first = format!("{}, by {}{what}", expires(expiry), table::field(expiry, "rule"));
    let waits = expiry["waits_for"].as_array().into_iter().flatten().filter_map(Value::as_str);
    std::iter::once(first).chain(waits.map(str::to_owned)).collect()
}

fn names(list: &Value) -> String {
    let names: Vec<&str> = list.as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    if names.is_empty() { "nowhere".to_owned() } else { names.join(", ") }
}

fn describe(object: &Value) {
    outln!("{:<9} {}", "object", table::field(object, "object"));
    outln!("{:<9} {}, {}", "kind", table::field(object, "kind"), table::bytes(object["bytes"].as_u64().unwrap_or(0)));
    outln!("{:<9} {}", "at", names(&object["replicas"]));
    if let Some(needed) = object["needed"].as_str() {
        outln!("{:<9} {needed}", "needed");
    }
    for copies in object["copies"].as_array().into_iter().flatten().filter_map(Value::as_str) {
        outln!("{:<9} {copies}", "copies");
    }
    for line in expiry_lines(object) {
        outln!("{:<9} {line}", "expires");
    }
    for pin in object["pins"].as_array().into_iter().flatten() {
        outln!("{:<9} {} by {}", "pinned", table::field(pin, "at"), table::field(pin, "by"));
    }
    if object["confined_to"].is_array() {
        outln!("{:<9} {}", "confined", names(&object["confined_to"]));
    }
    outln!("{:<9} {}", "runs", names(&object["runs"]));
}

async fn change(client: &Client, arguments: &PlaceArguments, action: &str, done: &str) -> anyhow::Result<()> {
    change_by(client, arguments, (action, &json!({ "at": arguments.at() })), done).await
}

async fn change_by(
    client: &Client,
    arguments: &PlaceArguments,
    (action, body): (&str, &Value),
    done: &str,
) -> anyhow::Result<()> {
    let at = arguments.at();
    client.post(&path_of(&arguments.object, &format!("/{action}")), body).await?;
    if arguments.json {
        // What there is now, if it is known at all.
        let known = client.get(&path_of(&arguments.object, "")).await;
        output::json(&known.unwrap_or_else(|_| json!({ "object": arguments.object, "replicas": [], "pins": [] })));
    } else {
        outln!("{} {done} {}", arguments.object, at.map_or_else(String::new, |at| format!("at {at}")).trim_end());
    }
    Ok(())
}

async fn push(client: &Client, object: &ObjectArguments, hold: &str) -> anyhow::Result<()> {
    let hold =
        atoll_model::units::parse_duration(hold).map_err(|error| Failure::Usage(format!("--hold {hold}: {error}")))?;
    let document = client.post(&path_of(&object.object, "/push"), &json!({ "hold_seconds": hold.as_secs() })).await?;
    if object.json {
        output::json(&document);
    } else {
        outln!("{} is at {}", object.object, names(&document["replicas"]));
    }
    Ok(())
}

async fn verify(client: &Client, site: &str, objects: &[String], no_wait: bool, json: bool) -> anyhow::Result<bool> {
    let path = format!("/sites/{}/verification", segment(site));
    let mut document = client.post(&path, &json!({ "objects": objects })).await?;
    while !no_wait && document["ended_at"].is_null() {
        tokio::time::sleep(LOOK).await;
        document = client.get(&path).await?;
    }
    let damaged = document["damaged"].as_u64().unwrap_or(0);
    if json {
        output::json(&document);
    } else if document["ended_at"].is_null() {
        outln!("{site} reads its store again");
    } else {
        let bytes = table::bytes(document["bytes"].as_u64().unwrap_or(0));
        outln!("{site} has read {} files, {bytes}: {damaged} damaged", table::field(&document, "files"));
    }
    Ok(damaged == 0)
}
