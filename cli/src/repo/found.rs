//! What a look at a repository has found.

use serde_json::Value;

use crate::output::outln;
use crate::table;

/// Digits of a commit that people tell others.
const SHORT_COMMIT: usize = 12;

/// Whether the look came to its end, and nothing is wrong with what it found.
pub(super) fn is_right(last: &Value) -> bool {
    last["outcome"] == "done" && actions(last).all(|action| !is_wrong(action))
}

fn actions(last: &Value) -> impl Iterator<Item = &Value> {
    last["actions"].as_array().into_iter().flatten()
}

fn is_wrong(action: &Value) -> bool {
    matches!(action["finding"].as_str(), Some("invalid" | "failed"))
}

/// In a few words.
pub(super) fn summary(last: &Value) -> String {
    if last["outcome"] != "done" {
        return table::field(last, "outcome");
    }
    let count = actions(last).count();
    let wrong = actions(last).filter(|action| is_wrong(action)).count();
    let found = if count == 1 { "1 action".to_owned() } else { format!("{count} actions") };
    if wrong == 0 { found } else { format!("{found}, {wrong} wrong") }
}

pub(super) fn short_commit(last: &Value) -> String {
    last["commit"].as_str().map_or_else(|| "–".to_owned(), |commit| commit.chars().take(SHORT_COMMIT).collect())
}

pub(super) fn by(import: &Value) -> String {
    import["by"].as_str().unwrap_or("the clock").to_owned()
}

/// Prints it, each error with its place.
pub(super) fn print(last: &Value) {
    let Some(what) = last["what"].as_str() else { return };
    let at = last["commit"].as_str().map(|commit| format!(" at commit {commit}")).unwrap_or_default();
    outln!("  last {what}{at}, {}, asked for by {}", table::time(last, "ended_at"), by(last));
    if let Some(message) = last["message"].as_str() {
        outln!("  {}: {message}", table::field(last, "outcome"));
    }
    let row = |action: &Value| {
        let name = |field| action[field].as_str().unwrap_or("–").to_owned();
        vec![name("path"), name("action"), name("version"), name("finding")]
    };
    let rows: Vec<Vec<String>> = actions(last).map(row).collect();
    if rows.is_empty() {
        if last["outcome"] == "done" {
            outln!("  there is no folder with an action.yaml in it");
        }
        return;
    }
    outln!();
    table::print(&["PATH", "ACTION", "VERSION", ""], &rows);
    for action in actions(last).filter(|action| is_wrong(action)) {
        outln!();
        if let Some(message) = action["message"].as_str() {
            outln!("{}: {message}", table::field(action, "path"));
        }
        for error in action["errors"].as_array().into_iter().flatten() {
            let [file, line, column, message] =
                ["file", "line", "column", "message"].map(|name| table::field(error, name));
            let help = error["help"].as_str().map(|help| format!(" ({help})")).unwrap_or_default();
            outln!("{file}:{line}:{column}: {message}{help}");
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_look_is_right_when_it_came_to_its_end_and_nothing_is_wrong() {
        let look = |outcome: &str, findings: &[&str]| {
            let actions: Vec<Value> = findings.iter().map(|finding| json!({ "finding": finding })).collect();
            json!({ "outcome": outcome, "actions": actions })
        };
        assert!(is_right(&look("done", &["imported", "known", "new", "removed"])));
        assert!(!is_right(&look("done", &["known", "invalid"])));
        assert!(!is_right(&look("done", &["failed"])));
        assert!(!is_right(&look("failed", &[])));
        assert!(!is_right(&look("cancelled", &["known"])));
        assert_eq!(summary(&look("done", &["known", "invalid"])), "2 actions, 1 wrong");
        assert_eq!(summary(&look("done", &["known"])), "1 action");
        assert_eq!(summary(&look("failed", &[])), "failed");
    }
}
