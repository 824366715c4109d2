//! What is known of the way to each holder: measured with what was fetched, and kept over restarts.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use atoll_model::id::AgentId;
use serde::{Deserialize, Serialize};

use super::Transport;

/// Less than this says more of the beginning of a connection than of the link.
pub(super) const TELLING_BYTES: u64 = 16 << 20;
/// A new measure counts for so much.
const WEIGHT: f64 = 0.4;
/// So many fetches after it was last tried, the slower way is tried again.
const TRY_AGAIN_AFTER: u32 = 50;

/// What is known of the way to one holder.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Measured {
    pub round_trip: Option<Duration>,
    /// Bytes of a second.
    pub quic: Option<f64>,
    pub tcp: Option<f64>,
    /// Fetches since the slower way was tried.
    since_trial: u32,
}

/// Kept in a file, if one is named.
#[derive(Debug)]
pub(super) struct Links {
    file: Option<PathBuf>,
    known: Mutex<BTreeMap<AgentId, Measured>>,
}

/// Which way to go, and whether it is to find out about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Choice {
    pub(super) transport: Transport,
    /// It is given up if it is slower than this, in bytes of a second.
    pub(super) floor: Option<u64>,
}

impl Measured {
    fn of(&self, transport: Transport) -> Option<f64> {
        match transport {
            Transport::Quic => self.quic,
            Transport::Tcp => self.tcp,
        }
    }

    fn choose(&self, bytes: u64) -> Choice {
        let by_measure = match (self.tcp, self.quic) {
            (Some(tcp), Some(quic)) if quic > tcp => (Transport::Quic, Transport::Tcp),
            // Nothing is known, or TCP is as fast: on a fast link it costs the processor a third.
            (_, None) | (None, _) | (Some(_), Some(_)) => (Transport::Tcp, Transport::Quic),
        };
        let (best, other) = by_measure;
        let Some(known) = self.of(best) else { return Choice { transport: best, floor: None } };
        let wants_trial = self.of(other).is_none() || self.since_trial >= TRY_AGAIN_AFTER;
        if wants_trial && bytes >= TELLING_BYTES {
            return Choice { transport: other, floor: Some((known / 2.0) as u64) };
        }
        Choice { transport: best, floor: None }
    }

    /// The fastest that was seen, in bytes of a second.
    pub fn best(&self) -> Option<f64> {
        match (self.tcp, self.quic) {
            (Some(tcp), Some(quic)) => Some(tcp.max(quic)),
            (tcp, quic) => tcp.or(quic),
        }
    }
}

impl Links {
    /// What cannot be read is measured again.
    pub(super) fn open(file: Option<PathBuf>) -> Self {
        let content = file.as_deref().and_then(|file| std::fs::read(file).ok());
        let known = content.and_then(|content| serde_json::from_slice(&content).ok()).unwrap_or_default();
        Self { file, known: Mutex::new(known) }
    }

    fn known(&self) -> MutexGuard<'_, BTreeMap<AgentId, Measured>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn of(&self, holder: AgentId) -> Measured {
        self.known().get(&holder).cloned().unwrap_or_default()
    }

    /// How to fetch so many bytes.
    pub(super) fn choose(&self, holder: AgentId, bytes: u64) -> Choice {
        let mut known = self.known();
        let measured = known.entry(holder).or_default();
        measured.since_trial = measured.since_trial.saturating_add(1);
        measured.choose(bytes)
    }

    pub(super) fn learn_round_trip(&self, holder: AgentId, round_trip: Duration) {
        self.known().entry(holder).or_default().round_trip = Some(round_trip);
    }

    pub(super) fn learn(&self, holder: AgentId, transport: Transport, bytes: u64, took: Duration) {
        if bytes < TELLING_BYTES || took.is_zero() {
            return;
        }
        let rate = bytes as f64 / took.as_secs_f64();
        let mut known = self.known();
        let measured = known.entry(holder).or_default();
        let of_best = measured.best();
        let place = match transport {
            Transport::Quic => &mut measured.quic,
            Transport::Tcp => &mut measured.tcp,
        };
        let fresh = place.map_or(rate, |before| before + WEIGHT * (rate - before));
        *place = Some(fresh);
        if of_best.is_none_or(|best| fresh < best) {
            measured.since_trial = 0;
        }
        let content = serde_json::to_vec(&*known).expect("measures have an encoding");
        drop(known);
        if let Some(file) = &self.file
            && let Err(error) = write(file, &content)
        {
            tracing::debug!(%error, "what was measured of links is not kept");
        }
    }
}

fn write(file: &Path, content: &[u8]) -> std::io::Result<()> {
    let temporary = file.with_extension("new");
    std::fs::write(&temporary, content)?;
    std::fs::rename(&temporary, file)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOLDER: AgentId = AgentId::from_bits(1);
    const LARGE: u64 = 1 << 30;

    #[test]
    fn both_ways_are_measured_and_the_faster_is_taken() {
        let links = Links::open(None);
        assert_eq!(links.choose(HOLDER, LARGE), Choice { transport: Transport::Tcp, floor: None });
        links.learn(HOLDER, Transport::Tcp, LARGE, Duration::from_secs(10));
        let trial = Choice { transport: Transport::Quic, floor: Some(LARGE / 20) };
        assert_eq!(links.choose(HOLDER, LARGE), trial);
        assert_eq!(links.choose(HOLDER, 1), Choice { transport: Transport::Tcp, floor: None }, "too small to tell");
        links.learn(HOLDER, Transport::Quic, LARGE, Duration::from_secs(5));
        assert_eq!(links.choose(HOLDER, LARGE).transport, Transport::Quic);
        let tried = (0..TRY_AGAIN_AFTER + 1).any(|_| links.choose(HOLDER, LARGE).transport == Transport::Tcp);
        assert!(tried, "the slower is tried again now and then");
    }

    #[test]
    fn what_was_measured_outlives_the_process() -> std::io::Result<()> {
        let folder = tempfile::tempdir()?;
        let file = folder.path().join("links.json");
        let links = Links::open(Some(file.clone()));
        links.learn(HOLDER, Transport::Tcp, LARGE, Duration::from_secs(10));
        assert_eq!(Links::open(Some(file)).of(HOLDER), links.of(HOLDER));
        Ok(())
    }
}
