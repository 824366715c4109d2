//! Actions with the runtime `container`: the engine of the site, and what it is told for a step.

use std::env;
use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use atoll_model::action::{Container as Declared, Manifest, Runtime};
use atoll_model::session::StepTemplate;
use serde_json::Value as Json;

use super::actions::ReadyAction;
use super::orders::{OrderError, Surroundings, in_path};
use crate::config::{ContainerSettings, EngineChoice};
use crate::programs::ask;
use crate::shim::container::{ACTION, Container, Engine, EngineLimits};
use crate::shim::protocol::Common;

/// How long an engine may take to say what it is.
const PATIENCE: Duration = Duration::from_secs(15);

/// What starts containers at the site.
#[derive(Debug, Clone)]
pub(crate) struct ContainerEngine {
    pub(super) engine: Engine,
    pub(super) program: PathBuf,
    arguments: Vec<String>,
    /// What the names of this agent's containers begin with.
    prefix: String,
    limits: EngineLimits,
    rootless: bool,
}

/// Why a site has no engine, though it has its program.
#[derive(Debug, thiserror::Error)]
pub(crate) enum EngineError {
    #[error("there is no program {0:?}")]
    Missing(PathBuf),
    #[error("{program} cannot be asked", program = .program.display())]
    Start { program: PathBuf, source: io::Error },
    #[error("{program} does not work: {said}", program = .program.display())]
    Refuses { program: PathBuf, said: String },
    #[error("{0:?} has a colon or a comma in it, which stands between folders in what an engine is told")]
    Path(PathBuf),
}

impl ContainerEngine {
    /// Finds the engine of the settings, or else the first that is there and works; nothing where none is there.
    ///
    /// # Errors
    /// When one is there, or is asked for, and does not work.
    pub(crate) fn find(
        settings: &ContainerSettings,
        data_dir: &Path,
        slots_dir: &Path,
    ) -> Result<Option<Self>, EngineError> {
        let path = env::var_os("PATH").unwrap_or_default();
        let mut refused = None;
        for (engine, program) in candidates(settings, &path)? {
            match Self::examine(engine, program, settings, data_dir) {
                Ok(found) => {
                    let wrong = |folder: &&Path| folder.as_os_str().as_bytes().iter().any(|byte| b":,".contains(byte));
                    return match [data_dir, slots_dir].into_iter().find(wrong) {
                        Some(folder) => Err(EngineError::Path(folder.to_owned())),
                        None => Ok(Some(found)),
                    };
                }
                Err(error) => {
                    refused.get_or_insert(error);
                }
            }
        }
        refused.map_or(Ok(None), Err)
    }

    fn examine(
        engine: Engine,
        program: PathBuf,
        settings: &ContainerSettings,
        data_dir: &Path,
    ) -> Result<Self, EngineError> {
        let question: &[&str] = match engine {
            Engine::Podman => &["info", "--format", "json"],
            Engine::Docker => &["info", "--format", "{{json .}}"],
            Engine::Apptainer => &["--version"],
        };
        let said = ask(Command::new(&program).args(question), PATIENCE)
            .map_err(|source| EngineError::Start { program: program.clone(), source })?;
        let details: Json = serde_json::from_str(&said.stdout).unwrap_or_default();
        let daemon_lacks = engine == Engine::Docker && details["ServerVersion"].as_str().is_none_or(str::is_empty);
        if !said.status.success() || daemon_lacks {
            let words = said.stderr.lines().chain(said.stdout.lines()).find(|line| !line.trim().is_empty());
            let said = match (details["ServerErrors"][0].as_str(), words) {
                (Some(error), _) => error.to_owned(),
                (None, words) => words.unwrap_or("it says nothing").trim().to_owned(),
            };
            return Err(EngineError::Refuses { program, said });
        }
        let (rootless, limits) = traits(engine, &details);
        let prefix = format!("atoll-{}", &blake3::hash(data_dir.as_os_str().as_encoded_bytes()).to_hex()[..12]);
        Ok(Self { engine, program, arguments: settings.arguments.clone(), prefix, limits, rootless })
    }

    pub(crate) fn kind(&self) -> Engine {
        self.engine
    }

    /// Whether what it starts can be of another account than the engine's own.
    pub(super) fn becomes_others(&self) -> bool {
        !self.rootless && self.engine != Engine::Apptainer
    }

    pub(crate) fn program(&self) -> &Path {
        &self.program
    }

    /// What all executions of a step have in common. `staged` is where the inputs of attempts are made ready.
    pub(super) fn common(
        &self,
        surroundings: &Surroundings,
        template: &StepTemplate,
        action: &ReadyAction,
        staged: &Path,
    ) -> Result<Common, OrderError> {
        let (manifest, _) = action.container().ok_or(OrderError::NoContainer)?;
        let image = action.image.clone().ok_or(OrderError::NoContainer)?;
        let container = Container {
            engine: self.engine,
            program: self.program.clone(),
            arguments: self.arguments.clone(),
            prefix: self.prefix.clone(),
            image,
            network: template.resources.confinement.network,
            limits: self.limits,
            rootless: self.rootless,
            action: action.folder.clone(),
            staged: staged.to_owned(),
        };
        let environment = surroundings.environment_inside(template, ACTION)?;
        let command = command(manifest, &action.folder);
        Ok(Common { container: Some(Box::new(container)), ..surroundings.common_of(template, command, environment) })
    }
}

/// The programs that may be engines, in the order in which they are tried.
fn candidates(settings: &ContainerSettings, path: &OsString) -> Result<Vec<(Engine, PathBuf)>, EngineError> {
    let named = |engine, names: &[&str]| {
        let program = names.iter().find_map(|name| in_path(name, path));
        program.map(|program| (engine, program))
    };
    let podman = || named(Engine::Podman, &["podman"]);
    let docker = || named(Engine::Docker, &["docker"]);
    let apptainer = || named(Engine::Apptainer, &["apptainer", "singularity"]);
    let Some(choice) = settings.engine else {
        return Ok([podman(), docker(), apptainer()].into_iter().flatten().collect());
    };
    let (engine, found, name) = match choice {
        EngineChoice::None => return Ok(Vec::new()),
        EngineChoice::Podman => (Engine::Podman, podman(), "podman"),
        EngineChoice::Docker => (Engine::Docker, docker(), "docker"),
        EngineChoice::Apptainer => (Engine::Apptainer, apptainer(), "apptainer"),
    };
    let found = match &settings.program {
        Some(program) if program.is_absolute() => Some((engine, program.clone())),
        Some(program) => in_path(&program.to_string_lossy(), path).map(|program| (engine, program)),
        None => found,
    };
    let missing = || settings.program.clone().unwrap_or_else(|| PathBuf::from(name));
    found.map(|found| vec![found]).ok_or_else(|| EngineError::Missing(missing()))
}

/// Whether an engine is a user's own, and what it can limit, by what it says of itself.
fn traits(engine: Engine, details: &Json) -> (bool, EngineLimits) {
    let all = EngineLimits { memory: true, cpu: true, pids: true };
    match engine {
        Engine::Podman => {
            let host = &details["host"];
            let rootless = host["security"]["rootless"].as_bool().unwrap_or(false);
            if !rootless {
                return (false, all);
            }
            // Without root it has what was delegated to the user, in groups of the second version alone.
            let delegated = host["cgroupVersion"].as_str() == Some("v2");
            let controllers = host["cgroupControllers"].as_array();
            let has = |name: &str| {
                delegated && controllers.is_some_and(|all| all.iter().any(|known| known.as_str() == Some(name)))
            };
            (true, EngineLimits { memory: has("memory"), cpu: has("cpu"), pids: has("pids") })
        }
        Engine::Docker => {
            let options = details["SecurityOptions"].as_array();
            let said = |text: &str| {
                options
                    .is_some_and(|all| all.iter().any(|known| known.as_str().is_some_and(|known| known.contains(text))))
            };
            (said("name=rootless"), all)
        }
        Engine::Apptainer => (true, EngineLimits::default()),
    }
}

/// The command in the container: a word that is the path of a file of the action stands for that file.
fn command(manifest: &Manifest, action: &Path) -> Vec<Vec<u8>> {
    let words = manifest.command.iter().map(|word| {
        let is_file = !word.is_empty() && !word.starts_with('/') && action.join(word).is_file();
        if is_file { format!("{ACTION}/{word}") } else { word.clone() }
    });
    words.map(String::into_bytes).collect()
}

impl ReadyAction {
    /// What its `action.yaml` says of the runtime `container`, if that is its runtime.
    pub(super) fn container(&self) -> Option<(&Manifest, &Declared)> {
        let manifest = self.manifest.as_deref()?;
        match &manifest.runtime {
            Runtime::Container(container) => Some((manifest, container)),
            Runtime::Command | Runtime::Python(_) | Runtime::Wasm => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_engine_limits_what_was_delegated_to_it() {
        let podman = |rootless: bool, version: &str, controllers: &[&str]| {
            let host = json!({
                "security": { "rootless": rootless },
                "cgroupVersion": version,
                "cgroupControllers": controllers,
            });
            traits(Engine::Podman, &json!({ "host": host }))
        };
        let all = EngineLimits { memory: true, cpu: true, pids: true };
        assert_eq!(podman(false, "v1", &[]), (false, all));
        assert_eq!(podman(true, "v1", &["memory", "cpu"]), (true, EngineLimits::default()));
        assert_eq!(podman(true, "v2", &["memory", "pids"]), (true, EngineLimits { cpu: false, ..all }));
        let docker = json!({ "SecurityOptions": ["name=seccomp,profile=default", "name=rootless"] });
        assert_eq!(traits(Engine::Docker, &docker), (true, all));
        assert_eq!(traits(Engine::Docker, &json!({})), (false, all));
    }

    /// A program that is a script.
    fn script(folder: &Path, name: &str, text: &str) -> PathBuf {
        let path = folder.join(name);
        // Another process writes it: a file that this one has open for writing may not be run by what it starts meanwhile.
        let mut shell = Command::new("/bin/sh");
        shell.args(["-c", "printf '#!/bin/sh\\n%s\\n' \"$1\" > \"$0\" && chmod 755 \"$0\""]);
        assert!(shell.arg(&path).arg(text).status().expect("a shell").success());
        path
    }

    #[test]
    fn the_first_engine_that_answers_is_taken_unless_one_is_named() {
        let folder = tempfile::tempdir().expect("a temporary directory");
        let path = folder.path().as_os_str().to_owned();
        let named = |choice| ContainerSettings { engine: choice, ..ContainerSettings::default() };
        assert!(candidates(&named(None), &path).expect("no engine").is_empty());
        let missing = candidates(&named(Some(EngineChoice::Podman)), &path).expect_err("there is none");
        assert!(matches!(missing, EngineError::Missing(_)));
        script(folder.path(), "singularity", "echo singularity-ce version 3.8.0");
        let docker = script(folder.path(), "docker", "echo '{\"ServerVersion\": \"\"}'; echo no daemon >&2");
        let found = candidates(&named(None), &path).expect("two engines");
        assert_eq!(found.iter().map(|(engine, _)| *engine).collect::<Vec<_>>(), [Engine::Docker, Engine::Apptainer]);
        let settings = named(None);
        let refuses =
            ContainerEngine::examine(Engine::Docker, docker, &settings, folder.path()).expect_err("no daemon");
        assert!(refuses.to_string().contains("no daemon"), "{refuses}");
        let (engine, program) = found[1].clone();
        assert!(ContainerEngine::examine(engine, program, &settings, folder.path()).is_ok());
        assert!(candidates(&named(Some(EngineChoice::None)), &path).expect("none is wanted").is_empty());
    }
}
