//! `sealed/log`: whose each seal is, and what became of it, one JSON document a line. It outlives the process, so that
//! taking in outputs can be repeated; after a power cut, what was not committed is not to be trusted anyway.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write as _;
use std::path::PathBuf;

use atoll_model::value::ObjectRef;
use serde::{Deserialize, Serialize};

use super::SealId;
use super::error::{Doing as _, StoreError};
use super::layout::Layout;

/// The log is written anew when it is twice as long as what still counts, but not before it is worth the while.
const COMPACT_BYTES_MIN: usize = 4 << 20;

#[derive(Debug)]
pub(super) struct SealLog {
    path: PathBuf,
    temporary: PathBuf,
    file: File,
    bytes: usize,
    live_bytes: usize,
    live: BTreeMap<u64, Found>,
    /// No seal below it is given again.
    pub(super) next: u64,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Line {
    /// No seal below this one is given again.
    Next {
        seal: u64,
    },
    Sealed {
        seal: u64,
        claim: String,
        name: Vec<u8>,
    },
    /// Written before the output leaves `sealed/`.
    Committed {
        seal: u64,
        object: ObjectRef,
        files: u64,
        /// Logs of earlier versions do not have it.
        #[serde(default)]
        executable: bool,
    },
    Dropped {
        seal: u64,
    },
}

/// A seal as the log knows it.
#[derive(Debug, Clone)]
pub(super) struct Found {
    pub(super) seal: SealId,
    pub(super) claim: String,
    pub(super) name: Vec<u8>,
    pub(super) committed: Option<Committed>,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Committed {
    pub(super) object: ObjectRef,
    pub(super) files: u64,
    pub(super) executable: bool,
}

impl Found {
    fn text(&self) -> String {
        let seal = self.seal.0;
        let sealed = Line::Sealed { seal, claim: self.claim.clone(), name: self.name.clone() };
        let committed = self.committed.map(|committed| {
            let Committed { object, files, executable } = committed;
            Line::Committed { seal, object, files, executable }
        });
        [Some(sealed), committed].iter().flatten().map(line_text).collect()
    }
}

impl SealLog {
    pub(super) fn open(layout: &Layout) -> Result<Self, StoreError> {
        let path = layout.folder("sealed").join("log");
        let temporary = layout.folder("partial").join("tmp-log");
        let text = match fs::read_to_string(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
            text => text.doing("read", &path)?,
        };
        let file = File::options().append(true).create(true).open(&path).doing("open", &path)?;
        let mut log = Self { path, temporary, file, bytes: 0, live_bytes: 0, live: BTreeMap::new(), next: 1 };
        for line in text.lines() {
            match serde_json::from_str(line) {
                Ok(line) => log.take(line),
                // The last line of a process that died in the middle of it.
                Err(error) => tracing::warn!(%error, "a line of the log of sealed outputs is not readable"),
            }
        }
        log.compact()?;
        Ok(log)
    }

    /// What an earlier process left.
    pub(super) fn found(&self) -> Vec<Found> {
        self.live.values().cloned().collect()
    }

    pub(super) fn append(&mut self, line: Line) -> Result<(), StoreError> {
        let text = line_text(&line);
        self.file.write_all(text.as_bytes()).doing("write", &self.path)?;
        self.bytes += text.len();
        self.take(line);
        if self.bytes > COMPACT_BYTES_MIN.max(2 * self.live_bytes) { self.compact() } else { Ok(()) }
    }

    fn take(&mut self, line: Line) {
        match line {
            Line::Next { seal } => self.next = self.next.max(seal),
            Line::Sealed { seal, claim, name } => {
                self.next = self.next.max(seal + 1);
                let found = Found { seal: SealId(seal), claim, name, committed: None };
                self.live_bytes += found.text().len();
                self.live.insert(seal, found);
            }
            Line::Committed { seal, object, files, executable } => {
                if let Some(found) = self.live.get_mut(&seal) {
                    self.live_bytes -= found.text().len();
                    found.committed = Some(Committed { object, files, executable });
                    self.live_bytes += found.text().len();
                }
            }
            Line::Dropped { seal } => {
                if let Some(found) = self.live.remove(&seal) {
                    self.live_bytes -= found.text().len();
                }
            }
        }
    }

    fn compact(&mut self) -> Result<(), StoreError> {
        let mut text = line_text(&Line::Next { seal: self.next });
        self.live.values().for_each(|found| text.push_str(&found.text()));
        fs::write(&self.temporary, &text).doing("write", &self.temporary)?;
        fs::rename(&self.temporary, &self.path).doing("move", &self.path)?;
        self.file = File::options().append(true).open(&self.path).doing("open", &self.path)?;
        self.bytes = text.len();
        Ok(())
    }
}

fn line_text(line: &Line) -> String {
    serde_json::to_string(line).expect("a line of the log has an encoding") + "\n"
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    #[test]
    fn the_log_stays_as_short_as_what_it_knows() {
        let folder = tempfile::tempdir().unwrap();
        let layout = Layout { root: folder.path().to_owned() };
        fs::create_dir(layout.folder("sealed")).unwrap();
        fs::create_dir(layout.folder("partial")).unwrap();
        let mut log = SealLog::open(&layout).unwrap();
        let claim = "x".repeat(1_000);
        for seal in 1..=20_000 {
            log.append(Line::Sealed { seal, claim: claim.clone(), name: b"n".to_vec() }).unwrap();
            if seal > 1 {
                log.append(Line::Dropped { seal }).unwrap();
            }
        }
        assert!(layout.folder("sealed").join("log").metadata().unwrap().len() < 5 << 20);
        let log = SealLog::open(&layout).unwrap();
        assert_eq!(log.found().iter().map(|found| found.seal.0).collect::<Vec<_>>(), [1]);
        assert_eq!(log.next, 20_001);
        assert!(layout.folder("sealed").join("log").metadata().unwrap().len() < 2_000);
    }
}
