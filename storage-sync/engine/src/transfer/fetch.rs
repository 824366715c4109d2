//! Fetching.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use atoll_model::value::{ObjectKind, ObjectRef};
use futures::{StreamExt as _, TryStreamExt as _};
use tokio::sync::mpsc;
use tokio_util::task::TaskTracker;

use super::filler::Filler;
use super::http::{RangeError, Retry, Source};
use super::incoming::Begun;
use super::note::{Closing, Note};
use super::origin::Origin;
use super::progress::Listed;
use super::work::{Piece, Work};
use super::{FetchError, Fetched, Inner, Offers, blocking};
use crate::buffers::{Buffer, Pool};
use crate::direct::{Dialer, Offer, Session};
use crate::hash::SEGMENT_BYTES;
use crate::manifest::ManifestError;
use crate::store::StoreError;
use crate::store::error::Doing as _;
use crate::stream::plan::{PrefixReader, StreamPlan, fits};

/// Asked for first of a tree: the manifests of most are within it, and the files of many.
const FIRST_BYTES: u64 = 1 << 20;
/// An agent that is started anew is there again within a second or two.
const COMES_BACK_WITHIN: Duration = Duration::from_secs(6);

pub(super) enum Failure {
    /// Twice is enough.
    Corrupt(String),
    /// Another site does not give it (any more); what came stays.
    Lost(String),
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
                RangeError::Lost(message) => return Self::Lost(message),
                RangeError::Tampered(tampered) => return Self::Corrupt(tampered.to_string()),
            })
        }
    }
}

pub(super) async fn fetch(inner: &Inner, object: ObjectRef, intent: Option<u64>) -> Result<Fetched, FetchError> {
    let store = inner.store.clone();
    if blocking(move || store.contains(object)).await {
        return Ok(Fetched { wire_bytes: 0, direct: None });
    }
    let folder = inner.store.partial(&format!("fetch-{}", object.id.hex()));
    let note = Arc::new(Note {
        store: inner.store.clone(),
        object,
        intent,
        wire_bytes: AtomicU64::new(0),
        direct_bytes: AtomicU64::new(0),
        holder: Mutex::new(None),
        closed: Mutex::new(false),
    });
    let _closing = Closing(note.clone());
    let to = Arriving {
        pool: &inner.grains,
        note: note.clone(),
        folder: folder.clone(),
        listed: inner.underway.list(object, false),
        begun: inner.incoming.begin(object),
    };
    if let Some(dialer) = &inner.direct
        && fetch_directly(inner, dialer, &to).await?
    {
        return Ok(note.fetched());
    }
    let mut first = true;
    loop {
        let source = Source::new(inner, object, &note.wire_bytes);
        let origin = Origin::Bucket { source, requests_max: inner.config.requests_max.max(1) };
        let result = fetch_once(&origin, &to).await;
        settle(&result, &note, &folder).await?;
        match result {
            Ok(()) => return Ok(note.fetched()),
            Err(Failure::Other(error)) => return Err(error),
            Err(Failure::Lost(message)) => return Err(FetchError::Unreachable { tries: 1, message }),
            Err(Failure::Corrupt(message)) if first => {
                tracing::warn!(object = %object.id, message, "what came from the bucket is damaged; it is fetched again");
                first = false;
            }
            Err(Failure::Corrupt(message)) => return Err(FetchError::Corrupt { object, message }),
        }
    }
}

/// Where what is fetched goes, and who is told of it.
struct Arriving<'a> {
    pool: &'a Pool,
    note: Arc<Note>,
    folder: PathBuf,
    listed: Listed,
    begun: Begun,
}

/// What becomes of the note and the folder after a try.
async fn settle(result: &Result<(), Failure>, note: &Arc<Note>, folder: &Path) -> Result<(), FetchError> {
    if result.is_err() {
        let note = note.clone();
        blocking(move || note.take_back()).await?;
    }
    let keep = match result {
        Err(Failure::Lost(_)) => true,
        // What is kept for later is of no use after success or damage, and in the way on a full disk.
        Err(Failure::Other(error)) => !matches!(error, FetchError::NoSpace),
        Ok(()) | Err(Failure::Corrupt(_)) => false,
    };
    if !keep {
        let folder = folder.to_owned();
        blocking(move || remove_folder(&folder)).await?;
    }
    Ok(())
}

/// Asks other sites for the object, one after the other; whether one of them gave it.
async fn fetch_directly(inner: &Inner, dialer: &Dialer, to: &Arriving<'_>) -> Result<bool, FetchError> {
    let object = to.note.object;
    let offers = loop {
        match inner.credentials.offers(object).await {
            Ok(Offers::From(offers)) => break offers,
            Ok(Offers::AskAgain(time)) => tokio::time::sleep(time).await,
            Err(error) => {
                tracing::debug!(object = %object.id, %error, "nobody says which sites have it");
                return Ok(false);
            }
        }
    };
    for offer in offers {
        let holder = offer.holder;
        let result = fetch_patiently(inner, dialer, &offer, to).await;
        settle(&result, &to.note, &to.folder).await?;
        let message = match result {
            Ok(()) => return Ok(true),
            Err(Failure::Other(error)) => return Err(error),
            Err(Failure::Corrupt(message)) => format!("it sent a damaged copy: {message}"),
            Err(Failure::Lost(message)) => message,
        };
        tracing::warn!(object = %object.id, %holder, message, "another site does not give an object");
        if let Err(error) = inner.credentials.offer_failed(object, holder, &message).await {
            tracing::debug!(%error, "that could not be said to the control plane");
        }
        to.listed.comes_from(None);
    }
    Ok(false)
}

/// From one holder. One that gave something and was lost is asked again for a while: it may be starting anew, and whatever
/// goes by way of the bucket instead goes there whole.
async fn fetch_patiently(inner: &Inner, dialer: &Dialer, offer: &Offer, to: &Arriving<'_>) -> Result<(), Failure> {
    let note = &to.note;
    let (mut came, mut lost_at) = (0, None);
    let mut retry = Retry::new(&inner.config);
    loop {
        let result = fetch_from(dialer, offer.clone(), to).await;
        let Err(Failure::Lost(message)) = &result else { return result };
        let before = std::mem::replace(&mut came, note.direct_bytes.load(Ordering::Relaxed));
        if came > before {
            (retry, lost_at) = (Retry::new(&inner.config), Some(Instant::now()));
        }
        if lost_at.is_none_or(|lost_at| lost_at.elapsed() > COMES_BACK_WITHIN) {
            return result;
        }
        tracing::debug!(object = %note.object.id, holder = %offer.holder, message, "a holder was lost; it is asked again");
        if !retry.wait().await {
            return result;
        }
    }
}

async fn fetch_from(dialer: &Dialer, offer: Offer, to: &Arriving<'_>) -> Result<(), Failure> {
    let note = &to.note;
    let lost = |error: crate::direct::DirectError| Failure::Lost(error.to_string());
    let session = Session::open(dialer, offer, note.object).await.map_err(lost)?;
    note.comes_from(session.holder());
    to.listed.comes_from(Some(session.holder()));
    let origin = Origin::Direct { session, wire_bytes: &note.wire_bytes, direct_bytes: &note.direct_bytes };
    let result = fetch_once(&origin, to).await;
    if let Origin::Direct { session, .. } = &origin {
        match &result {
            Ok(()) => session.finished().await,
            Err(Failure::Corrupt(_)) => {
                let damaged = session.doubt().await;
                tracing::warn!(object = %note.object.id, holder = %session.holder(), ?damaged, "a copy that came is damaged");
            }
            Err(Failure::Lost(_) | Failure::Other(_)) => {}
        }
    }
    result
}

fn remove_folder(folder: &Path) -> Result<(), StoreError> {
    match std::fs::remove_dir_all(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(StoreError::io("remove", folder, error)),
        _ => Ok(()),
    }
}

async fn fetch_once(origin: &Origin<'_>, to: &Arriving<'_>) -> Result<(), Failure> {
    let Arriving { note, folder, .. } = to;
    let object = note.object;
    let stream_bytes = origin.stream_bytes().await.map_err(Failure::of_range(object))?;
    let path = folder.to_owned();
    blocking(move || std::fs::create_dir_all(&path).doing("make", &path)).await?;
    let (plan, ahead) = match object.kind {
        ObjectKind::File => (StreamPlan::of_file(object.id, object.bytes), Vec::new()),
        ObjectKind::Tree => manifests(origin, object, folder, stream_bytes).await?,
    };
    if !fits(&plan, object) || plan.stream_bytes != stream_bytes {
        let message = format!("it is {stream_bytes} bytes long, not {}", plan.stream_bytes);
        return Err(Failure::Corrupt(message));
    }
    let plan = Arc::new(plan);
    let work = {
        let (note, plan, folder) = (note.clone(), plan.clone(), folder.to_owned());
        blocking(move || Work::of(note, plan, folder)).await?
    };
    let (work, ahead) = (Arc::new(work), (plan.prefix.len() as u64, ahead));
    to.begun.comes_as(Some(&work));
    let brought = bring_all(origin, to, &work, ahead).await;
    // Between this try and the next nobody knows what of it counts.
    to.begun.comes_as(None);
    brought?;
    blocking(move || work.finish()).await
}

/// Brings all pieces that are missing. `ahead` is what has come already, and where in the stream that is.
async fn bring_all(
    origin: &Origin<'_>,
    to: &Arriving<'_>,
    work: &Arc<Work>,
    ahead: (u64, Vec<u8>),
) -> Result<(), Failure> {
    let Arriving { pool, note, listed, .. } = to;
    let pieces = work.pieces(origin.range_bytes());
    let missing = pieces.iter().map(|piece| work.range(piece)).map(|(start, end)| end - start).sum();
    listed.missing_bytes.store(missing, Ordering::Relaxed);
    listed.arrived_bytes.store(0, Ordering::Relaxed);
    let (writing, ahead) = (TaskTracker::new(), Arc::new(ahead));
    let pieces = futures::stream::iter(pieces).map(|piece| {
        let (work, ahead, writing) = (work.clone(), ahead.clone(), writing.clone());
        let bringing = Bringing { origin, pool, object: note.object, work, listed, writing };
        async move { bringing.bring(piece, &ahead).await }
    });
    let brought = pieces.buffer_unordered(origin.requests_max()).try_collect::<()>().await;
    // What has come is not fetched again because another piece was lost.
    writing.close();
    writing.wait().await;
    brought
}

/// The plan of a tree, and the bytes that came after its manifests.
async fn manifests(
    origin: &Origin<'_>,
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
        let bytes = origin.range(at, end).await.map_err(Failure::of_range(object))?;
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

/// Brings one piece.
struct Bringing<'a> {
    origin: &'a Origin<'a>,
    pool: &'a Pool,
    object: ObjectRef,
    work: Arc<Work>,
    listed: &'a Listed,
    writing: TaskTracker,
}

impl Bringing<'_> {
    async fn bring(self, piece: Piece, (ahead_start, ahead): &(u64, Vec<u8>)) -> Result<(), Failure> {
        let (start, end) = self.work.range(&piece);
        let ahead_end = ahead_start + ahead.len() as u64;
        let (mut filler, parts) = Filler::new(self.pool, end - start, self.work.part_bytes(&piece));
        let bringing = async {
            if start < ahead_end {
                let known = (start - ahead_start) as usize..(end.min(ahead_end) - ahead_start) as usize;
                filler.put(&ahead[known]).await.map_err(|gone| RangeError::Lost(gone.to_string()))?;
            }
            let rest = end - filler.left();
            self.origin.bring(rest, filler).await
        };
        // What has come is taken in even if no more comes.
        let (brought, taken) = futures::join!(bringing, self.take(piece, parts));
        taken?;
        brought.map_err(Failure::of_range(self.object))
    }

    async fn take(&self, piece: Piece, mut parts: mpsc::Receiver<Buffer>) -> Result<(), Failure> {
        let (piece, mut offset) = (Arc::new(piece), 0);
        if self.work.part_bytes(&piece) == 0 {
            // Empty files, of which nothing comes.
            let work = self.work.clone();
            return blocking(move || work.take(&piece, 0, &[])).await;
        }
        while let Some(part) = parts.recv().await {
            let (work, piece, underway) = (self.work.clone(), piece.clone(), self.writing.token());
            let bytes = part.len() as u64;
            blocking(move || {
                let taken = work.take(&piece, offset, &part);
                drop(underway);
                taken
            })
            .await?;
            offset += bytes;
            self.listed.arrived(bytes);
        }
        // Nothing waits for it but the end of the fetch.
        let work = self.work.clone();
        self.writing.spawn_blocking(move || work.begin_to_sync(&piece));
        Ok(())
    }
}
