//! Where the ranges of a fetch come from.

use std::sync::atomic::{AtomicU64, Ordering};

use super::filler::Filler;
use super::http::{RangeError, Source};
use crate::buffers::{Buffer, Pool};
use crate::direct::Session;
use crate::hash::SEGMENT_BYTES;

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

    /// What is asked for at a time of a large file.
    pub(super) fn range_bytes(&self) -> u64 {
        match self {
            Self::Bucket { .. } => SEGMENT_BYTES,
            Self::Direct { session, .. } => session.range_bytes,
        }
    }

    /// The length of the stream, as whoever has it says.
    pub(super) async fn stream_bytes(&self) -> Result<u64, RangeError> {
        match self {
            Self::Bucket { source, .. } => source.url(None).await.map(|(_, download)| download.stream_bytes),
            Self::Direct { session, .. } => Ok(session.stream_bytes),
        }
    }

    /// Brings the bytes from `start` on, as many as `filler` wants.
    pub(super) async fn bring(&self, start: u64, mut filler: Filler) -> Result<(), RangeError> {
        if filler.left() == 0 {
            return Ok(());
        }
        match self {
            Self::Bucket { source, .. } => source.bring(start, &mut filler).await,
            Self::Direct { session, wire_bytes, direct_bytes } => {
                let count = |bytes| {
                    wire_bytes.fetch_add(bytes, Ordering::Relaxed);
                    direct_bytes.fetch_add(bytes, Ordering::Relaxed);
                };
                session.bring(start, filler, &count).await.map_err(|error| RangeError::Lost(error.to_string()))
            }
        }
    }

    /// The bytes from `start` to `end`, all at once.
    pub(super) async fn range(&self, start: u64, end: u64) -> Result<Buffer, RangeError> {
        let length = (end - start) as usize;
        let (filler, mut parts) = Filler::new(&Pool::new(0), end - start, length);
        let (brought, whole) = futures::join!(self.bring(start, filler), parts.recv());
        brought?;
        whole.ok_or_else(|| RangeError::Lost("nothing came".to_owned()))
    }
}
