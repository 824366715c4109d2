//! From what the journal holds to a core that goes on where the last one stopped.

use atoll_model::time::Timestamp;
use control_plane_core::ControlPlane;
use control_plane_core::Fact;
use control_plane_core::Snapshot;
use storage_sync_journal::BatchSeq;

use super::DriverError;

/// Version of what is written into the journal: snapshots and facts, encoded with postcard.
pub(crate) const JOURNAL_FORMAT: u16 = Snapshot::FORMAT;

pub(crate) fn recover(
    config: control_plane_core::Config,
    format: u16,
    checkpoint: Option<(BatchSeq, Vec<u8>)>,
    batches: &[(BatchSeq, Vec<u8>)],
    now: Timestamp,
) -> Result<ControlPlane, DriverError> {
    let snapshot = match checkpoint {
        Some((batch, mut bytes)) => {
            Snapshot::upgrade(format, &mut bytes);
            let what = || format!("the checkpoint after {batch}");
            let snapshot = postcard::from_bytes::<Snapshot>(&bytes);
            Some(snapshot.map_err(|source| DriverError::Decode { what: what(), source })?)
        }
        None => None,
    };
    let mut facts = Vec::new();
    for (batch, bytes) in batches {
        decode(bytes, &mut facts).map_err(|source| DriverError::Decode { what: batch.to_string(), source })?;
    }
    Ok(ControlPlane::recover(config, snapshot, facts, now))
}

/// Reads the facts of a batch, which stand one after the other.
pub(super) fn decode(mut bytes: &[u8], facts: &mut Vec<Fact>) -> Result<(), postcard::Error> {
    while !bytes.is_empty() {
        let (fact, rest) = postcard::take_from_bytes(bytes)?;
        facts.push(fact);
        bytes = rest;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_checkpoint_of_an_earlier_format_is_read_and_one_that_is_cut_is_named() {
        let core = ControlPlane::recover(control_plane_core::Config::default(), None, [], Timestamp::ZERO);
        let written = postcard::to_stdvec(&core.snapshot()).expect("encoded");
        // Of nothing each part is one byte. The first format ended before the tags of runs, the second before what people let
        // go of when a rule asked, and one of its time also before when a backup was restored; the third before versions of
        // actions and what sites refuse, which are three parts.
        let before = |parts: usize| &written[..written.len() - parts];
        let (first, second, early_second, third) = (before(20), before(6), before(7), before(3));
        let config = control_plane_core::Config::default;
        let recover =
            |format, bytes: &[u8]| recover(config(), format, Some((BatchSeq(7), bytes.to_vec())), &[], Timestamp::ZERO);
        assert_eq!(recover(1, first).expect("read").snapshot(), core.snapshot());
        assert_eq!(recover(2, second).expect("read").snapshot(), core.snapshot());
        assert_eq!(recover(2, early_second).expect("read").snapshot(), core.snapshot());
        assert_eq!(recover(3, third).expect("read").snapshot(), core.snapshot());
        assert_eq!(recover(JOURNAL_FORMAT, &written).expect("read").snapshot(), core.snapshot());
        // Restored once, when the clock stood at a microsecond.
        let restored = [early_second, &[1, 2]].concat();
        let now = recover(JOURNAL_FORMAT, &[&restored[..], &[0, 0, 0, 0, 0, 0]].concat()).expect("read").snapshot();
        assert_eq!(recover(2, &restored).expect("read").snapshot(), now);
        assert_ne!(now, core.snapshot());
        let message = recover(JOURNAL_FORMAT, first).expect_err("cut").to_string();
        assert!(message.contains("the checkpoint after batch 7"), "{message}");
    }
}
