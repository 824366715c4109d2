//! The manifest of an action, `action.yaml`: what it takes, what it yields, and how it is run; and who vouches for it.

mod container;
mod python;
mod reference;
mod ryax;
mod service;
mod signature;

use std::collections::BTreeMap;

use indexmap::IndexMap;
use serde::{Deserialize, Serialize};

pub use self::container::{Container, Image};
pub use self::python::{Python, Requirements, Warm};
pub use self::reference::{ActionReference, ParseReferenceError};
pub use self::ryax::{CUSTOM_SCRIPT, RYAX_METADATA_NAME, Ryax, RyaxKind, RyaxType};
pub use self::service::{Health, PORT_VARIABLE, Port, Probe, Restart, SERVICE_VARIABLE, Service, address_variable};
pub use self::signature::{BundleSignature, ParseKeyError, PublicKey};
use crate::diagnostic::{Diagnostic, Place};
use crate::id::ObjectId;
use crate::limits::{ACTION_VERSION_BYTES_MAX, MANIFEST_BYTES_MAX, RUN_LABEL_BYTES_MAX, RUN_LABELS_MAX};
use crate::reading::{Fields, Report};
use crate::resources::Resources;
use crate::session::{CONTAINER_RUNTIME, PYTHON_RUNTIME, WASM_RUNTIME};
use crate::value::Type;
use crate::workflow::{Action, ActionInput, Output, Work, read_demands};
use crate::yaml::{Kind, Node};

/// The name that a manifest has in the folder of its action.
pub const MANIFEST_NAME: &str = "action.yaml";
/// What says what an action is, in the order in which it is looked for in a folder.
pub const MANIFEST_NAMES: [&str; 2] = [MANIFEST_NAME, RYAX_METADATA_NAME];

/// What a manifest may say.
const FIELDS: &[&str] = &[
    "name",
    "version",
    "kind",
    "runtime",
    "command",
    "handler",
    "requirements",
    "image",
    "description",
    "labels",
    "inputs",
    "outputs",
    "resources",
    "isolation",
    "network",
    "port",
    "health",
    "restart",
    "warm",
];

/// What an action is for. Others will follow, at the end.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum ActionKind {
    /// Turns inputs into outputs, and ends.
    #[default]
    Processor,
    /// Stays, and emits records, each of which starts a run.
    Source,
    /// Stays, and is begun again when it ends or is not well.
    Service,
}

impl ActionKind {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Processor => "processor",
            Self::Source => "source",
            Self::Service => "service",
        }
    }
}

/// How an action is run. Others will follow, at the end.
#[derive(Debug, Clone, Default, PartialEq)]
pub enum Runtime {
    /// A process of its own for each execution.
    #[default]
    Command,
    /// A function, called in a process that serves many executions.
    Python(Python),
    /// A container of its own for each execution.
    Container(Container),
    /// A component of WebAssembly, which sees nothing but its own folders. The first word of its command is its file.
    Wasm,
}

impl Runtime {
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::Command => "command",
            Self::Python(_) => PYTHON_RUNTIME,
            Self::Container(_) => CONTAINER_RUNTIME,
            Self::Wasm => WASM_RUNTIME,
        }
    }
}

/// What a manifest says.
#[derive(Debug, Clone, PartialEq)]
pub struct Manifest {
    pub name: String,
    pub version: String,
    pub kind: ActionKind,
    pub description: Option<String>,
    /// What people look for it by.
    pub labels: BTreeMap<String, String>,
    pub runtime: Runtime,
    /// Program and arguments; empty where the runtime is `python`, or the program of an image is meant.
    pub command: Vec<String>,
    /// Where the file says so.
    pub command_place: Place,
    pub inputs: IndexMap<String, ActionInput>,
    pub outputs: IndexMap<String, Output>,
    pub resources: Option<Resources>,
    /// What it says as a service, if it is one.
    pub service: Option<Box<Service>>,
}

impl Manifest {
    /// The same, if it is of this kind: a step, a source and a service want different ones.
    ///
    /// # Errors
    /// Where an action of its kind belongs.
    pub fn of_kind(self, wanted: ActionKind) -> Result<Self, String> {
        let name = &self.name;
        match (self.kind, wanted) {
            (ActionKind::Source, ActionKind::Processor) => {
                Err(format!("the action {name} is a source: it stands below `source:`, and not in a step"))
            }
            (ActionKind::Service, ActionKind::Processor) => {
                Err(format!("the action {name} is a service: it stands below `services:`, and not in a step"))
            }
            (ActionKind::Processor | ActionKind::Service, ActionKind::Source) => {
                Err(format!("the action {name} emits nothing: its action.yaml does not say `kind: source`"))
            }
            (ActionKind::Processor | ActionKind::Source, ActionKind::Service) => {
                Err(format!("the action {name} is no service: its action.yaml does not say `kind: service`"))
            }
            (ActionKind::Processor, ActionKind::Processor)
            | (ActionKind::Source, ActionKind::Source)
            | (ActionKind::Service, ActionKind::Service) => Ok(self),
        }
    }

    /// What a step does that names the action, with its folder as a tree, or with nothing while it is only checked.
    pub fn into_work(self, bundle: Option<ObjectId>, bundle_bytes: u64) -> Work {
        let action = Action {
            name: self.name,
            version: self.version,
            bundle,
            bundle_bytes,
            command: self.command,
            inputs: self.inputs,
            outputs: self.outputs,
            resources: self.resources,
        };
        match self.runtime {
            Runtime::Command => Work::Action(action),
            Runtime::Python(_) => Work::Python(action),
            Runtime::Container(_) => Work::Container(action),
            Runtime::Wasm => Work::Wasm(action),
        }
    }
}

/// Parses and checks a manifest, of ours or of Ryax.
///
/// # Errors
/// Everything that is wrong with it, in the order of the file.
pub fn parse(file_name: &str, source: &str) -> Result<Manifest, Vec<Diagnostic>> {
    let mut report = Report::new(file_name);
    let manifest = report.yaml(source, MANIFEST_BYTES_MAX).and_then(|root| match ryax::is_meant(file_name, &root) {
        true => ryax::read(&mut report, &root),
        false => Some(read(&mut report, &root)),
    });
    match manifest {
        Some(manifest) if report.is_empty() => Ok(manifest),
        Some(_) | None => Err(report.into_diagnostics()),
    }
}

fn read(report: &mut Report, root: &Node) -> Manifest {
    let fields = report.fields(root, "an action", FIELDS);
    let mut required = |name: &str, help: &str| {
        let node = fields.get(name);
        if node.is_none() {
            report.error(fields.place, format!("an action needs a `{name}`"), Some(help.to_owned()));
        }
        node
    };
    let name = required("name", "write `name: clean`");
    let version = required("version", "write `version: \"1.0\"`");
    let name_text = name.and_then(|node| report.text(node, "`name`")).unwrap_or_default();
    if let Some(node) = name {
        report.name(name_text, node.place, "an action", true);
    }
    let version = version.map(|node| read_version(report, node)).unwrap_or_default();
    let kinds =
        [("processor", ActionKind::Processor), ("source", ActionKind::Source), ("service", ActionKind::Service)];
    let kind = fields.get("kind").and_then(|node| report.word(node, "the kind of an action", &kinds));
    let kind = kind.unwrap_or_default();
    let runtime = read_runtime(report, &fields);
    let command_place = fields.get("command").map_or(fields.place, |node| node.place);
    let command = fields.get("command").filter(|_| !matches!(runtime, Runtime::Python(_)));
    let command = command.map(|node| read_command(report, node)).unwrap_or_default();
    let labels = fields.get("labels").map(|node| read_labels(report, node)).unwrap_or_default();
    let inputs = fields.get("inputs").map(|node| read_inputs(report, node)).unwrap_or_default();
    let outputs = fields.get("outputs").map(|node| report.outputs(node)).unwrap_or_default();
    let resources = read_demands(report, &fields).over(None);
    let description = fields.get("description").and_then(|node| report.text(node, "`description`"));
    if let Some(node) = fields.get("warm").filter(|_| kind != ActionKind::Processor) {
        report.error(node.place, format!("the process of a {} stays by itself", kind.as_str()), None);
    }
    if kind == ActionKind::Source {
        check_source(report, &runtime, command_place, &outputs);
    }
    let service = if kind == ActionKind::Service {
        check_yields_nothing(report, &outputs);
        Some(Box::new(service::read(report, &fields, &runtime, resources.as_ref())))
    } else {
        service::refuse(report, &fields);
        None
    };
    Manifest {
        name: name_text.to_owned(),
        version: version.to_owned(),
        kind,
        description: description.map(str::to_owned),
        labels,
        runtime,
        command,
        command_place,
        inputs,
        outputs,
        resources,
        service,
    }
}

/// A source is called in a process that stays, and what it emits travels in the journal.
fn check_source(report: &mut Report, runtime: &Runtime, place: Place, outputs: &IndexMap<String, Output>) {
    if !matches!(runtime, Runtime::Python(_)) {
        let help = Some(format!("write `runtime: {PYTHON_RUNTIME}` and `handler: main.py:run`"));
        report.error(place, "a source stays in a process that is called: it has no command", help);
    }
    check_emitted(report, outputs);
}

/// A service never ends with anything.
fn check_yields_nothing(report: &mut Report, outputs: &IndexMap<String, Output>) {
    if let Some((name, output)) = outputs.first() {
        let help = Some("others ask it at its port: `port: any`".to_owned());
        report.error(output.place, format!("a service has no outputs, so not `{name}`: it never ends"), help);
    }
}

/// A record is made of values.
fn check_emitted(report: &mut Report, outputs: &IndexMap<String, Output>) {
    for (name, output) in outputs {
        if output.r#type.has_files() {
            let help = Some("emit what tells where it is, and let a step of the workflow fetch it".to_owned());
            report.error(output.place, format!("a source emits values: `{name}` cannot be {}", output.r#type), help);
        }
    }
}

/// Whether a text can be the version of an action: it stands in references, and in paths of the API.
pub fn is_version(text: &str) -> bool {
    text.len() <= ACTION_VERSION_BYTES_MAX
        && text.starts_with(|first: char| first.is_ascii_alphanumeric())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b".+_-".contains(&byte))
}

fn read_version<'node>(report: &mut Report, node: &'node Node) -> &'node str {
    let version = report.text(node, "`version`").unwrap_or_default();
    if !version.is_empty() && !is_version(version) {
        let help = format!(
            "a to z, A to Z, 0 to 9, `.`, `+`, `_`, `-`; it begins with a letter or a digit and has at most \
             {ACTION_VERSION_BYTES_MAX} characters"
        );
        report.error(node.place, format!("`{}` cannot be a version", version.escape_debug()), Some(help));
    }
    version
}

/// The words for runtimes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Named {
    Command,
    Python,
    Container,
    Wasm,
}

fn read_runtime(report: &mut Report, fields: &Fields<'_>) -> Runtime {
    let named = fields.get("runtime").and_then(|node| {
        let known = [
            ("command", Named::Command),
            (PYTHON_RUNTIME, Named::Python),
            (CONTAINER_RUNTIME, Named::Container),
            (WASM_RUNTIME, Named::Wasm),
        ];
        report.word(node, "the runtime of an action", &known)
    });
    let named = named.unwrap_or(Named::Command);
    if named != Named::Python {
        python::refuse(report, fields);
    }
    if named != Named::Container {
        container::refuse(report, fields);
    }
    match named {
        Named::Python => python::read(report, fields).map(Runtime::Python).unwrap_or_default(),
        Named::Container => container::read(report, fields).map(Runtime::Container).unwrap_or_default(),
        Named::Command => {
            check_command(report, fields, "write `command: [python3, main.py]`");
            Runtime::Command
        }
        Named::Wasm => {
            check_command(report, fields, "write `command: [main.wasm]`: a component in the folder, and its arguments");
            Runtime::Wasm
        }
    }
}

fn check_command(report: &mut Report, fields: &Fields<'_>, help: &str) {
    if fields.get("command").is_none() {
        report.error(fields.place, "an action needs a `command`", Some(help.to_owned()));
    }
}

/// Whether a path stays in the folder that it is relative to.
fn is_inside(path: &str) -> bool {
    !path.contains('\0') && path.split('/').all(|part| !matches!(part, "" | "." | ".."))
}

fn read_labels(report: &mut Report, node: &Node) -> BTreeMap<String, String> {
    let mut labels = BTreeMap::new();
    if node.is_null() {
        return labels;
    }
    for entry in report.entries(node, "`labels`") {
        let value = report.text(&entry.value, "the value of a label").unwrap_or_default();
        if entry.key.is_empty() || entry.key.contains(['=', ',']) {
            report.error(entry.key_place, "a label has a name, without `=` and comma", None);
        }
        if entry.key.len().max(value.len()) > RUN_LABEL_BYTES_MAX {
            let message = format!("the name and the value of a label have at most {RUN_LABEL_BYTES_MAX} bytes");
            report.error(entry.key_place, message, None);
        }
        labels.insert(entry.key.clone(), value.to_owned());
    }
    if labels.len() > RUN_LABELS_MAX {
        report.error(node.place, format!("there are {} labels, more than {RUN_LABELS_MAX}", labels.len()), None);
    }
    labels
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
