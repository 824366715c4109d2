//! Fetching.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use atoll_model::value::{ObjectKind, ObjectRef};
use futures::{StreamExt as _, TryStreamExt as _};

use super::http::{RangeError, Source};
use super::segments::Segments;
use super::{FetchError, Fetched, Inner, arrival, blocking};
use crate::hash::SEGMENT_BYTES;
use crate::manifest::ManifestError;
use crate::store::error::Doing as _;
use crate::store::take_in::{Arrived, write_sparse};
use crate::store::{SiteStore, StoreError};
use crate::stream::plan::{PlannedFile, PrefixReader, StreamPlan, fits};

/// Asked for first of a tree: the manifests of most are within it, and the files of many.
const FIRST_BYTES: u64 = 1 << 20;
/// A gap between two files that is cheaper to receive than another request is.
const GAP_BYTES: u64 = 64 << 10;

enum Failure {
    /// Twice is enough.
    Corrupt(String),
    Other(FetchError),
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        Self::Other(error.into())
    }
}

impl From<ManifestError> for Failure {
    fn from(error: ManifestError) -> Self {
        Self::Corrupt(error.to_string())
    }
}

impl Failure {
    fn of_range(object: ObjectRef) -> impl Fn(RangeError) -> Self {
        move |error| {
            Self::Other(match error {
                RangeError::Missing => FetchError::Missing(object),
                RangeError::Credentials(error) => FetchError::Credentials(error),
                RangeError::Unreachable { tries, message } => FetchError::Unreachable { tries, message },
            })
        }
    }
}

/// One request's worth of a stream.
enum Piece {
    /// Whole files of at most one segment together, and gaps between them.
    Files {
        start: u64,
        end: u64,
        files: Vec<PlannedFile>,
    },
    Segment {
        file: usize,
        index: u64,
    },
}

pub(super) async fn fetch(inner: &Inner, object: ObjectRef, intent: Option<u64>) -> Result<Fetched, FetchError> {
    let store = inner.store.clone();
    if blocking(move || store.contains(object)).await {
        return Ok(Fetched { wire_bytes: 0 });
    }
    let folder = inner.store.partial(&format!("fetch-{}", object.id.hex()));
    let note = Arc::new(Note {
        store: inner.store.clone(),
        object,
        intent,
        wire_bytes: AtomicU64::new(0),
        closed: Mutex::new(false),
    });
    let _closing = Closing(note.clone());
    let mut first = true;
    loop {
        let source = Source::new(inner, object, &note.wire_bytes);
        let result = fetch_once(inner, &source, &note, &folder).await;
        if result.is_err() {
            let note = note.clone();
            blocking(move || note.take_back()).await?;
        }
        // What is kept for later is of no use after success or damage, and in the way on a full disk.
        if !matches!(result, Err(Failure::Other(ref error)) if !matches!(error, FetchError::NoSpace)) {
            let folder = folder.clone();
            blocking(move || remove_folder(&folder)).await?;
        }
        match result {
            Ok(()) => return Ok(Fetched { wire_bytes: note.wire_bytes.load(Ordering::Relaxed) }),
            Err(Failure::Other(error)) => return Err(error),
            Err(Failure::Corrupt(message)) if first => {
                tracing::warn!(object = %object.id, message, "what came from the bucket is damaged; it is fetched again");
                first = false;
            }
            Err(Failure::Corrupt(message)) => return Err(FetchError::Corrupt { object, message }),
        }
    }
}

fn remove_folder(folder: &Path) -> Result<(), StoreError> {
    match std::fs::remove_dir_all(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(StoreError::io("remove", folder, error)),
        _ => Ok(()),
    }
}

async fn fetch_once(inner: &Inner, source: &Source<'_>, note: &Arc<Note>, folder: &Path) -> Result<(), Failure> {
    let object = note.object;
    let (_, download) = source.url(None).await.map_err(Failure::of_range(object))?;
    let path = folder.to_owned();
    blocking(move || std::fs::create_dir_all(&path).doing("make", &path)).await?;
    let (plan, ahead) = match object.kind {
        ObjectKind::File => (StreamPlan::of_file(object.id, object.bytes), Vec::new()),
        ObjectKind::Tree => manifests(source, object, folder, download.stream_bytes).await?,
    };
    if !fits(&plan, object) || plan.stream_bytes != download.stream_bytes {
        let message = format!("it is {} bytes long, not {}", download.stream_bytes, plan.stream_bytes);
        return Err(Failure::Corrupt(message));
    }
    let plan = Arc::new(plan);
    let work = {
        let (note, plan, folder) = (note.clone(), plan.clone(), folder.to_owned());
        blocking(move || Work::of(note, plan, folder)).await?
    };
    let work = Arc::new(work);
    let ahead = Arc::new((plan.prefix.len() as u64, ahead));
    let pieces = futures::stream::iter(work.pieces()).map(|piece| {
        let (work, ahead) = (work.clone(), ahead.clone());
        async move { bring(source, object, work, piece, &ahead).await }
    });
    pieces.buffer_unordered(inner.config.requests_max.max(1)).try_collect::<()>().await?;
    blocking(move || work.finish()).await
}

/// The plan of a tree, and the bytes that came after its manifests.
async fn manifests(
    source: &Source<'_>,
    object: ObjectRef,
    folder: &Path,
    stream_bytes: u64,
) -> Result<(StreamPlan, Vec<u8>), Failure> {
    let saved = folder.join("manifests");
    let known = tokio::fs::read(&saved).await.unwrap_or_default();
    if let Ok(Some((plan, ahead))) = PrefixReader::new(object.id).push(&known) {
        return Ok((plan, ahead));
    }
    let mut reader = PrefixReader::new(object.id);
    let mut at = 0;
    let mut next = FIRST_BYTES;
    loop {
        let end = (at + next).min(stream_bytes);
        if at == end {
            return Err(Failure::Corrupt("it ends within its manifests".to_owned()));
        }
        let bytes = source.range(at, end).await.map_err(Failure::of_range(object))?;
        at = end;
        next = SEGMENT_BYTES;
        if let Some((plan, ahead)) = reader.push(&bytes)? {
            let prefix = plan.prefix.clone();
            // Read again, it is verified again: so it need not be durable, and half of it is none.
            blocking(move || std::fs::write(&saved, prefix).doing("write", &saved)).await?;
            return Ok((plan, ahead));
        }
    }
}

async fn bring(
    source: &Source<'_>,
    object: ObjectRef,
    work: Arc<Work>,
    piece: Piece,
    (ahead_start, ahead): &(u64, Vec<u8>),
) -> Result<(), Failure> {
    let (start, end) = work.range(&piece);
    let ahead_end = ahead_start + ahead.len() as u64;
    let mut bytes = Vec::new();
    if start < ahead_end {
        bytes.extend_from_slice(&ahead[(start - ahead_start) as usize..(end.min(ahead_end) - ahead_start) as usize]);
    }
    let rest = start + bytes.len() as u64;
    let received = source.range(rest, end).await.map_err(Failure::of_range(object))?;
    let bytes = if bytes.is_empty() {
        received
    } else {
        bytes.extend_from_slice(&received);
        bytes
    };
    blocking(move || work.take(piece, &bytes)).await
}

/// That all bytes have come, for whoever asked: written before the object can be found in the store.
struct Note {
    store: SiteStore,
    object: ObjectRef,
    intent: Option<u64>,
    /// Bytes that came over the wire so far.
    wire_bytes: AtomicU64,
    /// Whoever waited for the fetch has gone: work that goes on behind his back brings nothing in any more.
    closed: Mutex<bool>,
}

/// Closes a note when the fetch is over or dropped.
struct Closing(Arc<Note>);

impl Drop for Closing {
    fn drop(&mut self) {
        *self.0.closed.lock().unwrap_or_else(PoisonError::into_inner) = true;
    }
}

impl Note {
    fn write(&self) -> Result<(), StoreError> {
        let closed = self.closed.lock().unwrap_or_else(PoisonError::into_inner);
        if *closed {
            return Err(StoreError::io("take in", &self.store.partial(""), std::io::ErrorKind::Interrupted));
        }
        let wire_bytes = self.wire_bytes.load(Ordering::Relaxed);
        match self.intent {
            Some(intent) if wire_bytes > 0 => arrival::note(&self.store, self.object, intent, wire_bytes),
            Some(_) | None => Ok(()),
        }
    }

    fn take_back(&self) -> Result<(), StoreError> {
        self.intent.map_or(Ok(()), |intent| arrival::forget(&self.store, self.object, intent))
    }
}

/// What of a stream is still to come, and where it goes.
struct Work {
    store: SiteStore,
    note: Arc<Note>,
    plan: Arc<StreamPlan>,
    folder: PathBuf,
    small: Vec<(u64, u64, Vec<PlannedFile>)>,
    large: Vec<(PlannedFile, Segments)>,
}

impl Work {
    fn of(note: Arc<Note>, plan: Arc<StreamPlan>, folder: PathBuf) -> Result<Self, Failure> {
        let store = note.store.clone();
        let mut work = Self { store, note, plan: plan.clone(), folder, small: Vec::new(), large: Vec::new() };
        for file in plan.files.iter().filter(|file| !work.store.has_file(file.id)) {
            if file.bytes > SEGMENT_BYTES {
                let segments = Segments::open(&work.folder, &file.id.hex(), file.bytes)?;
                work.large.push((file.clone(), segments));
                continue;
            }
            let end = file.start + file.bytes;
            match work.small.last_mut() {
                Some((start, last_end, files))
                    if file.start - *last_end <= GAP_BYTES && end - *start <= SEGMENT_BYTES =>
                {
                    *last_end = end;
                    files.push(file.clone());
                }
                _ => work.small.push((file.start, end, vec![file.clone()])),
            }
        }
        Ok(work)
    }

    fn pieces(&self) -> Vec<Piece> {
        let files = self.small.iter().map(|(start, end, files)| Piece::Files {
            start: *start,
            end: *end,
            files: files.clone(),
        });
        let segments = self.large.iter().enumerate().flat_map(|(file, (_, segments))| {
            segments.missing().into_iter().map(move |index| Piece::Segment { file, index })
        });
        files.chain(segments).collect()
    }

    /// Where a piece is in the stream.
    fn range(&self, piece: &Piece) -> (u64, u64) {
        match piece {
            Piece::Files { start, end, .. } => (*start, *end),
            Piece::Segment { file, index } => {
                let (file, segments) = &self.large[*file];
                let (start, end) = segments.range(*index);
                (file.start + start, file.start + end)
            }
        }
    }

    fn take(&self, piece: Piece, bytes: &[u8]) -> Result<(), Failure> {
        match piece {
            Piece::Segment { file, index } => Ok(self.large[file].1.write(index, bytes)?),
            Piece::Files { start, files, .. } => {
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
                Ok(self.store.take_in(arrived)?)
            }
        }
    }

    /// All pieces are there.
    fn finish(&self) -> Result<(), Failure> {
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
