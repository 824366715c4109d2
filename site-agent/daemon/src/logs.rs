//! Logs that somebody looks at: what is still being written, and what is in the store.

use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::unix::fs::FileExt as _;
use std::sync::PoisonError;
use std::time::Duration;

use async_trait::async_trait;
use atoll_model::value::ObjectRef;
use atoll_proto::LogStream;
use bytes::Bytes;
use futures::stream::{self, BoxStream, StreamExt as _};
use storage_sync_engine::store::SiteStore;

use crate::executor::local::{LogPlace, LogPlaces};
use crate::link::{LogRequest, LogSource};
use crate::shim::protocol::Key;
use crate::shim::{STDERR, STDOUT};

const CHUNK_BYTES: usize = 64 << 10;
/// How often a log that grows is looked at.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);

pub(crate) struct Logs {
    pub(crate) store: SiteStore,
    pub(crate) places: LogPlaces,
}

struct Live {
    places: LogPlaces,
    key: Key,
    file: File,
    offset: u64,
    follow: bool,
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
            return Ok(self.stored(object, request.offset));
        }
        let key = Key { execution: request.execution, attempt: request.attempt };
        let name = match request.stream {
            LogStream::Stdout => STDOUT,
            LogStream::Stderr => STDERR,
        };
        let Some(place) = self.place(key) else { return Ok(stream::empty().boxed()) };
        let file = match File::open(place.folder.join(name)) {
            Ok(file) => file,
            // Nothing was written, or it is on its way into the store.
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(stream::empty().boxed()),
            Err(error) => return Err(format!("the log cannot be read: {error}")),
        };
        let live = Live { places: self.places.clone(), key, file, offset: request.offset, follow: request.follow };
        Ok(stream::try_unfold(live, Live::next).boxed())
    }
}

impl Live {
    async fn next(mut self) -> io::Result<Option<(Bytes, Self)>> {
        loop {
            // Looked at before the read: what is written until the end is read after it.
            let running = self
                .places
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .get(&self.key)
                .is_some_and(|place| place.running);
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
}
