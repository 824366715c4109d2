//! What the doctor says.

use std::path::PathBuf;

use atoll_model::id::SiteName;
use serde::Serialize;
use serde_json::{Map, Value};

/// How a check has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum CheckState {
    Ok,
    /// The site works, and not as well as it could.
    Warning,
    /// The site does not work, or will not.
    Problem,
    /// There was nothing to look at, or it cannot be looked at yet; `found` says why.
    Skipped,
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Check {
    #[serde(rename = "check")]
    pub name: &'static str,
    pub state: CheckState,
    pub found: String,
    /// What to do about it; every warning and every problem has one.
    pub advice: Option<String>,
    /// What was measured, named with its unit.
    pub figures: Map<String, Value>,
}

/// All that was looked at, in the order in which it is to be read.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Diagnosis {
    /// Of an agent that has joined.
    pub site: Option<SiteName>,
    /// The servers that were looked at: `host:port`, with commas between them.
    pub server: Option<String>,
    pub data_dir: PathBuf,
    pub checks: Vec<Check>,
}

impl Check {
    pub fn ok(name: &'static str, found: impl Into<String>) -> Self {
        Self { name, state: CheckState::Ok, found: found.into(), advice: None, figures: Map::new() }
    }

    pub fn warning(name: &'static str, found: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { state: CheckState::Warning, advice: Some(advice.into()), ..Self::ok(name, found) }
    }

    pub fn problem(name: &'static str, found: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { state: CheckState::Problem, advice: Some(advice.into()), ..Self::ok(name, found) }
    }

    pub fn skipped(name: &'static str, why: impl Into<String>) -> Self {
        Self { state: CheckState::Skipped, ..Self::ok(name, why) }
    }

    /// The same with something to do, though nothing is wrong.
    pub(super) fn with_advice(mut self, advice: impl Into<String>) -> Self {
        self.advice = Some(advice.into());
        self
    }

    pub(super) fn with(mut self, name: &str, figure: impl Into<Value>) -> Self {
        self.figures.insert(name.to_owned(), figure.into());
        self
    }
}

impl Diagnosis {
    pub fn count(&self, state: CheckState) -> usize {
        self.checks.iter().filter(|check| check.state == state).count()
    }
}

/// Bytes with a unit that a person reads at a glance.
pub(super) fn shown_bytes(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "kB", "MB", "GB", "TB"];
    let (mut size, mut unit) = (bytes as f64, 0);
    while size >= 1_000.0 && unit + 1 < UNITS.len() {
        size /= 1_000.0;
        unit += 1;
    }
    if unit == 0 { format!("{bytes} B") } else { format!("{size:.1} {}", UNITS[unit]) }
}

/// Milliseconds with as many digits as mean something.
pub(super) fn shown_ms(ms: f64) -> String {
    if ms < 10.0 { format!("{ms:.2} ms") } else { format!("{ms:.0} ms") }
}

/// The first line of what somebody said, short enough for a table.
pub(super) fn first_line(text: &str) -> String {
    let line = text.lines().map(str::trim).find(|line| !line.is_empty()).unwrap_or_default();
    line.chars().take(200).collect()
}

/// With two digits behind the point, as JSON.
pub(super) fn rounded(number: f64) -> f64 {
    (number * 100.0).round() / 100.0
}
