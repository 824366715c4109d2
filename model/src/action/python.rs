//! What `action.yaml` says of an action with the runtime `python`.

use std::time::Duration;

use super::{Ryax, is_inside};
use crate::diagnostic::Place;
use crate::limits::{WARM_LASTS_MAX, WARM_MAX};
use crate::reading::{Fields, Report};
use crate::units::parse_duration;
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
    /// How many of its processes wait for more to do, where it says so.
    pub warm: Option<Warm>,
    /// Of an action that was written for Ryax, whose `requirements` need not be there.
    pub ryax: Option<Box<Ryax>>,
}

/// How many processes of an action wait at a site that have nothing to do, and for how long.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Warm {
    /// So many wait for as long as the agent runs, of those that there were.
    pub min: u32,
    /// No more than these wait.
    pub max: Option<u32>,
    /// Those beyond `min` wait for so long; as the site says, where it is left out.
    pub lasts: Option<Duration>,
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

/// Reads `handler`, `requirements` and `warm`.
pub(super) fn read(report: &mut Report, fields: &Fields<'_>) -> Option<Python> {
    const HELP: &str = "write `handler: main.py:handle`: a file of the folder, and a function in it";
    if let Some(node) = fields.get("command") {
        let help = Some(HELP.to_owned());
        report.error(node.place, "an action with `runtime: python` has a `handler`, and no `command`", help);
    }
    let requirements = fields.get("requirements").and_then(|node| read_requirements(report, node));
    let warm = fields.get("warm").filter(|node| !node.is_null()).map(|node| read_warm(report, node));
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
    let (file, function) = (file.to_owned(), function.to_owned());
    Some(Python { file, function, place: node.place, requirements, warm, ryax: None })
}

/// Says that these belong to another runtime.
pub(super) fn refuse(report: &mut Report, fields: &Fields<'_>) {
    for name in ["handler", "requirements", "warm"] {
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

fn read_warm(report: &mut Report, node: &Node) -> Warm {
    let fields = report.fields(node, "`warm`", &["min", "max", "for"]);
    let mut count =
        |name: &str| fields.get(name).and_then(|node| report.integer(node, &format!("`{name}`"), 0..=WARM_MAX));
    let (min, max) = (count("min").unwrap_or_default(), count("max"));
    if max.is_some_and(|max| max < min) {
        report.error(node.place, "`min` is more than `max`", None);
    }
    let lasts = fields.get("for").and_then(|node| {
        report.parsed_with(node, "`for`", |text| match parse_duration(text) {
            Ok(lasts) if lasts <= WARM_LASTS_MAX => Ok(lasts),
            Ok(_) => Err(format!("it is at most {} h", WARM_LASTS_MAX.as_secs() / 3600)),
            Err(error) => Err(error.to_string()),
        })
    });
    Warm { min, max, lasts }
}

fn is_identifier(text: &str) -> bool {
    !text.starts_with(|first: char| first.is_ascii_digit())
        && !text.is_empty()
        && text.chars().all(|letter| letter == '_' || letter.is_alphanumeric())
}
