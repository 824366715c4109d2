//! How long work waits for the cluster: placement is told, so that it can go where it begins sooner.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use atoll_model::session::WaitingJob;

/// Jobs whose wait is remembered: the median of so many follows a cluster's day.
const RECENT_MAX: usize = 15;
/// What was seen longer ago says nothing of the queue of now.
const RECENT_FOR: Duration = Duration::from_secs(3_600);
/// While nothing is known.
const UNKNOWN: u64 = u64::MAX;

/// What the wait is now, and what is waited for, for whoever has a copy of this. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct BatchWait(Arc<Told>);

#[derive(Debug)]
struct Told {
    millis: AtomicU64,
    waiting: Mutex<Vec<WaitingJob>>,
}

impl BatchWait {
    /// Of which nothing is known yet.
    pub(crate) fn new() -> Self {
        Self(Arc::new(Told { millis: AtomicU64::new(UNKNOWN), waiting: Mutex::default() }))
    }

    /// What waits, and for what.
    pub(crate) fn waiting(&self) -> Vec<WaitingJob> {
        self.0.waiting.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn set_waiting(&self, waiting: Vec<WaitingJob>) {
        *self.0.waiting.lock().unwrap_or_else(PoisonError::into_inner) = waiting;
    }

    pub(crate) fn get(&self) -> Option<Duration> {
        let millis = self.0.millis.load(Ordering::Relaxed);
        (millis != UNKNOWN).then(|| Duration::from_millis(millis))
    }

    pub(super) fn set(&self, wait: Option<Duration>) {
        let millis = wait.map_or(UNKNOWN, |wait| u64::try_from(wait.as_millis()).unwrap_or(UNKNOWN - 1));
        self.0.millis.store(millis, Ordering::Relaxed);
    }
}

/// The waits of the jobs that began last.
#[derive(Debug, Default)]
pub(super) struct Waits {
    recent: VecDeque<(Instant, Duration)>,
}

impl Waits {
    /// A job has begun that waited so long.
    pub(super) fn begun(&mut self, wait: Duration, now: Instant) {
        self.recent.push_back((now, wait));
        if self.recent.len() > RECENT_MAX {
            self.recent.pop_front();
        }
    }

    /// How long the next job will wait: as the last ones did, and no less than the one has waited that waits longest.
    pub(super) fn expected(&mut self, longest: Option<Duration>, now: Instant) -> Option<Duration> {
        self.recent.retain(|(at, _)| now.saturating_duration_since(*at) <= RECENT_FOR);
        let mut waits: Vec<Duration> = self.recent.iter().map(|(_, wait)| *wait).collect();
        waits.sort_unstable();
        waits.get(waits.len() / 2).copied().max(longest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn what_is_expected_is_what_the_last_jobs_waited_or_what_one_waits_already() {
        let (mut waits, begin) = (Waits::default(), Instant::now());
        assert_eq!(waits.expected(None, begin), None);
        assert_eq!(waits.expected(Some(seconds(7)), begin), Some(seconds(7)));
        [1, 90, 2].iter().for_each(|wait| waits.begun(seconds(*wait), begin));
        assert_eq!(waits.expected(None, begin), Some(seconds(2)), "one that waited long is no rule");
        assert_eq!(waits.expected(Some(seconds(1)), begin), Some(seconds(2)));
        assert_eq!(waits.expected(Some(seconds(600)), begin), Some(seconds(600)), "the queue stands still");
        (0..RECENT_MAX).for_each(|_| waits.begun(seconds(30), begin + seconds(3_000)));
        assert_eq!(waits.expected(None, begin + seconds(3_600)), Some(seconds(30)), "the first are forgotten");
        assert_eq!(waits.expected(None, begin + seconds(6_601)), None, "an hour later it says nothing");
    }

    #[test]
    fn what_is_known_is_told_and_nothing_is_told_as_nothing() {
        let told = BatchWait::new();
        assert_eq!(told.get(), None);
        told.clone().set(Some(Duration::from_millis(1_500)));
        assert_eq!(told.get(), Some(Duration::from_millis(1_500)));
        told.set(None);
        assert_eq!(told.get(), None);
    }
}
