//! The workspace: its files, and what each crate depends on.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// The folder of the workspace.
///
/// # Panics
/// When this crate does not stand two folders below it.
pub fn root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.ancestors().nth(2).expect("this crate stands in tests/tidy").to_owned()
}

/// All files of the workspace that a person wrote, relative to its root, whose names end with one of `endings`.
///
/// # Errors
/// When a folder can't be read.
pub fn files(endings: &[&str]) -> Result<Vec<PathBuf>> {
    let root = root();
    let mut found = Vec::new();
    collect(&root, &root, endings, &mut found)?;
    found.sort();
    Ok(found)
}

fn collect(root: &Path, folder: &Path, endings: &[&str], found: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(folder).with_context(|| folder.display().to_string())? {
        let entry = entry?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if entry.file_type()?.is_dir() {
            let of_tools =
                (name.starts_with('.') && name != ".ci") || matches!(&*name, "target" | "atoll-dev" | "atoll-results");
            if !of_tools {
                collect(root, &entry.path(), endings, found)?;
            }
        } else if endings.iter().any(|ending| name.ends_with(ending)) {
            found.push(entry.path().strip_prefix(root)?.to_owned());
        }
    }
    Ok(())
}

/// # Errors
/// When the file can't be read.
pub fn read(file: &Path) -> Result<String> {
    fs::read_to_string(root().join(file)).with_context(|| file.display().to_string())
}

/// What each crate of the workspace depends on when it is built, not when it is tested.
///
/// # Errors
/// When a manifest can't be read.
pub fn dependencies() -> Result<BTreeMap<String, BTreeSet<String>>> {
    let mut crates = BTreeMap::new();
    for file in files(&["Cargo.toml"])? {
        let manifest: toml::Table = read(&file)?.parse()?;
        let Some(name) = manifest.get("package").and_then(|package| package.get("name")?.as_str()) else { continue };
        let mut needed = BTreeSet::new();
        needed.extend(keys(manifest.get("dependencies")));
        for target in manifest.get("target").and_then(|targets| targets.as_table()).into_iter().flatten() {
            needed.extend(keys(target.1.get("dependencies")));
        }
        crates.insert(name.to_owned(), needed);
    }
    Ok(crates)
}

fn keys(table: Option<&toml::Value>) -> Vec<String> {
    table.and_then(toml::Value::as_table).into_iter().flatten().map(|(key, _)| key.clone()).collect()
}
