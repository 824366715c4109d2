//! What went down while executions ran, for people.

use serde_json::Value;

use crate::output::outln;
use crate::table;

/// Prints the crashes of an execution, if there are any.
pub(crate) fn print_of(execution: &Value) {
    let rows: Vec<Vec<String>> = crashes(execution).map(row).collect();
    if !rows.is_empty() {
        outln!("\nsomething went down while it ran:");
        table::print(&COLUMNS, &rows);
    }
}

/// Prints the crashes of all these executions, if there are any.
pub(crate) fn print_of_all(executions: &[Value]) {
    let rows = rows_of_all(executions);
    if !rows.is_empty() {
        outln!("\nsomething went down while these ran:");
        let columns: Vec<&str> = ["EXECUTION"].into_iter().chain(COLUMNS).collect();
        table::print(&columns, &rows);
    }
}

const COLUMNS: [&str; 6] = ["AT (UTC)", "SITE", "ATTEMPT", "AGENT'S START", "WHAT IS KNOWN", "STDERR"];

fn rows_of_all(executions: &[Value]) -> Vec<Vec<String>> {
    let of = |execution| {
        let name = table::field(execution, "execution");
        crashes(execution).map(move |crash| [vec![name.clone()], row(crash)].concat())
    };
    executions.iter().flat_map(of).collect()
}

fn crashes(execution: &Value) -> impl Iterator<Item = &Value> {
    execution["crashes"].as_array().into_iter().flatten()
}

fn row(crash: &Value) -> Vec<String> {
    let field = |name| table::field(crash, name);
    let stderr = crash["logs"]["stderr"].as_str().unwrap_or("–").to_owned();
    vec![table::time(crash, "at"), field("site"), field("attempt"), field("incarnation"), field("message"), stderr]
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn each_crash_is_shown_with_its_execution_and_its_evidence() {
        let crash = |attempt: u32, stderr: Value| {
            json!({
                "at": "2026-01-31T12:00:00Z", "attempt": attempt, "site": "edge", "incarnation": 7,
                "message": "the machine went down", "logs": { "stdout": null, "stderr": stderr },
            })
        };
        let executions = [
            json!({ "execution": "exec_a", "crashes": [] }),
            json!({ "execution": "exec_b", "crashes": [crash(1, json!("blake3:00")), crash(2, Value::Null)] }),
            json!({ "execution": "exec_c" }),
        ];
        let rows = rows_of_all(&executions);
        assert_eq!(rows.len(), 2);
        assert_eq!(rows[0][0], "exec_b");
        assert_eq!(rows[0][2..], ["edge", "1", "7", "the machine went down", "blake3:00"]);
        assert_eq!(rows[1][3..], ["2", "7", "the machine went down", "–"]);
    }
}
