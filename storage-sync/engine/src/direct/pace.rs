//! No more bytes of a second than the site's administrator allows.

use std::time::{Duration, Instant};

use tokio::sync::Mutex;

/// What may be sent at once after a pause.
const BURST: Duration = Duration::from_millis(50);

#[derive(Debug)]
pub(super) struct Pace {
    bytes_per_second: Option<u64>,
    /// When all that was let through so far would have been sent.
    due: Mutex<Instant>,
}

impl Pace {
    pub(super) fn new(bytes_per_second: Option<u64>) -> Self {
        Self { bytes_per_second: bytes_per_second.map(|rate| rate.max(1)), due: Mutex::new(Instant::now()) }
    }

    /// Waits until so many bytes may go.
    pub(super) async fn pass(&self, bytes: usize) {
        let Some(rate) = self.bytes_per_second else { return };
        let until = {
            let mut due = self.due.lock().await;
            let earliest = Instant::now().checked_sub(BURST).unwrap_or(*due);
            let begin = (*due).max(earliest);
            *due = begin + Duration::from_secs_f64(bytes as f64 / rate as f64);
            begin
        };
        tokio::time::sleep_until(until.into()).await;
    }
}
