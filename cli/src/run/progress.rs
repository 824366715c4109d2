//! How a run goes, while it goes: a bar on a terminal, a line now and then elsewhere.

use std::io::IsTerminal as _;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use serde_json::Value;

/// Away from a terminal a line is printed at most this often.
const LINE_PAUSE: Duration = Duration::from_secs(2);

/// Shows the events of one run on standard error.
#[derive(Debug)]
pub(super) struct Progress {
    bar: Option<ProgressBar>,
    last_line: Option<(Instant, String)>,
}

impl Progress {
    pub(super) fn new(run: &str) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::new(0);
            let style = ProgressStyle::with_template("{spinner} [{elapsed}] {bar:30} {pos}/{len} {msg}");
            bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
            bar.enable_steady_tick(Duration::from_millis(120));
            bar
        });
        eprintln!("{run}");
        Self { bar, last_line: None }
    }

    pub(super) fn show(&mut self, event: &Value) {
        let Some(counts) = event["counts"].as_object() else { return };
        let of = |state: &str| counts.get(state).and_then(Value::as_u64).unwrap_or(0);
        let all: u64 = counts.values().filter_map(Value::as_u64).sum();
        let ended: u64 = ["succeeded", "failed", "cancelled", "skipped"].into_iter().map(of).sum();
        let mut parts = Vec::new();
        for state in ["running", "dispatched", "placed", "ready", "waiting", "failed", "unknown"] {
            if of(state) > 0 {
                parts.push(format!("{} {state}", of(state)));
            }
        }
        let message = parts.join(", ");
        if let Some(bar) = &self.bar {
            bar.set_length(all);
            bar.set_position(ended);
            bar.set_message(message);
            return;
        }
        let line = format!("{ended} of {all} ended{}{message}", if message.is_empty() { "" } else { "; " });
        let due = self.last_line.as_ref().is_none_or(|(at, last)| at.elapsed() >= LINE_PAUSE && *last != line);
        if due {
            eprintln!("{line}");
            self.last_line = Some((Instant::now(), line));
        }
    }

    pub(super) fn end(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.end();
    }
}
