//! Which agents can give objects to which, as far as they have said, and which are doing so. Lost with the process: agents say it again when they
//! connect, and what cannot be reached is found out again.

use std::collections::BTreeMap;
use std::time::Duration;

use atoll_model::id::{ObjectId, SiteId};
use atoll_model::time::Timestamp;

/// How long one site is not sent to another that it could not reach.
const AVOID: Duration = Duration::from_secs(600);
/// Somebody who was sent to a holder and has said nothing for this long is not counted among those whom it serves.
const FORGOTTEN: Duration = Duration::from_secs(3_600);

#[derive(Debug, Default)]
pub(crate) struct Direct {
    /// Sites whose agents fetch from others, and where they listen.
    listens: BTreeMap<SiteId, Vec<String>>,
    /// Holder and reader, and from when they may be tried again.
    avoided: BTreeMap<(SiteId, SiteId), Timestamp>,
    /// Holder, reader and what the one was sent to the other for, and when.
    giving: BTreeMap<(SiteId, SiteId, ObjectId), Timestamp>,
}

impl Direct {
    pub(crate) fn advertise(&mut self, site: SiteId, addresses: Vec<String>) {
        // It may listen elsewhere now: what failed before says nothing about that.
        if self.listens.insert(site, addresses.clone()).is_some_and(|before| before != addresses) {
            self.avoided.retain(|(holder, _), _| *holder != site);
        }
    }

    /// Whether the agent of the site fetches from others at all.
    pub(crate) fn may_read(&self, site: SiteId) -> bool {
        self.listens.contains_key(&site)
    }

    pub(crate) fn addresses(&self, holder: SiteId) -> &[String] {
        self.listens.get(&holder).map_or(&[], Vec::as_slice)
    }

    pub(crate) fn is_open(&self, holder: SiteId, reader: SiteId, now: Timestamp) -> bool {
        let avoided = self.avoided.get(&(holder, reader)).is_some_and(|until| now < *until);
        holder != reader && !avoided && self.may_read(reader) && !self.addresses(holder).is_empty()
    }

    /// A reader is sent to a holder for an object.
    pub(crate) fn gives(&mut self, holder: SiteId, reader: SiteId, object: ObjectId, now: Timestamp) {
        self.gave(reader, object);
        self.giving.retain(|_, since| now.saturating_since(*since) < FORGOTTEN);
        self.giving.insert((holder, reader, object), now);
    }

    /// The reader has the object, or does not get it there.
    pub(crate) fn gave(&mut self, reader: SiteId, object: ObjectId) {
        self.giving.retain(|(_, to, of), _| (*to, *of) != (reader, object));
    }

    /// Objects that a holder is giving to readers, this one left out.
    pub(crate) fn gifts(&self, holder: SiteId, reader: SiteId, object: ObjectId) -> usize {
        let counted =
            |(giver, to, of): &&(SiteId, SiteId, ObjectId)| *giver == holder && (*to, *of) != (reader, object);
        self.giving.keys().filter(counted).count()
    }

    /// Since when the reader has been sent to this holder for the object.
    pub(crate) fn given_since(&self, holder: SiteId, reader: SiteId, object: ObjectId) -> Option<Timestamp> {
        self.giving.get(&(holder, reader, object)).copied()
    }

    /// Who is being given the object, by whom, and since when.
    pub(crate) fn receivers(&self, object: ObjectId) -> impl Iterator<Item = (SiteId, SiteId, Timestamp)> {
        let of_object = self.giving.iter().filter(move |((_, _, of), _)| *of == object);
        of_object.map(|((holder, reader, _), since)| (*holder, *reader, *since))
    }

    pub(crate) fn avoid(&mut self, holder: SiteId, reader: SiteId, now: Timestamp) {
        self.avoided.retain(|_, until| now < *until);
        self.avoided.insert((holder, reader), now + AVOID);
    }
}
