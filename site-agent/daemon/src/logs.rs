//! Logs that somebody looks at: what is still being written, and what is in the store.

use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::unix::fs::FileExt as _;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use atoll_model::value::ObjectRef;
use atoll_proto::LogStream;
use bytes::Bytes;
use futures::stream::{self, BoxStream, StreamExt as _};
use rustix::fs::{FlockOperation, SeekFrom, flock, seek};
use rustix::io::Errno;
use storage_sync_engine::store::SiteStore;

use crate::executor::local::{LogPlace, LogPlaces};
use crate::link::{LogRequest, LogSource};
use crate::shim::protocol::Key;
use crate::shim::{STDERR, STDOUT, log};
use crate::withheld::Withheld;

const CHUNK_BYTES: usize = 64 << 10;
/// How often a log that grows is looked at.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);

pub(crate) struct Logs {
    pub(crate) store: SiteStore,
    pub(crate) places: LogPlaces,
    pub(crate) withheld: Withheld,
}

struct Live {
    places: LogPlaces,
    key: Key,
    name: &'static str,
    file: File,
    offset: u64,
    follow: bool,
    /// Whether its attempt is known to have ended.
    over: bool,
}

impl Logs {
    fn place(&self, key: Key) -> Option<LogPlace> {
        self.places.lock().unwrap_or_else(PoisonError::into_inner).get(&key).cloned()
    }

    fn stored(&self, object: ObjectRef, offset: u64) -> BoxStream<'static, io::Result<Bytes>> {
        let store = self.store.clone();
        stream::try_unfold(offset, move |offset| {
            let store = store.clone();
            async move {
                let read = tokio::task::spawn_blocking(move || store.read(object.id, offset, CHUNK_BYTES)).await;
                let bytes = read.map_err(io::Error::other)?.map_err(io::Error::other)?;
                let next = offset + bytes.len() as u64;
                Ok((!bytes.is_empty()).then(|| (Bytes::from(bytes), next)))
            }
        })
        .boxed()
    }
}

#[async_trait]
impl LogSource for Logs {
    async fn open(&self, request: LogRequest) -> Result<BoxStream<'static, io::Result<Bytes>>, String> {
        if let Some(object) = request.object {
            if let Some(reason) = self.withheld.object(object.id) {
                return Err(reason);
            }
            return Ok(self.stored(object, request.offset));
        }
        let key = Key { execution: request.execution, attempt: request.attempt };
        if let Some(reason) = self.withheld.logs(key) {
            return Err(reason.to_string());
        }
        let name = match request.stream {
            LogStream::Stdout => STDOUT,
            LogStream::Stderr => STDERR,
        };
        let file = loop {
            let Some(place) = self.place(key) else { return Ok(stream::empty().boxed()) };
            match open_log(key, &place, name) {
                Ok(Some(file)) => break file,
                Ok(None) => tokio::time::sleep(LOOK_INTERVAL).await,
                // Nothing was written, or it is on its way into the store.
                Err(error) if error.kind() == ErrorKind::NotFound => return Ok(stream::empty().boxed()),
                Err(error) => return Err(format!("the log cannot be read: {error}")),
            }
        };
        let live = Live {
            places: Arc::clone(&self.places),
            key,
            name,
            file,
            offset: request.offset,
            follow: request.follow,
            over: false,
        };
        Ok(stream::try_unfold(live, Live::next).boxed())
    }
}

/// Opens a log where it is. Nothing if it cannot be told yet whose it is: the slot has gone on, or is about to.
fn open_log(key: Key, place: &LogPlace, name: &str) -> io::Result<Option<File>> {
    let file = File::open(place.folder.join(name))?;
    if !place.running {
        return Ok(Some(file));
    }
    // The slot's next execution gets another file as long as this one is locked; unless it was claimed before that.
    match flock(&file, FlockOperation::NonBlockingLockShared) {
        Ok(()) => Ok((log::read(&place.folder)?.latest == Some(key)).then_some(file)),
        Err(Errno::WOULDBLOCK) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

impl Live {
    async fn next(mut self) -> io::Result<Option<(Bytes, Self)>> {
        loop {
            // Looked at before the read: what is written until the end is read after it.
            let place = self.places.lock().unwrap_or_else(PoisonError::into_inner).get(&self.key).cloned();
            let running = place.as_ref().is_some_and(|place| place.running);
            if !running && !std::mem::replace(&mut self.over, true) {
                self.open_kept(place);
            }
            let (skipped, length) = self.next_extent();
            let mut buffer = vec![0; length];
            let read = self.file.read_at(&mut buffer, self.offset)?;
            if read > 0 {
                buffer.truncate(read);
                self.offset += read as u64;
                // What was dropped ends within a block, whose beginning is empty.
                let empty = buffer.iter().take_while(|byte| skipped && **byte == 0).count();
                return Ok(Some((Bytes::from(buffer).slice(empty..), self)));
            }
            if !(running && self.follow) {
                return Ok(None);
            }
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
    }

    /// Goes on behind what was dropped of a long log: whether anything was, and how much is to be read from there at most. Where
    /// files have no holes all of it is there.
    fn next_extent(&mut self) -> (bool, usize) {
        let before = self.offset;
        // At the end there is nothing more, for now.
        self.offset = seek(&self.file, SeekFrom::Data(before)).unwrap_or(before);
        let hole = seek(&self.file, SeekFrom::Hole(self.offset)).ok();
        let left = hole.and_then(|hole| usize::try_from(hole.saturating_sub(self.offset)).ok());
        (self.offset > before, left.unwrap_or(CHUNK_BYTES).clamp(1, CHUNK_BYTES))
    }

    /// What was opened between the end of the attempt and the news of it is empty, and not what the attempt wrote.
    fn open_kept(&mut self, place: Option<LogPlace>) {
        if let Some(file) = place.and_then(|place| File::open(place.folder.join(self.name)).ok()) {
            self.file = file;
        }
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test that fails here has failed")]

    use std::fs::OpenOptions;

    use atoll_model::id::{Attempt, ExecutionId, RunId, StepIndex};
    use rustix::fs::{FallocateFlags, fallocate};

    use super::*;

    #[tokio::test]
    async fn what_was_dropped_of_a_long_log_is_passed_over() {
        const MEGABYTE: usize = 1 << 20;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(STDOUT);
        std::fs::write(&path, [vec![b'a'; MEGABYTE], vec![b'b'; MEGABYTE], vec![b'c'; 100]].concat()).unwrap();
        let file = OpenOptions::new().read(true).write(true).open(&path).unwrap();
        let (from, dropped) = (MEGABYTE as u64, MEGABYTE as u64 + 10);
        fallocate(&file, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, from, dropped).unwrap();
        let execution = ExecutionId { run: RunId::from_bits(1), step: StepIndex(0), element: 0 };
        let key = Key { execution, attempt: Attempt(1) };
        let places = LogPlaces::default();
        let mut live = Live { places, key, name: STDOUT, file, offset: 0, follow: false, over: true };
        let mut read = Vec::new();
        while let Some((bytes, next)) = live.next().await.unwrap() {
            read.extend_from_slice(&bytes);
            live = next;
        }
        assert!(read == [vec![b'a'; MEGABYTE], vec![b'c'; 90]].concat(), "{} bytes", read.len());
    }
}
