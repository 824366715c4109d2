//! Actions with the runtime `wasm`: what runs their components at this site, and what it is told for a step.
//!
//! A component runs in a process of its own, of the same program as the shim: so it has the slot, the limits and the log of
//! any other process, and beside them sees nothing but the folders that it is given. It is compiled once, before executions
//! of it are let in, and let go with the folder of its action.

use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::io;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use atoll_model::action::{Manifest, Runtime};
use atoll_model::id::ObjectId;
use atoll_model::session::StepTemplate;

use super::actions::ReadyAction;
use super::making::{Made, Making, State, Tell};
use super::orders::{OrderError, Surroundings};
use crate::config::ShimProgram;
use crate::programs::ask;
use crate::shim::protocol::Common;
use crate::shim::{COMPONENT, make_private, remove_whatever};

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
    /// Where compiled components are kept, those of each action in a folder of their own.
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
        let bundle = template.work.bundle().ok_or(OrderError::NoComponent)?;
        let network = if template.resources.confinement.network { "network" } else { "none" };
        let mut words = vec![self.program.program.as_os_str().as_bytes().to_vec()];
        words.extend(self.program.arguments.iter().map(|argument| argument.clone().into_bytes()));
        words.extend([COMPONENT, "run"].map(|word| word.as_bytes().to_vec()));
        words.push(self.cache_of(bundle.id).into_os_string().into_vec());
        words.push(network.as_bytes().to_vec());
        words.push(action.folder.join(file).as_os_str().as_bytes().to_vec());
        words.extend(arguments.iter().map(|argument| argument.clone().into_bytes()));
        let environment = surroundings.environment_of(template, Some(&action.folder))?;
        Ok(surroundings.common_of(template, words, environment))
    }

    fn cache_of(&self, bundle: ObjectId) -> PathBuf {
        self.cache.join(bundle.hex())
    }

    /// Compiles a component, so that executions find it compiled.
    fn prepare(&self, component: &Path, bundle: ObjectId) -> Result<(), String> {
        let shown = component.file_name().unwrap_or_default().display();
        let cache = self.cache_of(bundle);
        let said = fs::create_dir_all(&cache)
            .and_then(|()| ask(self.command().arg("prepare").arg(&cache).arg(component), COMPILATION_TIME_MAX))
            .map_err(|error| format!("the component {shown} cannot be compiled: {error}"))?;
        let why = || said.stderr.lines().next().unwrap_or("nothing is said of why").to_owned();
        if said.status.success() { Ok(()) } else { Err(format!("the component {shown} cannot be compiled: {}", why())) }
    }
}

/// The components that actions are: compiled once at the site.
pub(super) struct Components {
    runner: ComponentRunner,
    /// Those that are compiled, by the bundle of their action, which has one, and when they were last used. What an earlier
    /// process has compiled is among them once it was asked for.
    ready: HashMap<ObjectId, Instant>,
    making: Making<ObjectId>,
    opened: Instant,
}

impl Components {
    pub(super) fn new(runner: ComponentRunner, tell: Tell<ObjectId>) -> Self {
        Self { runner, ready: HashMap::new(), making: Making::new("component", tell), opened: Instant::now() }
    }

    /// The component of the action that stands in this folder.
    pub(super) fn ask(&mut self, file: &str, action: &Path, bundle: ObjectId) -> State<()> {
        if let Some(used) = self.ready.get_mut(&bundle) {
            *used = Instant::now();
            return State::Ready(());
        }
        let (runner, component) = (self.runner.clone(), action.join(file));
        match self.making.begin(bundle.to_string(), move || runner.prepare(&component, bundle).map(|()| bundle)) {
            State::Ready(_) => State::Ready(()),
            State::InWork(name) => State::InWork(name),
            State::Failed(message) => State::Failed(message),
        }
    }

    /// Takes note of what was told.
    pub(super) fn compiled(&mut self, made: Made<ObjectId>) {
        self.ready.extend(self.making.ended(made).map(|(_, bundle)| (bundle, Instant::now())));
    }

    /// As [`Making::forgive`].
    pub(super) fn forgive(&mut self, name: &str) {
        self.making.forgive(name);
    }

    /// Lets go of what no needed action is, and nobody has used for a while.
    pub(super) fn let_go(&mut self, needed: &BTreeSet<ObjectId>, idle: Duration) {
        let folders = match fs::read_dir(&self.runner.cache) {
            Ok(folders) => folders,
            Err(error) => {
                let folder = self.runner.cache.display();
                return tracing::warn!(%folder, %error, "what was compiled cannot be listed");
            }
        };
        for folder in folders.flatten().map(|entry| entry.path()) {
            let bundle = folder.file_name().and_then(|name| format!("b3:{}", name.to_str()?).parse::<ObjectId>().ok());
            let used = bundle.and_then(|bundle| self.ready.get(&bundle)).unwrap_or(&self.opened);
            let is_needed =
                bundle.is_some_and(|bundle| needed.contains(&bundle) || self.making.is_in_work(&bundle.to_string()));
            if is_needed || used.elapsed() < idle {
                continue;
            }
            if let Err(error) = remove_whatever(&folder) {
                tracing::warn!(folder = %folder.display(), %error, "what was compiled of an action stays");
            }
            bundle.map(|bundle| self.ready.remove(&bundle));
        }
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

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;
    use std::sync::{Arc, Mutex};

    use super::*;

    /// What stands for a program that compiles: it writes down what it was asked for, in the folder of what is compiled.
    const COMPILER: &str = r#"test "$2" = prepare || exit 0; echo "$4" > "$3/compiled""#;

    #[test]
    fn what_was_compiled_goes_with_its_action_and_is_made_again_for_it() {
        let folder = tempfile::tempdir().expect("a temporary directory");
        let arguments = ["-c", COMPILER, "sh"].map(str::to_owned).to_vec();
        let program = ShimProgram { program: "/bin/sh".into(), arguments };
        let runner = ComponentRunner::find(&program, folder.path()).expect("it is asked").expect("it has it");
        let (sender, told) = channel();
        let sender = Mutex::new(sender);
        let tell = move |made| sender.lock().expect("a lock").send(made).expect("somebody listens");
        let mut components = Components::new(runner.clone(), Arc::new(tell));
        let [needed, idle] = [1, 2].map(|number| ObjectId::from_digest([number; 32]));
        let have = |components: &mut Components, bundle| {
            if let State::InWork(_) = components.ask("main.wasm", folder.path(), bundle) {
                components.compiled(told.recv().expect("a thread"));
            }
            assert!(matches!(components.ask("main.wasm", folder.path(), bundle), State::Ready(())));
        };
        have(&mut components, needed);
        have(&mut components, idle);
        let compiled = |bundle| runner.cache_of(bundle).join("compiled").exists();
        components.let_go(&BTreeSet::from([needed]), Duration::from_secs(3_600));
        assert!(compiled(needed) && compiled(idle), "both were used lately");
        components.let_go(&BTreeSet::from([needed]), Duration::ZERO);
        assert!(compiled(needed) && !compiled(idle));
        have(&mut components, idle);
        assert!(compiled(idle));
        let mut next = Components::new(runner.clone(), Arc::new(|_| panic!("nothing is compiled")));
        next.let_go(&BTreeSet::from([idle]), Duration::ZERO);
        assert!(!compiled(needed) && compiled(idle), "the next process finds them");
    }
}
