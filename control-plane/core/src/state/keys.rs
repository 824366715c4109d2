//! Keys of projects, and which objects in the bucket are encrypted by which.

use std::collections::BTreeMap;
use std::sync::Arc;

use atoll_model::id::ObjectId;
use serde::{Deserialize, Serialize};

use super::State;
use crate::encryption::{KeyId, WrappedKey};
use crate::fact::Fact;

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Keys {
    /// Of each project, in the order of their numbers.
    wrapped: BTreeMap<Arc<str>, Vec<WrappedKey>>,
    /// Of objects that are in the bucket, being deleted there, or on their way to it.
    copies: BTreeMap<ObjectId, KeyId>,
}

impl Keys {
    /// The key of a project that is used now; it may still have to be made.
    pub(crate) fn current(&self, project: &Arc<str>) -> KeyId {
        let made = self.wrapped.get(project).map_or(0, Vec::len);
        KeyId { project: project.clone(), number: u32::try_from(made).unwrap_or(u32::MAX).max(1) }
    }

    pub(crate) fn wrapped(&self, key: &KeyId) -> Option<&WrappedKey> {
        self.wrapped.get(&key.project)?.get(place(key)?)
    }

    pub(crate) fn all(&self) -> impl Iterator<Item = (KeyId, &WrappedKey)> {
        self.wrapped.iter().flat_map(|(project, keys)| {
            (1..).zip(keys).map(|(number, wrapped)| (KeyId { project: project.clone(), number }, wrapped))
        })
    }

    /// By which key the object is encrypted in the bucket, or will be.
    pub(crate) fn of_copy(&self, object: ObjectId) -> Option<&KeyId> {
        self.copies.get(&object)
    }

    pub(crate) fn copies(&self) -> impl Iterator<Item = ObjectId> {
        self.copies.keys().copied()
    }

    /// There is no copy any more.
    pub(super) fn forget_copy(&mut self, object: ObjectId) {
        self.copies.remove(&object);
    }
}

/// The place of a key among those of its project.
fn place(key: &KeyId) -> Option<usize> {
    usize::try_from(key.number).ok()?.checked_sub(1)
}

impl State {
    #[expect(clippy::wildcard_enum_match_arm, reason = "`evolve` names every fact once")]
    pub(super) fn evolve_keys(&mut self, fact: &Fact) {
        match fact {
            Fact::ProjectKeyKept { key, wrapped } => {
                let keys = self.keys.wrapped.entry(key.project.clone()).or_default();
                match place(key) {
                    Some(place) if place < keys.len() => keys[place] = wrapped.clone(),
                    Some(place) if place == keys.len() => keys.push(wrapped.clone()),
                    Some(_) | None => unreachable!("keys are numbered from 1 without a gap"),
                }
            }
            Fact::EncryptionChosen { object, key } => {
                self.keys.copies.insert(*object, key.clone());
            }
            _ => unreachable!("evolve hands over facts about keys only"),
        }
    }

    /// A file of a directory in the bucket stands there as the directory does.
    pub(super) fn encrypt_as(&mut self, object: ObjectId, container: ObjectId) {
        if let Some(key) = self.keys.copies.get(&container).cloned() {
            self.keys.copies.insert(object, key);
        }
    }
}
