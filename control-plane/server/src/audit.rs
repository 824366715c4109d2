//! Who changed what: every change that a person asks for, logged and kept.

use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError, mpsc};
use std::thread;

use serde::Serialize;

use crate::driver::wall_clock;

/// Lines of JSON in `audit.jsonl`, only ever appended to. A line is written before the change is answered, so it survives
/// the end of the process; it is synced to the disk right after, by a thread of its own, so it survives all but the last
/// moments before a power cut.
#[derive(Debug)]
pub(crate) struct Audit {
    file: Mutex<File>,
    /// Nothing is sent but the wish to sync.
    unsynced: mpsc::SyncSender<()>,
}

/// The file cannot be opened or written.
#[derive(Debug, thiserror::Error)]
#[error("the audit log {} cannot be written", path.display())]
pub(crate) struct AuditError {
    path: PathBuf,
    #[source]
    source: std::io::Error,
}

#[derive(Serialize)]
struct Entry<'a> {
    at: String,
    person: &'a str,
    action: &'a str,
    subject: &'a str,
    outcome: &'a str,
    detail: Option<&'a str>,
}

impl Audit {
    pub(crate) fn open(directory: &Path) -> Result<Self, AuditError> {
        let path = directory.join("audit.jsonl");
        let open = || {
            let file = OpenOptions::new().create(true).append(true).mode(0o600).open(&path)?;
            let synced = file.try_clone()?;
            let (unsynced, wishes) = mpsc::sync_channel(1);
            thread::Builder::new().name("audit".to_owned()).spawn(move || sync(&synced, &wishes))?;
            Ok(Self { file: Mutex::new(file), unsynced })
        };
        open().map_err(|source| AuditError { path: path.clone(), source })
    }

    /// Notes what a person did, or tried to.
    pub(crate) fn record(&self, person: &str, action: &str, subject: &str, outcome: &str, detail: Option<&str>) {
        tracing::info!(target: "audit", person, action, subject, outcome, detail);
        let entry = Entry { at: wall_clock().to_string(), person, action, subject, outcome, detail };
        let mut line = serde_json::to_vec(&entry).expect("texts can be encoded");
        line.push(b'\n');
        // One write for one line, so that lines of several requests are never mixed.
        let written = self.file.lock().unwrap_or_else(PoisonError::into_inner).write_all(&line);
        if let Err(error) = written {
            tracing::error!(target: "audit", error = &error as &dyn std::error::Error, "the audit log cannot be written");
        }
        // If a wish is waiting already, it covers this line too.
        let _ = self.unsynced.try_send(());
    }
}

fn sync(file: &File, wishes: &mpsc::Receiver<()>) {
    while wishes.recv().is_ok() {
        if let Err(error) = file.sync_data() {
            tracing::error!(target: "audit", error = &error as &dyn std::error::Error, "the audit log cannot be synced");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_kept_is_appended_to() {
        let directory = tempfile::tempdir().expect("a temporary directory can be made");
        for action in ["drain", "undrain"] {
            let audit = Audit::open(directory.path()).expect("it can be opened");
            audit.record("admin", action, "edge", "done", Some("a \"quoted\"\nreason"));
        }
        let text = std::fs::read_to_string(directory.path().join("audit.jsonl")).expect("it is there");
        let lines: Vec<serde_json::Value> =
            text.lines().map(|line| serde_json::from_str(line).expect("a line of JSON")).collect();
        assert_eq!(lines.len(), 2);
        assert_eq!((&lines[0]["action"], &lines[1]["action"]), (&"drain".into(), &"undrain".into()));
        assert_eq!(lines[1]["detail"], "a \"quoted\"\nreason");
    }
}
