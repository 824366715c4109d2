//! Actions with the runtime `python`: the interpreter of the site, and what a worker is started, initialized and called with
//! (`docs/action-protocol.md`).

use std::cell::RefCell;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use atoll_model::action::{ActionKind, Manifest, Python, Runtime, Ryax, RyaxType};
use atoll_model::session::StepTemplate;
use atoll_model::value::{Type, Value};
use serde_json::{Map, Value as Json, json};
use site_agent_core::command::{StartInput, StartValue};
use storage_sync_engine::store::Entry;

use super::actions::ReadyAction;
use super::orders::{OrderError, Surroundings};
use crate::config::PythonSettings;
use crate::shim::make_private;
use crate::shim::protocol::{Common, Key, Order, Worker};

const WORKER: &str = include_str!("../../../python/atoll_worker.py");
/// What the worker loads for actions that were written for Ryax.
const RYAX: &str = include_str!("../../../python/atoll_ryax.py");
/// The oldest version that the worker runs in.
const VERSION_MIN: (u32, u32) = (3, 8);
const ASK: &str = "import sys; print(sys.executable); print(*sys.version_info[:3])";

/// A Python of the site.
#[derive(Debug, Clone)]
pub(crate) struct Interpreter {
    program: PathBuf,
    version: (u32, u32, u32),
    /// The program that calls handlers, as it stands at the site.
    worker: PathBuf,
    ryax: PathBuf,
    settings: PythonSettings,
}

/// Why a program is no Python to run actions in.
#[derive(Debug, thiserror::Error)]
pub(crate) enum InterpreterError {
    #[error("it cannot be started")]
    Start(#[source] io::Error),
    #[error("it says {0:?} where a Python says what it is")]
    NoPython(String),
    #[error("it is Python {major}.{minor}, and actions need {}.{}", VERSION_MIN.0, VERSION_MIN.1)]
    Old { major: u32, minor: u32 },
    #[error("the worker cannot be written to {path}", path = .0.display())]
    Worker(PathBuf, #[source] io::Error),
}

impl Interpreter {
    /// Asks the program of the settings which Python it is, and writes down the worker that it is to run.
    ///
    /// # Errors
    /// When it is none, or one that is too old.
    pub(crate) fn find(settings: &PythonSettings, data_dir: &Path) -> Result<Self, InterpreterError> {
        let asked = Command::new(settings.program()).args(["-I", "-c", ASK]).stdin(Stdio::null()).output();
        let said = String::from_utf8_lossy(&asked.map_err(InterpreterError::Start)?.stdout).into_owned();
        let understood = said.trim_end().split_once('\n').and_then(|(program, version)| {
            let mut numbers = version.split(' ').map(str::parse);
            let mut number = || numbers.next()?.ok();
            Some((PathBuf::from(program), (number()?, number()?, number()?)))
        });
        let Some((program, version)) = understood.filter(|(program, _)| program.is_absolute()) else {
            return Err(InterpreterError::NoPython(said));
        };
        let (major, minor, _) = version;
        if (major, minor) < VERSION_MIN {
            return Err(InterpreterError::Old { major, minor });
        }
        let folder = data_dir.join("runtimes");
        let write = |name: &str, content: &str| {
            let place = folder.join(format!("{name}-{}.py", &blake3::hash(content.as_bytes()).to_hex()[..16]));
            match write_runtime(&folder, &place, content) {
                Ok(()) => Ok(place),
                Err(error) => Err(InterpreterError::Worker(place, error)),
            }
        };
        let (worker, ryax) = (write("atoll_worker", WORKER)?, write("atoll_ryax", RYAX)?);
        Ok(Self { program, version, worker, ryax, settings: settings.clone() })
    }

    pub(super) fn program(&self) -> &Path {
        &self.program
    }

    /// Where packages for it come from.
    pub(super) fn settings(&self) -> &PythonSettings {
        &self.settings
    }

    /// What it is, for what was installed for it.
    pub(super) fn identity(&self) -> String {
        format!("{} {:?}", self.program.display(), self.version)
    }

    /// What all executions of a step have in common.
    pub(super) fn common(
        &self,
        surroundings: &Surroundings,
        template: &StepTemplate,
        action: &ReadyAction,
    ) -> Result<Common, OrderError> {
        let (manifest, python) = action.python().ok_or(OrderError::NoHandler)?;
        let mut environment = surroundings.environment(template, Some(&action.folder))?;
        let mut program = self.program.clone();
        if let Some(programs) = &action.programs {
            // They are found before those of the site.
            let path = environment.iter_mut().find(|(name, _)| name == b"PATH");
            path.into_iter().for_each(|(_, path)| *path = [programs.as_os_str().as_bytes(), b":", path].concat());
            program = programs.join("python");
        }
        let command = [program.as_os_str(), "-B".as_ref(), self.worker.as_os_str()];
        let command = command.map(|word| word.as_bytes().to_vec()).to_vec();
        let mut initialize = initialize(&action.folder, manifest, python);
        if let Some(ryax) = &python.ryax {
            initialize["ryax"] = ryax_terms(&self.ryax, manifest, ryax);
        }
        let initialize = initialize.to_string();
        let emits = manifest.kind == ActionKind::Source;
        let common = surroundings.common_of(template, command, environment);
        // Its records are counted within the attempt, which must never begin twice, even where the machine has lost its power.
        let synced_claim = common.synced_claim || emits;
        let warm = self.settings.heeded(python.warm);
        Ok(Common { worker: Some(Worker { initialize }), emits, synced_claim, warm, ..common })
    }
}

fn write_runtime(folder: &Path, place: &Path, content: &str) -> io::Result<()> {
    make_private(folder)?;
    if fs::read(place).is_ok_and(|there| there == content.as_bytes()) {
        return Ok(());
    }
    let next = place.with_extension("next");
    fs::write(&next, content)?;
    fs::rename(&next, place)
}

/// What is told beside for an action of Ryax: the types that it declares, which say more than ours.
fn ryax_terms(file: &Path, manifest: &Manifest, ryax: &Ryax) -> Json {
    let described = |r#type: &RyaxType| match r#type {
        RyaxType::Enum(values) => json!({ "type": r#type.word(), "values": values }),
        RyaxType::Bytes
        | RyaxType::String
        | RyaxType::Integer
        | RyaxType::Float
        | RyaxType::Boolean
        | RyaxType::File
        | RyaxType::Directory
        | RyaxType::Table => json!({ "type": r#type.word() }),
    };
    let inputs: Map<String, Json> =
        ryax.inputs.iter().map(|(name, r#type)| (name.clone(), described(r#type))).collect();
    let outputs = ryax.outputs.iter().map(|(name, r#type)| {
        let mut output = described(r#type);
        output["optional"] = json!(manifest.outputs.get(name).is_some_and(|declared| declared.optional));
        (name.clone(), output)
    });
    let outputs: Map<String, Json> = outputs.collect();
    json!({ "file": file.to_string_lossy(), "inputs": inputs, "outputs": outputs, "script": ryax.takes_script })
}

/// What a worker is told before it is called, but for what only its shim knows.
fn initialize(folder: &Path, manifest: &Manifest, python: &Python) -> Json {
    let outputs: Map<String, Json> = manifest
        .outputs
        .iter()
        .map(|(name, output)| {
            let mut described = described(&output.r#type);
            described["optional"] = json!(output.optional);
            (name.clone(), described)
        })
        .collect();
    json!({
        "action": folder.to_string_lossy(),
        "handler": python.handler(),
        "inputs": manifest.inputs.keys().collect::<Vec<_>>(),
        "outputs": outputs,
        "kind": manifest.kind.as_str(),
    })
}

fn described(r#type: &Type) -> Json {
    let word = match r#type {
        Type::String => "string",
        Type::Integer => "integer",
        Type::Number => "number",
        Type::Boolean => "boolean",
        Type::Enum(_) => "enum",
        Type::List(_) => "list",
        Type::Object => "object",
        Type::File => "file",
        Type::Directory => "directory",
        Type::Any => "any",
    };
    let mut described = json!({ "type": word, "words": r#type.to_string() });
    match r#type {
        Type::Enum(values) => described["values"] = json!(values),
        Type::List(element) => described["of"] = self::described(element.as_deref().unwrap_or(&Type::Any)),
        Type::String
        | Type::Integer
        | Type::Number
        | Type::Boolean
        | Type::Object
        | Type::File
        | Type::Directory
        | Type::Any => {}
    }
    described
}

/// What is particular to one execution. `staged` is where its files are.
pub(super) fn order(
    key: Key,
    template: &StepTemplate,
    inputs: &[StartInput],
    staged: &Path,
    traceparent: Option<&str>,
) -> Order {
    let inputs: Map<String, Json> = inputs
        .iter()
        .map(|input| {
            let value = match &input.value {
                StartValue::Value(value) => value_json(&input.name, value, staged),
                StartValue::Sealed { name, .. } => {
                    json!(staged.join(&input.name).join(std::ffi::OsStr::from_bytes(name)).to_string_lossy())
                }
            };
            (input.name.clone(), value)
        })
        .collect();
    let mut environment = vec![
        ("ATOLL_RUN", template.run.to_string()),
        ("ATOLL_STEP", template.step_name.clone()),
        ("ATOLL_EXECUTION", key.execution.to_string()),
        ("ATOLL_ATTEMPT", key.attempt.to_string()),
    ];
    environment
        .extend(traceparent.or(template.origin.traceparent.as_deref()).map(|text| ("TRACEPARENT", text.to_owned())));
    let environment = environment.into_iter().map(|(name, value)| (name.into(), value.into_bytes())).collect();
    Order { key, environment, inputs: Json::Object(inputs).to_string() }
}

/// A value as a handler gets it: files and directories are paths.
fn value_json(name: &str, value: &Value, staged: &Path) -> Json {
    // Entries stand in the order in which their paths are asked for.
    let paths = RefCell::new(Entry::for_value(name, value).into_iter().map(|entry| staged.join(entry.path)));
    value.to_json_with(&|_| json!(paths.borrow_mut().next().unwrap_or_default().to_string_lossy()))
}

impl ReadyAction {
    /// What names the packages it needs, if it needs any.
    ///
    /// # Errors
    /// When that cannot be read; the message says why.
    pub(super) fn requirements(&self) -> Result<Option<Vec<u8>>, String> {
        let named = self.python().and_then(|(_, python)| Some((python.requirements.as_ref()?, python.ryax.is_some())));
        let Some((requirements, is_ryax)) = named else { return Ok(None) };
        let path = self.folder.join(&requirements.file);
        match fs::read(&path) {
            Ok(content) if is_ryax => Ok(requirements_of_ryax(&String::from_utf8_lossy(&content))),
            Ok(content) => Ok(Some(content)),
            Err(error) if is_ryax && error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(format!("{} cannot be read: {error}", path.display())),
        }
    }

    /// What its `action.yaml` says of the runtime `python`, if that is its runtime.
    pub(super) fn python(&self) -> Option<(&Manifest, &Python)> {
        let manifest = self.manifest.as_deref()?;
        match &manifest.runtime {
            Runtime::Python(python) => Some((manifest, python)),
            Runtime::Command | Runtime::Container(_) | Runtime::Wasm => None,
        }
    }
}

/// The lines of a file of Ryax that name a package or an option of pip, if any names a package: there are such files without a
/// single requirement, and with lines that mean nothing.
fn requirements_of_ryax(content: &str) -> Option<Vec<u8>> {
    let lines = content.lines().map(|line| line.split(" #").next().unwrap_or_default().trim());
    let kept: Vec<&str> = lines.filter(|line| line.starts_with('-') || names_a_package(line)).collect();
    let asks = kept.iter().any(|line| !line.starts_with('-') || line.starts_with("-r") || line.starts_with("-e"));
    asks.then(|| (kept.join("\n") + "\n").into_bytes())
}

fn names_a_package(line: &str) -> bool {
    let of_name = |letter: char| letter.is_ascii_alphanumeric() || "._-".contains(letter);
    let end = line.find(|letter| !of_name(letter)).unwrap_or(line.len());
    let (name, rest) = (&line[..end], line[end..].trim_start());
    let is_url = line.contains("://") && !line.contains(' ');
    let is_name = name.starts_with(|first: char| first.is_ascii_alphanumeric());
    is_url || is_name && (rest.is_empty() || rest.starts_with(['=', '<', '>', '!', '~', '[', '@', ';', '(']))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_requirements_of_ryax_what_means_nothing_is_left_out() {
        let kept = |content| requirements_of_ryax(content).map(|kept| String::from_utf8(kept).expect("text"));
        assert_eq!(kept(""), None);
        assert_eq!(kept("# nothing\n\n   \n--no-binary :all:\n"), None);
        assert_eq!(kept("there is nothing to install here\n"), None);
        assert_eq!(
            kept("numpy==1.26 # arrays\nrequests [socks] >= 2\nsome words\n-i https://example.org/simple\n").as_deref(),
            Some("numpy==1.26\nrequests [socks] >= 2\n-i https://example.org/simple\n")
        );
    }
}
