//! The folder of an action on this machine, as whoever pushes it reads it.

mod ryax;

use std::fs::File;
use std::io::Read as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Component, Path};

use atoll_model::action::{Container, Image, MANIFEST_NAME, MANIFEST_NAMES, Manifest, Python, Runtime, parse};
use atoll_model::diagnostic::{Diagnostic, Place};

use crate::store::error::IngestError;
use crate::stream::{Packed, pack_bundle};

/// An action that is right as it stands, with what would be sent.
#[derive(Debug)]
pub struct PackedAction {
    pub manifest: Manifest,
    /// The text that the manifest was read from.
    pub text: String,
    pub bundle: Packed,
}

/// Why a folder is no action that could be pushed.
#[derive(Debug, thiserror::Error)]
pub enum ActionFolderError {
    #[error("the action is not valid")]
    Invalid(Vec<Diagnostic>),
    #[error("the folder cannot be packed")]
    Unpackable(#[source] IngestError),
}

/// Reads, checks and hashes the folder of an action, which people know as `shown`. Blocks.
///
/// # Errors
/// When there is no manifest, it is wrong, or the folder holds what cannot be sent.
pub fn pack_action(folder: &Path, shown: &Path) -> Result<PackedAction, ActionFolderError> {
    let (manifest, text) = read_action(folder, shown).map_err(ActionFolderError::Invalid)?;
    let bundle = pack_bundle(folder).map_err(ActionFolderError::Unpackable)?;
    Ok(PackedAction { manifest, text, bundle })
}

/// Reads and checks the folder of an action: what its manifest says, and its text. Blocks.
///
/// # Errors
/// When there is no manifest, or something is wrong with it or with what it speaks of.
pub fn read_action(folder: &Path, shown: &Path) -> Result<(Manifest, String), Vec<Diagnostic>> {
    let name = MANIFEST_NAMES.into_iter().find(|name| folder.join(name).exists()).unwrap_or(MANIFEST_NAME);
    let file = shown.join(name).display().to_string();
    let text = std::fs::read_to_string(folder.join(name)).map_err(|error| {
        let is_missing = error.kind() == std::io::ErrorKind::NotFound;
        let help = is_missing.then(|| format!("`atoll action init {}` makes one", shown.display()));
        let place = Place { line: 1, column: 1, start: 0, end: 0 };
        vec![Diagnostic { file: file.clone(), place, message: format!("it cannot be read: {error}"), help }]
    })?;
    let manifest = parse(&file, &text)?;
    let faults: Vec<Diagnostic> = match &manifest.runtime {
        Runtime::Command => program_fault(&file, folder, &manifest).into_iter().collect(),
        Runtime::Python(python) => match &python.ryax {
            Some(ryax) => ryax::faults(&file, folder, python, ryax),
            None => python_fault(&file, folder, python).into_iter().collect(),
        },
        Runtime::Container(container) => container_fault(&file, folder, container).into_iter().collect(),
        Runtime::Wasm => component_fault(&file, folder, &manifest).into_iter().collect(),
    };
    if faults.is_empty() { Ok((manifest, text)) } else { Err(faults) }
}

/// What is wrong with the handler, as far as that can be told without running anything.
fn python_fault(file: &str, folder: &Path, python: &Python) -> Option<Diagnostic> {
    let fault = |place: Place, message: String, help: &str| {
        Some(Diagnostic { file: file.to_owned(), place, message, help: Some(help.to_owned()) })
    };
    let module = match std::fs::read_to_string(folder.join(&python.file)) {
        Ok(module) => module,
        Err(error) => {
            let message = format!("there is no `{}` in the folder of the action: {error}", python.file);
            return fault(python.place, message, "add it");
        }
    };
    let mut words = module.split(|letter: char| letter != '_' && !letter.is_alphanumeric());
    if !words.any(|word| word == python.function) {
        let message = format!("there is no `{}` in `{}`", python.function, python.file);
        return fault(python.place, message, &format!("define it: `def {}(inputs):`", python.function));
    }
    let requirements = python.requirements.as_ref()?;
    if folder.join(&requirements.file).is_file() {
        return None;
    }
    let message = format!("there is no file `{}` in the folder of the action", requirements.file);
    fault(requirements.place, message, "add it")
}

/// What is wrong with the image, as far as that can be told without a registry.
fn container_fault(file: &str, folder: &Path, container: &Container) -> Option<Diagnostic> {
    let Image::Archive(archive) = &container.image else { return None };
    if folder.join(archive).is_file() {
        return None;
    }
    let message = format!("there is no file `{archive}` in the folder of the action");
    let help = Some(format!("make it: `podman save --output {archive} IMAGE`, or with docker"));
    Some(Diagnostic { file: file.to_owned(), place: container.place, message, help })
}

/// What is wrong with the component, as far as its first bytes tell.
fn component_fault(file: &str, folder: &Path, manifest: &Manifest) -> Option<Diagnostic> {
    let component = manifest.command.first()?;
    let fault = |message: String, help: &str| {
        let help = Some(help.to_owned());
        Some(Diagnostic { file: file.to_owned(), place: manifest.command_place, message, help })
    };
    let path = Path::new(component);
    if path.components().any(|part| !matches!(part, Component::Normal(_) | Component::CurDir)) {
        return fault(format!("`{component}` is outside of the folder of the action"), "move it into the folder");
    }
    let mut head = Vec::new();
    let read = File::open(folder.join(path)).and_then(|opened| opened.take(8).read_to_end(&mut head));
    if let Err(error) = read {
        let help = "add it: `cargo build --release --target wasm32-wasip2` makes one";
        return fault(format!("there is no `{component}` in the folder of the action: {error}"), help);
    }
    match head.as_slice() {
        b"\0asm\x0d\0\x01\0" => None,
        b"\0asm\x01\0\0\0" => fault(
            format!("`{component}` is a core module, and no component"),
            "build it for `wasm32-wasip2`, or make a component of it with `wasm-tools component new`",
        ),
        _ => {
            fault(format!("`{component}` is no component of WebAssembly"), "name the component: `command: [main.wasm]`")
        }
    }
}

/// What is wrong with the program, as far as that can be told here: one that is not in the folder is looked up at a site.
fn program_fault(file: &str, folder: &Path, manifest: &Manifest) -> Option<Diagnostic> {
    let program = manifest.command.first().map(Path::new)?;
    if program.is_absolute() {
        return None;
    }
    let fault = |message: String, help: &str| {
        let help = Some(help.to_owned());
        Some(Diagnostic { file: file.to_owned(), place: manifest.command_place, message, help })
    };
    let shown = program.display();
    if program.components().any(|part| part == Component::ParentDir) {
        return fault(format!("`{shown}` is outside of the folder of the action"), "move it into the folder");
    }
    match std::fs::metadata(folder.join(program)) {
        Ok(found) if found.is_file() && found.permissions().mode() & 0o111 == 0 => {
            fault(format!("`{shown}` may not be run"), "`chmod +x` it, or name what runs it: `command: [sh, main.sh]`")
        }
        Ok(found) if found.is_file() => None,
        // Without a slash it is a program of the site, whatever else there is.
        Ok(_) | Err(_) if program.components().count() == 1 && !manifest.command[0].contains('/') => None,
        Ok(_) => fault(format!("`{shown}` is no file"), "name the program of the action"),
        Err(error) => fault(format!("there is no `{shown}` in the folder of the action: {error}"), "add it"),
    }
}
