#![expect(clippy::unwrap_used, reason = "a panic is a failed test")]

mod actions;
mod bad_input;
mod document;
mod flow;
mod history;
mod policies;
mod runs;
mod sites;
mod transfers;

use std::sync::Arc;

use crate::testing::Work;

/// An agent whose executions succeed and yield nothing.
fn idle() -> Work {
    Arc::new(|_, _| Some(Vec::new()))
}

/// An agent whose executions never end.
fn endless() -> Work {
    Arc::new(|_, _| None)
}

/// Members of a JSON object, in order.
fn members(json: &serde_json::Value) -> Vec<&str> {
    json.as_object().unwrap().keys().map(String::as_str).collect()
}
