//! The folder of an action to begin with.

use std::fs::{OpenOptions, create_dir_all};
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use anyhow::Context as _;
use atoll_model::action::MANIFEST_NAME;
use atoll_model::session::{CONTAINER_RUNTIME, PYTHON_RUNTIME, WASM_RUNTIME};

use crate::failure::Failure;
use crate::output::outln;

const MANIFEST: &str = r#"# `atoll action check` says what is wrong with it, `atoll action schema` what it may say.
name: NAME
version: "0.1"
kind: processor
runtime: RUNTIME
description: Counts the lines of a text.
PROGRAM
inputs:
  text: { type: file, description: What is counted. }
outputs:
  lines: { type: integer }
resources: { cpu: 1, memory: 256MiB, time: 5m }
"#;

const SCRIPT: &str = r#"# Each input is a variable of its name: a value, or the path of a file or a directory.
# Each output is what stands at $ATOLL_OUTPUTS/<its name> at the end. This folder is $ATOLL_ACTION.
set -eu
wc -l < "$text" > "$ATOLL_OUTPUTS/lines"
"#;

const CONTAINER: &str = r#"# An image of a registry with its digest, or an archive of one in this folder: `podman save --output image.tar IMAGE`.
image: ./image.tar
# Without a command the image's own is run.
command: [sh, main.sh]"#;

const COMPONENT: &str = r#"# A component of WASI in this folder, and its arguments: `rustc --target wasm32-wasip2 -O main.rs` makes this one.
command: [main.wasm]"#;

const COMPONENT_SOURCE: &str = r#"//! Each input is a variable of its name: a value, or the path of a file or a directory.
//! Each output is what stands at $ATOLL_OUTPUTS/<its name> at the end. This folder is $ATOLL_ACTION.

use std::env::var;
use std::fs;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let text = fs::read_to_string(var("text")?)?;
    fs::write(var("ATOLL_OUTPUTS")? + "/lines", text.lines().count().to_string())?;
    Ok(())
}
"#;

const MODULE: &str = r#"# What stands here is run once; then this process calls `handle` for one execution after the other.


def handle(text):
    """Gets each input by its name, files and directories as paths. Returns the outputs, files and directories as paths."""
    with open(text) as lines:
        return {"lines": sum(1 for _ in lines)}
"#;

/// What the action is to be run as.
#[derive(Debug, Clone, Copy, Default, clap::ValueEnum)]
pub(crate) enum Template {
    /// A process of its own for each execution.
    #[default]
    Command,
    /// A function, in a process that serves many executions.
    Python,
    /// A container of its own for each execution.
    Container,
    /// A component of WebAssembly, which sees nothing but its own folders.
    Wasm,
}

impl Template {
    const fn runtime(self) -> &'static str {
        match self {
            Self::Command => "command",
            Self::Python => PYTHON_RUNTIME,
            Self::Container => CONTAINER_RUNTIME,
            Self::Wasm => WASM_RUNTIME,
        }
    }

    /// What the manifest says of the program, the program's file, and what stands in it.
    const fn program(self) -> (&'static str, &'static str, &'static str) {
        match self {
            Self::Command => ("command: [sh, main.sh]", "main.sh", SCRIPT),
            Self::Python => ("handler: main.py:handle", "main.py", MODULE),
            Self::Container => (CONTAINER, "main.sh", SCRIPT),
            Self::Wasm => (COMPONENT, "main.rs", COMPONENT_SOURCE),
        }
    }
}

/// Makes `action.yaml` and its program.
///
/// # Errors
/// When there is an action already, or the folder's name is no name for one.
pub(super) fn init(folder: &Path, name: Option<&str>, template: Template) -> anyhow::Result<()> {
    let name = match name {
        Some(name) => name.to_owned(),
        None => {
            let path = std::path::absolute(folder).with_context(|| format!("cannot find {}", folder.display()))?;
            path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
        }
    };
    let (said, program, content) = template.program();
    let manifest = MANIFEST.replace("PROGRAM", said).replace("RUNTIME", template.runtime()).replace("NAME", &name);
    if atoll_model::action::parse(MANIFEST_NAME, &manifest).is_err() {
        let help = "give one with --name: a to z, A to Z, 0 to 9, `_` and `-`, beginning with a letter";
        return Err(Failure::Usage(format!("{name:?} cannot be the name of an action ({help})")).into());
    }
    create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    // The manifest first: where there is one, nothing else is touched.
    for (file, content) in [(MANIFEST_NAME, manifest.as_str()), (program, content)] {
        let path = folder.join(file);
        let made = OpenOptions::new().write(true).create_new(true).mode(0o644).open(&path);
        let mut made = made.map_err(|error| {
            if error.kind() == std::io::ErrorKind::AlreadyExists {
                Failure::Usage(format!("{} is there already", path.display()))
            } else {
                Failure::Failed(format!("cannot make {}: {error}", path.display()))
            }
        })?;
        made.write_all(content.as_bytes()).with_context(|| format!("cannot write {}", path.display()))?;
    }
    outln!("{} is the action {name}", folder.display());
    outln!("  atoll action check {}", folder.display());
    Ok(())
}
