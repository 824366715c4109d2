//! What stands in one generation: its description, at most one checkpoint, and the batches after it.

use crate::error::IntegrityFault;
use crate::frame::{Frame, FrameFault, Kind, Place, Record};
use crate::store::{Store, StoreError};

/// Records that are written at once while a generation is made.
const APPLY_BYTES: usize = 4 << 20;
const DESCRIPTION_BYTES: usize = 16 + 2 + 1 + 8 + 8 + 32;

/// The record that makes a generation whole: it is written last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Description {
    pub(crate) identity: u128,
    /// Format of the payloads, the owner's number.
    pub(crate) format: u16,
    pub(crate) checkpoint: Option<Mark>,
}

/// What a checkpoint must be to be whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Mark {
    /// The last batch that it stands for.
    pub(crate) seq: u64,
    pub(crate) bytes: u64,
    pub(crate) digest: [u8; 32],
}

impl Mark {
    pub(crate) fn of(seq: u64, state: &[u8]) -> Self {
        Self { seq, bytes: state.len() as u64, digest: *blake3::hash(state).as_bytes() }
    }
}

impl Description {
    pub(crate) fn to_record(self) -> Record {
        let mut payload = Vec::with_capacity(DESCRIPTION_BYTES);
        payload.extend_from_slice(&self.identity.to_be_bytes());
        payload.extend_from_slice(&self.format.to_be_bytes());
        payload.push(u8::from(self.checkpoint.is_some()));
        let mark = self.checkpoint.unwrap_or(Mark { seq: 0, bytes: 0, digest: [0; 32] });
        payload.extend_from_slice(&mark.seq.to_be_bytes());
        payload.extend_from_slice(&mark.bytes.to_be_bytes());
        payload.extend_from_slice(&mark.digest);
        Record::new(Place::Description, Kind::Description, &payload)
    }

    fn decode(payload: &[u8]) -> Option<Self> {
        if payload.len() != DESCRIPTION_BYTES {
            return None;
        }
        let mark = Mark {
            seq: u64::from_be_bytes(payload[19..27].try_into().ok()?),
            bytes: u64::from_be_bytes(payload[27..35].try_into().ok()?),
            digest: payload[35..].try_into().ok()?,
        };
        Some(Self {
            identity: u128::from_be_bytes(payload[..16].try_into().ok()?),
            format: u16::from_be_bytes(payload[16..18].try_into().ok()?),
            checkpoint: match payload[18] {
                0 => None,
                1 => Some(mark),
                _ => return None,
            },
        })
    }

    /// The batch after which the batches of this generation begin.
    pub(crate) fn base(&self) -> u64 {
        self.checkpoint.map_or(0, |mark| mark.seq)
    }
}

/// Everything that a generation holds, checked.
#[derive(Debug)]
pub(crate) struct Contents {
    pub(crate) description: Description,
    pub(crate) checkpoint: Option<Vec<u8>>,
    pub(crate) batches: Vec<(u64, Vec<u8>)>,
    pub(crate) live_bytes: u64,
    /// A batch at the very end whose last records are not there: a crash came between them, unless it was acknowledged.
    pub(crate) torn: Option<u64>,
}

impl Contents {
    /// The last batch that this generation stands for or holds.
    pub(crate) fn last(&self) -> u64 {
        self.batches.last().map_or(self.description.base(), |(seq, _)| *seq)
    }
}

/// Why a generation can't be used.
#[derive(Debug)]
pub(crate) enum LoadError {
    Fault(IntegrityFault),
    /// Its frames are of a later version.
    Newer(u8),
    NoSpace,
}

impl From<StoreError> for LoadError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::NoSpace => Self::NoSpace,
            StoreError::Failed(message) => Self::Fault(IntegrityFault::Store(message)),
        }
    }
}

/// The records of one batch, in order.
pub(crate) fn batch_records(seq: u64, batch: &[u8], payload_max: usize) -> Vec<Record> {
    let parts = batch.len().div_ceil(payload_max).max(1);
    (0..parts)
        .map(|part| {
            let payload = &batch[part * payload_max..batch.len().min((part + 1) * payload_max)];
            let kind = if part + 1 == parts { Kind::BatchEnd } else { Kind::BatchPart };
            Record::new(Place::Batch { seq, part: part as u32 }, kind, payload)
        })
        .collect()
}

/// Fills an empty store with a checkpoint, batches and, last, the description, and makes it durable. Returns the bytes.
pub(crate) fn write(
    store: &mut dyn Store,
    description: Description,
    checkpoint: Option<&[u8]>,
    batches: &[(u64, Vec<u8>)],
) -> Result<u64, StoreError> {
    let payload_max = store.payload_max();
    let mut waiting = Vec::new();
    let mut waiting_bytes = 0;
    let mut live_bytes = 0;
    let mut put = |store: &mut dyn Store, records: Vec<Record>, at_once: bool| {
        let bytes: usize = records.iter().map(Record::bytes).sum();
        live_bytes += bytes as u64;
        waiting_bytes += bytes;
        waiting.extend(records);
        if !at_once && waiting_bytes < APPLY_BYTES {
            return Ok(());
        }
        waiting_bytes = 0;
        store.apply(&std::mem::take(&mut waiting))
    };
    if let (Some(state), Some(mark)) = (checkpoint, description.checkpoint) {
        for (part, payload) in state.chunks(payload_max).enumerate() {
            let place = Place::Checkpoint { seq: mark.seq, part: part as u32 };
            put(store, vec![Record::new(place, Kind::Checkpoint, payload)], false)?;
        }
    }
    for (seq, batch) in batches {
        put(store, batch_records(*seq, batch, payload_max), false)?;
    }
    put(store, vec![description.to_record()], true)?;
    store.sync()?;
    Ok(live_bytes)
}

/// Reads a generation back.
pub(crate) fn load(store: &dyn Store) -> Result<Contents, LoadError> {
    let mut loader = Loader::default();
    let mut stopped = None;
    store.scan(&mut |key, value| match loader.take(key, value) {
        Ok(()) => true,
        Err(error) => {
            stopped = Some(error);
            false
        }
    })?;
    match stopped {
        Some(error) => Err(error),
        None => loader.finish().map_err(LoadError::Fault),
    }
}

/// What a generation holds up to the first thing that is wrong with it.
#[derive(Debug)]
pub(crate) struct Looked {
    pub(crate) description: Option<Description>,
    /// Only if it is whole.
    pub(crate) checkpoint: Option<Vec<u8>>,
    pub(crate) batches: Vec<(u64, Vec<u8>)>,
    pub(crate) live_bytes: u64,
    pub(crate) torn: Option<u64>,
    pub(crate) fault: Option<IntegrityFault>,
}

/// Reads a generation back as far as it is sound.
pub(crate) fn look(store: &dyn Store) -> Result<Looked, LoadError> {
    let mut loader = Loader::default();
    let mut stopped = None;
    let scanned = store.scan(&mut |key, value| match loader.take(key, value) {
        Ok(()) => true,
        Err(error) => {
            stopped = Some(error);
            false
        }
    });
    let unread = scanned.err().map(LoadError::from);
    let mut looked = Looked {
        description: loader.description,
        checkpoint: None,
        batches: Vec::new(),
        live_bytes: loader.live_bytes,
        torn: None,
        fault: None,
    };
    match stopped.or(unread) {
        Some(LoadError::Fault(fault)) => {
            let marked = loader.description.and_then(|description| description.checkpoint);
            let is_whole = |mark: &Mark| Mark::of(mark.seq, &loader.checkpoint) == *mark;
            looked.checkpoint = marked.filter(is_whole).map(|_| loader.checkpoint);
            looked.batches = loader.batches;
            looked.fault = Some(fault);
        }
        Some(error @ (LoadError::Newer(_) | LoadError::NoSpace)) => return Err(error),
        None => match loader.finish() {
            Ok(Contents { checkpoint, batches, torn, .. }) => {
                (looked.checkpoint, looked.batches, looked.torn) = (checkpoint, batches, torn);
            }
            Err(fault) => looked.fault = Some(fault),
        },
    }
    Ok(looked)
}

#[derive(Default)]
struct Loader {
    description: Option<Description>,
    checkpoint: Vec<u8>,
    checkpoint_parts: u32,
    batches: Vec<(u64, Vec<u8>)>,
    /// The batch that is being put together, and its next part.
    open: Option<(u64, u32, Vec<u8>)>,
    live_bytes: u64,
}

impl Loader {
    fn take(&mut self, key: &[u8], value: &[u8]) -> Result<(), LoadError> {
        self.live_bytes += (key.len() + value.len()) as u64;
        let frame = Frame::decode(key, value).map_err(|fault| match fault {
            FrameFault::Bad(fault) => LoadError::Fault(fault),
            FrameFault::Newer(version) => LoadError::Newer(version),
        })?;
        self.place(&frame).map_err(LoadError::Fault)
    }

    fn place(&mut self, frame: &Frame<'_>) -> Result<(), IntegrityFault> {
        let Some(description) = self.description else {
            let read = (frame.place == Place::Description).then(|| Description::decode(frame.payload)).flatten();
            self.description = Some(read.ok_or_else(|| gap("description", &frame.place.to_string()))?);
            return Ok(());
        };
        match frame.place {
            Place::Description => Err(IntegrityFault::Description("it stands there twice".to_owned())),
            Place::Checkpoint { seq, part } => {
                let wanted = Place::Checkpoint { seq: description.base(), part: self.checkpoint_parts };
                if (Place::Checkpoint { seq, part }) != wanted {
                    return Err(gap(&wanted.to_string(), &frame.place.to_string()));
                }
                self.checkpoint_parts += 1;
                self.checkpoint.extend_from_slice(frame.payload);
                Ok(())
            }
            Place::Batch { seq, part } => {
                let last = self.batches.last().map_or(description.base(), |(seq, _)| *seq);
                let (wanted_seq, wanted_part) =
                    self.open.as_ref().map_or((last + 1, 0), |(seq, next, _)| (*seq, *next));
                if (seq, part) != (wanted_seq, wanted_part) {
                    let wanted = Place::Batch { seq: wanted_seq, part: wanted_part };
                    return Err(gap(&wanted.to_string(), &frame.place.to_string()));
                }
                let mut bytes = self.open.take().map(|(_, _, bytes)| bytes).unwrap_or_default();
                bytes.extend_from_slice(frame.payload);
                if frame.kind == Kind::BatchEnd {
                    self.batches.push((seq, bytes));
                } else {
                    self.open = Some((seq, part + 1, bytes));
                }
                Ok(())
            }
        }
    }

    fn finish(self) -> Result<Contents, IntegrityFault> {
        let Some(description) = self.description else { return Err(gap("description", "nothing")) };
        let checkpoint = match description.checkpoint {
            Some(mark) if Mark::of(mark.seq, &self.checkpoint) == mark => Some(self.checkpoint),
            Some(mark) => {
                let place = Place::Checkpoint { seq: mark.seq, part: self.checkpoint_parts };
                return Err(gap(&place.to_string(), "the end of the checkpoint"));
            }
            None if self.checkpoint_parts == 0 => None,
            None => return Err(IntegrityFault::Description("it knows of no checkpoint".to_owned())),
        };
        Ok(Contents {
            description,
            checkpoint,
            batches: self.batches,
            live_bytes: self.live_bytes,
            torn: self.open.map(|(seq, ..)| seq),
        })
    }
}

fn gap(missing: &str, found: &str) -> IntegrityFault {
    IntegrityFault::Gap { missing: missing.to_owned(), found: found.to_owned() }
}
