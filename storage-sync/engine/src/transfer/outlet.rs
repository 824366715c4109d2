//! The way of a large file's bytes to the disk: through the cache of the system, or past it.
//!
//! Whoever reads the file next finds what went through the cache there, so that is the way of what comes slowly. Of what comes
//! faster the cache costs more than it is worth: to fill fresh pages takes several times as long as to decrypt and hash
//! what goes into them, and writers of one file wait for one another. A disk that is itself slow is left to the cache.

use std::fs::File;
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use rustix::fs::OFlags;
use rustix::io::Errno;

use crate::buffers::ALIGNMENT;
use crate::store::take_in::write_sparse_at;

/// Comes before it is known how fast it comes, and goes past the cache before it is known how fast the disk is.
const TRIED_BYTES: u64 = 32 << 20;
/// Bytes of a second: what comes faster goes past the cache. A link of 1 Gbit/s is slower.
const FAST: f64 = 150e6;
/// Bytes of a second: a disk that takes less from each writer is slow.
const SLOW_DISK: f64 = 200e6;

#[derive(Debug)]
pub(super) struct Outlet {
    file: Arc<File>,
    /// The same file past the cache, unless its file system cannot.
    past: Option<File>,
    began: Instant,
    came: AtomicU64,
    /// What went past the cache, and how long its writers waited for the disk: bytes and nanoseconds.
    passed: (AtomicU64, AtomicU64),
    given_up: AtomicBool,
}

impl Outlet {
    pub(super) fn new(file: File, path: &Path) -> Self {
        let past = File::options().write(true).custom_flags(OFlags::DIRECT.bits().cast_signed()).open(path).ok();
        Self {
            file: Arc::new(file),
            past,
            began: Instant::now(),
            came: AtomicU64::new(0),
            passed: Default::default(),
            given_up: AtomicBool::new(false),
        }
    }

    /// The file that is written, to be read from.
    pub(super) fn file(&self) -> &Arc<File> {
        &self.file
    }

    /// Writes into a file that holds zeros there.
    pub(super) fn write(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let before = self.came.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        if let Some(past) = &self.past
            && fits(offset, bytes)
            && self.comes_fast(before)
            && !self.given_up.load(Ordering::Relaxed)
        {
            let began = Instant::now();
            match write_sparse_at(past, offset, bytes) {
                Err(error) if is_refusal(&error) => self.given_up.store(true, Ordering::Relaxed),
                Err(error) => return Err(error),
                Ok(()) => {
                    self.learn(bytes.len(), began);
                    return Ok(());
                }
            }
        }
        write_sparse_at(&self.file, offset, bytes)
    }

    fn comes_fast(&self, came: u64) -> bool {
        came >= TRIED_BYTES && came as f64 >= FAST * self.began.elapsed().as_secs_f64()
    }

    fn learn(&self, bytes: usize, began: Instant) {
        let took = u64::try_from(began.elapsed().as_nanos()).unwrap_or(u64::MAX);
        let bytes = self.passed.0.fetch_add(bytes as u64, Ordering::Relaxed) + bytes as u64;
        let nanoseconds = self.passed.1.fetch_add(took, Ordering::Relaxed) + took;
        if bytes >= TRIED_BYTES && is_slow(bytes, nanoseconds) {
            self.given_up.store(true, Ordering::Relaxed);
        }
    }
}

fn is_slow(bytes: u64, nanoseconds: u64) -> bool {
    (bytes as f64) < SLOW_DISK * nanoseconds as f64 / 1e9
}

/// Only whole blocks, from the beginning of one in memory and in the file, go past the cache.
fn fits(offset: u64, bytes: &[u8]) -> bool {
    bytes.as_ptr().addr().is_multiple_of(ALIGNMENT)
        && bytes.len().is_multiple_of(ALIGNMENT)
        && offset.is_multiple_of(ALIGNMENT as u64)
}

/// Whether a file system lets no such bytes past its cache, though it let the file be opened for that.
fn is_refusal(error: &io::Error) -> bool {
    matches!(Errno::from_io_error(error), Some(Errno::INVAL | Errno::OPNOTSUPP))
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

    use std::time::Duration;

    use super::*;
    use crate::buffers::Pool;
    use crate::hash::GRAIN_BYTES;

    const GRAINS: u64 = 48;

    fn outlet(folder: &Path) -> Outlet {
        let path = folder.join("file");
        let file = File::options().read(true).write(true).create_new(true).open(&path).unwrap();
        file.set_len(GRAINS * GRAIN_BYTES + 5).unwrap();
        Outlet::new(file, &path)
    }

    /// Writes all of the file, with a hole in each grain, and reads it again.
    fn fill(outlet: &Outlet, folder: &Path) {
        let pool = Pool::new(GRAIN_BYTES as usize);
        let mut wanted = Vec::new();
        for grain in 0..=GRAINS {
            let mut bytes = pool.take(if grain < GRAINS { GRAIN_BYTES as usize } else { 5 });
            bytes.fill(grain as u8 + 1);
            if grain < GRAINS {
                bytes[128 << 10..256 << 10].fill(0);
            }
            outlet.write(grain * GRAIN_BYTES, &bytes).unwrap();
            wanted.extend_from_slice(&bytes);
        }
        assert!(std::fs::read(folder.join("file")).unwrap() == wanted, "what was written is what is read");
    }

    #[test]
    fn what_comes_fast_goes_past_the_cache_and_is_read_as_it_was_written() {
        let folder = tempfile::tempdir().unwrap();
        let mut outlet = outlet(folder.path());
        // As if all came at once, however busy the machine is.
        outlet.began = Instant::now() + Duration::from_secs(3_600);
        fill(&outlet, folder.path());
        let passed = outlet.passed.0.load(Ordering::Relaxed);
        let refuses = outlet.past.is_none() || outlet.given_up.load(Ordering::Relaxed);
        assert!(refuses || passed == GRAINS * GRAIN_BYTES - TRIED_BYTES, "{passed} bytes went past it");
    }

    #[test]
    fn what_comes_slowly_goes_through_the_cache() {
        let folder = tempfile::tempdir().unwrap();
        let mut outlet = outlet(folder.path());
        outlet.began = Instant::now().checked_sub(Duration::from_secs(3_600)).unwrap();
        fill(&outlet, folder.path());
        assert_eq!(outlet.passed.0.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn a_disk_that_is_slow_or_refuses_is_left_to_the_cache() {
        assert!(is_slow(TRIED_BYTES, 1_000_000_000));
        assert!(!is_slow(TRIED_BYTES, 50_000_000));
        assert!(is_refusal(&Errno::INVAL.into()));
        assert!(!is_refusal(&Errno::NOSPC.into()));
        let folder = tempfile::tempdir().unwrap();
        let mut outlet = outlet(folder.path());
        outlet.began = Instant::now() + Duration::from_secs(3_600);
        outlet.given_up.store(true, Ordering::Relaxed);
        fill(&outlet, folder.path());
        assert_eq!(outlet.passed.0.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn only_whole_blocks_go_past_the_cache() {
        let pool = Pool::new(GRAIN_BYTES as usize);
        let bytes = pool.take(GRAIN_BYTES as usize);
        assert!(fits(GRAIN_BYTES, &bytes));
        assert!(!fits(GRAIN_BYTES + 512, &bytes));
        assert!(!fits(GRAIN_BYTES, &bytes[..512]));
        assert!(!fits(GRAIN_BYTES, &bytes[8..]));
    }
}
