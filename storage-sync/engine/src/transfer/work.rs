//! What of a stream is still to come, piece by piece.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use super::fetch::Failure;
use super::note::Note;
use super::segments::Segments;
use crate::hash::{GRAIN_BYTES, SEGMENT_BYTES};
use crate::store::take_in::{Arrived, write_sparse};
use crate::store::{Held, SiteStore};
use crate::stream::ObjectStream;
use crate::stream::plan::{PlannedFile, StreamPlan};
use crate::stream::source::Files;

/// A gap between two files that is cheaper to receive than another request is.
const GAP_BYTES: u64 = 64 << 10;

/// One request's worth of a stream.
pub(super) enum Piece {
    /// Whole files of at most one segment together, and gaps between them.
    Files { start: u64, end: u64, files: Vec<PlannedFile> },
    /// A range of a large file, of at most one segment.
    Grains { file: usize, start: u64, end: u64 },
}

/// What of a stream is still to come, and where it goes.
#[derive(Debug)]
pub(crate) struct Work {
    store: SiteStore,
    note: Arc<Note>,
    plan: Arc<StreamPlan>,
    small: Vec<(u64, u64, Vec<PlannedFile>)>,
    /// Where those of them begin that have come.
    small_done: Mutex<BTreeSet<u64>>,
    large: Vec<(PlannedFile, Segments)>,
    /// Of which what has come can be read.
    stream: Arc<ObjectStream>,
    /// What is here already stays until all of it is.
    _held: Held,
}

impl Work {
    pub(super) fn of(note: Arc<Note>, plan: Arc<StreamPlan>, folder: PathBuf) -> Result<Self, Failure> {
        let store = note.store.clone();
        let objects = plan.files.iter().map(|file| file.id).chain(plan.manifest_bytes().map(|(id, _)| id));
        let held = store.hold(objects.collect());
        let mut small: Vec<(u64, u64, Vec<PlannedFile>)> = Vec::new();
        let mut large = Vec::new();
        for file in plan.files.iter().filter(|file| !store.has_file(file.id)) {
            if file.bytes > SEGMENT_BYTES {
                let segments = Segments::open(&folder, &file.id.hex(), file.bytes)?;
                large.push((file.clone(), segments));
                continue;
            }
            let end = file.start + file.bytes;
            match small.last_mut() {
                Some((start, last_end, files))
                    if file.start - *last_end <= GAP_BYTES && end - *start <= SEGMENT_BYTES =>
                {
                    *last_end = end;
                    files.push(file.clone());
                }
                _ => small.push((file.start, end, vec![file.clone()])),
            }
        }
        let coming: BTreeMap<_, _> = large.iter().map(|(file, segments)| (file.id, segments.shared())).collect();
        let files = Files::Coming { store: store.clone(), large: coming };
        let stream = Arc::new(ObjectStream { object: note.object, plan: plan.clone(), files });
        let small_done = Mutex::default();
        Ok(Self { store, note, plan, small, small_done, large, stream, _held: held })
    }

    /// What may be read of it is told by [`Self::has`].
    pub(super) fn stream(&self) -> &Arc<ObjectStream> {
        &self.stream
    }

    /// Whether all of a range of the stream is here.
    pub(super) fn has(&self, start: u64, end: u64) -> bool {
        let first = self.small.partition_point(|(_, small_end, _)| *small_end <= start);
        let done = self.small_done.lock().unwrap_or_else(PoisonError::into_inner);
        let small = self.small[first..].iter().take_while(|(small_start, ..)| *small_start < end);
        small.map(|(small_start, ..)| small_start).all(|small_start| done.contains(small_start))
            && self.large.iter().all(|(file, segments)| {
                let within = |at: u64| at.clamp(file.start, file.start + file.bytes) - file.start;
                segments.has(within(start), within(end))
            })
    }

    /// `range_bytes`: of a large file at most, a multiple of a grain that a segment is a multiple of.
    pub(super) fn pieces(&self, range_bytes: u64) -> Vec<Piece> {
        let files = self.small.iter().map(|(start, end, files)| Piece::Files {
            start: *start,
            end: *end,
            files: files.clone(),
        });
        let segments = self.large.iter().enumerate().flat_map(|(file, (_, segments))| {
            segments.missing(range_bytes).into_iter().map(move |(start, end)| Piece::Grains { file, start, end })
        });
        files.chain(segments).collect()
    }

    /// Where a piece is in the stream.
    pub(super) fn range(&self, piece: &Piece) -> (u64, u64) {
        match piece {
            Piece::Files { start, end, .. } => (*start, *end),
            Piece::Grains { file, start, end } => {
                let at = self.large[*file].0.start;
                (at + start, at + end)
            }
        }
    }

    /// How much of a piece is taken in at a time.
    pub(super) fn part_bytes(&self, piece: &Piece) -> usize {
        match piece {
            Piece::Files { start, end, .. } => (end - start) as usize,
            Piece::Grains { .. } => GRAIN_BYTES as usize,
        }
    }

    /// Takes in what came of a piece, `offset` bytes after its beginning.
    pub(super) fn take(&self, piece: &Piece, offset: u64, bytes: &[u8]) -> Result<(), Failure> {
        match piece {
            Piece::Grains { file, start, .. } => Ok(self.large[*file].1.write(start + offset, bytes)?),
            Piece::Files { start, files, .. } => self.take_files(*start, files, bytes),
        }
    }

    /// A piece has come whole.
    pub(super) fn begin_to_sync(&self, piece: &Piece) {
        match piece {
            Piece::Grains { file, end, .. } if end.is_multiple_of(SEGMENT_BYTES) => {
                self.large[*file].1.begin_to_sync(*end);
            }
            Piece::Grains { .. } | Piece::Files { .. } => {}
        }
    }

    fn take_files(&self, start: u64, files: &[PlannedFile], bytes: &[u8]) -> Result<(), Failure> {
        let mut arrived = Vec::with_capacity(files.len());
        for file in files {
            let from = (file.start - start) as usize;
            let content = &bytes[from..from + file.bytes as usize];
            if blake3::hash(content).as_bytes() != file.id.digest() {
                return Err(Failure::Corrupt(format!("the bytes of {} have another digest", file.id)));
            }
            let path = self.store.temporary();
            write_sparse(&path, file.variants, content)?;
            arrived.push(Arrived { id: file.id, variants: file.variants, path });
        }
        // A small file is an object that has come whole.
        if self.plan.manifests.is_empty() {
            self.note.write()?;
        }
        self.store.take_in(arrived)?;
        self.small_done.lock().unwrap_or_else(PoisonError::into_inner).insert(start);
        Ok(())
    }

    /// All pieces are there.
    pub(super) fn finish(&self) -> Result<(), Failure> {
        let mut arrived = Vec::new();
        for (file, segments) in &self.large {
            if segments.digest() != *file.id.digest() {
                return Err(Failure::Corrupt(format!("the bytes of {} have another digest", file.id)));
            }
            arrived.push(Arrived { id: file.id, variants: file.variants, path: segments.path.clone() });
        }
        if !arrived.is_empty() || !self.plan.manifests.is_empty() {
            self.note.write()?;
        }
        if !arrived.is_empty() {
            self.store.take_in(arrived)?;
        }
        if !self.plan.manifests.is_empty() {
            self.store.take_in_manifests(self.plan.manifest_bytes())?;
        }
        Ok(())
    }
}
