//! From what the journal holds to a core that goes on where the last one stopped.

use atoll_model::time::Timestamp;
use control_plane_core::ControlPlane;
use control_plane_core::Fact;
use control_plane_core::Snapshot;
use storage_sync_journal::BatchSeq;

use super::DriverError;

/// Version of what is written into the journal: snapshots and facts, encoded with postcard.
pub(crate) const JOURNAL_FORMAT: u16 = 1;

pub(super) fn recover(
    config: control_plane_core::Config,
    checkpoint: Option<&(BatchSeq, Vec<u8>)>,
    batches: &[(BatchSeq, Vec<u8>)],
    now: Timestamp,
) -> Result<ControlPlane, DriverError> {
    let snapshot = match checkpoint {
        Some((batch, bytes)) => Some(
            postcard::from_bytes::<Snapshot>(bytes)
                .map_err(|source| DriverError::Decode { what: format!("the checkpoint after {batch}"), source })?,
        ),
        None => None,
    };
    let mut facts = Vec::new();
    for (batch, bytes) in batches {
        decode(bytes, &mut facts).map_err(|source| DriverError::Decode { what: batch.to_string(), source })?;
    }
    Ok(ControlPlane::recover(config, snapshot, facts, now))
}

/// Reads the facts of a batch, which stand one after the other.
fn decode(mut bytes: &[u8], facts: &mut Vec<Fact>) -> Result<(), postcard::Error> {
    while !bytes.is_empty() {
        let (fact, rest) = postcard::take_from_bytes(bytes)?;
        facts.push(fact);
        bytes = rest;
    }
    Ok(())
}
