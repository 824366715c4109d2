//! The inputs of a workflow file.

use indexmap::IndexMap;

use super::held::{FetchedFrom, Given, HeldAt, TakenIn};
use super::parse::Surroundings;
use crate::diagnostic::Place;
use crate::id::StepIndex;
use crate::reading::Report;
use crate::value::Type;
use crate::workflow::Input;
use crate::yaml::{Entry, Kind, Node};

/// An input that a step takes in at a site.
#[derive(Debug)]
pub(super) struct Imported {
    pub(super) input: String,
    pub(super) r#type: Type,
    pub(super) from: TakenIn,
    pub(super) place: Place,
}

pub(super) fn read_inputs(
    report: &mut Report,
    node: &Node,
    surroundings: &dyn Surroundings,
) -> (IndexMap<String, Input>, Vec<Imported>) {
    let mut inputs = IndexMap::new();
    let mut all_imported = Vec::new();
    for entry in report.entries(node, "`inputs`") {
        report.name(&entry.key, entry.key_place, "an input", true);
        let (mut input, default) = read_input(report, entry);
        let taken_in = match surroundings.given(&entry.key) {
            Given::Nothing => default,
            Given::Value => None,
            Given::TakenIn(from) if matches!(input.r#type, Type::File | Type::Directory) => Some(from),
            // It may be meant as it stands: an object with these fields.
            Given::TakenIn(_) if input.r#type == Type::Object => None,
            Given::TakenIn(_) => {
                let message =
                    format!("`{}` is {}; only a file or a directory is taken in at a site", entry.key, input.r#type);
                report.error(entry.key_place, message, None);
                None
            }
        };
        if let Some(from) = taken_in.filter(|from| fits(report, from, &input.r#type, entry.key_place)) {
            input.imported_by = Some(StepIndex(u16::try_from(all_imported.len()).unwrap_or(u16::MAX)));
            let (input, r#type) = (entry.key.clone(), input.r#type.clone());
            all_imported.push(Imported { input, r#type, from, place: entry.key_place });
        }
        inputs.insert(entry.key.clone(), input);
    }
    (inputs, all_imported)
}

/// What is fetched must be known for what it is: a web server does not say what is below a URL.
fn fits(report: &mut Report, from: &TakenIn, r#type: &Type, place: Place) -> bool {
    let TakenIn::Fetched(FetchedFrom { url, .. }) = from else { return true };
    if *r#type == Type::Directory && url.in_bucket().is_none() {
        let help = "fetch an archive as a file, and unpack it in a step";
        report.error(place, format!("{url} cannot be a directory: only a bucket has some"), Some(help.to_owned()));
        return false;
    }
    if *r#type == Type::File && url.file_name().is_none() {
        report.error(place, format!("{url} does not say which file it is: it has no path"), None);
        return false;
    }
    true
}

fn read_input(report: &mut Report, entry: &Entry) -> (Input, Option<TakenIn>) {
    let place = entry.key_place;
    let input = |r#type| Input { r#type, default: None, imported_by: None, description: None, place, listed: false };
    if !matches!(entry.value.kind, Kind::Mapping(_)) {
        return (input(report.type_text(&entry.value)), None);
    }
    let fields = report.fields(&entry.value, "an input", &["type", "of", "values", "default", "description"]);
    let mut input = input(report.declared_type(&fields, "an input"));
    input.description =
        fields.get("description").and_then(|node| report.text(node, "`description`")).map(str::to_owned);
    let Some(default) = fields.get("default") else { return (input, None) };
    if matches!(input.r#type, Type::File | Type::Directory) {
        return (input, read_taken_in(report, default));
    }
    input.default = report.value(default, &input.r#type, &format!("the default of `{}`", entry.key));
    (input, None)
}

/// `{ site: edge, path: data/x.csv }`, or `{ url: https://example.org/x.csv }` with or without a site.
fn read_taken_in(report: &mut Report, node: &Node) -> Option<TakenIn> {
    if !matches!(node.kind, Kind::Mapping(_)) {
        let help = "write where it is held, `default: { site: edge, path: data/x.csv }`, or fetched from, `default: { url: \
                    https://example.org/x.csv }`; or leave it out, and send one with `-i NAME=@PATH`";
        let message = format!("the default of a file or directory cannot be {}", node.described());
        report.error(node.place, message, Some(help.to_owned()));
        return None;
    }
    let fields = report.fields(node, "a file that a site holds or fetches", &["site", "path", "url"]);
    if let Some(url) = fields.get("url") {
        if let Some(path) = fields.get("path") {
            report.error(path.place, "it has a `url` already: what is fetched has no `path` at the site", None);
            return None;
        }
        let site = fields.get("site").map(|node| report.parsed(node, "a site"));
        let url = report.parsed(url, "a URL");
        let site = match site {
            Some(named) => Some(named?),
            None => None,
        };
        return Some(TakenIn::Fetched(FetchedFrom { url: url?, site }));
    }
    let site = match fields.get("site") {
        Some(node) => report.parsed(node, "a site"),
        None => {
            report.error(node.place, "it needs the `site` that holds it", None);
            None
        }
    };
    let path = match fields.get("path") {
        Some(node) => report.text(node, "a path").filter(|path| {
            let valid = !path.is_empty() && !path.contains('\0');
            if !valid {
                report.error(node.place, format!("{path:?} cannot be a path"), None);
            }
            valid
        }),
        None => {
            report.error(node.place, "it needs its `path` at the site", None);
            None
        }
    };
    Some(TakenIn::Held(HeldAt { site: site?, path: path?.to_owned() }))
}
