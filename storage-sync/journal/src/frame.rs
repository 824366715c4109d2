//! The one encoding of a record: `version u8 | kind u8 | seq u64 | len u32 | payload | checksum`, numbers big-endian, the
//! checksum the first 16 bytes of BLAKE3 over key, header and payload, so that a record in another's place is seen.

use crate::error::IntegrityFault;

/// Version of the frame itself; the payload has a format of its own.
pub(crate) const FRAME_VERSION: u8 = 1;
/// Largest frame in any store: above a quarter of a segment sled writes a file of its own that it never syncs.
pub(crate) const FRAME_BYTES_MAX: usize = 16 << 10;
const HEADER_BYTES: usize = 14;
const CHECKSUM_BYTES: usize = 16;
pub(crate) const FRAME_OVERHEAD: usize = HEADER_BYTES + CHECKSUM_BYTES;

/// What a record is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// The description of a generation, its last record to be written.
    Description,
    /// A piece of the checkpoint.
    Checkpoint,
    /// A piece of a batch that more pieces follow.
    BatchPart,
    /// The last piece of a batch.
    BatchEnd,
}

impl Kind {
    fn to_byte(self) -> u8 {
        match self {
            Self::Description => 1,
            Self::Checkpoint => 2,
            Self::BatchPart => 3,
            Self::BatchEnd => 4,
        }
    }

    fn from_byte(byte: u8) -> Option<Self> {
        match byte {
            1 => Some(Self::Description),
            2 => Some(Self::Checkpoint),
            3 => Some(Self::BatchPart),
            4 => Some(Self::BatchEnd),
            _ => None,
        }
    }
}

/// Where a record stands. Keys sort as the description, the checkpoint, the batches, each by sequence number and part.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Place {
    Description,
    Checkpoint { seq: u64, part: u32 },
    Batch { seq: u64, part: u32 },
}

pub(crate) const KEY_BYTES: usize = 13;

impl Place {
    pub(crate) fn to_key(self) -> [u8; KEY_BYTES] {
        let (prefix, seq, part) = match self {
            Self::Description => (b'a', 0, 0),
            Self::Checkpoint { seq, part } => (b'b', seq, part),
            Self::Batch { seq, part } => (b'c', seq, part),
        };
        let mut key = [prefix; KEY_BYTES];
        key[1..9].copy_from_slice(&seq.to_be_bytes());
        key[9..].copy_from_slice(&part.to_be_bytes());
        key
    }

    pub(crate) fn from_key(key: &[u8]) -> Option<Self> {
        let (&prefix, rest) = key.split_first()?;
        let (seq, part) = rest.split_first_chunk::<8>()?;
        let seq = u64::from_be_bytes(*seq);
        let part = u32::from_be_bytes(part.try_into().ok()?);
        match prefix {
            b'a' if seq == 0 && part == 0 => Some(Self::Description),
            b'b' => Some(Self::Checkpoint { seq, part }),
            b'c' => Some(Self::Batch { seq, part }),
            _ => None,
        }
    }

    fn seq(self) -> u64 {
        match self {
            Self::Batch { seq, .. } | Self::Checkpoint { seq, .. } => seq,
            Self::Description => 0,
        }
    }
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Batch { seq, part } => write!(f, "batch {seq}, part {part}"),
            Self::Checkpoint { seq, part } => write!(f, "checkpoint {seq}, part {part}"),
            Self::Description => f.write_str("description"),
        }
    }
}

/// A record ready to be written.
#[derive(Clone, Debug)]
pub(crate) struct Record {
    pub(crate) key: [u8; KEY_BYTES],
    pub(crate) frame: Vec<u8>,
}

impl Record {
    pub(crate) fn new(place: Place, kind: Kind, payload: &[u8]) -> Self {
        assert!(payload.len() + FRAME_OVERHEAD <= FRAME_BYTES_MAX, "a record of {} bytes at {place}", payload.len());
        let key = place.to_key();
        let mut frame = Vec::with_capacity(payload.len() + FRAME_OVERHEAD);
        frame.push(FRAME_VERSION);
        frame.push(kind.to_byte());
        frame.extend_from_slice(&place.seq().to_be_bytes());
        frame.extend_from_slice(&(payload.len() as u32).to_be_bytes());
        frame.extend_from_slice(payload);
        let checksum = checksum(&key, &frame);
        frame.extend_from_slice(&checksum);
        Self { key, frame }
    }

    pub(crate) fn bytes(&self) -> usize {
        KEY_BYTES + self.frame.len()
    }
}

/// A record that was read back and is sound.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Frame<'a> {
    pub(crate) place: Place,
    pub(crate) kind: Kind,
    pub(crate) payload: &'a [u8],
}

/// A frame that can't be taken.
#[derive(Debug)]
pub(crate) enum FrameFault {
    Bad(IntegrityFault),
    /// Sound, and of a later version of the frame.
    Newer(u8),
}

impl<'a> Frame<'a> {
    pub(crate) fn decode(key: &[u8], frame: &'a [u8]) -> Result<Self, FrameFault> {
        let Some(place) = Place::from_key(key) else {
            return Err(bad(format!("{key:02x?}"), "its key is none of ours"));
        };
        let fault = |reason| bad(place.to_string(), reason);
        if frame.len() < FRAME_OVERHEAD {
            return Err(fault("it is too short"));
        }
        let (covered, stored) = frame.split_at(frame.len() - CHECKSUM_BYTES);
        if checksum(key, covered) != stored {
            return Err(fault("its checksum does not fit"));
        }
        let (header, payload) = covered.split_at(HEADER_BYTES);
        if header[0] != FRAME_VERSION {
            return Err(FrameFault::Newer(header[0]));
        }
        let Some(kind) = Kind::from_byte(header[1]) else { return Err(fault("its kind is unknown")) };
        let belongs = match place {
            Place::Batch { .. } => matches!(kind, Kind::BatchPart | Kind::BatchEnd),
            Place::Checkpoint { .. } => kind == Kind::Checkpoint,
            Place::Description => kind == Kind::Description,
        };
        if !belongs || header[2..10] != place.seq().to_be_bytes() {
            return Err(fault("it belongs elsewhere"));
        }
        if header[10..14] != (payload.len() as u32).to_be_bytes() {
            return Err(fault("its length does not fit"));
        }
        Ok(Self { place, kind, payload })
    }
}

fn bad(place: String, reason: &'static str) -> FrameFault {
    FrameFault::Bad(IntegrityFault::BadFrame { place, reason })
}

fn checksum(key: &[u8], covered: &[u8]) -> [u8; CHECKSUM_BYTES] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(key);
    hasher.update(covered);
    let mut checksum = [0; CHECKSUM_BYTES];
    checksum.copy_from_slice(&hasher.finalize().as_bytes()[..CHECKSUM_BYTES]);
    checksum
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_reads_back_as_it_was_written() {
        for place in [
            Place::Batch { seq: 1, part: 0 },
            Place::Batch { seq: u64::MAX, part: u32::MAX },
            Place::Checkpoint { seq: 7, part: 3 },
            Place::Description,
        ] {
            let kind = match place {
                Place::Batch { .. } => Kind::BatchEnd,
                Place::Checkpoint { .. } => Kind::Checkpoint,
                Place::Description => Kind::Description,
            };
            let record = Record::new(place, kind, b"payload");
            let frame = Frame::decode(&record.key, &record.frame).expect("sound");
            assert_eq!(frame, Frame { place, kind, payload: b"payload" });
        }
    }

    #[test]
    fn every_flipped_bit_and_every_cut_is_seen() {
        let record = Record::new(Place::Batch { seq: 9, part: 2 }, Kind::BatchPart, b"some payload");
        for bit in 0..record.frame.len() * 8 {
            let mut frame = record.frame.clone();
            frame[bit / 8] ^= 1 << (bit % 8);
            assert!(Frame::decode(&record.key, &frame).is_err(), "bit {bit}");
        }
        for length in 0..record.frame.len() {
            assert!(Frame::decode(&record.key, &record.frame[..length]).is_err(), "length {length}");
        }
    }

    #[test]
    fn a_record_in_the_place_of_another_is_seen() {
        let record = Record::new(Place::Batch { seq: 9, part: 2 }, Kind::BatchPart, b"x");
        let other = Place::Batch { seq: 9, part: 3 }.to_key();
        assert!(matches!(Frame::decode(&other, &record.frame), Err(FrameFault::Bad(_))));
    }

    #[test]
    fn a_newer_frame_is_told_apart_from_a_damaged_one() {
        let mut record = Record::new(Place::Batch { seq: 1, part: 0 }, Kind::BatchEnd, b"x");
        let end = record.frame.len() - CHECKSUM_BYTES;
        record.frame[0] = FRAME_VERSION + 1;
        let sum = checksum(&record.key, &record.frame[..end]);
        record.frame[end..].copy_from_slice(&sum);
        assert!(matches!(Frame::decode(&record.key, &record.frame), Err(FrameFault::Newer(2))));
    }

    #[test]
    fn keys_sort_by_sequence_number_and_part() {
        let mut places: Vec<Place> = [300, 2, 255, 256].map(|seq| Place::Batch { seq, part: 1 }).into();
        places.push(Place::Batch { seq: 256, part: 0 });
        places.push(Place::Checkpoint { seq: 0, part: 0 });
        places.push(Place::Description);
        places.sort();
        assert!(places.is_sorted_by_key(|place| place.to_key()));
    }
}
