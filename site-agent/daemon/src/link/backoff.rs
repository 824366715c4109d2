//! How long to wait before the next connection.

use std::time::Duration;

const FIRST: Duration = Duration::from_millis(250);
const SHORTEST: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(64);
/// A connection that held for so long was a good one: the next starts from the beginning.
const STEADY: Duration = Duration::from_secs(30);

/// The first try follows at once, or nearly; then a second, doubled up to a minute. Each wait is spread over its second
/// half, so that agents which lost the same server do not come back as one.
#[derive(Debug, Default)]
pub(super) struct Backoff {
    failures: u32,
}

impl Backoff {
    /// How long to wait, after a connection that was held for `held`; `random` is anywhere in 0..1.
    pub(super) fn next(&mut self, held: Option<Duration>, random: f64) -> Duration {
        if held.is_some_and(|held| held >= STEADY) {
            self.failures = 0;
        }
        let longest = match self.failures {
            0 => FIRST,
            failures => SHORTEST.saturating_mul(1 << (failures - 1).min(6)).min(LONGEST),
        };
        self.failures += 1;
        longest.mul_f64(0.5 + random / 2.0)
    }
}

/// Anywhere in 0..1.
pub(super) fn random() -> f64 {
    let mut bytes = [0u8; 4];
    // Without random numbers agents wait equally long, which is all that is lost.
    let _ = aws_lc_rs::rand::fill(&mut bytes);
    f64::from(u32::from_le_bytes(bytes)) / f64::from(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn c7_waits_double_from_one_second_to_sixty_four_after_a_first_quick_try() {
        let mut backoff = Backoff::default();
        let waits = (0..9).map(|_| backoff.next(None, 1.0).as_millis()).collect::<Vec<_>>();
        assert_eq!(waits, [250, 1_000, 2_000, 4_000, 8_000, 16_000, 32_000, 64_000, 64_000]);
    }

    #[test]
    fn c7_a_flapping_link_goes_on_waiting_and_a_steady_one_begins_anew() {
        let mut backoff = Backoff::default();
        let short = Some(Duration::from_secs(1));
        assert_eq!((0..6).map(|_| backoff.next(short, 1.0)).last(), Some(Duration::from_secs(16)));
        assert_eq!(backoff.next(Some(STEADY), 1.0), FIRST);
    }

    #[test]
    fn c7_waits_are_spread_over_their_second_half() {
        let wait = |random| {
            let mut backoff = Backoff { failures: 3 };
            backoff.next(None, random)
        };
        assert_eq!((wait(0.0), wait(1.0)), (Duration::from_secs(2), Duration::from_secs(4)));
        assert!((0.0..=1.0).contains(&random()));
    }
}
