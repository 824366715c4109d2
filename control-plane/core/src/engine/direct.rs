//! Objects that go from one site straight to another: from a holder, or from a reader that has just got it. Over a thin link
//! goes one copy, and sites that are near each other serve one another.

use std::time::Duration;

use atoll_model::id::{AgentId, ObjectId, SiteId};
use storage_sync_core::{Holder, Plan, Reach};

use crate::command::{HolderOffer, Rejection, Response};
use crate::control_plane::ControlPlane;
use crate::fact::RuleText;
use crate::state::ObjectState;

/// Holders that one reader is told of.
const OFFERS_MAX: usize = 3;
/// The time by way of another reader must be at most this share of the time from a holder: what is measured is not exact.
const RELAY_SHARE_MAX: f64 = 0.8;
/// The link from the other reader must be faster than that from the holder by so much: else the holder gives to both.
const RELAY_FASTER: f64 = 2.0;
/// What comes sooner than this comes from a holder.
const STRAIGHT: Duration = Duration::from_secs(2);
/// A reader that takes so many times as long as was to be expected is not waited for.
const RELAY_LATE: f64 = 1.5;
/// Before a reader that waits for another asks again.
const ASK_AGAIN: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// The way by another reader.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Relay {
    /// It is asked for what it has, while the rest is still on its way to it.
    WithIt(SiteId),
    /// It will have it: to be asked again after this time.
    AfterIt(Duration),
}

impl ControlPlane {
    /// A site with a copy, as a reader at another one sees it.
    pub(crate) fn holder(&self, object: &ObjectState, site: SiteId, reader: SiteId) -> Holder {
        let direct = self.direct.is_open(site, reader, self.now);
        Holder { site, reach: self.reach(site), direct, withheld: object.withheld.contains_key(&site) }
    }

    /// The sites that have the object, in the order in which a reader is to ask them: the fastest first, by what was measured
    /// of their links and shared among those whom they are giving to already.
    pub(crate) fn holders_in_order(&self, object: &ObjectState, reader: SiteId) -> Vec<SiteId> {
        let mut sites = object.sites.clone();
        if sites.len() > 1 {
            let id = object.reference.id;
            let rate =
                |site: &SiteId| self.estimates.link(*site, reader) / (1 + self.direct.gifts(*site, reader, id)) as f64;
            sites.sort_by(|one, other| rate(other).total_cmp(&rate(one)));
        }
        sites
    }

    /// What is dispatched from now on may count on it.
    pub(crate) fn advertise(
        &mut self,
        agent: AgentId,
        addresses: Vec<String>,
        relays: bool,
    ) -> Result<Response, Rejection> {
        let site = self.trusted_site(agent)?;
        self.direct.advertise(site, addresses, relays);
        Ok(Response::Done)
    }

    /// Who gives the object to this agent. If nobody does and it is not on its way to the bucket either, it is sent there.
    pub(crate) fn offers(&mut self, agent: AgentId, object: ObjectId) -> Result<Response, Rejection> {
        let site = self.trusted_site(agent)?;
        if !self.may_fetch(site, object) {
            return Err(Rejection::Forbidden(format!("no execution at this site reads {object}")));
        }
        let planned = self.plan_object(object, site);
        let relay = match planned {
            Plan::DirectFrom(holder) => self.relay(object, holder, site),
            Plan::Present
            | Plan::InBucket
            | Plan::PushFrom(_)
            | Plan::Wait
            | Plan::Forbidden(_)
            | Plan::Closed(_)
            | Plan::Withheld(_)
            | Plan::Unavailable => None,
        };
        if let Some(Relay::AfterIt(wait)) = relay {
            let object = self.state.objects[&object].reference;
            return Ok(Response::Offered { object, holders: Vec::new(), ask_again: Some(wait) });
        }
        let mut holders =
            if matches!(planned, Plan::DirectFrom(_)) { self.direct_holders(object, site) } else { Vec::new() };
        let by_way_of = match relay {
            Some(Relay::WithIt(relay)) => self.offer(relay),
            Some(Relay::AfterIt(_)) | None => None,
        };
        let relayed = by_way_of.is_some();
        if let Some(offer) = by_way_of {
            // Those that have all of it come after, for when the relay is lost.
            holders.truncate(OFFERS_MAX - 1);
            holders.insert(0, offer);
        }
        match holders.first().and_then(|first| self.state.agents.get(&first.agent)) {
            Some(holder) => {
                let holder = holder.site;
                self.direct.gives(holder, site, object, relayed, self.now);
            }
            None => self.push_for_reader(object, site),
        }
        let Some(known) = self.state.objects.get(&object) else {
            return Err(Rejection::NotFound(format!("{object} is not known here")));
        };
        Ok(Response::Offered { object: known.reference, holders, ask_again: None })
    }

    /// How the reader is to have the object by way of another that is just being given it, if it has it sooner so than from
    /// the holder: over a thin link whose rate is known, which the two would share.
    fn relay(&self, object: ObjectId, holder: SiteId, reader: SiteId) -> Option<Relay> {
        if !self.estimates.knows_link(holder, reader) {
            return None;
        }
        let known = self.state.objects.get(&object)?;
        let bytes = known.reference.bytes as f64;
        let shared = |from: SiteId| {
            let gifts = self.direct.gifts(from, reader, object);
            bytes * (1 + gifts) as f64 / self.estimates.link(from, reader)
        };
        let straight = shared(holder);
        if straight < STRAIGHT.as_secs_f64() {
            return None;
        }
        let faster = RELAY_FASTER * self.estimates.link(holder, reader);
        let ways = self.direct.receivers(object).filter_map(|(from, relay, since)| {
            let usable = relay != reader
                && !self.direct.comes_by_way_of(relay, reader, object)
                && self.direct.is_open(relay, reader, self.now)
                && self.reach(relay) == Reach::Connected
                && !known.withheld.contains_key(&relay)
                && self.estimates.link(relay, reader) >= faster;
            let whole = bytes / self.estimates.link(from, relay);
            let elapsed = self.now.saturating_since(since).as_secs_f64();
            let left = (whole - elapsed).max(0.0);
            // What comes to the relay goes on at once, or after all of it has come.
            let (way, takes) = if self.direct.may_relay(relay, reader, self.now) {
                (Relay::WithIt(relay), left.max(shared(relay)))
            } else {
                let wait = Duration::from_secs_f64(left.min(ASK_AGAIN.1.as_secs_f64())).max(ASK_AGAIN.0);
                (Relay::AfterIt(wait), left + shared(relay))
            };
            let in_time = elapsed <= whole * RELAY_LATE && takes < straight * RELAY_SHARE_MAX;
            (usable && in_time).then_some((takes, way))
        });
        ways.min_by(|(one, _), (other, _)| one.total_cmp(other)).map(|(_, way)| way)
    }

    /// Where the agent of a site is to be asked.
    fn offer(&self, site: SiteId) -> Option<HolderOffer> {
        let agent = self.state.sites.get(&site)?.agent?;
        Some(HolderOffer { agent, addresses: self.direct.addresses(site).to_vec() })
    }

    fn direct_holders(&self, object: ObjectId, reader: SiteId) -> Vec<HolderOffer> {
        let Some(known) = self.state.objects.get(&object) else { return Vec::new() };
        let sites = self.holders_in_order(known, reader).into_iter();
        let open =
            sites.filter(|site| self.direct.is_open(*site, reader, self.now) && self.reach(*site) == Reach::Connected);
        open.filter_map(|site| self.offer(site)).take(OFFERS_MAX).collect()
    }

    /// The holder does not give the object to this agent: for a while, objects take the way over the bucket between them.
    pub(crate) fn offer_failed(
        &mut self,
        agent: AgentId,
        object: ObjectId,
        holder: AgentId,
    ) -> Result<Response, Rejection> {
        let reader = self.trusted_site(agent)?;
        let Some(site) = self.state.agents.get(&holder).map(|known| known.site) else { return Ok(Response::Done) };
        // One that has yet to get it may have failed at that, which says nothing of the way between the two.
        let is_relay = self.direct.given_since(site, reader, object).is_some_and(|(_, relayed)| relayed);
        if !is_relay && self.state.objects.get(&object).is_some_and(|known| known.sites.contains(&site)) {
            self.direct.avoid(site, reader, self.now);
        } else {
            self.direct.avoid_relay(site, reader, self.now);
        }
        self.direct.gave(reader, object);
        if self.may_fetch(reader, object) {
            self.push_for_reader(object, reader);
        }
        Ok(Response::Done)
    }

    fn push_for_reader(&mut self, object: ObjectId, reader: SiteId) {
        let Plan::PushFrom(holder) = self.plan_object(object, reader) else { return };
        let ordered = self.state.replicas.get(&(object, reader)).map(|order| (order.execution, order.rule.clone()));
        let reading = self.reader_at(reader, object).map(|execution| (execution, RuleText::WhenNeeded));
        if let Some((execution, rule)) = reading.or(ordered) {
            let reference = self.state.objects[&object].reference;
            self.order_push(reference, holder, (execution.run, Some(execution)), rule);
        }
    }
}
