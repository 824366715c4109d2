//! `ryax_metadata.yaml`: actions that were written for Ryax, read as what they are, without changing their folder.

mod fields;
mod quantities;

use std::collections::BTreeMap;

use indexmap::IndexMap;

use self::fields::{At, read_inputs, read_outputs};
use self::quantities::read_resources;
use super::{ActionKind, Manifest, Python, Requirements, Runtime, check_emitted, is_version};
use crate::diagnostic::Place;
use crate::limits::ACTION_VERSION_BYTES_MAX;
use crate::reading::Report;
use crate::suggestion::did_you_mean;
use crate::value::{Type, Value};
use crate::workflow::{ActionInput, Output};
use crate::yaml::{Kind, Node};

/// The name that the metadata of Ryax has in the folder of its action.
pub const RYAX_METADATA_NAME: &str = "ryax_metadata.yaml";
/// The packages that an action of Ryax needs stand in this file, if there is one.
const REQUIREMENTS: &str = "requirements.txt";
/// What an action without a version is pushed as.
const NO_VERSION: &str = "unversioned";
/// The addon of actions for batch systems.
const HPC: &str = "hpc";
/// The input that it adds: a script that is run instead of the handler.
pub const CUSTOM_SCRIPT: &str = "custom_script";

/// What an action of Ryax is, where it differs from one of ours.
#[derive(Debug, Clone, PartialEq)]
pub struct Ryax {
    pub kind: RyaxKind,
    /// Where the file says so.
    pub kind_place: Place,
    pub inputs: IndexMap<String, RyaxType>,
    pub outputs: IndexMap<String, RyaxType>,
    /// A picture in the folder, and where the file names it.
    pub logo: Option<(String, Place)>,
    /// Whether a script may be given that is run instead of the handler.
    pub takes_script: bool,
    /// What is said and has no effect here, for people.
    pub notes: Vec<String>,
}

/// What its code is: each kind has a file and a function of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RyaxKind {
    /// `Processor` and `Publisher`: `handle(inputs)` in `ryax_handler.py`.
    Handler,
    /// `Source` and `Trigger`: `async run(service, input_values)` in `ryax_run.py`.
    Source,
}

impl RyaxKind {
    /// The file that its code stands in.
    pub const fn file(self) -> &'static str {
        match self {
            Self::Handler => "ryax_handler.py",
            Self::Source => "ryax_run.py",
        }
    }

    /// The function in it.
    pub const fn function(self) -> &'static str {
        match self {
            Self::Handler => "handle",
            Self::Source => "run",
        }
    }

    /// How that is declared.
    pub const fn declaration(self) -> &'static str {
        match self {
            Self::Handler => "def handle(inputs):",
            Self::Source => "async def run(service, input_values):",
        }
    }
}

/// The type of an input or an output.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RyaxType {
    Bytes,
    /// `string`, `longstring` and `password`.
    String,
    Integer,
    Float,
    Boolean,
    File,
    Directory,
    /// With what it may be; anything if that is empty.
    Enum(Vec<String>),
    /// A list of rows.
    Table,
}

impl RyaxType {
    /// The word that the code of the runtime knows it by.
    pub const fn word(&self) -> &'static str {
        match self {
            Self::Bytes => "bytes",
            Self::String => "string",
            Self::Integer => "integer",
            Self::Float => "float",
            Self::Boolean => "boolean",
            Self::File => "file",
            Self::Directory => "directory",
            Self::Enum(_) => "enum",
            Self::Table => "table",
        }
    }

    /// What it is as an input of a step.
    fn as_input(&self) -> Type {
        match self {
            Self::Bytes | Self::String => Type::String,
            Self::Integer => Type::Integer,
            Self::Float => Type::Number,
            Self::Boolean => Type::Boolean,
            Self::File => Type::File,
            Self::Directory => Type::Directory,
            Self::Enum(values) if values.is_empty() => Type::String,
            Self::Enum(values) => Type::Enum(values.clone()),
            Self::Table => Type::List(None),
        }
    }

    /// What it is as an output of this kind of code: a handler may return one result or a list of them, and says which only by
    /// doing so, and a source emits them one by one.
    fn as_output(&self, kind: RyaxKind) -> Type {
        match self {
            _ if kind == RyaxKind::Source => self.as_input(),
            Self::File => Type::File,
            Self::Directory => Type::Directory,
            Self::Bytes | Self::String | Self::Integer | Self::Float | Self::Boolean | Self::Enum(_) | Self::Table => {
                Type::Any
            }
        }
    }
}

/// Whether a document is metadata of Ryax: by the name of its file, or by what only Ryax says.
pub(super) fn is_meant(file: &str, root: &Node) -> bool {
    let says = |entries: &[crate::yaml::Entry]| entries.iter().any(|entry| entry.key == "apiVersion");
    file.ends_with(RYAX_METADATA_NAME) || matches!(&root.kind, Kind::Mapping(entries) if says(entries))
}

/// Whether a text can be the `id` of an action of Ryax.
pub(super) fn is_id(text: &str) -> bool {
    (3..=24).contains(&text.len())
        && text.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-.".contains(&byte))
}

impl Manifest {
    /// What it is for Ryax, if it was written for that.
    pub fn ryax(&self) -> Option<&Ryax> {
        match &self.runtime {
            Runtime::Python(python) => python.ryax.as_deref(),
            Runtime::Command | Runtime::Container(_) | Runtime::Wasm => None,
        }
    }
}

/// Reads the document; nothing if so much is wrong with it that it says nothing.
pub(super) fn read(report: &mut Report, root: &Node) -> Option<Manifest> {
    let top = At::top();
    let fields = top.mapping(report, root, &["apiVersion", "kind", "spec"], &["apiVersion", "kind", "spec"])?;
    if let Some(node) = fields.get("apiVersion") {
        read_api_version(report, node)?;
    }
    let kind_node = fields.get("kind");
    let kind = kind_node.and_then(|node| read_kind(report, node));
    let spec = fields.get("spec")?;
    let manifest =
        read_spec(report, spec, kind.unwrap_or(RyaxKind::Handler), kind_node.map_or(root.place, |node| node.place));
    manifest.filter(|_| kind.is_some())
}

/// Nothing for version 1, of which all else would be wrong too.
fn read_api_version(report: &mut Report, node: &Node) -> Option<()> {
    const VERSION: &str = "ryax.tech/v2.0";
    let said = At::top().key("apiVersion").text(report, node, 0..=usize::MAX)?;
    if said == "ryax.tech/v1" || said.starts_with("ryax.tech/v1.") {
        let help = format!("write it as version 2: `apiVersion: {VERSION}`, with `spec.inputs` and `spec.outputs`");
        report.error(node.place, "this is version 1 of the metadata of Ryax, which is not read", Some(help));
        return None;
    }
    if said != VERSION {
        let message = format!("`apiVersion` cannot be `{}`", said.escape_debug());
        report.error(node.place, message, Some(format!("write `apiVersion: \"{VERSION}\"`")));
    }
    Some(())
}

fn read_kind(report: &mut Report, node: &Node) -> Option<RyaxKind> {
    let kinds = [
        ("Processor", RyaxKind::Handler),
        ("Publisher", RyaxKind::Handler),
        ("Source", RyaxKind::Source),
        ("Trigger", RyaxKind::Source),
    ];
    report.word(node, "`kind`", &kinds)
}

const SPEC: &[&str] = &[
    "id",
    "human_name",
    "type",
    "version",
    "description",
    "logo",
    "categories",
    "dependencies",
    "options",
    "addons",
    "resources",
    "dynamic_outputs",
    "inputs",
    "outputs",
];

fn read_spec(report: &mut Report, node: &Node, kind: RyaxKind, kind_place: Place) -> Option<Manifest> {
    let at = At::top().key("spec");
    let fields = at.mapping(report, node, SPEC, &["id", "human_name", "type"])?;
    let text = |report: &mut Report, name: &str, range| {
        fields.get(name).and_then(|node| at.key(name).text(report, node, range)).map(str::to_owned)
    };
    let name = fields.get("id").and_then(|node| read_id(report, node));
    let human_name = text(report, "human_name", 3..=128);
    let is_python = fields.get("type").is_none_or(|node| read_type(report, node));
    let version = fields.get("version").map(|node| read_version(report, node));
    let description = text(report, "description", 0..=usize::MAX);
    let logo = text(report, "logo", 0..=usize::MAX).zip(fields.get("logo").map(|node| node.place));
    at.key("categories").texts(report, fields.get("categories"), 32, 1..=32);
    let dependencies = at.key("dependencies").texts(report, fields.get("dependencies"), 64, 0..=1_024);
    for free in ["options", "addons"] {
        fields.get(free).map(|node| report.entries(node, &format!("`spec.{free}`")));
    }
    let takes_script = fields.get("addons").is_some_and(|node| has_entry(node, HPC));
    let is_dynamic = fields.get("dynamic_outputs").is_some_and(|node| read_dynamic_outputs(report, node, kind));
    let resources = fields.get("resources").map(|node| read_resources(report, node));
    let (mut inputs, input_types) = read_inputs(report, fields.get("inputs"));
    let (outputs, output_types) = read_outputs(report, fields.get("outputs"), kind);
    if kind == RyaxKind::Source {
        check_emitted(report, &outputs);
    }
    if takes_script {
        let script = ActionInput { r#type: Type::String, default: Some(Value::Null) };
        inputs.entry(CUSTOM_SCRIPT.to_owned()).or_insert(script);
    }
    let mut notes = Vec::new();
    if !dependencies.is_empty() {
        notes.push(format!(
            "`spec.dependencies` is passed over: sites must have {} themselves",
            dependencies.join(", ")
        ));
    }
    if is_dynamic {
        notes.push(
            "`spec.dynamic_outputs` is passed over: what is not in `spec.outputs` starts runs without it".to_owned(),
        );
    }
    let takes_script = takes_script && !input_types.contains_key(CUSTOM_SCRIPT);
    let ryax = Ryax { kind, kind_place, inputs: input_types, outputs: output_types, logo, takes_script, notes };
    let requirements = Requirements { file: REQUIREMENTS.to_owned(), place: kind_place };
    let python = Python {
        file: kind.file().to_owned(),
        function: kind.function().to_owned(),
        place: kind_place,
        requirements: Some(requirements),
        warm: None,
        ryax: Some(Box::new(ryax)),
    };
    name.filter(|_| is_python).map(|name| Manifest {
        name,
        version: version.unwrap_or_else(|| NO_VERSION.to_owned()),
        kind: match kind {
            RyaxKind::Handler => ActionKind::Processor,
            RyaxKind::Source => ActionKind::Source,
        },
        description: description.or(human_name),
        labels: BTreeMap::new(),
        runtime: Runtime::Python(python),
        command: Vec::new(),
        command_place: kind_place,
        inputs,
        outputs,
        resources,
        service: None,
    })
}

fn has_entry(node: &Node, name: &str) -> bool {
    matches!(&node.kind, Kind::Mapping(entries) if entries.iter().any(|entry| entry.key == name))
}

fn read_id(report: &mut Report, node: &Node) -> Option<String> {
    let id = At::top().key("spec").key("id").text(report, node, 3..=24)?;
    if is_id(id) {
        return Some(id.to_owned());
    }
    let help = Some("lower case letters, digits, `-` and `.`".to_owned());
    report.error(node.place, format!("`spec.id` cannot be `{}`", id.escape_debug()), help);
    None
}

/// Whether it is the one that can be run here.
fn read_type(report: &mut Report, node: &Node) -> bool {
    const OTHERS: [&str; 4] = ["python3-cuda", "csharp-dotnet6", "nodejs", "internal"];
    let Some(said) = At::top().key("spec").key("type").text(report, node, 0..=usize::MAX) else { return false };
    if said == "python3" {
        return true;
    }
    if OTHERS.contains(&said) {
        let help = Some("only `type: python3` can be run".to_owned());
        report.error(node.place, format!("actions of `type: {said}` are not supported"), help);
    } else {
        let help = did_you_mean(said, ["python3"].into_iter().chain(OTHERS));
        report.error(node.place, format!("`spec.type` cannot be `{}`", said.escape_debug()), help);
    }
    false
}

fn read_version(report: &mut Report, node: &Node) -> String {
    let said = At::top().key("spec").key("version").text(report, node, 3..=128).unwrap_or_default();
    if !said.is_empty() && !is_version(said) {
        let help = format!(
            "steps name it: a to z, A to Z, 0 to 9, `.`, `+`, `_`, `-`, at most {ACTION_VERSION_BYTES_MAX} characters"
        );
        report.error(node.place, format!("`{}` cannot be a version", said.escape_debug()), Some(help));
    }
    said.to_owned()
}

fn read_dynamic_outputs(report: &mut Report, node: &Node, kind: RyaxKind) -> bool {
    let is_dynamic = report.boolean(node, "`spec.dynamic_outputs`") == Some(true);
    if is_dynamic && kind != RyaxKind::Source {
        let help = Some("leave it out, or write `kind: Source`".to_owned());
        report.error(node.place, "only a source has dynamic outputs", help);
    }
    is_dynamic
}

fn output(r#type: &RyaxType, kind: RyaxKind, optional: bool, place: Place) -> Output {
    Output { r#type: r#type.as_output(kind), optional, listed: false, place }
}
