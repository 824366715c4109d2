//! Actions with the runtime `wasm`: what runs their components at this site, and what it is told for a step.
//!
//! A component runs in a process of its own, of the same program as the shim: so it has the slot, the limits and the log of
//! any other process, and beside them sees nothing but the folders that it is given. It is compiled once, before executions
//! of it are let in.

use std::collections::HashSet;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use atoll_model::action::{Manifest, Runtime};
use atoll_model::id::ObjectId;
use atoll_model::session::StepTemplate;

use super::actions::ReadyAction;
use super::making::{Made, Making, State, Tell};
use super::orders::{OrderError, Surroundings};
use crate::config::ShimProgram;
use crate::programs::ask;
use crate::shim::protocol::Common;
use crate::shim::{COMPONENT, make_private};

/// How long the program may take to say whether it runs components.
const QUESTION_TIME_MAX: Duration = Duration::from_secs(15);
/// Large ones take a minute.
const COMPILATION_TIME_MAX: Duration = Duration::from_secs(1_800);
/// Names the folder of an execution's inputs to what runs its component.
pub(super) const INPUTS_VARIABLE: &str = "ATOLL_INPUTS";

/// What runs components.
#[derive(Debug, Clone)]
pub(crate) struct ComponentRunner {
    program: ShimProgram,
    /// Where compiled components are kept.
    cache: PathBuf,
}

impl ComponentRunner {
    /// Asks the program whether it was built with what runs components.
    ///
    /// # Errors
    /// When it cannot be asked, or the folder of what is compiled cannot be made.
    pub(crate) fn find(program: &ShimProgram, data_dir: &Path) -> io::Result<Option<Self>> {
        let runner = Self { program: program.clone(), cache: data_dir.join("components") };
        if !ask(runner.command().arg("probe"), QUESTION_TIME_MAX)?.status.success() {
            return Ok(None);
        }
        make_private(&runner.cache)?;
        Ok(Some(runner))
    }

    fn command(&self) -> Command {
        let mut command = Command::new(&self.program.program);
        command.args(&self.program.arguments).arg(COMPONENT);
        command
    }

    /// What all executions of a step have in common.
    pub(super) fn common(
        &self,
        surroundings: &Surroundings,
        template: &StepTemplate,
        action: &ReadyAction,
    ) -> Result<Common, OrderError> {
        let manifest = action.component().ok_or(OrderError::NoComponent)?;
        let (file, arguments) = manifest.command.split_first().ok_or(OrderError::NoComponent)?;
        let network = if template.resources.confinement.network { "network" } else { "none" };
        let mut words = vec![self.program.program.as_os_str().as_bytes().to_vec()];
        words.extend(self.program.arguments.iter().map(|argument| argument.clone().into_bytes()));
        words.extend([COMPONENT, "run"].map(|word| word.as_bytes().to_vec()));
        words.push(self.cache.as_os_str().as_bytes().to_vec());
        words.push(network.as_bytes().to_vec());
        words.push(action.folder.join(file).as_os_str().as_bytes().to_vec());
        words.extend(arguments.iter().map(|argument| argument.clone().into_bytes()));
        let environment = surroundings.environment_of(template, Some(&action.folder))?;
        Ok(surroundings.common_of(template, words, environment))
    }

    /// Compiles a component, so that executions find it compiled.
    fn prepare(&self, component: &Path) -> Result<(), String> {
        let shown = component.file_name().unwrap_or_default().display();
        let said = ask(self.command().arg("prepare").arg(&self.cache).arg(component), COMPILATION_TIME_MAX)
            .map_err(|error| format!("the component {shown} cannot be compiled: {error}"))?;
        let why = || said.stderr.lines().next().unwrap_or("nothing is said of why").to_owned();
        if said.status.success() { Ok(()) } else { Err(format!("the component {shown} cannot be compiled: {}", why())) }
    }
}

/// The components that actions are: compiled once at the site.
pub(super) struct Components {
    runner: ComponentRunner,
    /// By the bundle and the path of their file.
    ready: HashSet<String>,
    making: Making<()>,
}

impl Components {
    pub(super) fn new(runner: ComponentRunner, tell: Tell<()>) -> Self {
        Self { runner, ready: HashSet::new(), making: Making::new("component", tell) }
    }

    /// The component of the action that stands in this folder.
    pub(super) fn ask(&mut self, file: &str, action: &Path, bundle: ObjectId) -> State<()> {
        let name = format!("{bundle}/{file}");
        if self.ready.contains(&name) {
            return State::Ready(());
        }
        let (runner, component) = (self.runner.clone(), action.join(file));
        self.making.begin(name, move || runner.prepare(&component))
    }

    /// Takes note of what was told.
    pub(super) fn compiled(&mut self, made: Made<()>) {
        self.ready.extend(self.making.ended(made).map(|(name, ())| name));
    }
}

impl ReadyAction {
    /// What its `action.yaml` says, if its runtime is `wasm`.
    pub(super) fn component(&self) -> Option<&Manifest> {
        let manifest = self.manifest.as_deref()?;
        match &manifest.runtime {
            Runtime::Wasm => Some(manifest),
            Runtime::Command | Runtime::Python(_) | Runtime::Container(_) => None,
        }
    }
}
