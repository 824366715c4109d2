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
use rustix::fs::{FlockOperation, flock};
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
            let mut buffer = vec![0; CHUNK_BYTES];
            let read = self.file.read_at(&mut buffer, self.offset)?;
            if read > 0 {
                buffer.truncate(read);
                self.offset += read as u64;
                return Ok(Some((Bytes::from(buffer), self)));
            }
            if !(running && self.follow) {
                return Ok(None);
            }
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
    }

    /// What was opened between the end of the attempt and the news of it is empty, and not what the attempt wrote.
    fn open_kept(&mut self, place: Option<LogPlace>) {
        if let Some(file) = place.and_then(|place| File::open(place.folder.join(self.name)).ok()) {
            self.file = file;
        }
    }
}
