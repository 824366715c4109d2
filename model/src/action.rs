//! The manifest of an action, `action.yaml`: what it takes, what it yields, and how it is run.

use indexmap::IndexMap;

use crate::diagnostic::Diagnostic;
use crate::id::ObjectId;
use crate::limits::MANIFEST_BYTES_MAX;
use crate::reading::Report;
use crate::resources::Resources;
use crate::value::Type;
use crate::workflow::{Action, ActionInput, Output, read_resources};
use crate::yaml::{Kind, Node};

/// The name that a manifest has in the folder of its action.
pub const MANIFEST_NAME: &str = "action.yaml";

/// What a manifest says.
#[derive(Debug, Clone, PartialEq)]
pub struct Manifest {
    pub name: String,
    pub version: String,
    pub description: Option<String>,
    /// Program and arguments.
    pub command: Vec<String>,
    pub inputs: IndexMap<String, ActionInput>,
    pub outputs: IndexMap<String, Output>,
    pub resources: Option<Resources>,
}

impl Manifest {
    /// The action with its folder as a tree, or with nothing while it is only checked.
    pub fn into_action(self, bundle: Option<ObjectId>, bundle_bytes: u64) -> Action {
        Action {
            name: self.name,
            version: self.version,
            bundle,
            bundle_bytes,
            command: self.command,
            inputs: self.inputs,
            outputs: self.outputs,
            resources: self.resources,
        }
    }
}

/// Parses and checks a manifest.
///
/// # Errors
/// Everything that is wrong with it, in the order of the file.
pub fn parse(file_name: &str, source: &str) -> Result<Manifest, Vec<Diagnostic>> {
    let mut report = Report::new(file_name);
    let manifest = report.yaml(source, MANIFEST_BYTES_MAX).map(|root| read(&mut report, &root));
    match manifest {
        Some(manifest) if report.is_empty() => Ok(manifest),
        Some(_) | None => Err(report.into_diagnostics()),
    }
}

fn read(report: &mut Report, root: &Node) -> Manifest {
    let known = ["name", "version", "kind", "runtime", "command", "description", "inputs", "outputs", "resources"];
    let fields = report.fields(root, "an action", &known);
    let mut required = |name: &str, help: &str| {
        let node = fields.get(name);
        if node.is_none() {
            report.error(fields.place, format!("an action needs a `{name}`"), Some(help.to_owned()));
        }
        node
    };
    let name = required("name", "write `name: clean`");
    let version = required("version", "write `version: \"1.0\"`");
    let command = required("command", "write `command: [python3, main.py]`");
    let name_text = name.and_then(|node| report.text(node, "`name`")).unwrap_or_default();
    if let Some(node) = name {
        report.name(name_text, node.place, "an action", true);
    }
    let version = version.and_then(|node| report.text(node, "`version`")).unwrap_or_default();
    if let Some(node) = fields.get("kind") {
        report.word(node, "the kind of an action", &[("processor", ())]);
    }
    if let Some(node) = fields.get("runtime") {
        report.word(node, "the runtime of an action", &[("command", ())]);
    }
    let command = command.map(|node| read_command(report, node)).unwrap_or_default();
    let inputs = fields.get("inputs").map(|node| read_inputs(report, node)).unwrap_or_default();
    let outputs = fields.get("outputs").map(|node| report.outputs(node)).unwrap_or_default();
    let resources = fields.get("resources").map(|node| read_resources(report, node));
    let description = fields.get("description").and_then(|node| report.text(node, "`description`"));
    Manifest {
        name: name_text.to_owned(),
        version: version.to_owned(),
        description: description.map(str::to_owned),
        command,
        inputs,
        outputs,
        resources,
    }
}

pub(crate) fn read_command(report: &mut Report, node: &Node) -> Vec<String> {
    if let Kind::Scalar { text, .. } = &node.kind {
        let words: Vec<&str> = text.split_whitespace().collect();
        let help = Some(format!("write `command: [{}]`", words.join(", ")));
        report.error(node.place, "`command` is a list: the program, then its arguments", help);
        return Vec::new();
    }
    let command: Vec<String> =
        report.texts(node, "a word of the command").into_iter().map(|(word, _)| word.to_owned()).collect();
    if command.first().is_none_or(String::is_empty) {
        report.error(node.place, "the command is empty", Some("write `command: [python3, main.py]`".to_owned()));
    } else if let Some(word) = command.iter().find(|word| word.contains('\0')) {
        report.error(node.place, format!("{word:?} cannot be a word of a command"), None);
    }
    command
}

fn read_inputs(report: &mut Report, node: &Node) -> IndexMap<String, ActionInput> {
    let mut inputs = IndexMap::new();
    if node.is_null() {
        return inputs;
    }
    for entry in report.entries(node, "`inputs`") {
        crate::workflow::check_variable(report, &entry.key, entry.key_place, "an input");
        let input = match &entry.value.kind {
            Kind::Mapping(_) => {
                let known = ["type", "of", "values", "default", "description"];
                let fields = report.fields(&entry.value, "an input", &known);
                let r#type = report.declared_type(&fields, "an input");
                let default = fields.get("default").and_then(|default| {
                    if matches!(r#type, Type::File | Type::Directory) {
                        let message = format!("the default of an action's input cannot be {type}", type = r#type);
                        report.error(default.place, message, None);
                        return None;
                    }
                    report.value(default, &r#type, &format!("the default of `{}`", entry.key))
                });
                ActionInput { r#type, default }
            }
            Kind::Scalar { .. } | Kind::Sequence(_) => {
                ActionInput { r#type: report.type_text(&entry.value), default: None }
            }
        };
        inputs.insert(entry.key.clone(), input);
    }
    inputs
}
