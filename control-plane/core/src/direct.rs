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
    /// Sites whose agents fetch from others.
    listens: BTreeMap<SiteId, Listens>,
    /// Holder and reader, and from when they may be tried again.
    avoided: BTreeMap<(SiteId, SiteId), Timestamp>,
    /// The same of readers that were to have from others what these were just being given.
    relays_avoided: BTreeMap<(SiteId, SiteId), Timestamp>,
    /// Holder, reader and what the one was sent to the other for.
    giving: BTreeMap<(SiteId, SiteId, ObjectId), Gift>,
}

#[derive(Debug, Default, PartialEq, Eq)]
struct Listens {
    addresses: Vec<String>,
    /// It gives what it has of an object that is on its way to it, and takes such.
    relays: bool,
}

/// A holder gives an object to a reader.
#[derive(Debug, Clone, Copy)]
struct Gift {
    since: Timestamp,
    /// It was just being given the object itself.
    relayed: bool,
}

impl Direct {
    pub(crate) fn advertise(&mut self, site: SiteId, addresses: Vec<String>, relays: bool) {
        let before = self.listens.insert(site, Listens { addresses, relays });
        // It may listen elsewhere now: what failed before says nothing about that.
        if before.is_some_and(|before| before != self.listens[&site]) {
            self.avoided.retain(|(holder, _), _| *holder != site);
            self.relays_avoided.retain(|(holder, _), _| *holder != site);
        }
    }

    /// Whether the agent of the site fetches from others at all.
    pub(crate) fn may_read(&self, site: SiteId) -> bool {
        self.listens.contains_key(&site)
    }

    pub(crate) fn addresses(&self, holder: SiteId) -> &[String] {
        self.listens.get(&holder).map_or(&[], |listens| listens.addresses.as_slice())
    }

    pub(crate) fn is_open(&self, holder: SiteId, reader: SiteId, now: Timestamp) -> bool {
        let avoided = self.avoided.get(&(holder, reader)).is_some_and(|until| now < *until);
        holder != reader && !avoided && self.may_read(reader) && !self.addresses(holder).is_empty()
    }

    /// Whether a reader may have from this one, to which an object is on its way, what has come of it.
    pub(crate) fn may_relay(&self, relay: SiteId, reader: SiteId, now: Timestamp) -> bool {
        let relays = |site| self.listens.get(&site).is_some_and(|listens| listens.relays);
        let avoided = self.relays_avoided.get(&(relay, reader)).is_some_and(|until| now < *until);
        relays(relay) && relays(reader) && !avoided
    }

    /// Whether what the site gets of an object comes, over however many others, from this one: the two would wait for each
    /// other.
    pub(crate) fn comes_by_way_of(&self, site: SiteId, other: SiteId, object: ObjectId) -> bool {
        let mut at = site;
        // Each has the object from one other, so there are no more steps than gifts.
        for _ in 0..self.giving.len() {
            let Some((holder, ..)) = self.receivers(object).find(|(_, reader, _)| *reader == at) else { return false };
            if holder == other {
                return true;
            }
            at = holder;
        }
        false
    }

    /// A reader is sent to a holder for an object; `relayed` if that one was just being given it.
    pub(crate) fn gives(&mut self, holder: SiteId, reader: SiteId, object: ObjectId, relayed: bool, now: Timestamp) {
        self.gave(reader, object);
        self.giving.retain(|_, gift| now.saturating_since(gift.since) < FORGOTTEN);
        self.giving.insert((holder, reader, object), Gift { since: now, relayed });
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

    /// Since when the reader has been sent to this holder for the object, and whether the holder had yet to get it.
    pub(crate) fn given_since(&self, holder: SiteId, reader: SiteId, object: ObjectId) -> Option<(Timestamp, bool)> {
        self.giving.get(&(holder, reader, object)).map(|gift| (gift.since, gift.relayed))
    }

    /// Who is being given the object, by whom, and since when.
    pub(crate) fn receivers(&self, object: ObjectId) -> impl Iterator<Item = (SiteId, SiteId, Timestamp)> {
        let of_object = self.giving.iter().filter(move |((_, _, of), _)| *of == object);
        of_object.map(|((holder, reader, _), gift)| (*holder, *reader, gift.since))
    }

    pub(crate) fn avoid(&mut self, holder: SiteId, reader: SiteId, now: Timestamp) {
        self.avoided.retain(|_, until| now < *until);
        self.avoided.insert((holder, reader), now + AVOID);
    }

    pub(crate) fn avoid_relay(&mut self, relay: SiteId, reader: SiteId, now: Timestamp) {
        self.relays_avoided.retain(|_, until| now < *until);
        self.relays_avoided.insert((relay, reader), now + AVOID);
    }
}
