//! The packages that actions ask for: installed once at the site for all that ask for the same, kept, and let go with the
//! folders of actions. They are installed by a thread of their own, so that nothing else waits for it.

use std::collections::{BTreeSet, HashMap};
use std::fs::{self, File};
use std::io;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use atoll_model::id::ObjectId;
use rustix::process::{Pid, Signal, kill_process_group};

use super::making::{Made, Making, State, Tell};
use super::python::Interpreter;
use crate::accounts::installer;
use crate::config::{AccountSettings, PythonSettings};
use crate::programs::wait;
use crate::shim::account::{Account, give, take_over};
use crate::shim::{make_private, remove_whatever};

/// What names packages, in the folder of an environment.
const REQUIREMENTS: &str = "requirements.txt";
const ENVIRONMENT: &str = "env";
/// Stands in the folder of an environment that is whole, and on the disk.
const READY: &str = "ready";
/// Names the actions that have asked for it, for the next process of the agent, by empty files: a call that goes on without
/// an agent may yet load a package.
const ASKED_BY: &str = "asked-by";
const INSTALLATION_TIME_MAX: Duration = Duration::from_secs(1_800);
/// Of what is told of a failure; all of it is in the log.
const REASON_CHARS_MAX: usize = 600;

pub(super) struct Environments {
    home: PathBuf,
    interpreter: Interpreter,
    /// Where executions run as other accounts.
    accounts: Option<AccountSettings>,
    /// By the digest of requirements and interpreter.
    installed: HashMap<String, Installed>,
    /// The folders of those that are being installed.
    making: Making<PathBuf>,
}

struct Installed {
    folder: PathBuf,
    used: Instant,
    /// Actions that asked for it.
    bundles: BTreeSet<ObjectId>,
}

impl Environments {
    /// Finds what earlier processes have installed; what they have not finished goes.
    pub(super) fn open(
        data_dir: &Path,
        interpreter: Interpreter,
        accounts: Option<AccountSettings>,
        tell: Tell<PathBuf>,
    ) -> io::Result<Self> {
        let home = data_dir.join("environments");
        make_private(&home)?;
        let mut installed = HashMap::new();
        for entry in fs::read_dir(&home)? {
            let folder = entry?.path();
            let name = folder.file_name().and_then(|name| name.to_str()).and_then(|name| name.split_once('-'));
            match name.filter(|_| folder.join(READY).exists()) {
                Some((name, _)) => {
                    let (name, bundles) = (name.to_owned(), asked_by(&folder)?);
                    installed.insert(name, Installed { folder, used: Instant::now(), bundles });
                }
                None => remove_whatever(&folder)?,
            }
        }
        Ok(Self { home, interpreter, accounts, installed, making: Making::new("packages", tell) })
    }

    /// The folder of the programs of the environment with what is asked for, in the format of pip, for the action of this
    /// bundle.
    pub(super) fn ask(&mut self, requirements: Vec<u8>, bundle: ObjectId) -> State<PathBuf> {
        let name = self.name(&requirements);
        if let Some(installed) = self.installed.get_mut(&name) {
            installed.used = Instant::now();
            if installed.bundles.insert(bundle)
                && let Err(error) = note(&installed.folder, bundle)
            {
                return State::Failed(format!("{} cannot be noted: {error}", installed.folder.display()));
            }
            return State::Ready(installed.folder.join(ENVIRONMENT).join("bin"));
        }
        let account = match self.accounts.as_ref().map(installer).transpose() {
            Ok(account) => account,
            Err(message) => return State::Failed(message),
        };
        // What a process before this one has begun may still be written to: no two use the same folder.
        let folder = self.home.join(format!("{name}-{}", uuid::Uuid::now_v7().simple()));
        let installation = Installation {
            folder,
            log: self.home.join(format!("{name}.log")),
            program: self.interpreter.program().to_owned(),
            settings: self.interpreter.settings().clone(),
            account,
        };
        self.making.begin(name, move || {
            let result = installation.carry_out(&requirements);
            if result.is_err() {
                // It is used by nobody, and goes with the next start if it cannot go now.
                let _ = remove_whatever(&installation.folder);
            }
            result.map(|()| installation.folder)
        })
    }

    fn name(&self, requirements: &[u8]) -> String {
        let mut hasher = blake3::Hasher::new();
        for part in [requirements, self.interpreter.identity().as_bytes()] {
            hasher.update(&(part.len() as u64).to_le_bytes());
            hasher.update(part);
        }
        hasher.finalize().to_hex()[..32].to_owned()
    }

    /// As [`Making::forgive`].
    pub(super) fn forgive(&mut self, name: &str) {
        self.making.forgive(name);
    }

    /// Takes note of what was told.
    pub(super) fn installed(&mut self, made: Made<PathBuf>) {
        if let Some((name, folder)) = self.making.ended(made) {
            self.installed.insert(name, Installed { folder, used: Instant::now(), bundles: BTreeSet::new() });
        }
    }

    /// Lets go of what no needed action has asked for, and nobody has used for a while.
    pub(super) fn let_go(&mut self, needed: &BTreeSet<ObjectId>, idle: Duration) {
        self.installed.retain(|_, installed| {
            let stays = !installed.bundles.is_disjoint(needed) || installed.used.elapsed() < idle;
            if !stays && let Err(error) = remove_whatever(&installed.folder) {
                tracing::warn!(folder = %installed.folder.display(), %error, "the packages of an action stay");
            }
            stays
        });
    }
}

fn note(folder: &Path, bundle: ObjectId) -> io::Result<()> {
    let notes = folder.join(ASKED_BY);
    make_private(&notes)?;
    File::create(notes.join(bundle.hex())).map(drop)
}

fn asked_by(folder: &Path) -> io::Result<BTreeSet<ObjectId>> {
    let notes = match fs::read_dir(folder.join(ASKED_BY)) {
        Ok(notes) => notes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(BTreeSet::new()),
        Err(error) => return Err(error),
    };
    let mut bundles = BTreeSet::new();
    for entry in notes {
        bundles.extend(entry?.file_name().to_str().and_then(|hex| format!("b3:{hex}").parse::<ObjectId>().ok()));
    }
    Ok(bundles)
}

/// What a thread does for one environment.
struct Installation {
    folder: PathBuf,
    log: PathBuf,
    program: PathBuf,
    settings: PythonSettings,
    /// Who installs it, if not this process's own user.
    account: Option<Account>,
}

impl Installation {
    fn carry_out(&self, requirements: &[u8]) -> Result<(), String> {
        let failed = |error: io::Error| format!("the packages of the action cannot be installed: {error}");
        // Whoever comes this far may read it.
        fs::create_dir(&self.folder).map_err(failed)?;
        fs::write(self.folder.join(REQUIREMENTS), requirements).map_err(failed)?;
        if let Some(account) = &self.account {
            give(&self.folder, Some(account)).map_err(failed)?;
        }
        File::create(&self.log).map_err(failed)?;
        for mut command in self.commands() {
            let status = self.run(&mut command).map_err(failed)?;
            if !status.success() {
                let reason = reason(&fs::read_to_string(&self.log).unwrap_or_default());
                let log = self.log.display();
                return Err(format!(
                    "the packages of the action cannot be installed: {reason} (all of it is in {log})"
                ));
            }
        }
        self.finish().map_err(failed)
    }

    /// With `uv` where the site has it, which is many times as fast.
    fn commands(&self) -> [Command; 2] {
        let environment = self.folder.join(ENVIRONMENT);
        let python = environment.join("bin/python");
        let (mut make, mut install) = if has_uv() {
            let (mut make, mut install) = (Command::new("uv"), Command::new("uv"));
            make.args(["venv", "--no-config", "--no-project", "--python"]).arg(&self.program);
            install.args(["pip", "install", "--no-config", "--python"]).arg(&python);
            if self.settings.offline {
                install.arg("--offline");
            }
            (make, install)
        } else {
            let (mut make, mut install) = (Command::new(&self.program), Command::new(&python));
            make.args(["-I", "-m", "venv"]);
            install.args(["-I", "-m", "pip", "install", "--disable-pip-version-check", "--no-input"]);
            (make, install)
        };
        make.arg(&environment);
        if self.settings.offline {
            install.arg("--no-index");
        } else if let Some(index) = &self.settings.index {
            install.arg("--index-url").arg(index);
        }
        if let Some(wheels) = &self.settings.wheels {
            install.arg("--find-links").arg(wheels);
        }
        install.arg("-r").arg(self.folder.join(REQUIREMENTS));
        [make, install]
    }

    fn run(&self, command: &mut Command) -> io::Result<ExitStatus> {
        let log = File::options().append(true).open(&self.log)?;
        if let Some(account) = &self.account {
            // Nothing that it leaves anywhere else is used for another.
            command.uid(account.uid).gid(account.gid).env("HOME", &self.folder);
            command.envs([("PIP_NO_CACHE_DIR", "1"), ("UV_NO_CACHE", "1")]);
        }
        let mut child = command
            .current_dir(&self.folder)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .process_group(0)
            .spawn()?;
        let group = Pid::from_child(&child);
        let status = wait(&mut child, INSTALLATION_TIME_MAX);
        if self.account.is_some() {
            // What it has left running would write on to what is ready; mostly there is nothing.
            let _ = kill_process_group(group, Signal::KILL);
        }
        status
    }

    /// What is there is on the disk before it is said to be.
    fn finish(&self) -> io::Result<()> {
        if let Some(account) = &self.account {
            take_over(&self.folder, account)?;
        }
        let folder = File::open(&self.folder)?;
        rustix::fs::syncfs(&folder)?;
        File::create(self.folder.join(READY))?.sync_all()?;
        folder.sync_all()
    }
}

fn has_uv() -> bool {
    let mut asking = Command::new("uv");
    asking.arg("--version").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    asking.status().is_ok_and(|status| status.success())
}

/// What an installer says last of what is wrong.
fn reason(log: &str) -> String {
    let lines: Vec<&str> = log.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let is_of_pip = |line: &&&str| line.starts_with("ERROR:");
    let is_of_uv = |line: &&str| line.starts_with('×') || line.starts_with("error:");
    let said = match (lines.iter().rfind(is_of_pip), lines.iter().position(is_of_uv)) {
        (Some(line), _) => (*line).trim_start_matches("ERROR:").trim().to_owned(),
        (None, Some(first)) => lines[first..].join(" "),
        (None, None) => lines.last().copied().unwrap_or("nothing is said of why").to_owned(),
    };
    said.chars().take(REASON_CHARS_MAX).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_process_before_this_one_has_given_out_stays_as_long_as_it_is_needed() {
        let site = tempfile::tempdir().expect("a temporary directory");
        let data = site.path();
        let interpreter = Interpreter::find(&PythonSettings::default(), data).expect("the tests have a Python");
        let open = || {
            let tell = std::sync::Arc::new(|_| panic!("nothing is installed"));
            Environments::open(data, interpreter.clone(), None, tell).expect("they can be read")
        };
        let mut environments = open();
        let folder = environments.home.join(format!("{}-1", environments.name(b"six\n")));
        fs::create_dir(&folder).expect("a directory");
        fs::write(folder.join(READY), "").expect("a file");
        environments = open();
        let bundle = ObjectId::from_digest([7; 32]);
        assert!(matches!(environments.ask(b"six\n".to_vec(), bundle), State::Ready(_)));
        let mut next = open();
        next.let_go(&BTreeSet::from([bundle]), Duration::ZERO);
        assert!(folder.exists(), "a call of it may go on");
        next.let_go(&BTreeSet::new(), Duration::ZERO);
        assert!(!folder.exists());
    }

    #[test]
    fn of_what_an_installer_says_the_line_is_told_that_names_the_requirement() {
        let pip = "Looking in links: /wheels\nERROR: Could not find a version that satisfies the requirement nope==1\n\
                   ERROR: No matching distribution found for nope==1\n\n[notice] A new release of pip is available\n";
        assert_eq!(reason(pip), "No matching distribution found for nope==1");
        let uv = "Using CPython 3.12\n  × No solution found when resolving dependencies:\n  ╰─▶ Because nope was not found\n      in the cache and you require nope==1, we can conclude\n";
        assert!(
            reason(uv)
                .ends_with("╰─▶ Because nope was not found in the cache and you require nope==1, we can conclude")
        );
        assert_eq!(reason("bash: no\n"), "bash: no");
    }
}
