//! What is on its way into a store, for agents of other sites that may read what has come of it while the rest is still to
//! come. What they read is as yet verified by nobody but the link that it came over: each of them compares the whole with
//! the object's name, as for everything that is fetched.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use atoll_model::value::{ObjectKind, ObjectRef};

use super::work::Work;
use crate::stream::ObjectStream;

/// The fetches of one store. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Incoming(Arc<Mutex<HashMap<ObjectRef, Arc<Coming>>>>);

/// A fetch that goes on.
#[derive(Debug)]
pub(crate) struct Coming {
    object: ObjectRef,
    /// Nothing before it is known what is to come, and between two tries.
    work: Mutex<Option<Arc<Work>>>,
}

/// What of an object can be read now.
#[derive(Debug)]
pub(crate) enum Had {
    Part(Arc<ObjectStream>),
    NotYet,
}

/// Stands among those that go on until it is dropped.
#[derive(Debug)]
pub(super) struct Begun {
    incoming: Incoming,
    coming: Arc<Coming>,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Incoming {
    pub(super) fn begin(&self, object: ObjectRef) -> Begun {
        let coming = Arc::new(Coming { object, work: Mutex::default() });
        locked(&self.0).insert(object, Arc::clone(&coming));
        Begun { incoming: self.clone(), coming }
    }

    pub(crate) fn of(&self, object: ObjectRef) -> Option<Arc<Coming>> {
        locked(&self.0).get(&object).cloned()
    }
}

impl Coming {
    /// The length of the stream, once it is known.
    pub(crate) fn stream_bytes(&self) -> Option<u64> {
        match self.object.kind {
            ObjectKind::File => Some(self.object.bytes),
            ObjectKind::Tree => locked(&self.work).as_ref().map(|work| work.stream().stream_bytes()),
        }
    }

    /// Whether all of a range has come.
    pub(crate) fn look(&self, start: u64, end: u64) -> Had {
        match locked(&self.work).as_ref().filter(|work| work.has(start, end)) {
            Some(work) => Had::Part(Arc::clone(work.stream())),
            None => Had::NotYet,
        }
    }
}

impl Begun {
    /// What comes can be read there.
    pub(super) fn comes_as(&self, work: Option<&Arc<Work>>) {
        *locked(&self.coming.work) = work.cloned();
    }
}

impl Drop for Begun {
    fn drop(&mut self) {
        self.comes_as(None);
        let mut known = locked(&self.incoming.0);
        if known.get(&self.coming.object).is_some_and(|known| Arc::ptr_eq(known, &self.coming)) {
            known.remove(&self.coming.object);
        }
    }
}
