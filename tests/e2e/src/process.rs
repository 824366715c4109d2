//! The binary, and calls of it.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

/// The `atoll` binary that was built beside this test.
///
/// # Panics
/// When it has not been built.
pub fn binary() -> PathBuf {
    let test = std::env::current_exe().expect("a test has a path");
    let profile = test.parent().and_then(Path::parent).expect("a test lies in target/PROFILE/deps");
    let binary = profile.join("atoll");
    assert!(
        binary.exists(),
        "{} is missing: build it first, in the profile of the tests (cargo build --bin atoll)",
        binary.display()
    );
    binary
}

/// A call of the binary with none of the caller's settings.
pub fn atoll(arguments: &[&str]) -> Command {
    let mut command = Command::new(binary());
    command.args(arguments).stdin(Stdio::null());
    for name in ["ATOLL_URL", "ATOLL_TOKEN", "ATOLL_SUPERVISED", "NO_COLOR"] {
        command.env_remove(name);
    }
    command
}

/// What a call printed, and how it ended.
#[derive(Debug)]
pub struct Output {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Output {
    /// Runs a command to its end.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn of(command: &mut Command) -> Result<Self> {
        let output = command.output().with_context(|| format!("cannot run {command:?}"))?;
        Ok(Self {
            code: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        })
    }

    /// The JSON document on standard output of a call that succeeded.
    ///
    /// # Errors
    /// When the call failed, or printed something else.
    pub fn json(&self) -> Result<Value> {
        ensure!(self.code == 0, "exit code {}: {}{}", self.code, self.stdout, self.stderr);
        self.document()
    }

    /// The JSON document on standard output, however the call ended.
    ///
    /// # Errors
    /// When something else was printed.
    pub fn document(&self) -> Result<Value> {
        serde_json::from_str(&self.stdout)
            .with_context(|| format!("no JSON on standard output: {:?} {}", self.stdout, self.stderr))
    }
}
