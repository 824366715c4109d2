//! Where the ranges of a fetch come from.

use std::sync::atomic::{AtomicU64, Ordering};

use super::http::{RangeError, Source};
use crate::direct::Session;

pub(super) enum Origin<'a> {
    Bucket {
        source: Source<'a>,
        requests_max: usize,
    },
    /// With the count of what came from there.
    Direct {
        session: Session,
        wire_bytes: &'a AtomicU64,
        direct_bytes: &'a AtomicU64,
    },
}

impl Origin<'_> {
    pub(super) fn requests_max(&self) -> usize {
        match self {
            Self::Bucket { requests_max, .. } => *requests_max,
            Self::Direct { session, .. } => session.requests_max(),
        }
    }

    /// The length of the stream, as whoever has it says.
    pub(super) async fn stream_bytes(&self) -> Result<u64, RangeError> {
        match self {
            Self::Bucket { source, .. } => source.url(None).await.map(|(_, download)| download.stream_bytes),
            Self::Direct { session, .. } => Ok(session.stream_bytes),
        }
    }

    /// The bytes from `start` to `end`.
    pub(super) async fn range(&self, start: u64, end: u64) -> Result<Vec<u8>, RangeError> {
        match self {
            Self::Bucket { source, .. } => source.range(start, end).await,
            Self::Direct { session, wire_bytes, direct_bytes } => {
                let received = session.range(start, end).await;
                let (bytes, wire) = received.map_err(|error| RangeError::Lost(error.to_string()))?;
                wire_bytes.fetch_add(wire, Ordering::Relaxed);
                direct_bytes.fetch_add(wire, Ordering::Relaxed);
                Ok(bytes)
            }
        }
    }
}
