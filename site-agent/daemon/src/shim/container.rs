//! Containers of the engines that a site may have: the command that starts one, and the one that ends and removes it.
//!
//! Below a shim everything that `podman run` or `apptainer exec` has started can be killed; what `docker run` has started
//! is a child of its daemon. In both cases the engine keeps a record of a container that it did not see ending. So before
//! one is started it is noted in the slot how it is removed, and the note goes when there is nothing left.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use rustix::process::{Resource, getegid, geteuid, getrlimit};
use serde::{Deserialize, Serialize};

use super::limits::PIDS_MAX;
use super::protocol::{Common, Key, Order};
use crate::programs::ask;

/// Where an execution finds everything in its container.
pub(crate) const INPUTS: &str = "/atoll/inputs";
pub(crate) const ACTION: &str = "/atoll/action";
const WORK: &str = "/atoll/work";
const OUTPUTS: &str = "/atoll/outputs";
const TMP: &str = "/tmp";

/// The note in a slot that says how what may be left there is removed.
const NOTE: &str = "container";
/// How long an engine may take to end and remove a container, or to say how it ended.
const PATIENCE: Duration = Duration::from_secs(15);

/// What starts containers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Engine {
    Podman,
    Docker,
    /// Singularity too.
    Apptainer,
}

/// A container that executions run in, each in one of its own. The command in it, which may be the image's, and what is
/// added to its environment stand in the [`Common`] beside it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Container {
    pub engine: Engine,
    /// The engine's program, an absolute path.
    pub program: PathBuf,
    /// What the site's administrator adds to the command that starts one.
    pub arguments: Vec<String>,
    /// What the names of the agent's containers begin with.
    pub prefix: String,
    /// As the engine knows it; the path of a file for Apptainer.
    pub image: String,
    pub network: bool,
    pub limits: EngineLimits,
    /// Whether the engine is the agent's user's own, and has a user namespace for it.
    pub rootless: bool,
    /// The folder of the action.
    pub action: PathBuf,
    /// Where the inputs of attempts stand, each in a folder of its own.
    pub staged: PathBuf,
}

/// Which limits the engine sets. The others are those of the slot, in which the engine's own program then runs too.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct EngineLimits {
    pub memory: bool,
    pub cpu: bool,
    pub pids: bool,
}

/// The folders of a slot that a container is given.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SlotFolders<'a> {
    pub work: &'a Path,
    pub tmp: &'a Path,
    pub out: &'a Path,
}

/// What ends a container, if it runs, and removes it, if it is there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Removal {
    program: PathBuf,
    arguments: Vec<String>,
}

/// A container that may be left.
#[derive(Debug, thiserror::Error)]
#[error("a container cannot be removed: {command}: {why}")]
pub(crate) struct LeftContainer {
    command: String,
    why: String,
}

impl Container {
    /// The command that runs an execution, in the foreground, with as many processes as it may have.
    pub(crate) fn command(
        &self,
        common: &Common,
        order: &Order,
        slot: SlotFolders<'_>,
        processes_max: u32,
    ) -> Vec<Vec<u8>> {
        let mut words = vec![self.program.as_os_str().as_encoded_bytes().to_vec()];
        let options = match self.engine {
            Engine::Podman | Engine::Docker => self.options(common, order.key, processes_max),
            Engine::Apptainer => self.apptainer_options(common),
        };
        words.extend(options.into_iter().map(String::into_bytes));
        let staged = self.staged.join(order.key.folder());
        let shown = [
            (slot.work, WORK, ""),
            (slot.out, OUTPUTS, ""),
            (slot.tmp, TMP, ""),
            (self.action.as_path(), ACTION, ":ro"),
            (staged.as_path(), INPUTS, ":ro"),
        ];
        for (source, place, mode) in shown {
            // An execution without files has no folder of inputs.
            if place != INPUTS || staged.is_dir() {
                let option = match (self.engine, place) {
                    (Engine::Podman | Engine::Docker, _) => "--volume",
                    (Engine::Apptainer, WORK) => "--home",
                    (Engine::Apptainer, _) => "--bind",
                };
                words.push(option.as_bytes().to_vec());
                words.push([source.as_os_str().as_encoded_bytes(), b":", place.as_bytes(), mode.as_bytes()].concat());
            }
        }
        if self.engine != Engine::Apptainer {
            for (name, value) in variables(common, order) {
                words.push([b"--env=".as_slice(), name, b"=", value].concat());
            }
        }
        words.extend(self.arguments.iter().map(|argument| argument.clone().into_bytes()));
        if !common.command.is_empty() && self.engine != Engine::Apptainer {
            // What is left of an image's entry point would get the command as its arguments.
            words.push(b"--entrypoint=".to_vec());
        }
        words.push(self.image.clone().into_bytes());
        words.extend(common.command.iter().cloned());
        words
    }

    /// What the engine's program itself has in its environment for an execution, beside what this process has.
    pub(crate) fn environment(&self, common: &Common, order: &Order) -> Vec<(Vec<u8>, Vec<u8>)> {
        if self.engine != Engine::Apptainer {
            return Vec::new();
        }
        // Its option for variables splits values at commas; Singularity knows the older name alone, Apptainer both.
        let is_old = self.program.ends_with("singularity");
        let prefix: &[u8] = if is_old { b"SINGULARITYENV_" } else { b"APPTAINERENV_" };
        // Where its home is has an option of its own.
        let variables = variables(common, order).into_iter().filter(|(name, _)| *name != b"HOME");
        variables.map(|(name, value)| ([prefix, name].concat(), value.to_vec())).collect()
    }

    fn options(&self, common: &Common, key: Key, processes_max: u32) -> Vec<String> {
        let mut options = vec![
            // Warnings of the engine would stand in the log of the action.
            "--log-level=error".to_owned(),
            "run".to_owned(),
            format!("--name={}", self.name(key)),
            "--pull=never".to_owned(),
            "--log-driver=none".to_owned(),
            "--security-opt=no-new-privileges".to_owned(),
            // Folders are shown as they are, and not labelled anew where SELinux is at work.
            "--security-opt=label=disable".to_owned(),
            format!("--workdir={WORK}"),
        ];
        if self.removes_itself(common) {
            options.push("--rm".to_owned());
        }
        let (user, group) = (geteuid().as_raw(), getegid().as_raw());
        if self.engine == Engine::Podman {
            options.push("--replace".to_owned());
            // What watches over the container stays in the slot's groups, where it is found if the shim has died.
            options.push("--cgroups=no-conmon".to_owned());
            options.push("--stop-timeout=0".to_owned());
            options.extend(own_limits(Some(processes_max)));
            if self.rootless {
                options.push("--userns=keep-id".to_owned());
            }
        }
        // What it writes is to belong to the agent's user. A daemon of that user's own takes it for root.
        let is_root = self.engine == Engine::Docker && self.rootless;
        if let Some(account) = &common.account {
            options.push(format!("--user={}:{}", account.uid, account.gid));
            options.extend(account.groups.iter().map(|group| format!("--group-add={group}")));
        } else if is_root {
            options.push("--user=0:0".to_owned());
        } else {
            options.push(format!("--user={user}:{group}"));
        }
        if !self.network {
            options.push("--network=none".to_owned());
        }
        if self.limits.pids {
            options.push(format!("--pids-limit={processes_max}"));
        }
        if let Some(bytes) = common.memory_bytes.filter(|_| self.limits.memory) {
            options.push(format!("--memory={bytes}b"));
            options.push(format!("--memory-swap={bytes}b"));
        }
        if let Some(millis) = common.cpu_millis.filter(|_| self.limits.cpu) {
            options.push(format!("--cpus={}.{:03}", millis / 1_000, millis % 1_000));
        }
        options
    }

    fn apptainer_options(&self, common: &Common) -> Vec<String> {
        let what = if common.command.is_empty() { "run" } else { "exec" };
        let mut options: Vec<String> = ["--silent", what, "--containall", "--cleanenv"].map(str::to_owned).to_vec();
        options.extend(["--pwd".to_owned(), WORK.to_owned()]);
        if !self.network {
            options.extend(["--net", "--network", "none"].map(str::to_owned));
        }
        options
    }

    /// Whether nothing is left of one that has ended by itself. One whose memory is limited stays until its engine was
    /// asked whether it ran out of it.
    pub(crate) fn removes_itself(&self, common: &Common) -> bool {
        !(self.limits.memory && common.memory_bytes.is_some())
    }

    fn name(&self, key: Key) -> String {
        format!("{}-{}", self.prefix, key.folder())
    }

    /// How the container of an attempt is removed; nothing where the engine keeps no record of it.
    pub(crate) fn removal(&self, key: Key) -> Option<Removal> {
        let options: &[&str] = match self.engine {
            Engine::Podman => &["rm", "--force", "--ignore", "--volumes"],
            Engine::Docker => &["rm", "--force", "--volumes"],
            Engine::Apptainer => return None,
        };
        let arguments = options.iter().map(|option| (*option).to_owned()).chain([self.name(key)]).collect();
        Some(Removal { program: self.program.clone(), arguments })
    }

    /// Whether the engine says that something in the container was ended for its memory.
    pub(crate) fn ran_out_of_memory(&self, key: Key) -> bool {
        let mut asking = Command::new(&self.program);
        asking.args(["container", "inspect", "--format", "{{.State.OOMKilled}}"]).arg(self.name(key));
        ask(&mut asking, PATIENCE).is_ok_and(|said| said.stdout.trim() == "true")
    }

    /// What the engine said last if it could not start the container: its own words, and not those of what runs there.
    pub(crate) fn refusal(&self, code: i32, stderr: &str) -> Option<String> {
        let (codes, begins): (&[i32], &str) = match self.engine {
            Engine::Podman => (&[125, 126, 127], "Error: "),
            Engine::Docker => (&[125, 126, 127], "docker: "),
            Engine::Apptainer => (&[255], "FATAL: "),
        };
        let said = stderr.lines().rev().find_map(|line| line.strip_prefix(begins)).map(str::trim);
        said.filter(|_| codes.contains(&code)).map(|said| format!("the container cannot be started: {said}"))
    }
}

impl Removal {
    fn carry_out(&self) -> Result<(), LeftContainer> {
        let why = match ask(Command::new(&self.program).args(&self.arguments), PATIENCE) {
            Ok(said) if said.status.success() => return Ok(()),
            // It has gone by itself meanwhile.
            Ok(said) if said.stderr.to_lowercase().contains("no such container") => return Ok(()),
            Ok(said) => said.stderr.trim().to_owned(),
            // With the engine its containers have gone.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => error.to_string(),
        };
        Err(LeftContainer { command: format!("{} {}", self.program.display(), self.arguments.join(" ")), why })
    }
}

/// Notes in a slot how what is going to be there is removed.
pub(crate) fn note(slot: &Path, removal: &Removal) -> io::Result<()> {
    fs::write(slot.join(NOTE), serde_json::to_vec(removal)?)
}

/// Nothing is left of what was noted in a slot.
pub(crate) fn forget(slot: &Path) {
    // One that stays is removed once more, for nothing.
    let _ = fs::remove_file(slot.join(NOTE));
}

/// Has the engine end and remove what runs in a slot, while what belongs to it is still there: of a container that is killed
/// behind its back it leaves control groups and more. One that is only just being made may escape: the note stays.
pub(crate) fn end_noted(slot: &Path) -> Result<(), LeftContainer> {
    // One that was not written whole was for nothing: what it speaks of is started afterwards.
    let noted = fs::read(slot.join(NOTE)).ok().and_then(|note| serde_json::from_slice::<Removal>(&note).ok());
    noted.map_or(Ok(()), |removal| removal.carry_out())
}

/// Removes what may be left in a slot, once nothing runs there any more that could make another.
pub(crate) fn remove_noted(slot: &Path) -> Result<(), LeftContainer> {
    end_noted(slot)?;
    forget(slot);
    Ok(())
}

/// The variables of an execution in its container. Those of the image and of the engine come before them.
fn variables<'a>(common: &'a Common, order: &'a Order) -> Vec<(&'a [u8], &'a [u8])> {
    let of_slot = [("ATOLL_OUTPUTS", OUTPUTS), ("TMPDIR", TMP), ("HOME", WORK)];
    let of_slot = of_slot.map(|(name, value)| (name.as_bytes(), value.as_bytes()));
    let given = common.environment.iter().chain(&order.environment);
    let given = given.map(|(name, value)| (name.as_slice(), value.as_slice()));
    let mut variables: Vec<(&[u8], &[u8])> = Vec::new();
    for (name, value) in of_slot.into_iter().chain(given) {
        variables.retain(|(known, _)| *known != name);
        variables.push((name, value));
    }
    variables
}

/// The limits of this process, as those of a container that may have so many processes: an engine's own may be more than this
/// user may have.
pub(crate) fn own_limits(processes_max: Option<u32>) -> Vec<String> {
    let shown = |limit: Option<u64>| limit.map_or_else(|| "-1".to_owned(), |limit| limit.to_string());
    let files = getrlimit(Resource::Nofile);
    // They are counted over all that the user runs: what one container may have is limited otherwise.
    let most = u64::from(processes_max.unwrap_or_default().max(PIDS_MAX));
    let processes = getrlimit(Resource::Nproc).maximum.map_or(most, |maximum| maximum.min(most));
    vec![
        format!("--ulimit=nofile={}:{}", shown(files.current), shown(files.maximum)),
        format!("--ulimit=nproc={processes}:{processes}"),
    ]
}

#[cfg(test)]
mod tests;
