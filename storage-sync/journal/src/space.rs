//! Room on the disk: a ballast file that is given up when the disk is full, so that what has been done can still be
//! written down.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::{FallocateFlags, fallocate, statvfs};

/// Left free beside what is written, for the store's own files and for their growth by whole segments.
const MARGIN_BYTES: u64 = 4 << 20;

#[derive(Debug)]
pub(crate) struct Ballast {
    path: PathBuf,
    bytes: u64,
    held: bool,
}

impl Ballast {
    /// Takes hold of the ballast file in `directory`, making it if there is ample room.
    pub(crate) fn hold(directory: &Path, bytes: u64) -> Self {
        let mut ballast = Self { path: directory.join("ballast"), bytes, held: false };
        ballast.held = fs::metadata(&ballast.path).is_ok_and(|file| file.len() == bytes && bytes > 0);
        ballast.retake();
        ballast
    }

    pub(crate) fn is_held(&self) -> bool {
        self.held
    }

    /// Makes sure that `bytes` can be written, giving the ballast up if it must.
    pub(crate) fn make_room(&mut self, bytes: u64) -> bool {
        let wanted = bytes.saturating_add(MARGIN_BYTES);
        if self.free_bytes() >= wanted {
            return true;
        }
        self.release();
        self.free_bytes() >= wanted
    }

    /// Gives the ballast up.
    pub(crate) fn release(&mut self) {
        if !self.held {
            return;
        }
        tracing::warn!(ballast_bytes = self.bytes, "the disk is full: the journal gives up its ballast");
        match fs::remove_file(&self.path) {
            Ok(()) => self.held = false,
            Err(error) => tracing::error!(%error, path = %self.path.display(), "could not remove the ballast file"),
        }
    }

    /// Makes the ballast again where four times its size is free, so that taking it fills no disk.
    pub(crate) fn retake(&mut self) {
        if self.held || self.bytes == 0 || self.free_bytes() < 4 * self.bytes {
            return;
        }
        match self.allocate() {
            Ok(()) => self.held = true,
            Err(error) => {
                tracing::warn!(%error, path = %self.path.display(), "could not make the ballast file");
                // What was half made would take room and be of no use; if it can't go either, the next start tries again.
                let _ = fs::remove_file(&self.path);
            }
        }
    }

    fn allocate(&self) -> io::Result<()> {
        let file = File::create(&self.path)?;
        fallocate(&file, FallocateFlags::empty(), 0, self.bytes)?;
        Ok(())
    }

    /// Bytes that an ordinary user may still write here; if nobody knows, writing shows it.
    fn free_bytes(&self) -> u64 {
        let directory = self.path.parent().unwrap_or(&self.path);
        statvfs(directory).map_or(u64::MAX, |status| status.f_bavail.saturating_mul(status.f_frsize))
    }
}
