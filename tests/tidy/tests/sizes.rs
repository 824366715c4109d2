//! Files and functions stay short.
#![expect(clippy::unwrap_used, reason = "a file that can't be read fails the test")]

use tidy_tests::source::{Function, Source, sources};

const FILE_LINES_MAX: usize = 400;
const FUNCTION_LINES_MAX: usize = 70;
/// Tables of cases and of chances are long and flat, so tests get half as much again.
const TEST_FILE_LINES_MAX: usize = 600;
const TEST_FUNCTION_LINES_MAX: usize = 110;

fn file_lines_max(source: &Source) -> usize {
    if source.is_product() { FILE_LINES_MAX } else { TEST_FILE_LINES_MAX }
}

fn function_lines_max(source: &Source, function: &Function<'_>) -> usize {
    if function.is_test || !source.is_product() { TEST_FUNCTION_LINES_MAX } else { FUNCTION_LINES_MAX }
}

/// Files that are longer, each with the reason why it stays whole.
const LONG_FILES: &[(&str, &str)] = &[("control-plane/core/src/fact.rs", "one list: all that a journal can hold")];
/// Functions that are longer, each with the reason why it stays whole.
const LONG_FUNCTIONS: &[(&str, &str)] = &[
    ("control-plane/core/src/fact/run.rs::run", "one match that names each fact"),
    ("control-plane/core/src/state/evolve.rs::apply", "one match that names each fact"),
    ("control-plane/core/src/state/evolve_executions.rs::evolve_execution", "one match with one arm for each fact"),
    ("control-plane/core/src/state/evolve_objects.rs::evolve_object", "one match with one arm for each fact"),
    ("model/src/expression/functions.rs::yields", "one table: what each function takes and gives"),
];

#[test]
fn files_have_at_most_400_lines_of_code() {
    let mut found = Vec::new();
    for source in sources().unwrap() {
        let path = source.path.display().to_string();
        let lines = source.code_lines();
        if lines > file_lines_max(&source) && !LONG_FILES.iter().any(|(name, _)| *name == path) {
            found.push(format!("{path}: {lines} lines"));
        }
    }
    assert!(found.is_empty(), "files with too many lines of code:\n  {}", found.join("\n  "));
}

#[test]
fn functions_have_at_most_70_lines() {
    let mut found = Vec::new();
    for source in sources().unwrap() {
        for function in source.functions() {
            let name = format!("{}::{}", source.path.display(), function.name);
            if function.lines > function_lines_max(&source, &function)
                && !LONG_FUNCTIONS.iter().any(|(known, _)| *known == name)
            {
                found.push(format!("{name}, line {}: {} lines", function.line, function.lines));
            }
        }
    }
    assert!(found.is_empty(), "functions with too many lines:\n  {}", found.join("\n  "));
}

#[test]
fn exceptions_are_still_needed() {
    for (path, _) in LONG_FILES {
        let long = sources()
            .unwrap()
            .iter()
            .any(|source| source.path.display().to_string() == *path && source.code_lines() > file_lines_max(source));
        assert!(long, "{path} is short again: take it off the list");
    }
    for (name, _) in LONG_FUNCTIONS {
        let long = sources().unwrap().iter().any(|source| {
            let path = source.path.display().to_string();
            let mut functions = source.functions().into_iter();
            functions.any(|found| {
                format!("{path}::{}", found.name) == *name && found.lines > function_lines_max(source, &found)
            })
        });
        assert!(long, "{name} is short again: take it off the list");
    }
}
