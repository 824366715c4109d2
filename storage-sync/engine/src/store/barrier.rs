//! Makes what was written durable, for many at a time.

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Condvar, Mutex, PoisonError};

/// Up to this many files are synced one by one, which leaves alone what others are writing to the same file system; more
/// of them by one sync of the whole file system, which costs as much as some tens.
const SINGLY_MAX: usize = 32;

#[derive(Debug)]
pub(crate) struct Barrier {
    root: File,
    rounds: Mutex<Rounds>,
    ended: Condvar,
}

#[derive(Debug, Default)]
struct Rounds {
    begun: u64,
    done: u64,
    running: bool,
    /// Rounds after `done` up to this one have failed.
    failed: u64,
}

impl Barrier {
    pub(crate) fn new(root: File) -> Self {
        Self { root, rounds: Mutex::default(), ended: Condvar::new() }
    }

    /// Returns when these files or directories are on disk.
    pub(crate) fn sync(&self, paths: &BTreeSet<PathBuf>) -> io::Result<()> {
        if paths.len() > SINGLY_MAX {
            return self.sync_all();
        }
        let files = paths.iter().map(File::open).collect::<io::Result<Vec<File>>>()?;
        if files.len() > 1 {
            for file in &files {
                // Begins to write each, so that the first sync commits them all, and the others find little to do.
                // A file system that does not care for the hint syncs as well without.
                let _ = rustix::fs::fadvise(file, 0, None, rustix::fs::Advice::DontNeed);
            }
        }
        files.iter().try_for_each(File::sync_all)
    }

    /// Returns when all that was written before the call is on disk. Calls that come while a sync runs share the next.
    pub(crate) fn sync_all(&self) -> io::Result<()> {
        let mut rounds = self.rounds.lock().unwrap_or_else(PoisonError::into_inner);
        // One that runs already may have missed what was written last.
        let mine = rounds.begun + 1;
        loop {
            if rounds.done >= mine {
                return if rounds.failed >= mine { Err(io::Error::other("a shared sync failed")) } else { Ok(()) };
            }
            if !rounds.running {
                rounds.running = true;
                rounds.begun += 1;
                let round = rounds.begun;
                drop(rounds);
                let result = rustix::fs::syncfs(&self.root);
                rounds = self.rounds.lock().unwrap_or_else(PoisonError::into_inner);
                rounds.running = false;
                rounds.done = round;
                if result.is_err() {
                    rounds.failed = round;
                }
                self.ended.notify_all();
                return Ok(result?);
            }
            rounds = self.ended.wait(rounds).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

pub(crate) fn sync_path(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}
