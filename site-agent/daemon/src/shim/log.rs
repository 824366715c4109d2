//! The log of a slot: what a shim claimed and how it ended, so that an agent that comes back can tell even if the shim
//! is gone. Records are a length, four bytes of a BLAKE3 digest, and a postcard body; a torn last record is none.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use atoll_model::time::Timestamp;
use rustix::fs::{FallocateFlags, fallocate};
use serde::{Deserialize, Serialize};

use super::protocol::{End, EndKind, Key, LeftOutputs};

pub(crate) const LOG: &str = "log";
const NEXT_LOG: &str = "log.next";
/// Above this, a log is written anew with only what still counts.
const REWRITE_BYTES: u64 = 1 << 20;
const ROOM_BYTES: u64 = 64 << 10;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
enum Record {
    /// First record of a log, and of each shim that goes on with it.
    Opened {
        version: u8,
        boot: String,
        shim: u32,
    },
    /// Written before the start. `clock` is the time since boot in microseconds.
    Claimed {
        key: Key,
        at: Timestamp,
        clock: u64,
    },
    /// Written after it: the process of the last claim.
    Spawned {
        pid: u32,
        clock: u64,
    },
    Ended {
        key: Key,
        end: End,
    },
    Forgotten {
        keys: Vec<Key>,
    },
}

/// A claim and, if the process is known, what tells it from another of the same number.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Claim {
    pub at: Timestamp,
    pub clock: u64,
    pub spawned: Option<(u32, u64)>,
    pub boot: String,
}

/// What a log says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct LogContents {
    /// Claimed, and not known to have ended.
    pub claimed: BTreeMap<Key, Claim>,
    /// Ended, and not forgotten.
    pub ended: BTreeMap<Key, End>,
    /// What was claimed last, ended or not: the slot's logs are its.
    pub latest: Option<Key>,
}

/// The writing end of a log. Records are gathered, and written with [`SlotLog::write`].
#[derive(Debug)]
pub(crate) struct SlotLog {
    folder: PathBuf,
    file: File,
    bytes: u64,
    gathered: Vec<u8>,
    boot: String,
}

impl SlotLog {
    /// Opens the log of a slot, after what it may hold, for the shim that is this process.
    pub(crate) fn open(folder: &Path) -> io::Result<Self> {
        let file = OpenOptions::new().create(true).append(true).mode(0o600).open(folder.join(LOG))?;
        let bytes = file.metadata()?.len();
        let boot = boot_id()?;
        // Room for what has yet to be said when the disk is full; a file system that cannot give it says so then.
        let _ = fallocate(&file, FallocateFlags::KEEP_SIZE, bytes, ROOM_BYTES);
        let mut log = Self { folder: folder.to_owned(), file, bytes, gathered: Vec::new(), boot };
        log.gather(&opened(log.boot.clone()));
        log.write()?;
        Ok(log)
    }

    pub(crate) fn claimed(&mut self, key: Key, at: Timestamp) {
        self.gather(&Record::Claimed { key, at, clock: clock_since_boot() });
    }

    pub(crate) fn spawned(&mut self, pid: u32) {
        self.gather(&Record::Spawned { pid, clock: clock_since_boot() });
    }

    pub(crate) fn ended(&mut self, key: Key, end: &End) {
        self.gather(&Record::Ended { key, end: end.clone() });
    }

    pub(crate) fn forgotten(&mut self, keys: Vec<Key>) {
        self.gather(&Record::Forgotten { keys });
    }

    fn gather(&mut self, record: &Record) {
        encode(record, &mut self.gathered);
    }

    /// Writes what was gathered, so that it outlives this process.
    pub(crate) fn write(&mut self) -> io::Result<()> {
        if !self.gathered.is_empty() {
            self.file.write_all(&self.gathered)?;
            self.bytes += self.gathered.len() as u64;
            self.gathered.clear();
        }
        Ok(())
    }

    /// Writes what was gathered, so that it outlives the machine.
    pub(crate) fn sync(&mut self) -> io::Result<()> {
        self.write()?;
        self.file.sync_data()
    }

    /// Writes the log anew if it has grown, with `ended` and nothing else in it. Not to be called while anything runs.
    pub(crate) fn rewrite_if_long<'a>(&mut self, ended: impl Iterator<Item = (&'a Key, &'a End)>) -> io::Result<()> {
        if self.bytes < REWRITE_BYTES {
            return Ok(());
        }
        self.gathered.clear();
        self.gather(&opened(self.boot.clone()));
        for (key, end) in ended {
            self.gather(&Record::Ended { key: *key, end: end.clone() });
        }
        let next = self.folder.join(NEXT_LOG);
        let mut file = OpenOptions::new().create(true).write(true).truncate(true).mode(0o600).open(&next)?;
        file.write_all(&self.gathered)?;
        file.sync_data()?;
        std::fs::rename(&next, self.folder.join(LOG))?;
        File::open(&self.folder)?.sync_data()?;
        self.file = OpenOptions::new().append(true).open(self.folder.join(LOG))?;
        self.bytes = self.gathered.len() as u64;
        self.gathered.clear();
        Ok(())
    }
}

/// Reads the log of a slot; an absent one says nothing. Outputs that an attempt kept which ended before the machine was
/// booted last count for nothing: that it ended was made durable, and what it wrote was not. What was told of them stands here.
pub(crate) fn read(folder: &Path) -> io::Result<LogContents> {
    let bytes = match std::fs::read(folder.join(LOG)) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(LogContents::default()),
        Err(error) => return Err(error),
    };
    let mut contents = LogContents::default();
    let this_boot = boot_id()?;
    let mut boot = String::new();
    let mut rest = bytes.as_slice();
    while let Some((record, after)) = decode(rest) {
        rest = after;
        match record {
            Record::Opened { boot: of_shim, .. } => boot = of_shim,
            Record::Claimed { key, at, clock } => {
                contents.claimed.insert(key, Claim { at, clock, spawned: None, boot: boot.clone() });
                contents.latest = Some(key);
            }
            Record::Spawned { pid, clock } => {
                if let Some(claim) = contents.latest.and_then(|key| contents.claimed.get_mut(&key)) {
                    claim.spawned = Some((pid, clock));
                }
            }
            Record::Ended { key, mut end } => {
                contents.claimed.remove(&key);
                if end.left.outputs == LeftOutputs::Kept && boot != this_boot {
                    let message = "the machine went down before its outputs were taken in".to_owned();
                    end.how = EndKind::Interrupted { message };
                    end.left.outputs = LeftOutputs::Nothing;
                }
                contents.ended.insert(key, end);
            }
            Record::Forgotten { keys } => keys.iter().for_each(|key| {
                contents.ended.remove(key);
            }),
        }
    }
    Ok(contents)
}

/// Writes the log of a slot anew whose shim is gone, with what was made of it.
pub(crate) fn replace(folder: &Path, ended: &BTreeMap<Key, End>) -> io::Result<()> {
    let mut bytes = Vec::new();
    encode(&opened(boot_id()?), &mut bytes);
    for (key, end) in ended {
        encode(&Record::Ended { key: *key, end: end.clone() }, &mut bytes);
    }
    let next = folder.join(NEXT_LOG);
    let mut file = OpenOptions::new().create(true).write(true).truncate(true).mode(0o600).open(&next)?;
    file.write_all(&bytes)?;
    file.sync_data()?;
    std::fs::rename(&next, folder.join(LOG))?;
    File::open(folder)?.sync_data()
}

fn opened(boot: String) -> Record {
    Record::Opened { version: super::protocol::PROTOCOL_VERSION, boot, shim: std::process::id() }
}

fn encode(record: &Record, buffer: &mut Vec<u8>) {
    let start = buffer.len();
    buffer.extend_from_slice(&[0; 8]);
    let taken = std::mem::take(buffer);
    *buffer = postcard::to_extend(record, taken).expect("records hold nothing that postcard cannot encode");
    let length = u32::try_from(buffer.len() - start - 8).expect("a record is short");
    let digest = blake3::hash(&buffer[start + 8..]);
    buffer[start..start + 4].copy_from_slice(&length.to_le_bytes());
    buffer[start + 4..start + 8].copy_from_slice(&digest.as_bytes()[..4]);
}

fn decode(bytes: &[u8]) -> Option<(Record, &[u8])> {
    let (length, rest) = bytes.split_first_chunk::<4>()?;
    let (digest, rest) = rest.split_first_chunk::<4>()?;
    let (body, rest) = rest.split_at_checked(u32::from_le_bytes(*length) as usize)?;
    (blake3::hash(body).as_bytes()[..4] == *digest).then_some(())?;
    Some((postcard::from_bytes(body).ok()?, rest))
}

/// This boot of the machine.
pub(crate) fn boot_id() -> io::Result<String> {
    Ok(std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned())
}

/// Microseconds since the machine was booted.
pub(crate) fn clock_since_boot() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    u64::try_from(now.tv_sec).unwrap_or(0) * 1_000_000 + u64::try_from(now.tv_nsec).unwrap_or(0) / 1_000
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test that fails here has failed")]

    use atoll_model::id::{Attempt, ExecutionId, RunId, StepIndex};

    use super::super::protocol::{Left, SmallOutput};
    use super::*;
    use crate::shim::spent::Spent;

    fn key(element: u32) -> Key {
        let execution = ExecutionId { run: RunId::from_bits(7), step: StepIndex(0), element };
        Key { execution, attempt: Attempt(1) }
    }

    fn end() -> End {
        End {
            started_at: Timestamp(1),
            finished_at: Timestamp(2),
            how: EndKind::Code(0),
            spent: Spent { cpu_micros: 3, max_rss_bytes: 4, ..Spent::default() },
            left: Left::default(),
        }
    }

    #[test]
    fn a_log_says_what_was_claimed_what_ended_and_not_what_was_forgotten() {
        let folder = tempfile::tempdir().unwrap();
        let mut log = SlotLog::open(folder.path()).unwrap();
        for element in 0..3 {
            log.claimed(key(element), Timestamp(1));
            log.spawned(100 + element);
        }
        log.ended(key(0), &end());
        log.ended(key(1), &end());
        log.forgotten(vec![key(0)]);
        log.sync().unwrap();
        let contents = read(folder.path()).unwrap();
        assert_eq!(contents.ended.keys().collect::<Vec<_>>(), [&key(1)]);
        assert_eq!(contents.claimed.keys().collect::<Vec<_>>(), [&key(2)]);
        assert_eq!(contents.claimed[&key(2)].spawned.unwrap().0, 102);
        assert_eq!(contents.claimed[&key(2)].boot, boot_id().unwrap());
    }

    #[test]
    fn after_another_start_of_the_machine_outputs_count_that_stand_in_the_log() {
        let folder = tempfile::tempdir().unwrap();
        let left = |outputs| End { left: Left { outputs, ..Left::default() }, ..end() };
        let told = left(LeftOutputs::Told(vec![SmallOutput { name: b"count".into(), content: b"7".into() }]));
        let mut bytes = Vec::new();
        encode(&opened("another".to_owned()), &mut bytes);
        encode(&Record::Ended { key: key(0), end: told.clone() }, &mut bytes);
        encode(&Record::Ended { key: key(1), end: left(LeftOutputs::Kept) }, &mut bytes);
        std::fs::write(folder.path().join(LOG), bytes).unwrap();
        let ended = read(folder.path()).unwrap().ended;
        assert_eq!(ended[&key(0)], told);
        assert!(matches!(ended[&key(1)].how, EndKind::Interrupted { .. }));
        assert_eq!(ended[&key(1)].left, Left::default());
    }

    #[test]
    fn a_torn_or_flipped_tail_takes_nothing_else_with_it() {
        let folder = tempfile::tempdir().unwrap();
        let mut log = SlotLog::open(folder.path()).unwrap();
        log.claimed(key(0), Timestamp(1));
        log.write().unwrap();
        let whole = std::fs::read(folder.path().join(LOG)).unwrap();
        log.ended(key(0), &end());
        log.write().unwrap();
        let all = std::fs::read(folder.path().join(LOG)).unwrap();
        for length in whole.len()..all.len() {
            std::fs::write(folder.path().join(LOG), &all[..length]).unwrap();
            assert_eq!(read(folder.path()).unwrap().claimed.len(), 1);
            let mut flipped = all.clone();
            flipped[length] ^= 1;
            std::fs::write(folder.path().join(LOG), &flipped).unwrap();
            assert_eq!(read(folder.path()).unwrap().claimed.len(), 1);
        }
    }

    #[test]
    fn a_long_log_is_written_anew_with_what_still_counts() {
        let folder = tempfile::tempdir().unwrap();
        let mut log = SlotLog::open(folder.path()).unwrap();
        let mut ended = BTreeMap::new();
        for element in 0..60_000 {
            log.claimed(key(element), Timestamp(1));
            log.ended(key(element), &end());
            log.write().unwrap();
        }
        ended.insert(key(5), end());
        log.rewrite_if_long(ended.iter()).unwrap();
        assert!(std::fs::metadata(folder.path().join(LOG)).unwrap().len() < 1_000);
        log.claimed(key(6), Timestamp(1));
        log.write().unwrap();
        let contents = read(folder.path()).unwrap();
        assert_eq!((contents.ended.len(), contents.claimed.len()), (1, 1));
    }
}
