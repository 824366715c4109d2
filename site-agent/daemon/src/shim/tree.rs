//! Everything that an execution started: as a child subreaper the shim has all of it below itself, whatever forked,
//! called `setsid` or lost its parent.

use std::fs;
use std::io;

use rustix::io::Errno;
use rustix::process::{Pid, Signal, WaitOptions, kill_process, wait, waitpid};

/// Reaps what has ended, `except` for one process. Whether no child at all is left.
pub(crate) fn reap(except: Option<Pid>) -> bool {
    match except {
        None => loop {
            match wait(WaitOptions::NOHANG) {
                Ok(Some(_)) | Err(Errno::INTR) => {}
                Ok(None) => return false,
                Err(_) => return true,
            }
        },
        // Orphans that came to the shim while the main process runs are few, and their own parents reaped most.
        Some(main) => {
            for child in children_of(Pid::from_raw(own_pid())).unwrap_or_default() {
                if child != main {
                    // Nothing to do if it still runs, or was reaped meanwhile.
                    let _ = waitpid(Some(child), WaitOptions::NOHANG);
                }
            }
            false
        }
    }
}

/// Whether anything is below this process but one child of it, and that child.
pub(crate) fn has_more_than(only: Pid) -> bool {
    let own = children_of(Pid::from_raw(own_pid())).unwrap_or_else(|_| children_by_scan(own_pid()));
    let below = || children_of(Some(only)).unwrap_or_else(|_| children_by_scan(only.as_raw_nonzero().get()));
    own.iter().any(|child| *child != only) || !below().is_empty()
}

/// Kills everything below this process once. What forks while this goes on is stopped before it is killed, so that a
/// few rounds reach all of it.
pub(crate) fn kill_all_below() {
    let below = descendants();
    for signal in [Signal::STOP, Signal::KILL] {
        for process in &below {
            // It may have ended meanwhile; its number is not given away before it is reaped, here or by its parent.
            let _ = kill_process(*process, signal);
        }
    }
}

/// Every process below this one, parents before their children.
pub(crate) fn descendants() -> Vec<Pid> {
    with_descendants(children_of(Pid::from_raw(own_pid())).unwrap_or_else(|_| children_by_scan(own_pid())))
}

/// These processes and every one below them, parents before their children.
pub(crate) fn with_descendants(mut found: Vec<Pid>) -> Vec<Pid> {
    let mut next = 0;
    while let Some(process) = found.get(next).copied() {
        next += 1;
        let children = children_of(Some(process)).unwrap_or_else(|_| children_by_scan(process.as_raw_nonzero().get()));
        for child in children {
            if !found.contains(&child) {
                found.push(child);
            }
        }
    }
    found
}

fn own_pid() -> i32 {
    rustix::process::getpid().as_raw_nonzero().get()
}

fn children_of(process: Option<Pid>) -> io::Result<Vec<Pid>> {
    let mut children = Vec::new();
    let Some(process) = process else { return Ok(children) };
    let tasks = match fs::read_dir(format!("/proc/{}/task", process.as_raw_nonzero())) {
        Ok(tasks) => tasks,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(children),
        Err(error) => return Err(error),
    };
    for task in tasks {
        let Ok(task) = task else { continue };
        match fs::read_to_string(task.path().join("children")) {
            Ok(text) => children.extend(text.split_ascii_whitespace().filter_map(parse_pid)),
            // The thread may have ended; that the file is missing while the process is there says that the kernel
            // was built without it.
            Err(error) if error.kind() == io::ErrorKind::NotFound && task.path().exists() => return Err(error),
            Err(_) => {}
        }
    }
    Ok(children)
}

/// For kernels that do not list children.
fn children_by_scan(parent: i32) -> Vec<Pid> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    entries
        .flatten()
        .filter_map(|entry| parse_pid(entry.file_name().to_str()?))
        .filter(|process| ProcessStat::read(process.as_raw_nonzero().get()).is_some_and(|stat| stat.parent == parent))
        .collect()
}

fn parse_pid(text: &str) -> Option<Pid> {
    text.parse().ok().and_then(Pid::from_raw)
}

/// What `/proc/PID/stat` says of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ProcessStat {
    pub state: u8,
    pub parent: i32,
    /// When it started, in clock ticks since boot.
    pub started_ticks: u64,
}

impl ProcessStat {
    pub(crate) fn read(pid: i32) -> Option<Self> {
        Self::parse(&fs::read(format!("/proc/{pid}/stat")).ok()?)
    }

    fn parse(stat: &[u8]) -> Option<Self> {
        // The name stands in parentheses and may itself hold some.
        let after_name = stat.iter().rposition(|byte| *byte == b')')? + 1;
        let fields = std::str::from_utf8(&stat[after_name..]).ok()?;
        let mut fields = fields.split_ascii_whitespace();
        let state = *fields.next()?.as_bytes().first()?;
        let parent = fields.next()?.parse().ok()?;
        let started_ticks = fields.nth(17)?.parse().ok()?;
        Some(Self { state, parent, started_ticks })
    }

    /// Whether the process runs, or could: not a zombie.
    pub(crate) const fn is_alive(&self) -> bool {
        !matches!(self.state, b'Z' | b'X' | b'x')
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test that fails here has failed")]

    use super::*;

    #[test]
    fn a_name_with_parentheses_is_no_trouble() {
        let stat =
            b"42 (a) R (b) S 7 42 42 0 -1 4194560 100 0 0 0 1 2 0 0 20 0 1 0 12345 1000 100 18446744073709551615";
        let parsed = ProcessStat::parse(stat).unwrap();
        assert_eq!(parsed, ProcessStat { state: b'S', parent: 7, started_ticks: 12345 });
    }

    #[test]
    fn this_process_is_alive() {
        assert!(ProcessStat::read(own_pid()).unwrap().is_alive());
    }
}
