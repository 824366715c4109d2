//! What may not leave the site, for every way out: pushes, other agents, logs. The core decides it; this is where those
//! that serve look it up.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};

use atoll_model::id::ObjectId;
use atoll_model::policy::Withholding;
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
    objects: HashMap<ObjectId, Arc<[Withholding]>>,
    /// Attempts whose logs are not to be read, while they have any.
    logs: HashMap<Key, Arc<str>>,
}

impl Withheld {
    pub(crate) fn new(store: SiteStore) -> Self {
        Self { store, known: Arc::default() }
    }

    /// Why the object may not leave for everywhere.
    pub(crate) fn object(&self, object: ObjectId) -> Option<String> {
        self.terms(object)?.iter().find_map(Withholding::any_refusal).map(str::to_owned)
    }

    /// Why the object may not leave for a site, by its name, or for the bucket.
    pub(crate) fn object_to(&self, object: ObjectId, to: &str) -> Option<String> {
        self.terms(object)?.iter().find_map(|term| term.refusal(to)).map(str::to_owned)
    }

    fn terms(&self, object: ObjectId) -> Option<Arc<[Withholding]>> {
        self.known.read().unwrap_or_else(PoisonError::into_inner).objects.get(&object).cloned()
    }

    /// Why the logs of the attempt may not be read.
    pub(crate) fn logs(&self, attempt: Key) -> Option<Arc<str>> {
        self.known.read().unwrap_or_else(PoisonError::into_inner).logs.get(&attempt).cloned()
    }

    /// Takes in what the core knew before this process began.
    pub(crate) fn recover(&self, agent: &Agent) {
        agent.all_withheld().for_each(|(object, terms)| self.add(object, terms));
        for (execution, attempt, reason) in agent.all_withheld_logs() {
            self.write(|known| known.logs.insert(key(execution, attempt), reason.into()));
        }
    }

    /// Takes in what the core has decided, before anything of it is carried out.
    pub(crate) fn hear(&self, agent: &Agent, step: &Step) {
        for fact in &step.facts {
            if let Fact::Withheld { objects, .. } = fact {
                for (object, terms) in objects.iter().filter_map(|object| agent.withholdings(*object)) {
                    self.add(object, terms);
                }
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
    fn add(&self, object: ObjectId, terms: &[Withholding]) {
        let terms: Arc<[Withholding]> = terms.into();
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
                // A file may be part of several trees, each of which stays for reasons of its own.
                let mut all: Vec<_> = known.objects.get(&part).map_or_else(Vec::new, |before| before.to_vec());
                all.extend(terms.iter().filter(|term| !all.contains(term)).cloned().collect::<Vec<_>>());
                known.objects.insert(part, all.into());
            }
            known.objects.insert(object, terms);
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
