//! What is noted of a fetch while it goes on.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use atoll_model::id::AgentId;
use atoll_model::value::ObjectRef;

use super::{Fetched, arrival};
use crate::store::{SiteStore, StoreError};

/// That all bytes have come, for whoever asked: written before the object can be found in the store.
#[derive(Debug)]
pub(super) struct Note {
    pub(super) store: SiteStore,
    pub(super) object: ObjectRef,
    pub(super) intent: Option<u64>,
    /// Bytes that came over the wire so far.
    pub(super) wire_bytes: AtomicU64,
    /// Those of them that came from other sites, and from which agent there the last of them.
    pub(super) direct_bytes: AtomicU64,
    pub(super) holder: Mutex<Option<AgentId>>,
    /// Whoever waited for the fetch has gone: work that goes on behind his back brings nothing in any more.
    pub(super) closed: Mutex<bool>,
}

/// Closes a note when the fetch is over or dropped.
pub(super) struct Closing(pub(super) Arc<Note>);

impl Drop for Closing {
    fn drop(&mut self) {
        *self.0.closed.lock().unwrap_or_else(PoisonError::into_inner) = true;
    }
}

impl Note {
    pub(super) fn comes_from(&self, holder: AgentId) {
        *self.holder.lock().unwrap_or_else(PoisonError::into_inner) = Some(holder);
    }

    pub(super) fn fetched(&self) -> Fetched {
        let holder = *self.holder.lock().unwrap_or_else(PoisonError::into_inner);
        let bytes = self.direct_bytes.load(Ordering::Relaxed);
        let direct = holder.filter(|_| bytes > 0).map(|holder| (holder, bytes));
        Fetched { wire_bytes: self.wire_bytes.load(Ordering::Relaxed), direct }
    }

    pub(super) fn write(&self) -> Result<(), StoreError> {
        let closed = self.closed.lock().unwrap_or_else(PoisonError::into_inner);
        if *closed {
            return Err(StoreError::io("take in", &self.store.partial(""), std::io::ErrorKind::Interrupted));
        }
        let fetched = self.fetched();
        match self.intent {
            Some(intent) if fetched.wire_bytes > 0 => arrival::note(&self.store, self.object, intent, fetched),
            Some(_) | None => Ok(()),
        }
    }

    pub(super) fn take_back(&self) -> Result<(), StoreError> {
        self.intent.map_or(Ok(()), |intent| arrival::forget(&self.store, self.object, intent))
    }
}
