//! What may not leave the site, for every way out: pushes, other agents, logs. The core decides it; this is where those
//! that serve look it up.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};

use atoll_model::id::ObjectId;
use site_agent_core::{Agent, Command, Fact, Step};
use storage_sync_engine::store::SiteStore;

use crate::executor::local::key;
use crate::shim::protocol::Key;

/// Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Withheld {
    store: SiteStore,
    known: Arc<RwLock<Known>>,
}

#[derive(Debug, Default)]
struct Known {
    objects: HashMap<ObjectId, Arc<str>>,
    /// Attempts whose logs are not to be read, while they have any.
    logs: HashMap<Key, Arc<str>>,
}

impl Withheld {
    pub(crate) fn new(store: SiteStore) -> Self {
        Self { store, known: Arc::default() }
    }

    /// Why the object may not leave.
    pub(crate) fn object(&self, object: ObjectId) -> Option<Arc<str>> {
        self.known.read().unwrap_or_else(PoisonError::into_inner).objects.get(&object).cloned()
    }

    /// Why the logs of the attempt may not be read.
    pub(crate) fn logs(&self, attempt: Key) -> Option<Arc<str>> {
        self.known.read().unwrap_or_else(PoisonError::into_inner).logs.get(&attempt).cloned()
    }

    /// Takes in what the core knew before this process began.
    pub(crate) fn recover(&self, agent: &Agent) {
        agent.all_withheld().for_each(|(object, reason)| self.add(object, reason));
        for (execution, attempt, reason) in agent.all_withheld_logs() {
            self.write(|known| known.logs.insert(key(execution, attempt), reason.into()));
        }
    }

    /// Takes in what the core has decided, before anything of it is carried out.
    pub(crate) fn hear(&self, agent: &Agent, step: &Step) {
        for fact in &step.facts {
            if let Fact::Withheld { objects, reason } = fact {
                objects.iter().for_each(|object| self.add(*object, reason));
            }
        }
        for command in &step.commands {
            if let Command::Start { execution, attempt, .. } = command
                && let Some(reason) = agent.withheld_logs(*execution, *attempt)
            {
                self.write(|known| known.logs.insert(key(*execution, *attempt), reason.into()));
            } else if let Command::Release { execution, attempt } = command {
                self.forget_logs(key(*execution, *attempt));
            }
        }
    }

    /// With the parts of a tree, which could be asked for one by one.
    fn add(&self, object: ObjectId, reason: &str) {
        let reason: Arc<str> = reason.into();
        let parts = match self.store.find(object) {
            Ok(Some(found)) if found.kind == atoll_model::value::ObjectKind::Tree => {
                self.store.parts(object).unwrap_or_else(|error| {
                    // What cannot be read here cannot be sent either.
                    tracing::warn!(%object, %error, "the parts of a tree that may not leave cannot be listed");
                    Vec::new()
                })
            }
            Ok(_) | Err(_) => Vec::new(),
        };
        self.write(|known| {
            for part in parts {
                known.objects.insert(part, Arc::clone(&reason));
            }
            known.objects.insert(object, reason);
        });
    }

    fn forget_logs(&self, attempt: Key) {
        let is_known = !self.known.read().unwrap_or_else(PoisonError::into_inner).logs.is_empty();
        if is_known {
            self.write(|known| known.logs.remove(&attempt));
        }
    }

    fn write<T>(&self, change: impl FnOnce(&mut Known) -> T) {
        change(&mut self.known.write().unwrap_or_else(PoisonError::into_inner));
    }
}
