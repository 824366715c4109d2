//! The lists of edits, and how a copy is made with them.
//!
//! An edit names a file, and after `|` a text in it behind which to look; `-` lines are what stands there, to be found
//! exactly once, `+` lines are what comes in its place. A fault keeps both, and asks its switch.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

const FAULTS: &str = include_str!("../../faults.txt");
const PROBES: &str = include_str!("../../probes.txt");

/// A fault of the list.
#[derive(Debug, Clone, Default)]
pub struct Fault {
    pub name: &'static str,
    /// What a programmer could have done wrong.
    pub mistake: String,
    edits: Vec<Edit>,
}

#[derive(Debug, Clone, Default)]
struct Edit {
    file: &'static str,
    behind: &'static str,
    right: String,
    wrong: String,
}

impl Fault {
    /// The files that it is in.
    pub fn places(&self) -> impl Iterator<Item = &'static str> {
        self.edits.iter().map(|edit| edit.file)
    }
}

pub fn faults() -> Vec<Fault> {
    read(FAULTS)
}

fn read(list: &'static str) -> Vec<Fault> {
    let mut faults: Vec<Fault> = Vec::new();
    for line in list.lines().filter(|line| !line.starts_with('#') && !line.is_empty()) {
        if let Some(name) = line.strip_prefix("== ") {
            faults.push(Fault { name, ..Fault::default() });
            continue;
        }
        let fault = faults.last_mut().expect("a list begins with a name");
        if let Some(place) = line.strip_prefix("@ ") {
            let (file, behind) = place.split_once(" | ").unwrap_or((place, ""));
            fault.edits.push(Edit { file, behind, ..Edit::default() });
        } else if let Some(edit) = fault.edits.last_mut() {
            let (text, line) = match line.split_at(1) {
                ("-", line) => (&mut edit.right, line),
                ("+", line) => (&mut edit.wrong, line),
                _ => panic!("{}: {line:?} is neither what stands there nor what comes in its place", fault.name),
            };
            text.push_str(if text.is_empty() { line.trim_start() } else { line });
            text.push('\n');
        } else {
            fault.mistake.push_str(if fault.mistake.is_empty() { "" } else { " " });
            fault.mistake.push_str(line);
        }
    }
    faults
}

/// Copies a folder of sources to `OUT_DIR/src`, with the edits that are for its files; those that find nothing to change
/// are named in `OUT_DIR/unplanted.txt`. For build scripts of crates that stand four folders below the workspace's.
///
/// # Panics
/// When a file can't be read or written.
pub fn plant(folder: &str) {
    let variable = |name| PathBuf::from(std::env::var_os(name).unwrap_or_else(|| panic!("cargo sets {name}")));
    let (here, out) = (variable("CARGO_MANIFEST_DIR"), variable("OUT_DIR"));
    let root = here.ancestors().nth(4).expect("the crate stands four folders below the workspace's");
    println!("cargo::rerun-if-changed={}", root.join(folder).display());
    let mut sources = BTreeMap::new();
    collect(&root.join(folder), folder, &mut sources);
    let mut unplanted = String::new();
    for (list, switched) in [(PROBES, false), (FAULTS, true)] {
        for fault in read(list) {
            for edit in fault.edits.iter().filter(|edit| edit.file.starts_with(folder)) {
                let source = sources.get_mut(edit.file);
                if source.is_none_or(|source| !edit.apply(source, switched.then_some(fault.name))) {
                    unplanted += &format!("{} in {}\n", fault.name, edit.file);
                }
            }
        }
    }
    // What was removed since does no harm: no module names it.
    for (file, text) in sources {
        let target = out.join("src").join(file.strip_prefix(folder).unwrap_or(&file).trim_start_matches('/'));
        fs::create_dir_all(target.parent().expect("it is in a folder")).expect("OUT_DIR can be written to");
        // The documentation of a crate cannot stand in a part of one.
        let text: String = text.lines().filter(|line| !line.starts_with("//!")).flat_map(|line| [line, "\n"]).collect();
        fs::write(target, text).expect("OUT_DIR can be written to");
    }
    fs::write(out.join("unplanted.txt"), unplanted).expect("OUT_DIR can be written to");
}

fn collect(folder: &Path, name: &str, sources: &mut BTreeMap<String, String>) {
    for entry in fs::read_dir(folder).expect("the sources can be read") {
        let path = entry.expect("the sources can be read").path();
        let file = path.file_name().and_then(|file| file.to_str()).expect("files have plain names");
        let name = format!("{name}/{file}");
        if path.is_dir() {
            collect(&path, &name, sources);
        } else if file.ends_with(".rs") {
            sources.insert(name, fs::read_to_string(&path).expect("the sources can be read"));
        }
    }
}

impl Edit {
    /// Makes the edit; whether what is to be changed was there exactly once.
    fn apply(&self, source: &mut String, switch: Option<&str>) -> bool {
        let (right, wrong) = (self.right.trim_end(), self.wrong.trim_end());
        let Some(begin) = source.find(self.behind) else { return false };
        let rest = &source[begin..];
        let Some(at) = rest.find(right) else { return false };
        if self.behind.is_empty() && rest.matches(right).count() > 1 {
            return false;
        }
        let is_statement = right.ends_with([';', '}']);
        let text = match switch {
            None => wrong.to_owned(),
            Some(name) if is_statement => {
                format!("if planted::is_on({name:?}) {{ {wrong} }} else {{ {right} }}")
            }
            Some(name) => format!("(if planted::is_on({name:?}) {{ {wrong} }} else {{ {right} }})"),
        };
        source.replace_range(begin + at..begin + at + right.len(), &text);
        true
    }
}
