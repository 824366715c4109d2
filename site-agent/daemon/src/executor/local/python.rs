//! Actions with the runtime `python`: the interpreter of the site, and what a worker is started, initialized and called with
//! (`docs/action-protocol.md`).

use std::cell::RefCell;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use atoll_model::action::{Manifest, Python, Runtime};
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
        let worker = folder.join(format!("atoll_worker-{}.py", &blake3::hash(WORKER.as_bytes()).to_hex()[..16]));
        write_worker(&folder, &worker).map_err(|error| InterpreterError::Worker(worker.clone(), error))?;
        Ok(Self { program, version, worker, settings: settings.clone() })
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
        let initialize = initialize(&action.folder, manifest, python).to_string();
        Ok(Common { worker: Some(Worker { initialize }), ..surroundings.common_of(template, command, environment) })
    }
}

fn write_worker(folder: &Path, worker: &Path) -> io::Result<()> {
    make_private(folder)?;
    if fs::read(worker).is_ok_and(|content| content == WORKER.as_bytes()) {
        return Ok(());
    }
    let next = worker.with_extension("next");
    fs::write(&next, WORKER)?;
    fs::rename(&next, worker)
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
    environment.extend(traceparent.or(template.traceparent.as_deref()).map(|text| ("TRACEPARENT", text.to_owned())));
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
    /// The file that names the packages it needs, if it needs any.
    pub(super) fn requirements(&self) -> Option<PathBuf> {
        let (_, python) = self.python()?;
        Some(self.folder.join(&python.requirements.as_ref()?.file))
    }

    /// What its `action.yaml` says of the runtime `python`, if that is its runtime.
    fn python(&self) -> Option<(&Manifest, &Python)> {
        let manifest = self.manifest.as_deref()?;
        match &manifest.runtime {
            Runtime::Python(python) => Some((manifest, python)),
            Runtime::Command | Runtime::Container(_) => None,
        }
    }
}
