//! The time that the core is given: it never goes back, and never jumps.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use atoll_model::time::Timestamp;

/// Follows the wall clock, but makes up for a difference by going at most a tenth faster or slower: a clock that somebody
/// sets must not end every lease at once.
#[derive(Debug)]
pub(crate) struct Clock {
    now: Timestamp,
    read_at: Instant,
}

impl Clock {
    /// Starts at the wall clock's time, or at `not_before` if that is later.
    pub(crate) fn start(not_before: Timestamp) -> Self {
        Self { now: wall_clock().max(not_before), read_at: Instant::now() }
    }

    pub(crate) fn read(&mut self) -> Timestamp {
        let read_at = Instant::now();
        let elapsed = read_at.saturating_duration_since(self.read_at);
        self.read_at = read_at;
        self.now = follow(self.now, elapsed, wall_clock());
        self.now
    }
}

fn follow(before: Timestamp, elapsed: Duration, wall: Timestamp) -> Timestamp {
    let steady = before + elapsed;
    let slew = elapsed / 10;
    if wall >= steady { wall.min(steady + slew) } else { wall.max(steady - slew) }
}

pub(crate) fn wall_clock() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp::ZERO + since
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wall_clock_that_jumps_is_followed_slowly_and_never_backwards() {
        let before = Timestamp::from_micros(1_000_000_000);
        let second = Duration::from_secs(1);
        assert_eq!(follow(before, second, before + second), before + second);
        assert_eq!(follow(before, second, before + 3_600 * second), before + second + second / 10);
        assert_eq!(follow(before, second, before - 3_600 * second), before + second - second / 10);
        assert_eq!(follow(before, Duration::ZERO, before - second), before);
    }
}
