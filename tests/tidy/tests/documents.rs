//! Documents say what is so.
#![expect(clippy::unwrap_used, reason = "a file that can't be read fails the test")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use tidy_tests::rows::{ROWS, table, tests_by_row, with_table};
use tidy_tests::workspace::{files, read, root};

#[test]
fn every_row_of_the_failure_matrix_has_a_test_of_its_name() {
    let tests = tests_by_row().unwrap();
    let missing: Vec<&str> = ROWS.iter().map(|row| row.name).filter(|row| !tests.contains_key(*row)).collect();
    assert!(missing.is_empty(), "rows without a test: {missing:?}");
}

#[test]
fn the_table_of_the_failure_matrix_is_up_to_date() {
    let document = read(Path::new("docs/reliability.md")).unwrap();
    let made = with_table(&document, &table().unwrap()).unwrap();
    assert!(made == document, "docs/reliability.md is behind the tests: run `just reliability-table`");
}

#[test]
fn links_between_documents_lead_somewhere() {
    let mut broken = Vec::new();
    for file in files(&[".md"]).unwrap() {
        let text = read(&file).unwrap();
        for link in text.split("](").skip(1).filter_map(|rest| rest.split_once(')')).map(|(link, _)| link) {
            let target = link.split('#').next().unwrap_or_default();
            if target.is_empty() || target.contains("://") || target.contains(' ') {
                continue;
            }
            let folder = file.parent().unwrap_or(Path::new(""));
            if !root().join(folder).join(target).exists() {
                broken.push(format!("{}: {link}", file.display()));
            }
        }
    }
    assert!(broken.is_empty(), "broken links:\n  {}", broken.join("\n  "));
}

/// The words after `atoll` that may be commands: everything in lower case before the first argument.
fn commands_in(text: &str) -> BTreeSet<Vec<String>> {
    let is_command = |word: &str| !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_lowercase());
    let mut commands = BTreeSet::new();
    let mut in_block = false;
    for line in text.lines() {
        if line.trim_start().starts_with("```") {
            in_block = !in_block;
            continue;
        }
        let quoted = line.split('`').skip(1).step_by(2);
        let shown = (in_block || line.starts_with("    ")).then_some(line.trim()).into_iter();
        for code in quoted.chain(shown) {
            let Some(rest) = code.trim_start_matches("$ ").strip_prefix("atoll ") else { continue };
            let words: Vec<String> = rest
                .split_whitespace()
                .flat_map(|word| word.split('|').next())
                .map(|word| word.trim_end_matches(['\\', ',', ';']).to_owned())
                .take_while(|word| is_command(word))
                .take(3)
                .collect();
            if !words.is_empty() {
                commands.insert(words);
            }
        }
    }
    commands
}

fn binary() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let binary = test.parent().and_then(Path::parent).unwrap().join("atoll");
    assert!(binary.exists(), "{} is missing: build it first (cargo build --bin atoll)", binary.display());
    binary
}

fn help(words: &[String]) -> Option<String> {
    let output = Command::new(binary()).args(words).arg("--help").stdin(Stdio::null()).output().unwrap();
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Whether `words` is a command, followed perhaps by the values of its arguments.
fn exists(words: &[String]) -> bool {
    let Some(mut shown) = help(&words[..1]) else { return false };
    for end in 2..=words.len() {
        if !shown.contains("\nCommands:\n") {
            return true;
        }
        match help(&words[..end]) {
            Some(text) => shown = text,
            None => return false,
        }
    }
    true
}

#[test]
fn documents_name_only_commands_that_exist() {
    let mut named: BTreeMap<Vec<String>, String> = BTreeMap::new();
    for file in files(&[".md", ".service"]).unwrap() {
        for words in commands_in(&read(&file).unwrap()) {
            named.entry(words).or_insert_with(|| file.display().to_string());
        }
    }
    let unknown: Vec<String> = named
        .iter()
        .filter(|(words, _)| !exists(words))
        .map(|(words, file)| format!("{file}: atoll {}", words.join(" ")))
        .collect();
    assert!(!named.is_empty());
    assert!(unknown.is_empty(), "documents name commands that do not exist:\n  {}", unknown.join("\n  "));
}

#[test]
fn the_justfile_names_what_contributors_are_told_to_run() {
    let recipes = read(Path::new("justfile")).unwrap();
    for file in files(&[".md"]).unwrap() {
        let text = read(&file).unwrap();
        for recipe in text.split("`just ").skip(1).filter_map(|rest| rest.split(['`', ' ']).next()) {
            let known = recipe.starts_with('-')
                || recipes.lines().any(|line| line.split([' ', ':']).next() == Some(recipe) && line.contains(':'));
            assert!(known, "{} names `just {recipe}`", file.display());
        }
    }
}
