//! How facts about which copies stay change the state.

use std::sync::Arc;

use atoll_model::id::{ObjectId, SiteId};
use atoll_model::time::Timestamp;
use serde::{Deserialize, Serialize};

use super::{Outgoing, State};
use crate::fact::{Fact, PinnedAt};

/// A person wants a copy of an object to stay.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Pin {
    pub(crate) by: Arc<str>,
    pub(crate) since: Timestamp,
}

/// A site reads its store again because somebody asked for it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Verification {
    pub(crate) asked_at: Timestamp,
    pub(crate) ended: Option<Verified>,
}

/// What was read, and how many objects were damaged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Verified {
    pub(crate) at: Timestamp,
    pub(crate) files: u64,
    pub(crate) bytes: u64,
    pub(crate) damaged: u64,
}

impl State {
    #[expect(clippy::wildcard_enum_match_arm, reason = "`evolve` names every fact once")]
    pub(super) fn evolve_copies(&mut self, fact: &Fact) {
        match fact {
            Fact::EvictionGranted { site, proposal, objects, refused, reason } => {
                for object in objects {
                    if let Some(known) = self.objects.get_mut(&object.id) {
                        known.remove_site(*site);
                        self.drop_if_unknown(object.id);
                    }
                }
                if !objects.is_empty() {
                    self.going.entry(*site).or_default().extend(objects.iter().map(|object| object.id));
                }
                let (proposal, refused, reason) = (*proposal, *refused, reason.clone());
                let evict = Outgoing::Evict { proposal, objects: objects.clone(), refused, reason };
                self.site_mut(*site).log.push(evict);
            }
            Fact::EvictionEnded { site, gone, kept } => {
                self.note_answered(*site, gone.iter().chain(kept));
                for object in kept {
                    if let Some(known) = self.objects.get_mut(object) {
                        known.add_site(*site);
                    }
                }
                for object in gone {
                    if let Some(known) = self.objects.get_mut(object) {
                        known.remove_site(*site);
                        self.drop_if_unknown(*object);
                    }
                }
            }
            Fact::EvictionAsked { site, object } => {
                self.site_mut(*site).log.push(Outgoing::ProposeEviction { object: *object });
            }
            Fact::CopiesExpired { site, objects } => {
                self.site_mut(*site).log.push(Outgoing::ProposeExpired { objects: objects.clone() });
            }
            Fact::ObjectPinned { object, at, by, since } => {
                let pin = Pin { by: Arc::clone(by), since: *since };
                self.pins.entry(*object).or_default().insert(*at, pin);
            }
            Fact::ObjectUnpinned { object, at } => {
                if let Some(pins) = self.pins.get_mut(object) {
                    pins.remove(at);
                    if pins.is_empty() {
                        self.pins.remove(object);
                        self.drop_if_unknown(*object);
                    }
                }
            }
            Fact::VerificationAsked { site, objects, at } => {
                self.verifications.insert(*site, Verification { asked_at: *at, ended: None });
                self.site_mut(*site).log.push(Outgoing::Verify { objects: objects.clone() });
            }
            Fact::VerificationEnded { site, files, bytes, damaged, at } => {
                let ended = Verified { at: *at, files: *files, bytes: *bytes, damaged: *damaged };
                let known = self.verifications.entry(*site);
                known.or_insert(Verification { asked_at: *at, ended: None }).ended = Some(ended);
            }
            _ => unreachable!("evolve hands over facts about copies only"),
        }
    }

    fn note_answered<'a>(&mut self, site: SiteId, objects: impl Iterator<Item = &'a ObjectId>) {
        let Some(going) = self.going.get_mut(&site) else { return };
        objects.for_each(|object| {
            going.remove(object);
        });
        if going.is_empty() {
            self.going.remove(&site);
        }
    }

    /// Sites that may let go of the object, and have not said whether they have.
    pub(crate) fn letting_go(&self, object: ObjectId) -> impl Iterator<Item = SiteId> {
        self.going.iter().filter(move |(_, going)| going.contains(&object)).map(|(site, _)| *site)
    }

    pub(super) fn forget_copies_at(&mut self, site: SiteId) {
        self.verifications.remove(&site);
        self.going.remove(&site);
        let pinned: Vec<ObjectId> = self
            .pins
            .extract_if(.., |_, pins| pins.remove(&PinnedAt::Site(site)).is_some() && pins.is_empty())
            .map(|(id, _)| id)
            .collect();
        pinned.into_iter().for_each(|object| self.drop_if_unknown(object));
    }

    pub(crate) fn is_pinned(&self, object: ObjectId) -> bool {
        self.pins.contains_key(&object)
    }
}
