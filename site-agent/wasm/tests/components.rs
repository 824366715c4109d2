//! Components as the agent has them run: what they are given, what they are kept from, and how they end.
#![expect(clippy::unwrap_used, reason = "a test that fails here has failed")]

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Output};

use tempfile::TempDir;
use wasi_preview1_component_adapter_provider::{
    WASI_SNAPSHOT_PREVIEW1_ADAPTER_NAME, WASI_SNAPSHOT_PREVIEW1_COMMAND_ADAPTER,
};
use wit_component::ComponentEncoder;

const COUNT: &str = include_str!("programs/count.wat");
const TRESPASS: &str = include_str!("programs/trespass.wat");
const TRAP: &str = "(module (memory (export \"memory\") 1) (func (export \"_start\") unreachable))";

/// The folders of an execution.
struct Slot(TempDir);

impl Slot {
    fn new() -> Self {
        let slot = Self(tempfile::tempdir().unwrap());
        for folder in ["work", "out", "tmp", "inputs/text", "action", "cache"] {
            fs::create_dir_all(slot.path(folder)).unwrap();
        }
        fs::write(slot.path("inputs/text/text"), "one\ntwo\nthree\n").unwrap();
        slot
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// What the runner says of a core module that is made a component.
    fn run(&self, text: &str) -> Output {
        fs::write(self.path("action/main.wasm"), component(text)).unwrap();
        assert!(self.ask(&["prepare", "cache", "action/main.wasm"]).status.success());
        self.ask(&["run", "cache", "none", "action/main.wasm"])
    }

    /// Runs the program; words with an `/` or a folder's name stand for paths of this slot.
    fn ask(&self, words: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_component-under-test"));
        for word in words {
            match *word {
                "cache" | "action/main.wasm" => command.arg(self.path(word)),
                word => command.arg(word),
            };
        }
        for (variable, folder) in
            [("ATOLL_OUTPUTS", "out"), ("TMPDIR", "tmp"), ("ATOLL_INPUTS", "inputs"), ("ATOLL_ACTION", "action")]
        {
            command.env(variable, self.path(folder));
        }
        command.current_dir(self.path("work")).output().unwrap()
    }
}

fn component(text: &str) -> Vec<u8> {
    let mut encoder = ComponentEncoder::default().validate(true).module(&wat::parse_str(text).unwrap()).unwrap();
    encoder = encoder.adapter(WASI_SNAPSHOT_PREVIEW1_ADAPTER_NAME, WASI_SNAPSHOT_PREVIEW1_COMMAND_ADAPTER).unwrap();
    encoder.encode().unwrap()
}

fn trespass(folder: u32, path: &str, makes: bool) -> String {
    let (flags, rights) = if makes { ("9", "64") } else { ("0", "2") };
    TRESPASS
        .replace("PATH", path)
        .replace("FOLDER", &folder.to_string())
        .replace("LENGTH", &path.len().to_string())
        .replace("FLAGS", flags)
        .replace("RIGHTS", rights)
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn a_component_reads_its_inputs_and_leaves_its_outputs() {
    let slot = Slot::new();
    let said = slot.run(COUNT);
    assert_eq!((said.status.code(), text(&said.stdout).as_str()), (Some(0), "counted\n"), "{}", text(&said.stderr));
    assert_eq!(fs::read_to_string(slot.path("out/lines")).unwrap(), "3");
}

#[test]
fn a_component_that_fails_or_is_stopped_says_so() {
    let slot = Slot::new();
    fs::remove_file(slot.path("inputs/text/text")).unwrap();
    assert_eq!(slot.run(COUNT).status.code(), Some(1));
    let said = slot.run(TRAP);
    assert_eq!(said.status.code(), Some(134));
    assert!(text(&said.stderr).contains("the component was stopped") && text(&said.stderr).contains("unreachable"));
}

#[test]
fn a_component_sees_nothing_beside_its_folders_and_changes_no_input() {
    let slot = Slot::new();
    fs::write(slot.path("secret"), "key").unwrap();
    fs::write(slot.path("work/own"), "mine").unwrap();
    let ends = |folder, path: &str, makes| slot.run(&trespass(folder, path, makes)).status.code();
    assert_eq!(ends(3, "own", false), Some(1), "what is its own can be opened");
    assert_eq!(ends(3, "new", true), Some(1), "and made");
    for folder in 3..=8 {
        assert_eq!(ends(folder, "../secret", false), Some(0));
        assert_eq!(ends(folder, "/etc/passwd", false), Some(0));
    }
    assert_eq!(ends(7, "text/text", false), Some(1), "an input is read");
    assert_eq!(ends(7, "text/text", true), Some(0));
    assert_eq!(ends(8, "more", true), Some(0));
    assert_eq!(fs::read_to_string(slot.path("inputs/text/text")).unwrap(), "one\ntwo\nthree\n");
    assert!(!slot.path("action/more").exists());
}

#[test]
fn what_is_no_component_is_not_taken_for_one() {
    let slot = Slot::new();
    for bytes in [&b"#!/bin/sh\n"[..], &wat::parse_str(TRAP).unwrap(), &component(COUNT)[..90]] {
        fs::write(slot.path("action/main.wasm"), bytes).unwrap();
        let said = slot.ask(&["prepare", "cache", "action/main.wasm"]);
        assert_eq!(said.status.code(), Some(2));
        assert!(!said.stderr.is_empty());
    }
    assert_eq!(slot.ask(&["probe"]).status.code(), Some(0));
    assert_eq!(slot.ask(&["run", "cache", "some", "action/main.wasm"]).status.code(), Some(2));
}

#[test]
fn a_component_is_compiled_once() {
    let slot = Slot::new();
    slot.run(COUNT);
    let compiled = || walk(&slot.path("cache"));
    let before = compiled();
    assert!(!before.is_empty());
    slot.run(COUNT);
    assert_eq!(compiled(), before);
}

/// The files of a folder that hold what was compiled.
fn walk(folder: &std::path::Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(walk(&path));
        } else if path.extension().is_none() {
            found.push(path);
        }
    }
    found.sort();
    found
}
