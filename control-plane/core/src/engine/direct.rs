//! Objects that go from one site straight to another.

use atoll_model::id::{AgentId, ObjectId, SiteId};
use storage_sync_core::{Holder, Plan, Reach};

use crate::command::{HolderOffer, Rejection, Response};
use crate::control_plane::ControlPlane;
use crate::fact::RuleText;
use crate::state::ObjectState;

/// Holders that one reader is told of.
const OFFERS_MAX: usize = 3;

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
    pub(crate) fn advertise(&mut self, agent: AgentId, addresses: Vec<String>) -> Result<Response, Rejection> {
        let site = self.trusted_site(agent)?;
        self.direct.advertise(site, addresses);
        Ok(Response::Done)
    }

    /// Who gives the object to this agent. If nobody does and it is not on its way to the bucket either, it is sent there.
    pub(crate) fn offers(&mut self, agent: AgentId, object: ObjectId) -> Result<Response, Rejection> {
        let site = self.trusted_site(agent)?;
        if !self.may_fetch(site, object) {
            return Err(Rejection::Forbidden(format!("no execution at this site reads {object}")));
        }
        let holders = match self.plan_object(object, site) {
            Plan::DirectFrom(_) => self.direct_holders(object, site),
            Plan::Present
            | Plan::InBucket
            | Plan::PushFrom(_)
            | Plan::Wait
            | Plan::Forbidden(_)
            | Plan::Closed(_)
            | Plan::Withheld(_)
            | Plan::Unavailable => Vec::new(),
        };
        match holders.first().and_then(|first| self.state.agents.get(&first.agent)) {
            Some(holder) => self.direct.gives(holder.site, site, object, self.now),
            None => self.push_for_reader(object, site),
        }
        let Some(known) = self.state.objects.get(&object) else {
            return Err(Rejection::NotFound(format!("{object} is not known here")));
        };
        Ok(Response::Offered { object: known.reference, holders })
    }

    fn direct_holders(&self, object: ObjectId, reader: SiteId) -> Vec<HolderOffer> {
        let Some(known) = self.state.objects.get(&object) else { return Vec::new() };
        let sites = self.holders_in_order(known, reader).into_iter();
        let open =
            sites.filter(|site| self.direct.is_open(*site, reader, self.now) && self.reach(*site) == Reach::Connected);
        let offer = |site: SiteId| {
            let agent = self.state.sites.get(&site)?.agent?;
            Some(HolderOffer { agent, addresses: self.direct.addresses(site).to_vec() })
        };
        open.filter_map(offer).take(OFFERS_MAX).collect()
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
        self.direct.avoid(site, reader, self.now);
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
