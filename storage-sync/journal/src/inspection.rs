//! Looks at a journal that no process uses: what it holds, and where it is damaged.

use crate::backend::Backend;
use crate::directory::{Directory, io_error};
use crate::error::{IntegrityFault, OpenError};
use crate::journal::look;
use crate::options::{BatchSeq, JournalId, Options};
use crate::watermark::{Stood, Watermark};

/// What a journal holds, up to the first damage.
#[derive(Debug)]
pub struct Inspection {
    pub backend: Backend,
    pub generation: u64,
    /// Absent where its description is damaged.
    pub identity: Option<JournalId>,
    /// Format of checkpoint and batches; 0 where the description is damaged.
    pub format: u16,
    /// The last batch that the checkpoint stands for, and the checkpoint unless that is damaged.
    pub checkpoint: Option<(BatchSeq, Option<Vec<u8>>)>,
    pub batches: Vec<(BatchSeq, Vec<u8>)>,
    /// The last batch that somebody is known to have been told of.
    pub acknowledged: Option<BatchSeq>,
    /// A batch at the very end of which a crash left a part; the next start cuts it.
    pub torn: Option<BatchSeq>,
    pub live_bytes: u64,
    pub disk_bytes: u64,
    /// The first thing that is wrong. What is behind it is not among the batches.
    pub fault: Option<IntegrityFault>,
}

/// Looks at the journal in [`Options::directory`]; nothing if there is none. Nothing is repaired, upgraded or made; the
/// store alone may put its own files in order, as it does whenever it is opened.
///
/// # Errors
/// When another process uses it, a newer program wrote it, or the store cannot be opened at all.
pub fn inspect(options: &Options) -> Result<Option<Inspection>, OpenError> {
    let path = &options.directory;
    if !path.is_dir() {
        return Ok(None);
    }
    let directory = Directory::acquire(path, true)?;
    let stood = Watermark::read(path).map_err(io_error("read", &Watermark::path_in(path)))?;
    let Some((current, disk_bytes, looked)) = look(options, &directory)? else { return Ok(None) };
    let format = looked.description.map_or(0, |description| description.format);
    if format > options.format {
        return Err(OpenError::Newer { found: format, supported: options.format });
    }
    let base = looked.description.map_or(0, |description| description.base());
    let last = looked.batches.last().map_or(base, |(seq, _)| *seq);
    let identity = looked.description.map(|description| description.identity);
    let acknowledged = match stood {
        Stood::At { identity: marked, seq } if Some(marked) == identity => Some(seq),
        Stood::At { .. } | Stood::Absent | Stood::Unreadable => None,
    };
    let missing = acknowledged.filter(|acknowledged| *acknowledged > last);
    let missing = missing.map(|acknowledged| IntegrityFault::AcknowledgedMissing { last, acknowledged });
    let marked = looked.description.and_then(|description| description.checkpoint);
    Ok(Some(Inspection {
        backend: current.backend,
        generation: current.generation,
        identity: identity.map(JournalId),
        format,
        checkpoint: marked.map(|mark| (BatchSeq(mark.seq), looked.checkpoint)),
        batches: looked.batches.into_iter().map(|(seq, batch)| (BatchSeq(seq), batch)).collect(),
        acknowledged: acknowledged.map(BatchSeq),
        torn: looked.torn.map(BatchSeq),
        live_bytes: looked.live_bytes,
        disk_bytes,
        fault: looked.fault.or(missing),
    }))
}
