//! A large file on its way: written in place segment by segment, in any order.
//!
//! `<name>.part` holds the bytes, `<name>.done` the number and value of each segment that was written. Taken up again
//! after a crash, each segment is hashed again and counts only if it still has that value.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use crate::hash::{Digest, SEGMENT_BYTES, merge_segments, segment_count, segment_value};
use crate::store::StoreError;
use crate::store::error::Doing as _;
use crate::store::take_in::write_sparse_at;

const RECORD: usize = 8 + 32;

#[derive(Debug)]
pub(super) struct Segments {
    pub(super) path: PathBuf,
    done_path: PathBuf,
    length: u64,
    file: File,
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
            if index < segment_count(length) && read_value(&file, index, length).is_ok_and(|read| read == value) {
                values.insert(index, value);
            }
        }
        let mut done = File::create(&done_path).doing("open", &done_path)?;
        for (index, value) in &values {
            done.write_all(&record(*index, value)).doing("write", &done_path)?;
        }
        Ok(Self { path, done_path, length, file, done: Mutex::new((done, values)) })
    }

    /// The numbers of those that are not there yet.
    pub(super) fn missing(&self) -> Vec<u64> {
        let done = self.done.lock().unwrap_or_else(PoisonError::into_inner);
        (0..segment_count(self.length)).filter(|index| !done.1.contains_key(index)).collect()
    }

    /// Where a segment begins and ends.
    pub(super) fn range(&self, index: u64) -> (u64, u64) {
        let start = index * SEGMENT_BYTES;
        (start, (start + SEGMENT_BYTES).min(self.length))
    }

    pub(super) fn write(&self, index: u64, bytes: &[u8]) -> Result<(), StoreError> {
        let value = segment_value(index * SEGMENT_BYTES, bytes);
        write_sparse_at(&self.file, index * SEGMENT_BYTES, bytes).doing("write", &self.path)?;
        let mut done = self.done.lock().unwrap_or_else(PoisonError::into_inner);
        done.0.write_all(&record(index, &value)).doing("write", &self.done_path)?;
        done.1.insert(index, value);
        Ok(())
    }

    /// The digest of the whole; all segments must be there.
    pub(super) fn digest(&self) -> Digest {
        let done = self.done.lock().unwrap_or_else(PoisonError::into_inner);
        let values: Vec<Digest> = done.1.values().copied().collect();
        merge_segments(&values, self.length)
    }
}

fn record(index: u64, value: &Digest) -> [u8; RECORD] {
    let mut bytes = [0; RECORD];
    bytes[..8].copy_from_slice(&index.to_le_bytes());
    bytes[8..].copy_from_slice(value);
    bytes
}

fn read_value(file: &File, index: u64, length: u64) -> std::io::Result<Digest> {
    let start = index * SEGMENT_BYTES;
    let mut bytes = vec![0; (length - start).min(SEGMENT_BYTES) as usize];
    file.read_exact_at(&mut bytes, start)?;
    Ok(segment_value(start, &bytes))
}
