//! The time that the core is given: it never goes back, and goes on while the machine is suspended.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use atoll_model::time::Timestamp;
use rustix::time::{ClockId, clock_gettime};

/// Starts at the wall clock's time, and goes on with the time since boot: leases are durations, and a wall clock that
/// somebody sets must not end them.
#[derive(Debug)]
pub(crate) struct Clock {
    start: Timestamp,
    booted_before: Duration,
}

impl Clock {
    pub(crate) fn start() -> Self {
        Self { start: wall_clock(), booted_before: since_boot() }
    }

    /// When the machine was started, by this clock.
    pub(crate) fn booted_at(&self) -> Timestamp {
        self.start - self.booted_before
    }

    pub(crate) fn read(&self) -> Timestamp {
        self.start + since_boot().saturating_sub(self.booted_before)
    }
}

fn since_boot() -> Duration {
    let now = clock_gettime(ClockId::Boottime);
    Duration::new(u64::try_from(now.tv_sec).unwrap_or(0), u32::try_from(now.tv_nsec).unwrap_or(0))
}

pub(crate) fn wall_clock() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp::ZERO + since
}
