//! What the agent would start containers with, and whether one starts.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use super::report::{Check, first_line};
use crate::config::{Config, EngineChoice};
use crate::executor::local::ContainerEngine;
use crate::programs::ask;
use crate::shim::container::{Engine, own_limits};

const NAME: &str = "containers";
const PATIENCE: Duration = Duration::from_secs(25);
/// What the machine's own programs need, where it has it.
const OF_SYSTEM: [&str; 5] = ["usr", "bin", "sbin", "lib", "lib64"];

/// Nothing where no engine is there: that was said. Blocks.
pub(super) fn look(config: &Config) -> Option<Check> {
    if config.container.engine == Some(EngineChoice::None) {
        return Some(Check::skipped(NAME, "no containers run here: engine = \"none\" in the configuration"));
    }
    if config.jobs_max().is_some() {
        return Some(Check::skipped(NAME, "no containers run here: executions are jobs of a cluster"));
    }
    match ContainerEngine::find(&config.container, &config.data_dir, &config.slots_dir()) {
        Ok(None) => None,
        Ok(Some(engine)) => Some(judge(&engine, &try_one(&engine))),
        Err(error) => {
            let said = format!("{:#}", anyhow::Error::new(error));
            let advice =
                "have it answer for the agent's user, or name another under [container]: `engine` and `program`";
            Some(Check::warning(NAME, format!("no containers run here: {said}"), advice))
        }
    }
}

fn judge(engine: &ContainerEngine, tried: &Result<Option<Duration>, String>) -> Check {
    let program = engine.program().display();
    match tried {
        Ok(Some(took)) => Check::ok(NAME, format!("{program} starts them: one took {} ms", took.as_millis()))
            .with("start_ms", u64::try_from(took.as_millis()).unwrap_or(u64::MAX)),
        Ok(None) => Check::ok(NAME, format!("{program} would start them")),
        Err(said) => {
            let advice = "what it says is about its runtime, its storage or the limits of this user: see that \
                          `podman run` starts something, or name another engine under [container]";
            Check::problem(NAME, format!("{program} cannot start one: {said}"), advice)
        }
    }
}

/// How long it takes to start a container that holds nothing but this machine's own programs. Others than podman want an
/// image for it.
fn try_one(engine: &ContainerEngine) -> Result<Option<Duration>, String> {
    if engine.kind() != Engine::Podman {
        return Ok(None);
    }
    let root = std::env::temp_dir().join(format!("atoll-doctor-{}", uuid::Uuid::now_v7().simple()));
    let tried = start_in(engine.program(), &root);
    if let Err(error) = fs::remove_dir_all(&root) {
        tracing::warn!(folder = %root.display(), %error, "a folder cannot be removed");
    }
    tried.map(Some)
}

fn start_in(program: &Path, root: &Path) -> Result<Duration, String> {
    let shown = root_of_system(root).map_err(|error| format!("{}: {error}", root.display()))?;
    let mut command = Command::new(program);
    command.args(["--log-level=error", "run", "--rm", "--network=none", "--log-driver=none", "--cgroups=no-conmon"]);
    command.args(own_limits(None)).arg("--rootfs");
    shown.iter().for_each(|folder| {
        command.arg(format!("--volume={0}:{0}:ro", folder.display()));
    });
    command.arg(root).arg("/usr/bin/true");
    let began = Instant::now();
    let said = ask(&mut command, PATIENCE).map_err(|error| error.to_string())?;
    if said.status.success() { Ok(began.elapsed()) } else { Err(first_line(&said.stderr)) }
}

/// Makes the root of a file system with this machine's programs; which folders are to be shown in it.
fn root_of_system(root: &Path) -> io::Result<Vec<PathBuf>> {
    fs::create_dir(root)?;
    let mut shown = Vec::new();
    for name in OF_SYSTEM {
        let (own, place) = (Path::new("/").join(name), root.join(name));
        match fs::read_link(&own) {
            Ok(target) => std::os::unix::fs::symlink(target, place)?,
            Err(_) if own.is_dir() => {
                fs::create_dir(place)?;
                shown.push(own);
            }
            Err(_) => {}
        }
    }
    Ok(shown)
}
