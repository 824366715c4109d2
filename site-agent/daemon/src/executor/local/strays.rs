//! Ends what is left of attempts whose shim has died, so that no attempt ever runs beside its successor.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::shim::log::Claim;
use crate::shim::protocol::{Key, SlotCgroups};
use crate::shim::tree::{ProcessStat, with_descendants};

use super::cgroups;

/// What a kernel does not end within this long waits for something, a file system that is away or a freezer: whoever asked
/// goes on, and asks again.
const PATIENCE: Duration = Duration::from_secs(5);
const PAUSE_MAX: Duration = Duration::from_millis(50);
/// Clock ticks of `/proc/PID/stat` on Linux: 100 a second, whatever the kernel's own.
const MICROS_PER_TICK: u64 = 10_000;

/// Processes that could not be killed.
#[derive(Debug, thiserror::Error)]
#[error("processes {0:?} of a slot whose shim has died cannot be ended")]
pub(super) struct Unkillable(Vec<i32>);

/// Where the strays of a slot may be found.
#[derive(Debug)]
pub(super) struct Search<'a> {
    pub slot: &'a Path,
    pub cgroups: &'a SlotCgroups,
    /// What was claimed in this boot of the machine and is not known to have ended.
    pub claims: &'a BTreeMap<Key, Claim>,
}

/// Kills everything that the slot's attempts started and that is still there. Blocks until it is gone.
pub(super) fn end(search: &Search<'_>) -> Result<(), Unkillable> {
    let deadline = Instant::now() + PATIENCE;
    let mut pause = Duration::from_millis(1);
    loop {
        let strays = find(search);
        if strays.is_empty() {
            return Ok(());
        }
        if Instant::now() >= deadline {
            return Err(Unkillable(strays.iter().map(|pid| pid.as_raw_nonzero().get()).collect()));
        }
        for signal in [Signal::STOP, Signal::KILL] {
            for pid in &strays {
                // It may have ended meanwhile.
                let _ = kill_process(*pid, signal);
            }
        }
        thread::sleep(pause);
        pause = (pause * 2).min(PAUSE_MAX);
    }
}

fn find(search: &Search<'_>) -> Vec<Pid> {
    let mut found: BTreeSet<i32> = BTreeSet::new();
    for folder in cgroups::folders(search.cgroups) {
        let members = fs::read_to_string(folder.join("cgroup.procs")).unwrap_or_default();
        found.extend(members.lines().filter_map(|line| line.trim().parse::<i32>().ok()));
    }
    // Of two agents on one machine each is to end its own.
    let slot = fs::canonicalize(search.slot).unwrap_or_else(|_| search.slot.to_owned());
    let Ok(processes) = fs::read_dir("/proc") else { return Vec::new() };
    for process in processes.flatten() {
        let Some(pid) = process.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else { continue };
        let belongs = || {
            search.claims.values().any(|claim| is_claimed(pid, claim))
                || fs::read_link(process.path().join("cwd")).is_ok_and(|folder| folder.starts_with(&slot))
                || bears_mark(&process.path(), &slot)
        };
        if belongs() {
            found.insert(pid);
        }
    }
    let own = i32::try_from(std::process::id()).unwrap_or_default();
    let found = found.into_iter().filter_map(Pid::from_raw).collect();
    with_descendants(found)
        .into_iter()
        .filter(|pid| {
            let pid = pid.as_raw_nonzero().get();
            pid != own && ProcessStat::read(pid).is_some_and(|stat| stat.is_alive())
        })
        .collect()
}

/// Whether this is the very process that was claimed, and not another that was given its number since.
fn is_claimed(pid: i32, claim: &Claim) -> bool {
    let Some((claimed, spawned)) = claim.spawned.filter(|(claimed, _)| i32::try_from(*claimed) == Ok(pid)) else {
        return false;
    };
    let window = claim.clock / MICROS_PER_TICK..=spawned / MICROS_PER_TICK + 1;
    claimed > 0 && ProcessStat::read(pid).is_some_and(|stat| window.contains(&stat.started_ticks))
}

/// Whether the environment of a process names the slot's folder for outputs as its own.
fn bears_mark(process: &Path, slot: &Path) -> bool {
    let Ok(environment) = fs::read(process.join("environ")) else { return false };
    let outputs = environment.split(|byte| *byte == 0).find_map(|variable| variable.strip_prefix(b"ATOLL_OUTPUTS="));
    let folder = outputs.and_then(|path| Path::new(OsStr::from_bytes(path)).parent());
    folder.is_some_and(|folder| folder == slot || fs::canonicalize(folder).is_ok_and(|folder| folder == slot))
}
