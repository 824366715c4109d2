//! Runs as bytes, in whichever store they are kept.

use control_plane_core::view::RunView;
use control_plane_core::{FinishedRun, Snapshot};

use super::HistoryError;

/// Of what lists show, and of the index by which it is found.
pub(super) const LIST_FORMAT: u16 = 1;

/// All of a run, with its format before it.
pub(super) fn encode_run(run: &FinishedRun) -> Result<Vec<u8>, HistoryError> {
    let format = Snapshot::FORMAT.to_be_bytes().to_vec();
    let what = || run.id().to_string();
    postcard::to_extend(run, format).map_err(|source| HistoryError::Decode { what: what(), source })
}

/// The other way, of the run with this name.
pub(super) fn decode_run(run: &str, value: &[u8]) -> Result<FinishedRun, HistoryError> {
    let what = || run.to_owned();
    let (format, bytes) = value.split_first_chunk::<2>().map_or((0, value), |(f, rest)| (u16::from_be_bytes(*f), rest));
    if format > Snapshot::FORMAT {
        return Err(HistoryError::Newer { what: what(), found: format, supported: Snapshot::FORMAT });
    }
    postcard::from_bytes(bytes).map_err(|source| HistoryError::Decode { what: what(), source })
}

/// What a list shows of a run.
pub(super) fn encode_head(view: &RunView) -> Vec<u8> {
    postcard::to_stdvec(view).expect("what a list shows can be encoded into memory")
}

/// The other way, of the entry with this name.
pub(super) fn decode_head(entry: &str, value: &[u8]) -> Result<RunView, HistoryError> {
    postcard::from_bytes(value).map_err(|source| HistoryError::Decode { what: format!("the entry {entry}"), source })
}
