//! What is said while a repository is looked at, for people who look at the same time.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use atoll_model::limits::IMPORT_LOG_BYTES_MAX;

use crate::driver::wall_clock;

/// The logs of what goes on now, by the number of the import.
#[derive(Debug, Clone, Default)]
pub(crate) struct Imports(Arc<Mutex<BTreeMap<u64, Weak<ImportLog>>>>);

#[derive(Debug, Default)]
pub(crate) struct ImportLog(Mutex<String>);

impl Imports {
    pub(super) fn begin(&self, number: u64) -> Arc<ImportLog> {
        let log = Arc::new(ImportLog::default());
        let mut logs = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        logs.retain(|_, log| log.strong_count() > 0);
        logs.insert(number, Arc::downgrade(&log));
        log
    }

    /// What an import has said so far, if it goes on in this process.
    pub(crate) fn log(&self, number: u64) -> Option<String> {
        let logs = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        Some(logs.get(&number)?.upgrade()?.text())
    }
}

impl ImportLog {
    /// Adds lines, each with the time.
    pub(super) fn say(&self, text: &str) {
        let now = wall_clock();
        let mut log = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for line in text.lines().filter(|line| !line.trim().is_empty()) {
            let shown: String =
                line.trim_end().chars().map(|letter| if letter.is_control() { ' ' } else { letter }).collect();
            log.push_str(&format!("{now} {shown}\n"));
        }
        if log.len() > 2 * IMPORT_LOG_BYTES_MAX {
            let from = log.len() - IMPORT_LOG_BYTES_MAX;
            let whole_line = log.as_bytes()[from..].iter().position(|byte| *byte == b'\n');
            log.drain(..whole_line.map_or(from, |end| from + end + 1));
        }
    }

    pub(super) fn text(&self) -> String {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_is_there_while_its_import_goes_on_and_keeps_the_end_of_much() {
        let imports = Imports::default();
        let log = imports.begin(7);
        log.say("one\n\ntwo\x1b[31m");
        let text = imports.log(7).expect("it goes on");
        assert_eq!(text.lines().count(), 2);
        assert!(text.lines().next().expect("a line").ends_with(" one") && !text.contains('\x1b'), "{text:?}");
        for number in 0..10_000 {
            log.say(&format!("line {number} ü"));
        }
        let text = log.text();
        assert!(text.len() <= 2 * IMPORT_LOG_BYTES_MAX && text.ends_with("line 9999 ü\n"), "{} bytes", text.len());
        drop(log);
        assert_eq!(imports.log(7), None);
    }
}
