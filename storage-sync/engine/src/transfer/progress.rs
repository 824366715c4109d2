//! How far fetches and pushes are.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use atoll_model::id::AgentId;
use atoll_model::value::ObjectRef;

/// A fetch or push that is going on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Underway {
    pub object: ObjectRef,
    /// Bytes of its stream that were missing when it began, as far as is known yet.
    pub missing_bytes: u64,
    /// Those of them that are verified and written, or wait for that with their whole file.
    pub arrived_bytes: u64,
    pub since: Duration,
    /// It goes to the bucket instead of coming here.
    pub pushed: bool,
    /// The agent that they come from; nothing if it is the bucket.
    pub holder: Option<AgentId>,
}

#[derive(Debug)]
pub(super) struct Progress {
    pub(super) missing_bytes: AtomicU64,
    pub(super) arrived_bytes: AtomicU64,
    pub(super) holder: Mutex<Option<AgentId>>,
    began: Instant,
}

impl Progress {
    pub(super) fn arrived(&self, bytes: u64) {
        self.arrived_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(super) fn comes_from(&self, holder: Option<AgentId>) {
        *locked(&self.holder) = holder;
    }
}

/// An object, and whether it is pushed.
type Key = (ObjectRef, bool);

/// All that are going on.
#[derive(Debug, Clone, Default)]
pub(super) struct Board(Arc<Mutex<BTreeMap<Key, Arc<Progress>>>>);

/// On the board until it is dropped.
#[derive(Debug)]
pub(super) struct Listed {
    board: Board,
    key: Key,
    progress: Arc<Progress>,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Board {
    pub(super) fn list(&self, object: ObjectRef, pushed: bool) -> Listed {
        let progress = Arc::new(Progress {
            missing_bytes: AtomicU64::new(object.bytes),
            arrived_bytes: AtomicU64::new(0),
            holder: Mutex::new(None),
            began: Instant::now(),
        });
        let key = (object, pushed);
        locked(&self.0).insert(key, Arc::clone(&progress));
        Listed { board: self.clone(), key, progress }
    }

    pub(super) fn look(&self) -> Vec<Underway> {
        let underway = |((object, pushed), progress): (&Key, &Arc<Progress>)| Underway {
            object: *object,
            missing_bytes: progress.missing_bytes.load(Ordering::Relaxed),
            arrived_bytes: progress.arrived_bytes.load(Ordering::Relaxed),
            since: progress.began.elapsed(),
            pushed: *pushed,
            holder: *locked(&progress.holder),
        };
        locked(&self.0).iter().map(underway).collect()
    }
}

impl std::ops::Deref for Listed {
    type Target = Progress;

    fn deref(&self) -> &Progress {
        &self.progress
    }
}

impl Drop for Listed {
    fn drop(&mut self) {
        let mut listed = locked(&self.board.0);
        if listed.get(&self.key).is_some_and(|known| Arc::ptr_eq(known, &self.progress)) {
            listed.remove(&self.key);
        }
    }
}
