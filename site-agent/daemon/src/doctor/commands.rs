//! Programs of the machine that are asked something: none of them is waited for longer than its time.

use std::ffi::OsString;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tokio::io::AsyncReadExt as _;
use tokio::process::{Child, Command};

use super::report::first_line;

/// What a program may say; what is beyond is not read.
const OUTPUT_BYTES_MAX: u64 = 1 << 20;

/// The programs that a search path leads to.
#[derive(Debug, Clone)]
pub(super) struct Commands {
    path: OsString,
    patience: Duration,
}

/// What came of a question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Answer {
    /// There is no such program.
    Missing,
    /// It did not end in its time.
    Late(Duration),
    Failed(String),
    Said(String),
}

impl Answer {
    /// What it said, if it succeeded.
    pub(super) fn text(&self) -> Option<&str> {
        match self {
            Self::Said(text) => Some(text),
            Self::Missing | Self::Late(_) | Self::Failed(_) => None,
        }
    }

    /// Why there is no answer.
    pub(super) fn complaint(&self) -> Option<String> {
        match self {
            Self::Said(_) => None,
            Self::Missing => Some("there is no such program".to_owned()),
            Self::Late(patience) => Some(format!("it did not answer within {} s", patience.as_secs_f64())),
            Self::Failed(message) => Some(message.clone()),
        }
    }
}

impl Commands {
    pub(super) fn new(path: OsString, patience: Duration) -> Self {
        Self { path, patience }
    }

    /// The same, with a folder that is looked into before all others.
    pub(super) fn first_in(&self, folder: &Path) -> Self {
        let folders = [folder.to_owned()].into_iter().chain(std::env::split_paths(&self.path));
        // A folder whose name cannot be part of a search path is none that anything is found in.
        let path = std::env::join_paths(folders).unwrap_or_else(|_| self.path.clone());
        Self { path, ..self.clone() }
    }

    pub(super) fn find(&self, program: &str) -> Option<PathBuf> {
        let is_program = |path: &PathBuf| {
            path.metadata().is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
        };
        std::env::split_paths(&self.path).map(|folder| folder.join(program)).find(is_program)
    }

    pub(super) fn has(&self, program: &str) -> bool {
        self.find(program).is_some()
    }

    /// Runs a program without input. What is left of it when its time is over is killed, with all that it started.
    pub(super) async fn ask(&self, program: &str, arguments: &[&str]) -> Answer {
        match self.find(program) {
            Some(path) => self.run(&path, arguments).await,
            None => Answer::Missing,
        }
    }

    /// The same for a program that stands at a path.
    pub(super) async fn run(&self, program: &Path, arguments: &[&str]) -> Answer {
        let mut command = Command::new(program);
        command.args(arguments).env("LC_ALL", "C").env("PATH", &self.path).process_group(0).kill_on_drop(true);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = match command.spawn() {
            Ok(child) => child,
            Err(error) => return Answer::Failed(format!("it cannot be started: {error}")),
        };
        let group = child.id().and_then(|id| i32::try_from(id).ok());
        let answer = tokio::time::timeout(self.patience, heard(&mut child)).await;
        if answer.is_err()
            && let Some(group) = group
        {
            // It may have ended just now.
            let _ = killpg(Pid::from_raw(group), Signal::SIGKILL);
            let _ = child.wait().await;
        }
        answer.unwrap_or(Answer::Late(self.patience))
    }
}

async fn heard(child: &mut Child) -> Answer {
    let (mut said, mut complained) = (Vec::new(), Vec::new());
    let (Some(stdout), Some(stderr)) = (child.stdout.take(), child.stderr.take()) else {
        return Answer::Failed("it cannot be heard".to_owned());
    };
    let (mut stdout, mut stderr) = (stdout.take(OUTPUT_BYTES_MAX), stderr.take(OUTPUT_BYTES_MAX));
    let read = tokio::try_join!(stdout.read_to_end(&mut said), stderr.read_to_end(&mut complained));
    if let Err(error) = read {
        return Answer::Failed(format!("it cannot be heard: {error}"));
    }
    // What it still has to say is not waited for.
    drop((stdout, stderr));
    let said = String::from_utf8_lossy(&said).into_owned();
    match child.wait().await {
        Ok(status) if status.success() => Answer::Said(said),
        Ok(status) => {
            let complained = first_line(&String::from_utf8_lossy(&complained));
            let message = if complained.is_empty() { first_line(&said) } else { complained };
            Answer::Failed(if message.is_empty() { status.to_string() } else { message })
        }
        Err(error) => Answer::Failed(error.to_string()),
    }
}

#[cfg(test)]
pub(super) mod tests {
    #![expect(clippy::unwrap_used, reason = "a test that fails here has failed")]

    use std::time::Instant;

    use super::*;

    /// A folder of programs that are scripts.
    pub(in super::super) fn scripts(scripts: &[(&str, &str)]) -> (tempfile::TempDir, Commands) {
        let folder = tempfile::tempdir().unwrap();
        for (name, script) in scripts {
            // Another process writes it: a file that this one has open for writing may not be run by what it starts meanwhile.
            let mut shell = std::process::Command::new("/bin/sh");
            shell.args(["-c", "printf '#!/bin/sh\\n%s\\n' \"$1\" > \"$0\" && chmod 755 \"$0\""]);
            assert!(shell.arg(folder.path().join(name)).arg(script).status().unwrap().success());
        }
        let path = folder.path().as_os_str().to_owned();
        (folder, Commands::new(path, Duration::from_secs(20)))
    }

    #[tokio::test]
    async fn a_program_answers_fails_or_is_not_there() {
        let (_folder, commands) =
            scripts(&[("says", "echo yes"), ("fails", "echo ' no ' >&2; exit 3"), ("mute", "exit 4")]);
        assert_eq!(commands.ask("says", &[]).await, Answer::Said("yes\n".to_owned()));
        assert_eq!(commands.ask("fails", &[]).await, Answer::Failed("no".to_owned()));
        assert_eq!(commands.ask("mute", &[]).await, Answer::Failed("exit status: 4".to_owned()));
        assert_eq!(commands.ask("no-such-program", &[]).await, Answer::Missing);
    }

    #[tokio::test]
    async fn a_program_that_hangs_is_killed_with_all_that_it_started() {
        let (folder, commands) = scripts(&[("hangs", "/bin/sleep 600 & echo $! > \"$0.child\"; wait")]);
        let commands = Commands { patience: Duration::from_millis(500), ..commands };
        let began = Instant::now();
        assert_eq!(commands.ask("hangs", &[]).await, Answer::Late(Duration::from_millis(500)));
        assert!(began.elapsed() < Duration::from_secs(20));
        let child = std::fs::read_to_string(folder.path().join("hangs.child")).unwrap();
        let is_alive = || {
            let stat = std::fs::read_to_string(format!("/proc/{}/stat", child.trim()));
            stat.is_ok_and(|stat| !stat.contains(") Z"))
        };
        while is_alive() {
            assert!(began.elapsed() < Duration::from_secs(60), "it lives on");
            tokio::task::yield_now().await;
        }
    }
}
