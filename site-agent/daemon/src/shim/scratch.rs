//! What an execution has written to its own folders, and whether that is more than it may.

use std::collections::BTreeSet;
use std::fs::{self, Metadata};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};

use atoll_model::session::FailureReason;

use super::directory::SlotDirectory;
use super::protocol::EndKind;
use super::tree;

/// From one look to the next, if a look is quick: a disk takes some hundred megabytes meanwhile.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);
/// Else so many times as long as the look took.
const LOOK_SHARE: u32 = 10;
/// Bytes of what `st_blocks` counts.
const BLOCK_BYTES: u64 = 512;
/// What a process gets that writes to a file beyond the limit that all files have then.
const TOO_LARGE_SIGNAL: i32 = 25;

/// The scratch space of one execution.
#[derive(Debug)]
pub(super) struct Scratch {
    bytes_max: u64,
    next: Instant,
}

impl Scratch {
    pub(super) fn new(bytes_max: u64, now: Instant) -> Self {
        Self { bytes_max, next: now + LOOK_INTERVAL }
    }

    /// When to look next.
    pub(super) const fn next(&self) -> Instant {
        self.next
    }

    /// How the execution is to end, if it has written more than it may.
    pub(super) fn look(&mut self, slot: &SlotDirectory, now: Instant) -> Option<EndKind> {
        let used = self.used(slot);
        self.next = now + LOOK_INTERVAL.max(now.elapsed() * LOOK_SHARE);
        (used > self.bytes_max).then(|| self.spent())
    }

    /// How an execution has ended that ended so: what was full may be why, and may have been missed.
    pub(super) fn judge(&self, how: EndKind, slot: &SlotDirectory) -> EndKind {
        match how {
            EndKind::Signal(TOO_LARGE_SIGNAL) => self.spent(),
            EndKind::Code(0) | EndKind::Returned { .. } if self.used(slot) > self.bytes_max => self.spent(),
            // A file that has grown to the limit failed when it was to grow further.
            EndKind::Code(1..) | EndKind::Failed { .. } if self.used(slot) >= self.bytes_max => self.spent(),
            EndKind::Code(_)
            | EndKind::Signal(_)
            | EndKind::TimedOut
            | EndKind::OutOfMemory
            | EndKind::Killed
            | EndKind::NotStarted { .. }
            | EndKind::Interrupted { .. }
            | EndKind::Returned { .. }
            | EndKind::Failed { .. } => how,
        }
    }

    fn spent(&self) -> EndKind {
        let message = format!(
            "it wrote more than the {} bytes of scratch space that it may use: ask for more with `resources: {{ scratch: … }}`",
            self.bytes_max
        );
        EndKind::Failed { reason: FailureReason::NoSpace, message }
    }

    fn used(&self, slot: &SlotDirectory) -> u64 {
        let mut usage = Usage { bytes: 0, bytes_max: self.bytes_max, linked: BTreeSet::new() };
        for folder in slot.own_folders() {
            usage.add_folder(folder);
        }
        usage.add_nameless(slot.own_folders()[0]);
        usage.bytes
    }
}

struct Usage {
    bytes: u64,
    bytes_max: u64,
    /// Files that may be met more than once.
    linked: BTreeSet<(u64, u64)>,
}

impl Usage {
    fn add_folder(&mut self, folder: &Path) {
        // What cannot be read is gone, or was made unreadable; then it holds no more than it did.
        let entries = fs::read_dir(folder).into_iter().flatten().flatten();
        for entry in entries {
            if self.bytes > self.bytes_max {
                return;
            }
            let Ok(found) = entry.metadata() else { continue };
            self.add(&found);
            if found.is_dir() {
                self.add_folder(&entry.path());
            }
        }
    }

    /// Files that have no name any more take room as long as somebody has them open.
    fn add_nameless(&mut self, folder: &Path) {
        let Ok(device) = fs::metadata(folder).map(|folder| folder.dev()) else { return };
        for process in tree::descendants() {
            let open = fs::read_dir(format!("/proc/{}/fd", process.as_raw_nonzero())).into_iter().flatten().flatten();
            for file in open.filter_map(|entry| fs::metadata(entry.path()).ok()) {
                if file.is_file() && file.nlink() == 0 && file.dev() == device && self.is_new(&file) {
                    self.bytes += file.blocks() * BLOCK_BYTES;
                }
            }
        }
    }

    fn add(&mut self, found: &Metadata) {
        if found.nlink() < 2 || found.is_dir() || self.is_new(found) {
            self.bytes += found.blocks() * BLOCK_BYTES;
        }
    }

    fn is_new(&mut self, found: &Metadata) -> bool {
        self.linked.insert((found.dev(), found.ino()))
    }
}
