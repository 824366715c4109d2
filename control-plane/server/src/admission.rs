//! Who may bring work in, and when: before memory or disk run out, whoever brings more is asked to come again.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde::Deserialize;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// How long what was measured counts.
const MEASURED_FOR: Duration = Duration::from_millis(100);
/// Of the memory of the machine, or of the control group, in hundredths: the rest is for what has been accepted.
const MEMORY_PERCENT: u64 = 80;
/// Where neither says how much there is.
const MEMORY_UNKNOWN: u64 = u64::MAX;
/// When to come again: soon, if others are just being answered; later, where something has to end before.
const SOON: Duration = Duration::from_secs(1);
const LATER: Duration = Duration::from_secs(5);

/// How much may be brought in before somebody is asked to come again.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Runs that have not ended.
    pub live_runs: u64,
    /// Workflows that are read at a time, with what comes with them.
    pub submissions_at_once: usize,
    /// Of this process; four fifths of what there is unless given.
    pub memory_bytes: Option<u64>,
    /// Free where the journal is, beside a sixteenth of it if that is less.
    pub disk_free_bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            live_runs: control_plane_core::Config::default().live_runs_max,
            submissions_at_once: 256,
            memory_bytes: None,
            disk_free_bytes: 64 << 20,
        }
    }
}

/// What is full.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Full {
    #[error("{0} workflows are being read at once, and no more are; come again")]
    Submissions(usize),
    #[error(
        "the server uses {used} MiB of memory, and takes nothing new above {limit} MiB; come again when runs have ended"
    )]
    Memory { used: u64, limit: u64 },
    #[error("{free} MiB are free on the server's disk, and nothing new is taken below {limit} MiB")]
    Disk { free: u64, limit: u64 },
    #[error("the journal is behind; come again")]
    Journal,
}

impl Full {
    /// For programs.
    pub(crate) fn code(&self) -> &'static str {
        match self {
            Self::Submissions(_) => "too_many_submissions",
            Self::Memory { .. } => "memory_full",
            Self::Disk { .. } => "disk_full",
            Self::Journal => "journal_full",
        }
    }

    pub(crate) fn retry_after(&self) -> Duration {
        match self {
            Self::Submissions(_) | Self::Journal => SOON,
            Self::Memory { .. } | Self::Disk { .. } => LATER,
        }
    }
}

/// Looks at what there is before anybody is let in.
#[derive(Debug)]
pub(crate) struct Admission {
    data_dir: PathBuf,
    submissions: Arc<Semaphore>,
    submissions_max: usize,
    memory_max: u64,
    disk_free_min: u64,
    measured: Mutex<Option<(Instant, Result<(), Full>)>>,
}

impl Admission {
    pub(crate) fn new(limits: &Limits, data_dir: &Path) -> Self {
        Self {
            data_dir: data_dir.to_owned(),
            submissions: Arc::new(Semaphore::new(limits.submissions_at_once)),
            submissions_max: limits.submissions_at_once,
            memory_max: limits.memory_bytes.unwrap_or_else(memory_there),
            disk_free_min: limits.disk_free_bytes,
            measured: Mutex::new(None),
        }
    }

    /// Lets somebody in who brings a workflow, until the permit is dropped.
    ///
    /// # Errors
    /// What is full.
    pub(crate) fn admit(&self) -> Result<OwnedSemaphorePermit, Full> {
        self.look()?;
        Arc::clone(&self.submissions).try_acquire_owned().map_err(|_| Full::Submissions(self.submissions_max))
    }

    fn look(&self) -> Result<(), Full> {
        let mut measured = self.measured.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((at, result)) = &*measured
            && at.elapsed() < MEASURED_FOR
        {
            return result.clone();
        }
        let result = self.measure();
        *measured = Some((Instant::now(), result.clone()));
        result
    }

    fn measure(&self) -> Result<(), Full> {
        if let Some(used) = memory_used().filter(|used| *used > self.memory_max) {
            return Err(Full::Memory { used: used >> 20, limit: self.memory_max >> 20 });
        }
        // What cannot be measured is no reason to refuse anybody.
        let Ok(disk) = rustix::fs::statvfs(&self.data_dir) else { return Ok(()) };
        let (free, whole) = (disk.f_bavail.saturating_mul(disk.f_frsize), disk.f_blocks.saturating_mul(disk.f_frsize));
        let limit = self.disk_free_min.min(whole / 16);
        if free < limit { Err(Full::Disk { free: free >> 20, limit: limit >> 20 }) } else { Ok(()) }
    }
}

/// Resident memory of this process, in bytes.
pub(crate) fn memory_used() -> Option<u64> {
    kibibytes("/proc/self/status", "VmRSS:")
}

/// A line of a file of the kernel that gives a size.
fn kibibytes(path: &str, name: &str) -> Option<u64> {
    let text = fs::read_to_string(path).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    Some(line.trim().strip_suffix(" kB")?.parse::<u64>().ok()? << 10)
}

/// What this process may use of the memory that there is.
fn memory_there() -> u64 {
    let whole = kibibytes("/proc/meminfo", "MemTotal:");
    let group = fs::read_to_string("/proc/self/cgroup").ok().and_then(|text| {
        let path = text.lines().find_map(|line| line.strip_prefix("0::"))?.to_owned();
        fs::read_to_string(format!("/sys/fs/cgroup{path}/memory.max")).ok()?.trim().parse::<u64>().ok()
    });
    match (whole, group) {
        (Some(whole), Some(group)) => whole.min(group) / 100 * MEMORY_PERCENT,
        (Some(there), None) | (None, Some(there)) => there / 100 * MEMORY_PERCENT,
        (None, None) => MEMORY_UNKNOWN,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn admission(change: impl FnOnce(&mut Limits)) -> Admission {
        let mut limits = Limits::default();
        change(&mut limits);
        Admission::new(&limits, Path::new("/"))
    }

    #[test]
    fn who_is_let_in_is_counted_until_he_leaves() {
        let admission = admission(|limits| limits.submissions_at_once = 2);
        let first = admission.admit().expect("there is room");
        let _second = admission.admit().expect("there is room");
        assert_eq!(admission.admit().expect_err("no third"), Full::Submissions(2));
        drop(first);
        assert!(admission.admit().is_ok());
    }

    #[test]
    fn nobody_is_let_in_without_memory_or_disk() {
        let full = admission(|limits| limits.memory_bytes = Some(1)).admit().expect_err("more than a byte is used");
        assert!(matches!(full, Full::Memory { .. }), "{full}");
        assert_eq!((full.code(), full.retry_after()), ("memory_full", LATER));
        assert!(memory_there() > 1 << 20);
        let mut narrow = admission(|_| {});
        narrow.data_dir = PathBuf::from("/proc");
        assert!(narrow.admit().is_ok(), "what has no size is not full");
    }
}
