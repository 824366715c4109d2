//! What the site has, and what it is busy with.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use atoll_model::limits::MOVING_TOLD_MAX;
use atoll_model::resources::Capacity;
use atoll_model::session::{Heartbeat, Moving, Other};
use atoll_model::value::ObjectRef;
use site_agent_core::{Event, Pilots};
use storage_sync_engine::transfer::{Transfers, Underway};
use sysinfo::System;
use tokio_util::sync::CancellationToken;

use crate::clock::wall_clock;
use crate::config::Config;
use crate::driver::Inbox;
use crate::executor::batch::BatchWait;
use crate::executor::local::{Ledger, counted};
use crate::telemetry::{Meters, level};

const INTERVAL: Duration = Duration::from_secs(2);
const INTERVAL_MIN: Duration = Duration::from_millis(250);
/// A site takes no new work once its disk is this full (E1).
const FULL_PERCENT: u64 = 90;
/// What is left of the machine's memory for everything else.
const MEMORY_OFFERED_PERCENT: u64 = 90;

/// What the site offers to work.
pub(crate) fn capacity(config: &Config) -> Capacity {
    // A cluster is as large as its administrator says; unless he does, each job that may be in its queue has a CPU there,
    // and as much memory as this machine.
    let jobs = config.jobs_max();
    let cpus = jobs.unwrap_or_else(|| {
        std::thread::available_parallelism().map_or(1, |cpus| u32::try_from(cpus.get()).unwrap_or(u32::MAX))
    });
    let machines = u64::from(jobs.unwrap_or(1));
    Capacity {
        cpu_millis: config.cpu_millis.unwrap_or_else(|| cpus.saturating_mul(1_000)),
        memory_bytes: config
            .memory_bytes
            .unwrap_or_else(|| (total_memory() / 100 * MEMORY_OFFERED_PERCENT).saturating_mul(machines)),
        disk_free_bytes: disk(&config.data_dir).map_or(0, |(free, _)| free),
        gpus: counted(config.gpus.as_deref().unwrap_or_default()),
        named: config.resources.clone(),
    }
}

/// What a machine offers to work that no agent runs on.
pub(crate) fn of_machine(cpu_millis: Option<u32>, memory_bytes: Option<u64>) -> Capacity {
    let cpus = || std::thread::available_parallelism().map_or(1, |cpus| u32::try_from(cpus.get()).unwrap_or(u32::MAX));
    Capacity {
        cpu_millis: cpu_millis.unwrap_or_else(|| cpus().saturating_mul(1_000)),
        memory_bytes: memory_bytes.unwrap_or_else(|| total_memory() / 100 * MEMORY_OFFERED_PERCENT),
        ..Capacity::default()
    }
}

/// What pilots are for, where there may be any.
pub(crate) fn pilots(config: &Config) -> Option<Pilots> {
    let settings = config.pilots()?;
    let capacity = of_machine(Some(settings.cpus.saturating_mul(1_000)), Some(settings.offered_memory()));
    Some(Pilots { max: settings.max, capacity, short: settings.short })
}

/// Bytes of the file system that the site keeps its data on.
pub(crate) fn disk_bytes(config: &Config) -> u64 {
    disk(&config.data_dir).map_or(0, |(_, all)| all)
}

fn total_memory() -> u64 {
    let Ok(mut system) = System::new() else { return 0 };
    system.refresh_memory();
    system.total_memory()
}

/// Why the site takes no new work, if one of the disks that it works on is nearly full.
fn full_disk(config: &Config) -> Option<String> {
    [Some(&config.data_dir), config.work_dir.as_ref()].into_iter().flatten().find_map(|folder| {
        let (free, all) = disk(folder).unwrap_or((0, 1));
        let is_full = free.saturating_mul(100) < all.saturating_mul(100 - FULL_PERCENT);
        is_full.then(|| {
            let folder = folder.display();
            format!("the disk of {folder} is more than {FULL_PERCENT} % full: {free} of {all} bytes are free")
        })
    })
}

/// Bytes of room on the file system of a folder: free for this user, and in all, which is what is used and what is free:
/// a file system may be larger than what anybody may use of it.
fn disk(folder: &Path) -> std::io::Result<(u64, u64)> {
    let found = rustix::fs::statvfs(folder)?;
    let used = found.f_blocks.saturating_sub(found.f_bfree);
    Ok((found.f_bavail * found.f_frsize, (used + found.f_bavail) * found.f_frsize))
}

/// Measures again and again, and tells the core.
pub(crate) async fn keep_measuring(
    config: Config,
    transfers: Transfers,
    inbox: Inbox,
    meters: Arc<Meters>,
    (batch_wait, ledger): (BatchWait, Ledger),
    shutdown: CancellationToken,
) {
    let mut offered = capacity(&config);
    let mut rates = Rates::default();
    let store = transfers.store().clone();
    loop {
        offered.disk_free_bytes = disk(&config.data_dir).map_or(0, |(free, _)| free);
        let closed = config.closed.clone().or_else(|| full_disk(&config));
        let stats = store.stats();
        meters.copied_bytes.inc_by(stats.bytes_copied.saturating_sub(meters.copied_bytes.get()));
        let load = System::load_average().map_or(0.0, |load| load.one);
        let heartbeat = Heartbeat {
            sent_at: wall_clock(),
            wall_clock: wall_clock(),
            capacity: offered.clone(),
            running: 0,
            queued: 0,
            store_objects: stats.objects,
            store_bytes: stats.bytes,
            load_millis: (load * 1_000.0) as u32,
            closed,
            moving: rates.look(&transfers.underway()),
            batch_wait: batch_wait.get(),
            waiting: batch_wait.waiting(),
            deployed: ledger.told(),
        };
        show(&meters, &heartbeat);
        inbox.tell(vec![Event::Measured { heartbeat }]);
        // How far an action is, is told without delay, but not more often than it can be read.
        let changed = async {
            tokio::time::sleep(INTERVAL_MIN).await;
            ledger.changed().await;
        };
        tokio::select! {
            () = tokio::time::sleep(INTERVAL) => {}
            () = changed => {}
            () = shutdown.cancelled() => return,
        }
    }
}

/// How fast objects move: since the last look, which is what people expect to see.
#[derive(Default)]
struct Rates {
    seen: BTreeMap<(ObjectRef, bool), (Instant, u64)>,
}

impl Rates {
    /// The largest of those that are going on.
    fn look(&mut self, underway: &[Underway]) -> Vec<Moving> {
        let now = Instant::now();
        let before = std::mem::take(&mut self.seen);
        let mut moving = Vec::with_capacity(underway.len());
        for one in underway {
            let key = (one.object, one.pushed);
            self.seen.insert(key, (now, one.arrived_bytes));
            let last = before.get(&key).filter(|(_, bytes)| *bytes <= one.arrived_bytes);
            let (took, bytes) = last.map_or((one.since, one.arrived_bytes), |(at, bytes)| {
                (now.duration_since(*at), one.arrived_bytes - bytes)
            });
            let other = match one.holder {
                _ if one.pushed => Other::ToBucket,
                Some(agent) => Other::FromAgent(agent),
                None => Other::FromBucket,
            };
            moving.push(Moving {
                object: one.object.id,
                other,
                bytes: one.missing_bytes,
                moved_bytes: one.arrived_bytes,
                bytes_per_second: (bytes as f64 / took.as_secs_f64().max(0.001)) as u64,
            });
        }
        moving.sort_by_key(|moving| std::cmp::Reverse(moving.bytes));
        moving.truncate(MOVING_TOLD_MAX);
        moving
    }
}

fn show(meters: &Meters, measured: &Heartbeat) {
    meters.store_objects.set(level(measured.store_objects));
    meters.store_bytes.set(level(measured.store_bytes));
    meters.disk_free_bytes.set(level(measured.capacity.disk_free_bytes));
    meters.cpu_millis_offered.set(level(measured.capacity.cpu_millis));
    meters.memory_bytes_offered.set(level(measured.capacity.memory_bytes));
    meters.load_millis.set(level(measured.load_millis));
    meters.closed.set(measured.closed.is_some().into());
}
