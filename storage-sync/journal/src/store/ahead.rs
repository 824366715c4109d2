//! A log ahead of a store: small batches are made durable by one write into a file that has its size already, and one
//! `fdatasync`, where a store would rewrite its pages, wait for two or three writes one after the other, and let its own
//! threads do it. The store takes the records over when the log is full, when much comes at once, and after each opening.
//!
//! ```text
//! unit:  magic [8] | lap u64 | bytes of the payload u32 | zero u32 | BLAKE3 of the 24 bytes and the payload [32] | zero [8]
//!        payload: (key [13] | bytes of the frame u32 | frame)*, and zeros up to a multiple of 64
//! ```
//!
//! Why it is safe:
//! - A unit is what one barrier covers, and is written only when the one before it is durable. So only the last one can be
//!   torn, and it is one that nobody was told of.
//! - The log starts again only after the store has made everything in it durable. What then still stands in the file is
//!   told by its lap, which is drawn anew each time, and holds nothing that the store does not hold.
//! - A unit that cannot be read before one that can leaves a gap, which whoever reads the records sees.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::frame::{KEY_BYTES, Record};
use crate::store::{Store, StoreError, Visit};

/// What the store has to take over at once, at most; and what is read when a generation is opened.
const LOG_BYTES: usize = 1 << 20;
/// With this much and more at once the store's own way costs less than writing everything twice.
const DIRECT_BYTES: usize = 128 << 10;
const MAGIC: &[u8; 8] = b"atollah1";
/// Units begin at multiples of this.
const ALIGNMENT: usize = 64;
const HEADER_BYTES: usize = 64;
const COVERED_BYTES: usize = 24;
const DIGEST_END: usize = COVERED_BYTES + 32;

/// A store with a log ahead of it.
#[derive(Debug)]
pub(crate) struct AheadStore<S> {
    store: S,
    path: PathBuf,
    log: Log,
    /// Records that the store has not, in their order; those before `written` stand in the log.
    held: Vec<Record>,
    written: usize,
    /// The last record that was applied or found.
    last: Option<[u8; KEY_BYTES]>,
    /// Something may be in the store that is not durable there.
    unsynced: bool,
}

#[derive(Debug)]
enum Log {
    /// It is made when it is first wanted.
    Unmade,
    Open {
        file: File,
        lap: u64,
        end: usize,
    },
    /// There was no room for it.
    Without,
}

impl<S: Store> AheadStore<S> {
    /// Puts the log at `path` ahead of a store, and reads what it holds if it is there.
    pub(crate) fn open(store: S, path: PathBuf) -> Result<Self, StoreError> {
        let last = store.last()?;
        let mut held = read(&path)?;
        held.retain(|record| last.is_none_or(|last| record.key > last));
        held.sort_by_key(|record| record.key);
        let last = held.last().map(|record| record.key).or(last);
        // Nobody knows how much of what a process before this one has written is durable.
        Ok(Self { store, path, log: Log::Unmade, written: held.len(), held, last, unsynced: true })
    }

    /// Lets the store take everything.
    fn pass_on(&mut self) -> Result<(), StoreError> {
        self.unsynced = true;
        self.store.apply(&self.held)?;
        self.held.clear();
        self.written = 0;
        Ok(())
    }

    /// Lets the store take everything and make it durable, and begins the log anew.
    fn hand_over(&mut self) -> Result<u32, StoreError> {
        self.pass_on()?;
        let syncs = self.store.sync()?;
        self.unsynced = false;
        if let Log::Open { lap, end, .. } = &mut self.log {
            (*lap, *end) = (new_lap(), 0);
        }
        Ok(syncs)
    }

    /// Writes what is not in the log yet behind what is. Nothing if there is no room.
    fn write_ahead(&mut self) -> Result<Option<u32>, StoreError> {
        if matches!(self.log, Log::Unmade) {
            self.log = match make(&self.path) {
                Ok(file) => Log::Open { file, lap: new_lap(), end: 0 },
                Err(StoreError::NoSpace) => Log::Without,
                Err(error) => return Err(error),
            };
        }
        let Log::Open { file, lap, end } = &mut self.log else { return Ok(None) };
        let unit = encode(*lap, &self.held[self.written..]);
        if *end + unit.len() > LOG_BYTES {
            return Ok(None);
        }
        file.write_all_at(&unit, *end as u64)?;
        file.sync_data()?;
        *end += unit.len();
        self.written = self.held.len();
        Ok(Some(1))
    }
}

impl<S: Store> Store for AheadStore<S> {
    fn payload_max(&self) -> usize {
        self.store.payload_max()
    }

    fn apply(&mut self, records: &[Record]) -> Result<(), StoreError> {
        for record in records {
            if self.last.is_some_and(|last| record.key <= last) {
                // The description of a generation, which must not be there before the rest is; or what is written again
                // as it was after the disk was full.
                if self.held.binary_search_by_key(&record.key, |held| held.key).is_err() {
                    self.pass_on()?;
                    self.store.apply(std::slice::from_ref(record))?;
                }
                continue;
            }
            self.last = Some(record.key);
            self.held.push(record.clone());
        }
        let new_bytes: usize = self.held[self.written..].iter().map(Record::bytes).sum();
        if new_bytes >= DIRECT_BYTES { self.pass_on() } else { Ok(()) }
    }

    fn sync(&mut self) -> Result<u32, StoreError> {
        if self.unsynced {
            return self.hand_over();
        }
        if self.written == self.held.len() {
            return Ok(0);
        }
        match self.write_ahead()? {
            Some(syncs) => Ok(syncs),
            None => self.hand_over(),
        }
    }

    fn scan(&self, visit: Visit<'_>) -> Result<(), StoreError> {
        let mut goes_on = true;
        self.store.scan(&mut |key, value| {
            goes_on = visit(key, value);
            goes_on
        })?;
        for record in &self.held {
            goes_on = goes_on && visit(&record.key, &record.frame);
        }
        Ok(())
    }

    fn last(&self) -> Result<Option<[u8; KEY_BYTES]>, StoreError> {
        Ok(self.last)
    }

    fn disk_bytes(&self) -> u64 {
        self.store.disk_bytes()
    }
}

fn new_lap() -> u64 {
    uuid::Uuid::new_v4().as_u64_pair().0
}

/// Makes a log of its full size, so that a write into it changes nothing but its content.
fn make(path: &Path) -> Result<File, StoreError> {
    let file = OpenOptions::new().write(true).create(true).truncate(false).open(path)?;
    if file.metadata()?.len() == LOG_BYTES as u64 {
        return Ok(file);
    }
    let filled =
        file.set_len(0).and_then(|()| file.write_all_at(&vec![0; LOG_BYTES], 0)).and_then(|()| file.sync_all());
    let named = filled.and_then(|()| path.parent().map_or(Ok(()), |folder| File::open(folder)?.sync_all()));
    if let Err(error) = named {
        // Half of one would be of no use and takes room that is wanted.
        let _ = std::fs::remove_file(path);
        return Err(error.into());
    }
    Ok(file)
}

fn encode(lap: u64, records: &[Record]) -> Vec<u8> {
    let mut unit = vec![0; HEADER_BYTES];
    for record in records {
        unit.extend_from_slice(&record.key);
        unit.extend_from_slice(&(record.frame.len() as u32).to_be_bytes());
        unit.extend_from_slice(&record.frame);
    }
    let payload_bytes = unit.len() - HEADER_BYTES;
    unit[..8].copy_from_slice(MAGIC);
    unit[8..16].copy_from_slice(&lap.to_be_bytes());
    unit[16..20].copy_from_slice(&(payload_bytes as u32).to_be_bytes());
    let digest = digest(&unit[..COVERED_BYTES], &unit[HEADER_BYTES..]);
    unit[COVERED_BYTES..DIGEST_END].copy_from_slice(&digest);
    unit.resize(unit.len().next_multiple_of(ALIGNMENT), 0);
    unit
}

fn digest(header: &[u8], payload: &[u8]) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(header);
    hasher.update(payload);
    *hasher.finalize().as_bytes()
}

/// All records of all units that can be read, whatever lap they are of.
fn read(path: &Path) -> Result<Vec<Record>, StoreError> {
    let bytes = match std::fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error.into()),
    };
    let mut records = Vec::new();
    let mut at = 0;
    while at < bytes.len() {
        at += match decode(&bytes[at..], &mut records) {
            Some(unit_bytes) => unit_bytes,
            None => ALIGNMENT,
        };
    }
    Ok(records)
}

/// The bytes of the unit that begins here, and its records.
fn decode(bytes: &[u8], records: &mut Vec<Record>) -> Option<usize> {
    let header = bytes.get(..HEADER_BYTES).filter(|header| header.starts_with(MAGIC))?;
    let payload_bytes = u32::from_be_bytes(header[16..20].try_into().ok()?) as usize;
    let mut payload = bytes.get(HEADER_BYTES..HEADER_BYTES + payload_bytes)?;
    if digest(&header[..COVERED_BYTES], payload) != header[COVERED_BYTES..DIGEST_END] {
        return None;
    }
    while !payload.is_empty() {
        let (key, rest) = payload.split_first_chunk::<KEY_BYTES>()?;
        let (length, rest) = rest.split_first_chunk::<4>()?;
        let (frame, rest) = rest.split_at_checked(u32::from_be_bytes(*length) as usize)?;
        records.push(Record { key: *key, frame: frame.to_vec() });
        payload = rest;
    }
    Some((HEADER_BYTES + payload_bytes).next_multiple_of(ALIGNMENT))
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a panic is a failed test")]

    use super::*;
    use crate::backend::MemoryDisk;
    use crate::frame::{Kind, Place};
    use crate::store::MemoryStore;

    /// A log on a real file ahead of a store in memory.
    struct Bench {
        folder: tempfile::TempDir,
        disk: MemoryDisk,
    }

    impl Bench {
        fn new() -> Self {
            Self { folder: tempfile::tempdir().unwrap(), disk: MemoryDisk::default() }
        }

        fn path(&self) -> PathBuf {
            self.folder.path().join("ahead")
        }

        /// Opens it as after the end of the process before: what the store had not synced is gone.
        fn open(&self) -> AheadStore<MemoryStore> {
            self.disk.crash();
            AheadStore::open(MemoryStore::open(self.disk.clone(), 1), self.path()).unwrap()
        }

        fn store_holds(&self) -> Vec<u64> {
            numbers(&MemoryStore::open(self.disk.clone(), 1))
        }

        fn change(&self, change: impl FnOnce(&mut Vec<u8>)) {
            let mut bytes = std::fs::read(self.path()).unwrap();
            change(&mut bytes);
            std::fs::write(self.path(), bytes).unwrap();
        }
    }

    fn batch(seq: u64, bytes: usize) -> Record {
        Record::new(Place::Batch { seq, part: 0 }, Kind::BatchEnd, &vec![seq as u8; bytes])
    }

    fn numbers(store: &dyn Store) -> Vec<u64> {
        let mut found = Vec::new();
        store
            .scan(&mut |key, _| {
                if let Some(Place::Batch { seq, .. }) = Place::from_key(key) {
                    found.push(seq);
                }
                true
            })
            .unwrap();
        found
    }

    fn put(store: &mut AheadStore<MemoryStore>, seq: u64) {
        store.apply(&[batch(seq, 100)]).unwrap();
        store.sync().unwrap();
    }

    /// The first sync after an opening is the store's.
    fn with_three_in_the_log(bench: &Bench) -> AheadStore<MemoryStore> {
        let mut store = bench.open();
        for seq in 1..=4 {
            put(&mut store, seq);
        }
        assert_eq!(bench.store_holds(), [1]);
        store
    }

    #[test]
    fn what_the_log_alone_holds_is_found_again_and_the_store_takes_it_over() {
        let bench = Bench::new();
        drop(with_three_in_the_log(&bench));
        let mut store = bench.open();
        assert_eq!(numbers(&store), [1, 2, 3, 4]);
        store.sync().unwrap();
        assert_eq!(bench.store_holds(), [1, 2, 3, 4]);
        put(&mut store, 5);
        drop(store);
        assert_eq!(numbers(&bench.open()), [1, 2, 3, 4, 5]);
    }

    #[test]
    fn a_unit_that_was_cut_short_is_as_if_it_had_not_been_written() {
        let bench = Bench::new();
        drop(with_three_in_the_log(&bench));
        let unit = encode(0, &[batch(4, 100)]).len();
        bench.change(|bytes| bytes[2 * unit + 90] ^= 1);
        let mut store = bench.open();
        assert_eq!(numbers(&store), [1, 2, 3]);
        // What is written instead of it may be as long, and what is behind it must not be taken for its successor.
        store.sync().unwrap();
        put(&mut store, 4);
        drop(store);
        assert_eq!(numbers(&bench.open()), [1, 2, 3, 4]);
    }

    #[test]
    fn a_damaged_unit_before_a_sound_one_leaves_a_gap_that_is_seen() {
        let bench = Bench::new();
        drop(with_three_in_the_log(&bench));
        bench.change(|bytes| bytes[90] ^= 1);
        assert_eq!(numbers(&bench.open()), [1, 3, 4], "2 is missing, and whoever reads this is told");
    }

    #[test]
    fn a_full_log_is_handed_over_and_begins_anew() {
        let bench = Bench::new();
        let mut store = bench.open();
        let mut seq = 0;
        while bench.store_holds().len() < 2 {
            seq += 1;
            store.apply(&[batch(seq, 8_000)]).unwrap();
            store.sync().unwrap();
        }
        assert_eq!(bench.store_holds().len() as u64, seq, "everything so far");
        put(&mut store, seq + 1);
        drop(store);
        let store = bench.open();
        assert_eq!(
            numbers(&store),
            (1..=seq + 1).collect::<Vec<_>>(),
            "what stood in the log before is not read twice"
        );
    }

    #[test]
    fn much_at_once_goes_straight_to_the_store() {
        let bench = Bench::new();
        let mut store = with_three_in_the_log(&bench);
        let many: Vec<Record> = (5..40).map(|seq| batch(seq, 8_000)).collect();
        store.apply(&many).unwrap();
        store.sync().unwrap();
        assert_eq!(bench.store_holds(), (1..40).collect::<Vec<_>>());
        put(&mut store, 40);
        drop(store);
        assert_eq!(numbers(&bench.open()), (1..41).collect::<Vec<_>>());
    }

    #[test]
    fn a_description_is_not_in_the_store_before_what_it_describes() {
        let bench = Bench::new();
        let mut store = bench.open();
        let description = Record::new(Place::Description, Kind::Description, b"whole");
        store.apply(&[batch(1, 100), batch(2, 100), description]).unwrap();
        let mut order = Vec::new();
        for (_, key, _) in &bench.disk.state().pending {
            order.push(Place::from_key(key).unwrap());
        }
        assert_eq!(order.last(), Some(&Place::Description));
        assert_eq!(order.len(), 3);
    }

    #[test]
    fn what_is_written_again_counts_once() {
        let bench = Bench::new();
        let mut store = with_three_in_the_log(&bench);
        drop(store);
        store = bench.open();
        store.apply(&[batch(3, 100), batch(4, 100), batch(5, 100)]).unwrap();
        store.sync().unwrap();
        assert_eq!(bench.store_holds(), [1, 2, 3, 4, 5]);
    }
}
