//! Digests of files: BLAKE3, several threads for large files, holes not read.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use blake3::hazmat::{HasherExt as _, Mode, left_subtree_len, merge_subtrees_non_root, merge_subtrees_root};
use rustix::fs::{SeekFrom, seek};

/// Bytes of a file that are hashed and asked for as one: a power of two, so that each is a subtree of BLAKE3's
/// tree with a value of its own.
pub(crate) const SEGMENT_BYTES: u64 = 8 << 20;
pub(crate) const BUFFER_BYTES: usize = 256 << 10;
static ZEROS: [u8; BUFFER_BYTES] = [0; BUFFER_BYTES];

pub(crate) type Digest = [u8; 32];

/// Bytes of a large file on its way that are verified, written and noted as one: a power of two, and few enough to be still
/// in the processor's cache when they are hashed and written.
pub(crate) const GRAIN_BYTES: u64 = 1 << 20;

/// The value of one subtree of a file of more than one: a grain, or a segment. `offset` is a multiple of its size.
pub(crate) fn subtree_value(offset: u64, bytes: &[u8]) -> Digest {
    let mut hasher = blake3::Hasher::new();
    hasher.set_input_offset(offset);
    hasher.update(bytes);
    hasher.finalize_non_root()
}

/// The digest of a file of `length` bytes out of the values of its parts of `unit` bytes, of which there are at least two.
pub(crate) fn merge(values: &[Digest], length: u64, unit: u64) -> Digest {
    let left = left_subtree_len(length);
    let (before, after) = values.split_at((left / unit) as usize);
    *merge_subtrees_root(&subtree(before, left, unit), &subtree(after, length - left, unit), Mode::Hash).as_bytes()
}

fn subtree(values: &[Digest], length: u64, unit: u64) -> Digest {
    if let [value] = values {
        return *value;
    }
    let left = left_subtree_len(length);
    let (before, after) = values.split_at((left / unit) as usize);
    merge_subtrees_non_root(&subtree(before, left, unit), &subtree(after, length - left, unit), Mode::Hash)
}

/// Threads that may hash large files, all together; whoever asks is one more.
#[derive(Debug, Clone)]
pub(crate) struct Hashing {
    idle: Arc<Mutex<usize>>,
}

impl Hashing {
    pub(crate) fn new() -> Self {
        // Four threads hash as fast as fast disks read; the rest of the machine belongs to the work.
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Self { idle: Arc::new(Mutex::new(cores.min(4).saturating_sub(1))) }
    }

    fn take(&self, wanted: usize) -> usize {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        let taken = wanted.min(*idle);
        *idle -= taken;
        taken
    }

    fn give_back(&self, taken: usize) {
        *self.idle.lock().unwrap_or_else(PoisonError::into_inner) += taken;
    }

    /// The digest of a file that has `length` bytes.
    ///
    /// # Errors
    /// `UnexpectedEof` if it is shorter.
    pub(crate) fn file(&self, file: &File, length: u64) -> io::Result<Digest> {
        let extents = data_extents(file, length)?;
        if length <= SEGMENT_BYTES {
            let mut hasher = blake3::Hasher::new();
            update_range(&mut hasher, file, &extents, 0, length)?;
            return Ok(*hasher.finalize().as_bytes());
        }
        let count = length.div_ceil(SEGMENT_BYTES) as usize;
        let helpers = self.take(count - 1);
        let result = hash_segments(file, length, &extents, count, helpers);
        self.give_back(helpers);
        Ok(merge(&result?, length, SEGMENT_BYTES))
    }
}

fn hash_segments(
    file: &File,
    length: u64,
    extents: &[(u64, u64)],
    count: usize,
    helpers: usize,
) -> io::Result<Vec<Digest>> {
    let next = AtomicUsize::new(0);
    let values = Mutex::new(vec![[0; 32]; count]);
    let work = || -> io::Result<()> {
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            if index >= count {
                return Ok(());
            }
            let offset = index as u64 * SEGMENT_BYTES;
            let mut hasher = blake3::Hasher::new();
            hasher.set_input_offset(offset);
            let end = (offset + SEGMENT_BYTES).min(length);
            if let Err(error) = update_range(&mut hasher, file, extents, offset, end) {
                next.store(count, Ordering::Relaxed);
                return Err(error);
            }
            values.lock().unwrap_or_else(PoisonError::into_inner)[index] = hasher.finalize_non_root();
        }
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..helpers).map(|_| scope.spawn(work)).collect();
        let mine = work();
        threads
            .into_iter()
            .map(|thread| thread.join().expect("hashing does not panic"))
            .fold(mine, |result, other| result.and(other))
    })?;
    Ok(values.into_inner().unwrap_or_else(PoisonError::into_inner))
}

/// Hashes `start..end` of a file; what is in no extent is zeros, and not read.
fn update_range(
    hasher: &mut blake3::Hasher,
    file: &File,
    extents: &[(u64, u64)],
    start: u64,
    end: u64,
) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER_BYTES.min((end - start) as usize)];
    let mut at = start;
    let first = extents.partition_point(|(_, extent_end)| *extent_end <= start);
    for &(extent_start, extent_end) in &extents[first..] {
        if extent_start >= end {
            break;
        }
        update_zeros(hasher, extent_start.saturating_sub(at));
        at = at.max(extent_start);
        let stop = extent_end.min(end);
        while at < stop {
            let part = &mut buffer[..BUFFER_BYTES.min((stop - at) as usize)];
            file.read_exact_at(part, at)?;
            hasher.update(part);
            at += part.len() as u64;
        }
    }
    update_zeros(hasher, end - at);
    Ok(())
}

pub(crate) fn update_zeros(hasher: &mut blake3::Hasher, mut count: u64) {
    while count > 0 {
        let part = &ZEROS[..BUFFER_BYTES.min(count as usize)];
        hasher.update(part);
        count -= part.len() as u64;
    }
}

/// The parts of a file that are not holes, in order.
pub(crate) fn data_extents(file: &File, length: u64) -> io::Result<Vec<(u64, u64)>> {
    let allocated = file.metadata()?.blocks() * 512;
    if length == 0 {
        return Ok(Vec::new());
    }
    if allocated >= length {
        return Ok(vec![(0, length)]);
    }
    let mut extents = Vec::new();
    let mut at = 0;
    while at < length {
        let start = match seek(file, SeekFrom::Data(at)) {
            Ok(start) => start,
            Err(rustix::io::Errno::NXIO) => break,
            // A file system that does not know its holes.
            Err(rustix::io::Errno::INVAL | rustix::io::Errno::OPNOTSUPP) => return Ok(vec![(0, length)]),
            Err(error) => return Err(error.into()),
        };
        if start >= length {
            break;
        }
        let end = seek(file, SeekFrom::Hole(start))?.min(length);
        extents.push((start, end));
        at = end;
    }
    // A file that was cut while this looked must not pass for one that ends with a hole.
    if file.metadata()?.len() < length {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(extents)
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    fn check(length: u64, written: &[(u64, &[u8])]) {
        let file = tempfile::tempfile().unwrap();
        file.set_len(length).unwrap();
        for (offset, bytes) in written {
            file.write_all_at(bytes, *offset).unwrap();
        }
        let mut whole = vec![0; length as usize];
        file.read_exact_at(&mut whole, 0).unwrap();
        let expected = *blake3::hash(&whole).as_bytes();
        assert_eq!(Hashing::new().file(&file, length).unwrap(), expected);
    }

    #[test]
    fn a_file_hashed_in_segments_has_the_digest_of_its_bytes() {
        for length in [0, 1, 1024, SEGMENT_BYTES - 1, SEGMENT_BYTES, SEGMENT_BYTES + 1, 3 * SEGMENT_BYTES + 77] {
            let bytes: Vec<u8> = (0..length).map(|index| (index * 31 % 251) as u8).collect();
            check(length, &[(0, &bytes)]);
        }
    }

    #[test]
    fn holes_count_as_zeros_wherever_they_are() {
        let length = 5 * SEGMENT_BYTES + 5;
        check(length, &[]);
        check(length, &[(0, b"start")]);
        check(length, &[(length - 3, b"end")]);
        check(length, &[(SEGMENT_BYTES - 10, &[7; 9000]), (3 * SEGMENT_BYTES + 4096, b"x")]);
    }

    #[test]
    fn a_file_that_is_shorter_than_it_was_is_an_error() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(100).unwrap();
        let error = Hashing::new().file(&file, 200).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    }
}
