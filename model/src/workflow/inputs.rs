//! The inputs of a workflow file.

use indexmap::IndexMap;

use super::held::{Given, HeldAt};
use super::parse::Surroundings;
use crate::diagnostic::Place;
use crate::id::StepIndex;
use crate::reading::Report;
use crate::value::Type;
use crate::workflow::Input;
use crate::yaml::{Entry, Kind, Node};

/// An input that a site holds, and a step takes in.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) input: String,
    pub(super) r#type: Type,
    pub(super) at: HeldAt,
    pub(super) place: Place,
}

pub(super) fn read_inputs(
    report: &mut Report,
    node: &Node,
    surroundings: &dyn Surroundings,
) -> (IndexMap<String, Input>, Vec<Held>) {
    let mut inputs = IndexMap::new();
    let mut all_held = Vec::new();
    for entry in report.entries(node, "`inputs`") {
        report.name(&entry.key, entry.key_place, "an input", true);
        let (mut input, default) = read_input(report, entry);
        let held = match surroundings.given(&entry.key) {
            Given::Nothing => default,
            Given::Value => None,
            Given::Held(at) if matches!(input.r#type, Type::File | Type::Directory) => Some(at),
            // It may be meant as it stands: an object with these two fields.
            Given::Held(_) if input.r#type == Type::Object => None,
            Given::Held(_) => {
                let message =
                    format!("`{}` is {}; only a file or a directory is held at a site", entry.key, input.r#type);
                report.error(entry.key_place, message, None);
                None
            }
        };
        if let Some(at) = held {
            input.imported_by = Some(StepIndex(u16::try_from(all_held.len()).unwrap_or(u16::MAX)));
            all_held.push(Held { input: entry.key.clone(), r#type: input.r#type.clone(), at, place: entry.key_place });
        }
        inputs.insert(entry.key.clone(), input);
    }
    (inputs, all_held)
}

fn read_input(report: &mut Report, entry: &Entry) -> (Input, Option<HeldAt>) {
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
        return (input, read_held(report, default));
    }
    input.default = report.value(default, &input.r#type, &format!("the default of `{}`", entry.key));
    (input, None)
}

/// `{ site: edge, path: data/x.csv }`
fn read_held(report: &mut Report, node: &Node) -> Option<HeldAt> {
    if !matches!(node.kind, Kind::Mapping(_)) {
        let help = "write where it is held: `default: { site: edge, path: data/x.csv }`; or leave it out, and send one \
                    with `-i NAME=@PATH`";
        let message = format!("the default of a file or directory cannot be {}", node.described());
        report.error(node.place, message, Some(help.to_owned()));
        return None;
    }
    let fields = report.fields(node, "a file that a site holds", &["site", "path"]);
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
    Some(HeldAt { site: site?, path: path?.to_owned() })
}
