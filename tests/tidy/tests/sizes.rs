//! Files and functions stay short.
#![expect(clippy::unwrap_used, reason = "a file that can't be read fails the test")]

use tidy_tests::source::sources;

const FILE_LINES_MAX: usize = 400;
const FUNCTION_LINES_MAX: usize = 70;

/// Files that are longer, each with the reason why it stays whole.
const LONG_FILES: &[(&str, &str)] = &[];
/// Functions that are longer, each with the reason why it stays whole.
const LONG_FUNCTIONS: &[(&str, &str)] = &[];

#[test]
fn files_have_at_most_400_lines_of_code() {
    let mut found = Vec::new();
    for source in sources().unwrap() {
        let path = source.path.display().to_string();
        let lines = source.code_lines();
        if lines > FILE_LINES_MAX && !LONG_FILES.iter().any(|(name, _)| *name == path) {
            found.push(format!("{path}: {lines} lines"));
        }
    }
    assert!(found.is_empty(), "files over {FILE_LINES_MAX} lines of code:\n  {}", found.join("\n  "));
}

#[test]
fn functions_have_at_most_70_lines() {
    let mut found = Vec::new();
    for source in sources().unwrap() {
        for function in source.functions() {
            let name = format!("{}::{}", source.path.display(), function.name);
            if function.lines > FUNCTION_LINES_MAX && !LONG_FUNCTIONS.iter().any(|(known, _)| *known == name) {
                found.push(format!("{name}, line {}: {} lines", function.line, function.lines));
            }
        }
    }
    assert!(found.is_empty(), "functions over {FUNCTION_LINES_MAX} lines:\n  {}", found.join("\n  "));
}

#[test]
fn exceptions_are_still_needed() {
    for (path, _) in LONG_FILES {
        let long = sources()
            .unwrap()
            .iter()
            .any(|source| source.path.display().to_string() == *path && source.code_lines() > FILE_LINES_MAX);
        assert!(long, "{path} is short again: take it off the list");
    }
    for (name, _) in LONG_FUNCTIONS {
        let long = sources().unwrap().iter().any(|source| {
            let path = source.path.display().to_string();
            let mut functions = source.functions().into_iter();
            functions.any(|found| format!("{path}::{}", found.name) == *name && found.lines > FUNCTION_LINES_MAX)
        });
        assert!(long, "{name} is short again: take it off the list");
    }
}
