//! The workers that the agent knows, kept so that its next process waits for those that it has not heard of yet.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::Path;

use atoll_model::resources::Capacity;
use serde::{Deserialize, Serialize};

use super::credentials::folder;

const ROSTER: &str = "roster.json";

/// What is remembered of a worker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Remembered {
    pub capacity: Capacity,
    pub gpus: Vec<String>,
}

/// By name.
pub(super) type Roster = BTreeMap<String, Remembered>;

/// Without it, or if it is damaged, workers are those that come.
pub(super) fn read(data_dir: &Path) -> Roster {
    let path = folder(data_dir).join(ROSTER);
    let Ok(bytes) = fs::read(&path) else { return Roster::new() };
    serde_json::from_slice(&bytes).unwrap_or_else(|error| {
        tracing::warn!(path = %path.display(), %error, "the workers of before are not known");
        Roster::new()
    })
}

pub(super) fn write(data_dir: &Path, roster: &Roster) -> io::Result<()> {
    let path = folder(data_dir).join(ROSTER);
    let next = path.with_extension("next");
    fs::write(&next, serde_json::to_vec(roster)?)?;
    fs::rename(&next, &path)
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test that fails here has failed")]

    use super::*;

    #[test]
    fn workers_are_remembered_and_a_damaged_file_is_none() {
        let data_dir = tempfile::tempdir().unwrap();
        assert_eq!(read(data_dir.path()), Roster::new());
        fs::create_dir(data_dir.path().join("workers")).unwrap();
        let capacity = Capacity { cpu_millis: 2_000, gpus: [("a100".to_owned(), 1)].into(), ..Capacity::default() };
        let plain = Remembered { capacity: Capacity::default(), gpus: Vec::new() };
        let with_gpu = Remembered { capacity, gpus: vec!["a100".to_owned()] };
        let roster = Roster::from([("n1".to_owned(), plain), ("n2".to_owned(), with_gpu)]);
        write(data_dir.path(), &roster).unwrap();
        assert_eq!(read(data_dir.path()), roster);
        fs::write(data_dir.path().join("workers").join(ROSTER), "{").unwrap();
        assert_eq!(read(data_dir.path()), Roster::new());
    }
}
