//! What a shim is handed for an execution: the command and the environment, as `CONTRACT.md` has it under "Steps".

use std::cell::RefCell;
use std::env;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use atoll_model::id::SiteName;
use atoll_model::resources::Resources;
use atoll_model::session::{StepTemplate, TemplateOutput, TemplateWork};
use atoll_model::value::{FileName, Value};
use atoll_model::workflow::StartMode;
use site_agent_core::command::{StartInput, StartValue};
use storage_sync_engine::store::{Entry, SealId};

use super::actions::ReadyAction;
use super::collect::is_stored;
use super::services::ServiceError;
use crate::accounts::AccountError;
use crate::shim::job::evidence::Asked;
use crate::shim::protocol::{Common, Key, Order, Outputs, Terms, Variables};

/// Longest string that Linux takes as one argument or variable, its end included.
const STRING_BYTES_MAX: usize = 128 << 10;
/// Without a `PATH` of its own an agent looks where every system has its programs.
const DEFAULT_PATH: &str = "/usr/local/bin:/usr/bin:/bin:/usr/local/sbin:/usr/sbin:/sbin";

/// An execution that cannot be started as it is asked for; the message says what is wrong.
#[derive(Debug, thiserror::Error)]
pub(super) enum OrderError {
    #[error("{program:?} is neither in the action's folder nor in PATH")]
    UnknownProgram { program: String },
    #[error("the action's command is empty")]
    NoCommand,
    #[error("this site cannot give it `isolation: strict`: {why}")]
    NoStrict { why: String },
    #[error(
        "it is to run as the account {name}, and this site's containers are started by what cannot become another account: podman \
         or Docker with root can ([container] engine)"
    )]
    NoAccountInContainer { name: String },
    #[error(transparent)]
    Account(#[from] AccountError),
    #[error(transparent)]
    Service(#[from] ServiceError),
    #[error("this site has no Python that actions can run in")]
    NoPython,
    #[error("the action's own action.yaml names no Python handler")]
    NoHandler,
    #[error("this site has nothing that starts containers")]
    NoEngine,
    #[error("the action's own action.yaml names no image")]
    NoContainer,
    #[error("this site's atoll was built without what runs components of WebAssembly (feature `wasm`)")]
    NoRunner,
    #[error("the action's own action.yaml names no component")]
    NoComponent,
    #[error("{variable} is {bytes} bytes long, more than a variable of the environment can hold: make it a file")]
    TooLong { variable: String, bytes: usize },
    #[error("{variable} holds a NUL character, which a variable of the environment cannot: make it a file")]
    Nul { variable: String },
    #[error("the script cannot be written to {path}", path = .path.display())]
    Script { path: PathBuf, source: io::Error },
}

/// What every process of the site is given, whatever it is.
#[derive(Debug, Clone)]
pub(super) struct Surroundings {
    pub site: SiteName,
    /// Where scripts stand that are too long for an argument.
    pub scripts: PathBuf,
    /// Where the agent keeps everything.
    data_dir: PathBuf,
    pub log_bytes_max: u64,
    path: OsString,
    language: Variables,
    shell: PathBuf,
}

impl Surroundings {
    pub(super) fn new(site: SiteName, data_dir: PathBuf, log_bytes_max: u64) -> Self {
        let scripts = data_dir.join("scripts");
        let path = env::var_os("PATH").unwrap_or_else(|| DEFAULT_PATH.into());
        let language = ["LANG", "LC_ALL", "TZ"]
            .into_iter()
            .filter_map(|name| Some((name.into(), env::var_os(name)?.into_vec())))
            .collect();
        let shell = in_path("sh", &path).unwrap_or_else(|| PathBuf::from("/bin/sh"));
        Self { site, scripts, data_dir, log_bytes_max, path, language, shell }
    }

    pub(super) fn data_dir(&self) -> &Path {
        &self.data_dir
    }

    /// What all executions of a step have in common. `bundle` is the folder of its action.
    pub(super) fn common(&self, template: &StepTemplate, bundle: Option<&Path>) -> Result<Common, OrderError> {
        let environment = self.environment_of(template, bundle)?;
        Ok(self.common_of(template, self.command(template, bundle)?, environment))
    }

    /// The environment of all executions of a step.
    pub(super) fn environment_of(
        &self,
        template: &StepTemplate,
        bundle: Option<&Path>,
    ) -> Result<Variables, OrderError> {
        let mut environment = self.environment(template, bundle)?;
        set(&mut environment, "ATOLL_RUN", template.run.to_string().into_bytes())?;
        set(&mut environment, "ATOLL_STEP", template.step_name.clone().into_bytes())?;
        Ok(environment)
    }

    /// What is asked for with a command in an environment.
    pub(super) fn common_of(&self, template: &StepTemplate, command: Vec<Vec<u8>>, environment: Variables) -> Common {
        Common {
            command,
            environment,
            memory_bytes: template.resources.memory_bytes,
            cpu_millis: Some(template.resources.cpu_millis),
            time: template.resources.time,
            synced_claim: template.start == StartMode::AtMostOnce,
            outputs: becomes_of(&template.outputs),
            log_bytes_max: self.log_bytes_max,
            emits: false,
            worker: None,
            container: None,
            kept: None,
            warm: None,
            terms: Terms::default(),
            confined: false,
            account: None,
            asked: asked(&template.resources),
        }
    }

    /// What is started for the step that stands among the agent's own files.
    pub(super) fn needs(&self, common: &Common, action: Option<&ReadyAction>) -> Vec<PathBuf> {
        let words = common.command.iter().map(|word| PathBuf::from(std::ffi::OsStr::from_bytes(word)));
        let environment = action.and_then(|action| action.programs.as_ref()?.parent());
        let folders = action.map(|action| action.folder.as_path()).into_iter().chain(environment);
        let folders: Vec<PathBuf> = folders.map(Path::to_owned).collect();
        let is_apart = |word: &PathBuf| word.is_absolute() && !folders.iter().any(|folder| word.starts_with(folder));
        // The other words are what they are; what is no file is passed over.
        let files: Vec<PathBuf> = words.filter(|word| is_apart(word) && word.starts_with(&self.data_dir)).collect();
        folders.into_iter().chain(files).collect()
    }

    /// The environment of everything that runs for an action, whichever run and step it is of.
    pub(super) fn environment(&self, template: &StepTemplate, bundle: Option<&Path>) -> Result<Variables, OrderError> {
        let mut environment = self.language.clone();
        let mut set = |name: &str, value: &[u8]| set(&mut environment, name, value.to_vec());
        set("PATH", self.path.as_bytes())?;
        for (name, value) in &template.environment {
            set(name, value.as_bytes())?;
        }
        set("ATOLL_SITE", self.site.as_str().as_bytes())?;
        if let Some(bundle) = bundle {
            set("ATOLL_ACTION", bundle.as_os_str().as_bytes())?;
        }
        Ok(environment)
    }

    /// The environment in a container, where nothing is as it is at the site. `bundle` is the folder of its action there.
    pub(super) fn environment_inside(&self, template: &StepTemplate, bundle: &str) -> Result<Variables, OrderError> {
        let mut environment = Variables::new();
        let mut set = |name: &str, value: &[u8]| set(&mut environment, name, value.to_vec());
        for (name, value) in &template.environment {
            set(name, value.as_bytes())?;
        }
        set("ATOLL_SITE", self.site.as_str().as_bytes())?;
        set("ATOLL_ACTION", bundle.as_bytes())?;
        set("ATOLL_RUN", template.run.to_string().as_bytes())?;
        set("ATOLL_STEP", template.step_name.as_bytes())?;
        Ok(environment)
    }

    fn command(&self, template: &StepTemplate, bundle: Option<&Path>) -> Result<Vec<Vec<u8>>, OrderError> {
        let shell = || self.shell.as_os_str().as_bytes().to_vec();
        match &template.work {
            TemplateWork::Script(script) if script.len() < STRING_BYTES_MAX => {
                Ok(vec![shell(), b"-eu".to_vec(), b"-c".to_vec(), script.clone().into_bytes()])
            }
            TemplateWork::Script(script) => {
                let path = self.scripts.join(format!("{}.sh", blake3::hash(script.as_bytes()).to_hex()));
                write_whole(&path, script).map_err(|source| OrderError::Script { path: path.clone(), source })?;
                Ok(vec![shell(), b"-eu".to_vec(), path.into_os_string().into_vec()])
            }
            TemplateWork::Command { command, .. } | TemplateWork::SignedCommand { command, .. } => {
                let (program, arguments) = command.split_first().ok_or(OrderError::NoCommand)?;
                let program = self.find(program, bundle)?;
                let arguments = arguments.iter().map(|argument| match in_bundle(argument, bundle) {
                    Some(path) => path.into_os_string().into_vec(),
                    None => argument.clone().into_bytes(),
                });
                Ok(std::iter::once(program.into_os_string().into_vec()).chain(arguments).collect())
            }
            TemplateWork::Import { .. }
            | TemplateWork::Null
            | TemplateWork::Export { .. }
            | TemplateWork::Python { .. }
            | TemplateWork::Container { .. }
            | TemplateWork::Wasm { .. } => Err(OrderError::NoCommand),
        }
    }

    /// A program is looked up in the bundle, then in `PATH`. The path that is found is absolute: it is started without
    /// a further search.
    fn find(&self, program: &str, bundle: Option<&Path>) -> Result<PathBuf, OrderError> {
        if program.starts_with('/') {
            return Ok(PathBuf::from(program));
        }
        if let Some(path) = in_bundle(program, bundle) {
            return Ok(path);
        }
        in_path(program, &self.path).ok_or_else(|| OrderError::UnknownProgram { program: program.to_owned() })
    }

    /// What is particular to one execution. `staged` is where its files are.
    pub(super) fn order(
        &self,
        key: Key,
        template: &StepTemplate,
        inputs: &[StartInput],
        staged: &Path,
        traceparent: Option<&str>,
    ) -> Result<Order, OrderError> {
        let mut environment = Vec::with_capacity(inputs.len() + 3);
        for input in inputs {
            let text = match &input.value {
                StartValue::Value(value) => value_text(&input.name, value, staged),
                StartValue::Sealed { name, .. } => {
                    staged.join(&input.name).join(std::ffi::OsStr::from_bytes(name)).into_os_string().into_vec()
                }
            };
            set(&mut environment, &input.name, text)?;
        }
        set(&mut environment, "ATOLL_EXECUTION", key.execution.to_string().into_bytes())?;
        set(&mut environment, "ATOLL_ATTEMPT", key.attempt.to_string().into_bytes())?;
        if let Some(traceparent) = traceparent.or(template.origin.traceparent.as_deref()) {
            set(&mut environment, "TRACEPARENT", traceparent.as_bytes().to_vec())?;
        }
        Ok(Order { key, environment, inputs: String::new() })
    }
}

/// What a cluster is asked for beside CPUs, memory and time.
fn asked(resources: &Resources) -> Asked {
    let gpus = resources.gpus.as_ref();
    Asked {
        gpus: gpus.map_or(0, |gpus| gpus.count),
        gpu_kind: gpus.and_then(|gpus| gpus.kind.clone()),
        named: resources.named.iter().map(|(name, millis)| (name.clone(), millis.div_ceil(1_000))).collect(),
        spread: resources.spread,
        sbatch: resources.sbatch.clone(),
    }
}

/// What the shim is to do with the outputs folder.
fn becomes_of(declared: &[TemplateOutput]) -> Outputs {
    match declared {
        [] => Outputs::Ignored,
        declared if declared.iter().any(is_stored) => Outputs::Kept,
        _ => Outputs::Told,
    }
}

/// The file of the bundle that a word of its command is the path of. The working directory is empty, so that it can mean
/// no other.
fn in_bundle(word: &str, bundle: Option<&Path>) -> Option<PathBuf> {
    let bundle = bundle.filter(|_| !word.is_empty() && !word.starts_with('/'))?;
    Some(bundle.join(word)).filter(|path| path.is_file())
}

/// What has to stand below the folder of inputs, and in which order [`value_text`] names it.
pub(super) fn entries(inputs: &[StartInput]) -> Vec<Entry> {
    inputs
        .iter()
        .flat_map(|input| match &input.value {
            StartValue::Value(value) => Entry::for_value(&input.name, value),
            StartValue::Sealed { seal, name, .. } => FileName::new(name)
                .map(|name| Entry::for_sealed(&input.name, &name, SealId(seal.0)))
                .into_iter()
                .collect(),
        })
        .collect()
}

fn value_text(name: &str, value: &Value, staged: &Path) -> Vec<u8> {
    // Entries stand in the order in which the text asks for their paths.
    let paths = RefCell::new(Entry::for_value(name, value).into_iter().map(|entry| staged.join(entry.path)));
    let next = || paths.borrow_mut().next().unwrap_or_default();
    match value {
        Value::File(_) | Value::Directory(_) => next().into_os_string().into_vec(),
        other @ (Value::Null
        | Value::Boolean(_)
        | Value::Integer(_)
        | Value::Number(_)
        | Value::String(_)
        | Value::List(_)
        | Value::Object(_)) => other.to_text_with(&|_| next().to_string_lossy().into_owned()).into_bytes(),
    }
}

fn set(environment: &mut Variables, name: &str, value: Vec<u8>) -> Result<(), OrderError> {
    let bytes = name.len() + value.len() + 2;
    if bytes > STRING_BYTES_MAX {
        return Err(OrderError::TooLong { variable: name.to_owned(), bytes: value.len() });
    }
    if value.contains(&0) {
        return Err(OrderError::Nul { variable: name.to_owned() });
    }
    environment.push((name.as_bytes().to_vec(), value));
    Ok(())
}

pub(super) fn in_path(program: &str, path: &OsString) -> Option<PathBuf> {
    if program.contains('/') {
        return None;
    }
    env::split_paths(path).filter(|folder| folder.is_absolute()).map(|folder| folder.join(program)).find(|candidate| {
        fs::metadata(candidate).is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
    })
}

fn write_whole(path: &Path, text: &str) -> io::Result<()> {
    if path.exists() {
        return Ok(());
    }
    let next = path.with_extension("next");
    fs::write(&next, text)?;
    fs::rename(&next, path)
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test that fails here has failed")]

    use atoll_model::id::{Attempt, ExecutionId, RunId, StepIndex};
    use atoll_model::resources::{Gpus, Launch, Spread};
    use atoll_model::session::Origin;
    use atoll_model::workflow::OnDisconnect;

    use super::*;

    fn template(work: TemplateWork) -> StepTemplate {
        StepTemplate {
            run: RunId::from_bits(1),
            step: StepIndex(0),
            step_name: "make".to_owned(),
            workflow: "w".to_owned(),
            work,
            resources: Resources::default(),
            outputs: Vec::new(),
            bindings: Vec::new(),
            environment: Vec::new(),
            start: StartMode::default(),
            on_disconnect: OnDisconnect::default(),
            priority: 0,
            origin: Origin { traceparent: Some("00-1-2-01".to_owned()), requester: None },
        }
    }

    fn surroundings(folder: &Path) -> Surroundings {
        fs::create_dir_all(folder.join("scripts")).unwrap();
        Surroundings::new("edge".parse().unwrap(), folder.to_owned(), 1 << 20)
    }

    fn key() -> Key {
        let execution = ExecutionId { run: RunId::from_bits(1), step: StepIndex(0), element: 0 };
        Key { execution, attempt: Attempt(1) }
    }

    fn variable<'a>(environment: &'a [(Vec<u8>, Vec<u8>)], name: &str) -> &'a [u8] {
        &environment.iter().find(|(known, _)| known == name.as_bytes()).unwrap().1
    }

    #[test]
    fn values_become_text_and_lists_json() {
        let folder = tempfile::tempdir().unwrap();
        let inputs: Vec<StartInput> = [
            ("quoted", Value::string("a 'b' \"c\"\n$d")),
            ("count", Value::Integer(-3)),
            ("list", Value::list(vec![Value::string("x y"), Value::Boolean(true)])),
            ("absent", Value::Null),
        ]
        .map(|(name, value)| StartInput { name: name.to_owned(), value: StartValue::Value(value) })
        .into();
        let template = template(TemplateWork::Script("true".to_owned()));
        let order = surroundings(folder.path()).order(key(), &template, &inputs, folder.path(), None).unwrap();
        assert_eq!(variable(&order.environment, "quoted"), b"a 'b' \"c\"\n$d");
        assert_eq!(variable(&order.environment, "count"), b"-3");
        assert_eq!(variable(&order.environment, "list"), b"[\"x y\",true]");
        assert_eq!(variable(&order.environment, "absent"), b"");
        assert_eq!(variable(&order.environment, "TRACEPARENT"), b"00-1-2-01");
        assert_eq!(variable(&order.environment, "ATOLL_ATTEMPT"), b"1");
    }

    #[test]
    fn a_value_that_no_variable_can_hold_is_refused_with_its_name() {
        let folder = tempfile::tempdir().unwrap();
        let surroundings = surroundings(folder.path());
        let template = template(TemplateWork::Script("true".to_owned()));
        for (value, expected) in [(Value::string("x".repeat(200_000)), "big is"), (Value::string("a\0b"), "big holds")]
        {
            let inputs = [StartInput { name: "big".to_owned(), value: StartValue::Value(value) }];
            let error = surroundings.order(key(), &template, &inputs, folder.path(), None).unwrap_err();
            assert!(error.to_string().starts_with(expected), "{error}");
        }
    }

    #[test]
    fn a_script_that_is_too_long_for_an_argument_is_a_file() {
        let folder = tempfile::tempdir().unwrap();
        let script = format!("# {}\ntrue\n", "x".repeat(200_000));
        let common = surroundings(folder.path()).common(&template(TemplateWork::Script(script.clone())), None).unwrap();
        assert_eq!(common.command.len(), 3);
        let path = PathBuf::from(OsString::from_vec(common.command[2].clone()));
        assert_eq!(fs::read_to_string(path).unwrap(), script);
    }

    #[test]
    fn a_program_is_looked_up_in_its_action_and_then_in_path() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("bin")).unwrap();
        fs::write(folder.path().join("bin/tool"), "").unwrap();
        let surroundings = surroundings(folder.path());
        let program = |name: &str| {
            let work = TemplateWork::Command { command: vec![name.to_owned(), "-x".to_owned()], bundle: None };
            surroundings.common(&template(work), Some(folder.path())).map(|common| common.command)
        };
        assert_eq!(program("bin/tool").unwrap()[0], folder.path().join("bin/tool").as_os_str().as_bytes());
        assert!(program("sh").unwrap()[0].ends_with(b"/sh"));
        assert_eq!(program("/no/such").unwrap()[0], b"/no/such");
        let error = program("no-such-program").unwrap_err();
        assert!(matches!(error, OrderError::UnknownProgram { .. }));
    }

    #[test]
    fn a_word_that_is_the_path_of_a_file_of_the_action_stands_for_that_file() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("lib")).unwrap();
        fs::write(folder.path().join("lib/main.py"), "").unwrap();
        let words = ["sh", "lib/main.py", "lib", "--main=lib/main.py", "", "/etc/passwd"];
        let work = TemplateWork::Command { command: words.map(str::to_owned).to_vec(), bundle: None };
        let command = surroundings(folder.path()).common(&template(work), Some(folder.path())).unwrap().command;
        assert_eq!(command[1], folder.path().join("lib/main.py").as_os_str().as_bytes());
        assert_eq!(command[2..], words[2..].iter().map(|word| word.as_bytes().to_vec()).collect::<Vec<_>>());
    }

    #[test]
    fn a_cluster_is_asked_for_gpus_and_whole_ones_of_what_has_a_name() {
        let gpus = Some(Gpus { count: 2, kind: Some("a100".to_owned()) });
        let spread = Some(Spread { nodes: 2, tasks_per_node: 4, launch: Some(Launch::Srun) });
        let sbatch = vec!["--exclusive".to_owned()];
        let named = [("matlab".to_owned(), 1_500)].into();
        let resources = Resources { gpus, named, spread, sbatch: sbatch.clone(), ..Resources::default() };
        let named = [("matlab".to_owned(), 2)].into();
        let expected = Asked { gpus: 2, gpu_kind: Some("a100".to_owned()), named, spread, sbatch };
        assert_eq!(asked(&resources), expected);
        assert_eq!(asked(&Resources::default()), Asked::default());
    }
}
