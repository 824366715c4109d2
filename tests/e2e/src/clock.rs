//! A clock that is off, for one process.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

/// Compiles what shows a process another clock, by `LD_PRELOAD` and `CLOCK_AHEAD_SECONDS`.
///
/// # Errors
/// When there is no C compiler.
pub fn clock_shifter(into: &Path) -> Result<PathBuf> {
    let library = into.join("shifter.so");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("clock/shifter.c");
    let mut compiler = Command::new("cc");
    compiler.args(["-O2", "-shared", "-fPIC", "-o"]).arg(&library).arg(source).arg("-ldl");
    ensure!(compiler.status().context("no C compiler `cc`")?.success(), "the shifter does not compile");
    Ok(library)
}
