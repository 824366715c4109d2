//! How far barriers have come, in a small file beside the store. It is written after the store's own sync and not synced
//! itself, so it never runs ahead of what is durable; where it is behind, it only proves less. With it a store that
//! lost acknowledged records at its end is told apart from one that was cut short before it answered.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

const SLOT_BYTES: usize = 64;
const SLOT_DISTANCE: u64 = 4096;
const MAGIC: &[u8; 8] = b"atollwm1";

/// What the file said when it was opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stood {
    /// There was none.
    Absent,
    /// Neither slot can be read.
    Unreadable,
    At {
        identity: u128,
        seq: u64,
    },
}

#[derive(Debug)]
pub(crate) struct Watermark {
    file: File,
    path: PathBuf,
    writes: u64,
}

impl Watermark {
    pub(crate) fn path_in(directory: &Path) -> PathBuf {
        directory.join("watermark")
    }

    /// Reads what stands in `directory`, making nothing.
    pub(crate) fn read(directory: &Path) -> io::Result<Stood> {
        let file = match File::open(Self::path_in(directory)) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Stood::Absent),
            Err(error) => return Err(error),
        };
        if file.metadata()?.len() == 0 {
            return Ok(Stood::Absent);
        }
        let slots = [read_slot(&file, 0), read_slot(&file, SLOT_DISTANCE)];
        let last = slots.into_iter().flatten().max_by_key(|(_, seq)| *seq);
        Ok(last.map_or(Stood::Unreadable, |(identity, seq)| Stood::At { identity, seq }))
    }

    /// Opens it for writing; both slots start at `seq`.
    pub(crate) fn open(directory: &Path, identity: u128, seq: u64) -> io::Result<Self> {
        let path = Self::path_in(directory);
        let file = OpenOptions::new().write(true).create(true).truncate(false).open(&path)?;
        let mut watermark = Self { file, path, writes: 0 };
        watermark.set(identity, seq)?;
        watermark.set(identity, seq)?;
        watermark.file.sync_all()?;
        Ok(watermark)
    }

    pub(crate) fn set(&mut self, identity: u128, seq: u64) -> io::Result<()> {
        let offset = (self.writes % 2) * SLOT_DISTANCE;
        self.writes += 1;
        self.file.write_all_at(&encode(identity, seq), offset)
    }

    pub(crate) fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

fn encode(identity: u128, seq: u64) -> [u8; SLOT_BYTES] {
    let mut slot = [0; SLOT_BYTES];
    slot[..8].copy_from_slice(MAGIC);
    slot[8..24].copy_from_slice(&identity.to_be_bytes());
    slot[24..32].copy_from_slice(&seq.to_be_bytes());
    let checksum = blake3::hash(&slot[..32]);
    slot[32..].copy_from_slice(checksum.as_bytes());
    slot
}

fn read_slot(file: &File, offset: u64) -> Option<(u128, u64)> {
    let mut slot = [0; SLOT_BYTES];
    file.read_exact_at(&mut slot, offset).ok()?;
    let identity = u128::from_be_bytes(slot[8..24].try_into().ok()?);
    let seq = u64::from_be_bytes(slot[24..32].try_into().ok()?);
    (encode(identity, seq) == slot).then_some((identity, seq))
}
