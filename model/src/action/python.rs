//! What `action.yaml` says of an action with the runtime `python`.

use super::{Ryax, is_inside};
use crate::diagnostic::Place;
use crate::reading::{Fields, Report};
use crate::yaml::Node;

/// A function of a file of the folder, called in a process that serves many executions.
#[derive(Debug, Clone, PartialEq)]
pub struct Python {
    /// The file, relative to the folder of the action.
    pub file: String,
    pub function: String,
    /// Where the file says so.
    pub place: Place,
    pub requirements: Option<Requirements>,
    /// Of an action that was written for Ryax, whose `requirements` need not be there.
    pub ryax: Option<Box<Ryax>>,
}

/// The packages that it needs: a file of the folder, in the format of pip.
#[derive(Debug, Clone, PartialEq)]
pub struct Requirements {
    pub file: String,
    /// Where the file says so.
    pub place: Place,
}

impl Python {
    /// As it stands in the file: `main.py:handle`.
    pub fn handler(&self) -> String {
        format!("{}:{}", self.file, self.function)
    }
}

/// Reads `handler` and `requirements`.
pub(super) fn read(report: &mut Report, fields: &Fields<'_>) -> Option<Python> {
    const HELP: &str = "write `handler: main.py:handle`: a file of the folder, and a function in it";
    if let Some(node) = fields.get("command") {
        let help = Some(HELP.to_owned());
        report.error(node.place, "an action with `runtime: python` has a `handler`, and no `command`", help);
    }
    let requirements = fields.get("requirements").and_then(|node| read_requirements(report, node));
    let Some(node) = fields.get("handler") else {
        report.error(fields.place, "an action with `runtime: python` needs a `handler`", Some(HELP.to_owned()));
        return None;
    };
    let text = report.text(node, "`handler`")?;
    let parts = text.rsplit_once(':').filter(|(file, function)| file.ends_with(".py") && is_identifier(function));
    let Some((file, function)) = parts else {
        let message = format!("`{}` names no function of a file", text.escape_debug());
        report.error(node.place, message, Some(HELP.to_owned()));
        return None;
    };
    if !is_inside(file) {
        report.error(node.place, format!("`{file}` is not the path of a file in the folder of the action"), None);
        return None;
    }
    Some(Python { file: file.to_owned(), function: function.to_owned(), place: node.place, requirements, ryax: None })
}

/// Says that these belong to another runtime.
pub(super) fn refuse(report: &mut Report, fields: &Fields<'_>) {
    for name in ["handler", "requirements"] {
        if let Some(node) = fields.get(name) {
            let help = Some("write `runtime: python` too".to_owned());
            report.error(node.place, format!("`{name}` is for actions with `runtime: python`"), help);
        }
    }
}

fn read_requirements(report: &mut Report, node: &Node) -> Option<Requirements> {
    let file = report.text(node, "`requirements`")?;
    if is_inside(file) {
        return Some(Requirements { file: file.to_owned(), place: node.place });
    }
    let message = format!("`{}` is not the path of a file in the folder of the action", file.escape_debug());
    report.error(node.place, message, Some("write `requirements: requirements.txt`".to_owned()));
    None
}

fn is_identifier(text: &str) -> bool {
    !text.starts_with(|first: char| first.is_ascii_digit())
        && !text.is_empty()
        && text.chars().all(|letter| letter == '_' || letter.is_alphanumeric())
}
