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
    use atoll_model::workflow::Work;
    use control_plane_core::view::{RunFilter, RunState};

    use super::*;

    #[test]
    fn a_checkpoint_of_an_earlier_format_is_read_and_one_that_is_cut_is_named() {
        let core = ControlPlane::recover(control_plane_core::Config::default(), None, [], Timestamp::ZERO);
        let written = postcard::to_stdvec(&core.snapshot()).expect("encoded");
        // Of nothing each part is one byte. The first format ended before the tags of runs, the second before what people let
        // go of when a rule asked, and one of its time also before when a backup was restored; the third before versions of
        // actions and what sites refuse, which are three parts; the fourth before repositories, which are three more; the fifth
        // before deployed workflows; the sixth before templates with grown memory; the seventh before what is made ready.
        let before = |parts: usize| &written[..written.len() - parts];
        let (first, second, early_second, third) = (before(26), before(12), before(13), before(9));
        let config = control_plane_core::Config::default;
        let recover =
            |format, bytes: &[u8]| recover(config(), format, Some((BatchSeq(7), bytes.to_vec())), &[], Timestamp::ZERO);
        assert_eq!(recover(1, first).expect("read").snapshot(), core.snapshot());
        assert_eq!(recover(2, second).expect("read").snapshot(), core.snapshot());
        assert_eq!(recover(2, early_second).expect("read").snapshot(), core.snapshot());
        assert_eq!(recover(3, third).expect("read").snapshot(), core.snapshot());
        assert_eq!(recover(4, before(6)).expect("read").snapshot(), core.snapshot());
        assert_eq!(recover(5, before(3)).expect("read").snapshot(), core.snapshot());
        assert_eq!(recover(6, before(2)).expect("read").snapshot(), core.snapshot());
        assert_eq!(recover(7, before(1)).expect("read").snapshot(), core.snapshot());
        assert_eq!(recover(JOURNAL_FORMAT, &written).expect("read").snapshot(), core.snapshot());
        // Restored once, when the clock stood at a microsecond.
        let restored = [early_second, &[1, 2]].concat();
        let now = recover(JOURNAL_FORMAT, &[&restored[..], &[0; 12]].concat()).expect("read").snapshot();
        assert_eq!(recover(2, &restored).expect("read").snapshot(), now);
        assert_ne!(now, core.snapshot());
        let message = recover(JOURNAL_FORMAT, first).expect_err("cut").to_string();
        assert!(message.contains("the checkpoint after batch 7"), "{message}");
    }

    /// What a control plane of format 3 has written, a batch a line: a run whose action came with it, from its submission to
    /// its end.
    const FORMAT_3: &str = include_str!("format-3.txt");

    fn batch((number, line): (u64, &str)) -> (BatchSeq, Vec<u8>) {
        let byte = |place| u8::from_str_radix(&line[place..place + 2], 16).expect("hexadecimal digits");
        (BatchSeq(number), (0..line.len()).step_by(2).map(byte).collect())
    }

    #[test]
    fn a_journal_of_format_3_is_read_up_to_any_point_of_a_run_with_an_action() {
        let batches: Vec<_> = (1..).zip(FORMAT_3.lines()).map(batch).collect();
        let config = control_plane_core::Config::default;
        let mut states = Vec::new();
        for read in 0..=batches.len() {
            let core = super::recover(config(), 3, None, &batches[..read], Timestamp::ZERO).expect("read");
            core.check();
            let runs = core.runs(&RunFilter::default());
            states.extend(runs.iter().map(|run| run.state));
            for run in &runs {
                let (workflow, _) = core.workflow(run.run).expect("it is there");
                let Work::Action(action) = &workflow.steps[0].work else { panic!("{workflow:?}") };
                assert_eq!((action.name.as_str(), action.version.as_str()), ("count", "1.0"));
                assert!(action.bundle.is_some() && action.inputs.len() == 2, "{action:?}");
            }
            // A checkpoint of that time ended before versions of actions, what sites refuse, repositories, deployed workflows, and
            // templates with grown memory.
            let now = postcard::to_stdvec(&core.snapshot()).expect("encoded");
            let checkpoint = Some((BatchSeq(read as u64), now[..now.len() - 8].to_vec()));
            let again = super::recover(config(), 3, checkpoint, &[], Timestamp::ZERO).expect("read");
            assert_eq!(again.snapshot(), core.snapshot());
        }
        assert_eq!((states.first(), states.last()), (Some(&RunState::Running), Some(&RunState::Succeeded)));
    }
}
