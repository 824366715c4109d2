//! What earlier processes of the agent left in the slots.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

use anyhow::bail;
use atoll_model::session::Usage;
use atoll_model::time::Timestamp;
use site_agent_core::event::{Exit, ExitKind, FoundAttempt, FoundState, NodeId};

use super::Order;
use super::attempts::{Attempts, Place};
use super::cgroups::AgentCgroups;
use super::nodes::Hearing;
use super::slot::{Slot, SlotState};
use super::slots::{LostSlot, Slots, worker_of};
use super::strays::{self, Search, Unkillable};
use crate::nodes::Nodes;
use crate::shim::container::{LeftContainer, end_noted, remove_noted};
use crate::shim::protocol::{End, EndKind, FromShim, Hello, Key, Left, LeftOutputs, SlotCgroups, ToShim};
use crate::shim::spent::Spent;
use crate::shim::{KEPT, OUT, keep_logs, log, remove_whatever};
use crate::telemetry::Meters;

/// How long what runs may take to end when it is told to.
const STOP_PATIENCE: Duration = Duration::from_secs(10);
/// How long groups of processes that were killed are tried to be removed.
const GROUPS_PATIENCE: Duration = Duration::from_secs(1);

/// What earlier processes left.
pub(super) struct Recovered {
    pub found: Vec<FoundAttempt>,
    /// Slots in which something cannot be ended yet.
    pub stuck: Vec<LostSlot>,
}

/// Connects to the shims that live, concludes from the logs of those that do not, and ends what nobody watches over.
pub(super) fn recover(
    slots: &mut Slots,
    (nodes, orders): (Option<&Nodes>, &Receiver<Order>),
    attempts: &mut Attempts,
    meters: &Meters,
) -> anyhow::Result<Recovered> {
    let (mut found, mut stuck) = (Vec::new(), Vec::new());
    let numbers: Vec<u32> = slots.all_mut().map(|slot| slot.number).collect();
    let mut hearing =
        nodes.map(|nodes| Hearing::begin(nodes, orders, slots.all_mut().map(|slot| &*slot))).transpose()?;
    for number in numbers {
        let cgroups = slots.cgroups_of(number);
        let Some(slot) = slots.all_mut().find(|slot| slot.number == number) else { continue };
        let (path, node) = (slot.path.clone(), slot.node);
        let mut ended: Vec<(Key, End)> = Vec::new();
        let heard = match (&mut hearing, node) {
            (_, NodeId::HOME) => slot.connect()?.ok_or_else(Vec::new),
            (Some(hearing), _) => hearing.hear(slot)?,
            (None, _) => Err(conclude_unless_it_may_run(&path)?),
        };
        if let Ok(hello) = heard {
            sweep(&path, &lefts(&hello));
            ended.extend(hello.ended);
            let running = hello.running.map(|(key, since)| (key, Some(since)));
            let queued = hello.queued.into_iter().map(|key| (key, None));
            for (key, since) in running.into_iter().chain(queued) {
                let step = (key.execution.run, key.execution.step);
                if let Some(shim) = slot.shim_mut() {
                    shim.handed.push_back((key, step));
                }
                attempts.adopt(key, Place::Slot(number)).node = node;
                attempts.log_at(key, path.clone(), true);
                let state = since.map_or(FoundState::Queued, |since| FoundState::Running { since });
                found.push(FoundAttempt { execution: key.execution, attempt: key.attempt, node, state });
            }
        } else if let (Err(concluded), true) = (heard, node != NodeId::HOME) {
            ended.extend(concluded);
        } else {
            match conclude(&path, &cgroups) {
                Ok(concluded) => ended.extend(concluded),
                Err(error) if error.is::<Unkillable>() || error.is::<LeftContainer>() => {
                    tracing::error!(slot = number, %error, "a slot is out of use");
                    slot.state = SlotState::Clearing;
                    found.extend(take_as_running(number, &path, attempts)?);
                    stuck.push(LostSlot { number, node, path, cgroups });
                    continue;
                }
                Err(error) => return Err(error),
            }
        }
        for (key, end) in ended {
            meters.ended(&end.how);
            attempts.end(key, Place::Slot(number), &end);
            attempts.log_at(key, path.join(KEPT).join(key.folder()), false);
            let state = FoundState::Exited(exit(&end, 0));
            found.push(FoundAttempt { execution: key.execution, attempt: key.attempt, node, state });
        }
    }
    Ok(Recovered { found, stuck })
}

/// What was claimed in a slot that cannot be cleared still runs as far as anybody can tell.
fn take_as_running(number: u32, path: &Path, attempts: &mut Attempts) -> anyhow::Result<Vec<FoundAttempt>> {
    let contents = log::read(path)?;
    let unfinished = contents.claimed.into_iter().map(|(key, claim)| (key, claim.at));
    let ended = contents.ended.into_iter().map(|(key, end)| (key, end.started_at));
    let taken = unfinished.chain(ended).map(|(key, since)| {
        attempts.adopt(key, Place::Slot(number));
        let (node, state) = (NodeId::HOME, FoundState::Running { since });
        FoundAttempt { execution: key.execution, attempt: key.attempt, node, state }
    });
    Ok(taken.collect())
}

/// What a live shim may have in its slot for the agent.
fn lefts(hello: &Hello) -> BTreeMap<String, Left> {
    let anything = Left { outputs: LeftOutputs::Kept, stdout: true, stderr: true };
    let unfinished = hello.running.iter().map(|(key, _)| key).chain(&hello.queued);
    let unfinished = unfinished.map(|key| (key.folder(), anything.clone()));
    unfinished.chain(hello.ended.iter().map(|(key, end)| (key.folder(), end.left.clone()))).collect()
}

/// How the attempts of a slot ended whose shim is gone. Whatever of them is left is killed first.
pub(crate) fn conclude(path: &Path, cgroups: &SlotCgroups) -> anyhow::Result<Vec<(Key, End)>> {
    let contents = log::read(path)?;
    let boot = log::boot_id()?;
    let here: BTreeMap<_, _> = contents
        .claimed
        .iter()
        .filter(|(_, claim)| claim.boot == boot)
        .map(|(key, claim)| (*key, claim.clone()))
        .collect();
    if let Err(error) = end_noted(path) {
        tracing::warn!(path = %path.display(), %error, "what runs in a container is killed behind its engine's back");
    }
    strays::end(&Search { slot: path, cgroups, claims: &here })?;
    remove_noted(path)?;
    let interrupted = contents.claimed.into_iter().map(|(key, claim)| {
        let message = if claim.boot == boot {
            "the process that watched over it has died".to_owned()
        } else {
            "the machine went down while it ran".to_owned()
        };
        let left = if contents.latest == Some(key) { keep_logs(path, key) } else { Left::default() };
        (key, End { left, ..interrupted(claim.at, message) })
    });
    let ended: BTreeMap<Key, End> = contents.ended.into_iter().chain(interrupted).collect();
    settle(path, &ended);
    Ok(ended.into_iter().collect())
}

/// How the attempts of a slot have ended whose worker is lost: as its log says, and what had not ended is interrupted. Its shim
/// has given up by now, since it has not heard the agent for so long.
///
/// # Errors
/// When the log cannot be read.
pub(crate) fn conclude_lost(path: &Path) -> anyhow::Result<Vec<(Key, End)>> {
    let contents = log::read(path)?;
    let interrupted = contents.claimed.into_iter().map(|(key, claim)| {
        let left = if contents.latest == Some(key) { keep_logs(path, key) } else { Left::default() };
        (key, End { left, ..interrupted(claim.at, "the worker that ran it is lost".to_owned()) })
    });
    let ended: BTreeMap<Key, End> = contents.ended.into_iter().chain(interrupted).collect();
    settle(path, &ended);
    Ok(ended.into_iter().collect())
}

/// An agent that listens for no workers any more cannot hear what became of theirs.
fn conclude_unless_it_may_run(path: &Path) -> anyhow::Result<Vec<(Key, End)>> {
    let contents = log::read(path)?;
    if let (false, Some(worker)) = (contents.claimed.is_empty(), worker_of(path)?) {
        bail!(
            "the worker {worker} may still run what it was given in {}: start the agent with `[workers]` as before until that has ended",
            path.display()
        );
    }
    Ok(contents.ended.into_iter().collect())
}

/// Leaves a slot as what was concluded has it: the next process finds the same, even if the slot is in use again, and
/// nothing is kept that nobody will ask for.
fn settle(path: &Path, ended: &BTreeMap<Key, End>) {
    if let Err(error) = log::replace(path, ended) {
        // On a full disk the log stays as it was, and says the same.
        tracing::warn!(path = %path.display(), %error, "the log of a slot cannot be written anew");
    }
    sweep(path, &ended.iter().map(|(key, end)| (key.folder(), end.left.clone())).collect());
}

/// Removes what is kept in a slot and in nobody's name: the process that was to remove it was killed.
fn sweep(path: &Path, left: &BTreeMap<String, Left>) {
    let Ok(entries) = std::fs::read_dir(path.join(KEPT)) else { return };
    for entry in entries.flatten() {
        let left = entry.file_name().to_str().and_then(|name| left.get(name).cloned()).unwrap_or_default();
        let unwanted = if left.is_kept() { entry.path().join(OUT) } else { entry.path() };
        if left.outputs != LeftOutputs::Kept
            && let Err(error) = remove_whatever(&unwanted)
        {
            tracing::warn!(path = %unwanted.display(), %error, "what an attempt left cannot be removed");
        }
    }
}

pub(super) fn interrupted(started_at: Timestamp, message: String) -> End {
    End {
        started_at,
        finished_at: crate::clock::wall_clock(),
        how: EndKind::Interrupted { message },
        spent: Spent::default(),
        left: Left::default(),
    }
}

/// The end of an attempt, as the core is told it.
pub(super) fn exit(end: &End, bytes_in: u64) -> Exit {
    let how = match &end.how {
        EndKind::Code(code) => ExitKind::Code(*code),
        EndKind::Returned { .. } => ExitKind::Code(0),
        EndKind::Failed { reason, message } => ExitKind::Failed { reason: *reason, message: message.clone() },
        EndKind::Signal(signal) => ExitKind::Signal(*signal),
        EndKind::TimedOut => ExitKind::TimedOut,
        EndKind::OutOfMemory => ExitKind::OutOfMemory,
        EndKind::Killed => ExitKind::Killed,
        EndKind::NotStarted { message, .. } | EndKind::Interrupted { message } => {
            ExitKind::Interrupted(message.clone())
        }
    };
    let Spent { cpu_micros, max_rss_bytes, disk_read_bytes, disk_written_bytes } = end.spent;
    let usage = Usage { cpu_micros, max_rss_bytes, bytes_in, bytes_out: 0, disk_read_bytes, disk_written_bytes };
    Exit { started_at: end.started_at, finished_at: end.finished_at, how, usage }
}

/// Whether anything runs, or waits to be told of, in the slots of an agent that does not run.
///
/// # Errors
/// When a slot cannot be read.
pub(crate) fn has_work(slots_dir: &Path) -> anyhow::Result<bool> {
    let Ok(entries) = std::fs::read_dir(slots_dir) else { return Ok(false) };
    for entry in entries {
        let Some(number) = entry?.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        let mut slot = Slot::new(slots_dir, number);
        let is_here = worker_of(&slot.path)?.is_none();
        let shim = if is_here { slot.connect()? } else { None };
        let is_empty = match shim {
            Some(hello) => hello.running.is_none() && hello.queued.is_empty() && hello.ended.is_empty(),
            None => {
                let contents = log::read(&slot.path)?;
                contents.claimed.is_empty() && contents.ended.is_empty()
            }
        };
        if !is_empty {
            return Ok(true);
        }
    }
    Ok(false)
}

fn left_container(slot: &Path) {
    if let Err(error) = remove_noted(slot) {
        tracing::warn!(slot = %slot.display(), %error, "the next agent tries it again");
    }
}

/// Ends everything that runs in the slots of an agent that does not run. Its ends stay in the slots' logs
/// for the next agent.
///
/// # Errors
/// When a slot cannot be read.
pub(crate) fn stop_work(data_dir: &Path, slots_dir: &Path) -> anyhow::Result<()> {
    let Ok(entries) = std::fs::read_dir(slots_dir) else { return Ok(()) };
    for entry in entries {
        let Some(number) = entry?.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        let mut slot = Slot::new(slots_dir, number);
        if worker_of(&slot.path)?.is_some() {
            // Its worker ends it when it is ended, or its shim when it has not heard the agent for long.
            continue;
        }
        let Some(hello) = slot.connect()? else {
            left_container(&slot.path);
            continue;
        };
        let Some(shim) = slot.shim_mut() else { continue };
        let mut left: Vec<Key> = hello.queued.iter().rev().copied().collect();
        left.extend(hello.running.map(|(key, _)| key));
        left.iter().for_each(|key| shim.say(&ToShim::Kill(*key)));
        let deadline = Instant::now() + STOP_PATIENCE;
        while !left.is_empty() && Instant::now() < deadline {
            let mut frames = Vec::new();
            if shim.write().and_then(|()| shim.read(&mut frames)).is_err() {
                break;
            }
            for frame in frames {
                let FromShim::Notices(notices) = frame else { continue };
                for notice in notices {
                    use crate::shim::protocol::Notice::{Ended, GivenBack, Started};
                    match notice {
                        Ended { key, .. } | GivenBack { key, .. } => left.retain(|known| *known != key),
                        Started { .. } => {}
                    }
                }
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        // Its log says everything that it knows.
        if let Some(pid) = i32::try_from(hello.pid).ok().and_then(rustix::process::Pid::from_raw) {
            // It may have gone meanwhile.
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
        left_container(&slot.path);
    }
    let cgroups = AgentCgroups::make(data_dir);
    let deadline = Instant::now() + GROUPS_PATIENCE;
    // What was killed takes a moment to be gone.
    while !cgroups.remove() && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(2));
    }
    Ok(())
}
