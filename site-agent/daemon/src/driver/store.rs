//! What the core asks of the store itself: to find what may go, to let it go, to read it again. Each takes a while, and is
//! done beside everything else.

use std::collections::BTreeSet;
use std::time::Duration;

use atoll_model::id::{CommandSeq, ObjectId};
use atoll_model::limits::EVICTION_OBJECTS_MAX;
use atoll_model::value::ObjectRef;
use site_agent_core::Event;
use storage_sync_engine::store::{ScrubPlace, SiteStore, StoreError};

use super::Performer;
use crate::executor::local::{LetActionsGo, Order};
use crate::scrub::damaged;

/// Bytes that are read again at a time.
const PART_BYTES: u64 = 64 << 20;

impl Performer {
    /// What stands in the folder of an action is lent, and does not go: those that nobody needs go before.
    pub(super) fn find_evictable(&mut self, bytes: u64, objects: Option<Vec<ObjectRef>>, needed: BTreeSet<ObjectId>) {
        let idle = self.evict_idle;
        let for_room = objects.is_none();
        let idle_actions = if for_room { idle } else { Duration::ZERO };
        let look = self.later(move |store| {
            let found = match &objects {
                // The core asks for all of it, in several questions.
                Some(objects) => store.evictable_of(objects),
                None => store.evictable(bytes, idle, EVICTION_OBJECTS_MAX),
            };
            let objects = match found {
                Ok(found) => found.into_iter().map(|found| found.object).collect(),
                Err(error) => {
                    tracing::warn!(error = &error as &dyn std::error::Error, "what may go cannot be found");
                    Vec::new()
                }
            };
            vec![Event::EvictableFound { objects }]
        });
        let order = LetActionsGo { needed, idle: idle_actions, for_room, then: look };
        self.order(Order::LetActionsGo(order));
    }

    pub(super) fn evict(&self, order: CommandSeq, objects: Vec<ObjectRef>) {
        let meters = std::sync::Arc::clone(&self.meters);
        self.beside(move |store| {
            let evicted = store.evict(&objects).unwrap_or_else(|error| {
                tracing::warn!(error = &error as &dyn std::error::Error, "the store could not be made smaller");
                Vec::new()
            });
            meters.evicted_bytes.inc_by(evicted.iter().map(|eviction| eviction.freed).sum());
            // Where it failed in between, what is there says it.
            let (kept, gone) = objects.iter().partition(|object| store.contains(**object));
            vec![Event::Evicted { order, gone, kept }]
        });
    }

    pub(super) fn verify(&self, order: CommandSeq, objects: Vec<ObjectRef>) {
        let inbox = self.inbox.clone();
        self.beside(move |store| {
            let tell = |events: Vec<Event>| inbox.tell(events);
            let read = if objects.is_empty() { verify_all(store, &tell) } else { verify_each(store, &objects, &tell) };
            vec![Event::Verified { order, files: read.files, bytes: read.bytes, damaged: read.damaged }]
        });
    }

    fn beside(&self, work: impl FnOnce(&SiteStore) -> Vec<Event> + Send + 'static) {
        self.later(work)();
    }

    /// What begins the work, whenever that is.
    fn later(&self, work: impl FnOnce(&SiteStore) -> Vec<Event> + Send + 'static) -> Box<dyn FnOnce() + Send> {
        let (store, inbox) = (self.store.clone(), self.inbox.clone());
        let (tasks, runtime) = (self.tasks.clone(), self.runtime.clone());
        Box::new(move || {
            tasks.spawn_blocking_on(move || inbox.tell(work(&store)), &runtime);
        })
    }
}

#[derive(Default)]
struct Read {
    files: u64,
    bytes: u64,
    damaged: u64,
}

fn verify_all(store: &SiteStore, tell: &dyn Fn(Vec<Event>)) -> Read {
    let mut read = Read::default();
    let mut place = Some(ScrubPlace::default());
    while let Some(from) = place.take() {
        match store.scrub_some(&from, PART_BYTES) {
            Ok(scrubbed) => {
                read.files += scrubbed.files;
                read.bytes += scrubbed.bytes;
                read.damaged += scrubbed.damaged.len() as u64;
                tell(scrubbed.damaged.into_iter().map(damaged).collect());
                place = scrubbed.next;
            }
            Err(error) => tracing::error!(error = &error as &dyn std::error::Error, "the store cannot be read again"),
        }
    }
    read
}

fn verify_each(store: &SiteStore, objects: &[ObjectRef], tell: &dyn Fn(Vec<Event>)) -> Read {
    let mut read = Read::default();
    for object in objects {
        match store.scrub(*object) {
            Ok(()) => {
                read.files += 1;
                read.bytes += object.bytes;
            }
            Err(StoreError::Damaged { object: found, message }) => {
                read.damaged += 1;
                tell(vec![damaged((found, message))]);
            }
            // It has gone meanwhile: there is nothing to read.
            Err(StoreError::NotFound(_)) => {}
            Err(error) => tracing::error!(error = &error as &dyn std::error::Error, "an object cannot be read again"),
        }
    }
    read
}
