//! A large file on its way: written in place grain by grain, in any order.
//!
//! `<name>.part` holds the bytes, `<name>.done` the number and value of each grain that was written. Taken up again
//! after a crash, each grain is hashed again and counts only if it still has that value.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write as _;
use std::num::NonZeroU64;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use super::outlet::Outlet;
use crate::hash::{Digest, GRAIN_BYTES, SEGMENT_BYTES, merge, subtree_value};
use crate::store::StoreError;
use crate::store::error::Doing as _;

const RECORD: usize = 8 + 32;

#[derive(Debug)]
pub(super) struct Segments {
    pub(super) path: PathBuf,
    done_path: PathBuf,
    length: u64,
    outlet: Outlet,
    done: Mutex<(File, BTreeMap<u64, Digest>)>,
}

impl Segments {
    /// Begins a file of more than one segment, or goes on with it.
    pub(super) fn open(folder: &Path, name: &str, length: u64) -> Result<Self, StoreError> {
        let path = folder.join(format!("{name}.part"));
        let done_path = folder.join(format!("{name}.done"));
        let file =
            File::options().read(true).write(true).create(true).truncate(false).open(&path).doing("open", &path)?;
        file.set_len(length).doing("make room in", &path)?;
        let known = fs::read(&done_path).unwrap_or_default();
        let mut values = BTreeMap::new();
        for record in known.chunks_exact(RECORD) {
            let (index, value) = record.split_first_chunk::<8>().expect("a record begins with a number");
            let value: Digest = value.try_into().expect("a record ends with a value");
            let index = u64::from_le_bytes(*index);
            if index < length.div_ceil(GRAIN_BYTES) && read_value(&file, index, length).is_ok_and(|read| read == value)
            {
                values.insert(index, value);
            }
        }
        let records: Vec<u8> = values.iter().flat_map(|(index, value)| record(*index, value)).collect();
        // In place of the old ones at once: a second crash finds the one or the other.
        let fresh = folder.join(format!("{name}.new"));
        fs::write(&fresh, records).and_then(|()| fs::rename(&fresh, &done_path)).doing("write", &done_path)?;
        let done = File::options().append(true).open(&done_path).doing("open", &done_path)?;
        let outlet = Outlet::new(file, &path);
        Ok(Self { path, done_path, length, outlet, done: Mutex::new((done, values)) })
    }

    /// The file that grains are written to, which may get another name at the end.
    pub(super) fn shared(&self) -> Arc<File> {
        Arc::clone(self.outlet.file())
    }

    /// Whether all grains of a range are there.
    pub(super) fn has(&self, start: u64, end: u64) -> bool {
        let grains = start / GRAIN_BYTES..end.div_ceil(GRAIN_BYTES);
        let done = self.done.lock().unwrap_or_else(PoisonError::into_inner);
        start >= end || done.1.range(grains.clone()).count() as u64 == grains.end - grains.start
    }

    /// The ranges that are not there yet, each within `range_bytes` from a multiple of that, and from the beginning of a
    /// grain to the end of one.
    pub(super) fn missing(&self, range_bytes: u64) -> Vec<(u64, u64)> {
        let done = self.done.lock().unwrap_or_else(PoisonError::into_inner);
        let mut ranges: Vec<(u64, u64)> = Vec::new();
        for index in (0..self.length.div_ceil(GRAIN_BYTES)).filter(|index| !done.1.contains_key(index)) {
            let start = index * GRAIN_BYTES;
            let end = (start + GRAIN_BYTES).min(self.length);
            match ranges.last_mut() {
                Some((_, last_end)) if *last_end == start && !start.is_multiple_of(range_bytes) => *last_end = end,
                _ => ranges.push((start, end)),
            }
        }
        ranges
    }

    /// Takes in one grain.
    pub(super) fn write(&self, start: u64, bytes: &[u8]) -> Result<(), StoreError> {
        let index = start / GRAIN_BYTES;
        let value = subtree_value(start, bytes);
        self.outlet.write(start, bytes).doing("write", &self.path)?;
        let mut done = self.done.lock().unwrap_or_else(PoisonError::into_inner);
        done.0.write_all(&record(index, &value)).doing("write", &self.done_path)?;
        done.1.insert(index, value);
        Ok(())
    }

    /// The disk begins to write what was put into the segment that ends here, while more comes, so that the sync at the end
    /// finds little to do.
    pub(super) fn begin_to_sync(&self, end: u64) {
        let length = NonZeroU64::new(SEGMENT_BYTES);
        // A file system that does not care for the hint syncs as well without.
        let _ = rustix::fs::fadvise(self.outlet.file(), end - SEGMENT_BYTES, length, rustix::fs::Advice::DontNeed);
    }

    /// The digest of the whole; all grains must be there.
    pub(super) fn digest(&self) -> Digest {
        let done = self.done.lock().unwrap_or_else(PoisonError::into_inner);
        let values: Vec<Digest> = done.1.values().copied().collect();
        merge(&values, self.length, GRAIN_BYTES)
    }
}

fn record(index: u64, value: &Digest) -> [u8; RECORD] {
    let mut bytes = [0; RECORD];
    bytes[..8].copy_from_slice(&index.to_le_bytes());
    bytes[8..].copy_from_slice(value);
    bytes
}

fn read_value(file: &File, index: u64, length: u64) -> std::io::Result<Digest> {
    let start = index * GRAIN_BYTES;
    let mut bytes = vec![0; (length - start).min(GRAIN_BYTES) as usize];
    file.read_exact_at(&mut bytes, start)?;
    Ok(subtree_value(start, &bytes))
}
