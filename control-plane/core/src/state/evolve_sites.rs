//! How facts about identities, sites and sessions change the state.

use atoll_model::id::{AgentId, SiteId};
use atoll_model::time::Timestamp;

use super::{Agent, Log, Outgoing, Site, State, Token};
use crate::fact::Fact;

impl State {
    #[expect(clippy::wildcard_enum_match_arm, reason = "`evolve` names every fact once")]
    pub(super) fn evolve_site(&mut self, fact: &Fact) {
        match fact {
            Fact::TokenCreated { token, secret_hash, site, site_id, labels, expires_at } => {
                self.last_site = self.last_site.max(*site_id);
                self.site_names.insert(site.clone(), *site_id);
                self.sites.entry(*site_id).or_insert_with(|| Site::new(site.clone(), labels.clone()));
                let made = Token { secret_hash: *secret_hash, site: *site_id, expires_at: *expires_at, redeemed: None };
                self.tokens.insert(*token, made);
            }
            Fact::AgentEnrolled { token, agent, identity_key, at } => {
                let redeemed = self.tokens.get_mut(token).expect("only a known token is redeemed");
                redeemed.redeemed = Some((*identity_key, *agent));
                let site = redeemed.site;
                self.enrol(site, *agent, *identity_key, *at);
            }
            Fact::AgentCertified { agent, join_counter, recovery, at } => {
                let agent = self.agents.get_mut(agent).expect("only a known agent is certified");
                agent.join_counter = *join_counter;
                agent.certified_at = *at;
                agent.recoveries += u32::from(*recovery);
            }
            Fact::AgentQuarantined { agent, reason } => {
                let agent = self.agents.get_mut(agent).expect("only a known agent is quarantined");
                agent.quarantined = Some(reason.clone());
            }
            Fact::SiteDrained { site, drained } => self.site_mut(*site).drained = *drained,
            Fact::SiteRevoked { site, reason } => self.site_mut(*site).revoked = Some(reason.clone()),
            Fact::SiteRemoved { site } => {
                self.remove_site(*site);
                self.forget_copies_at(*site);
            }
            Fact::SessionOpened { .. } => self.open_session(fact),
            Fact::InventoryHeard { agent } => {
                if let Some(site) = self.site_of(*agent) {
                    self.site_mut(site).log.is_unheard = false;
                }
            }
            Fact::CommandsAcknowledged { agent, through } => {
                if let Some(site) = self.site_of(*agent) {
                    self.site_mut(site).log.acknowledge(*through);
                }
            }
            Fact::ReportsApplied { agent, through } => {
                if let Some(site) = self.site_of(*agent) {
                    self.site_mut(site).log.last_report = *through;
                }
            }
            Fact::CapacityChanged { site, capacity } => self.site_mut(*site).capacity = Some(capacity.clone()),
            Fact::AgentLost { agent, at } => {
                if let Some(site) = self.site_of(*agent) {
                    self.site_mut(site).lost = Some(*at);
                }
            }
            Fact::Prepared { site, run, step } => self.prepare(*site, *run, *step, 0),
            Fact::GrownPrepared { site, run, step, grown } => self.prepare(*site, *run, *step, *grown),
            Fact::ReadyOrdered { site, run, step } => self.order_ready(*site, *run, *step),
            Fact::ForgetOrdered { site, run } => {
                self.forget_ready(*site, *run);
                let log = &mut self.site_mut(*site).log;
                log.prepared.remove(run);
                log.push(Outgoing::Forget { run: *run });
            }
            Fact::SetBack { sites, at } => self.set_back(sites, *at),
            Fact::CaughtUp { site } => {
                self.catching_up.remove(site);
            }
            _ => unreachable!("evolve hands over facts about sites only"),
        }
    }

    fn set_back(&mut self, sites: &[SiteId], at: Timestamp) {
        // Several agents may notice the same.
        if self.catching_up.is_empty() {
            self.set_backs.push(at);
        }
        self.catching_up.extend(sites);
        for site in sites {
            self.site_mut(*site).lost = None;
        }
    }

    fn enrol(&mut self, site: SiteId, agent: AgentId, identity_key: [u8; 32], at: Timestamp) {
        let fresh = Agent { site, identity_key, join_counter: 1, recoveries: 0, certified_at: at, quarantined: None };
        self.agents.insert(agent, fresh);
        let state = self.site_mut(site);
        let replaces = state.agent.replace(agent).is_some_and(|before| before != agent);
        if replaces {
            // Another machine, with a store of its own.
            self.catching_up.remove(&site);
            self.forget_ready_at(site);
            let state = self.site_mut(site);
            state.log = Log::default();
            state.lost = None;
            state.capacity = None;
            self.going.remove(&site);
            self.objects.values_mut().for_each(|object| object.remove_site(site));
        }
    }

    fn remove_site(&mut self, site: SiteId) {
        self.forget_ready_at(site);
        if let Some(removed) = self.sites.remove(&site) {
            self.site_names.remove(&removed.name);
        }
        self.catching_up.remove(&site);
        self.agents.retain(|_, agent| agent.site != site);
        self.tokens.retain(|_, token| token.site != site);
        self.replicas.retain(|(_, at), _| *at != site);
        self.objects.values_mut().for_each(|object| object.remove_site(site));
    }

    fn open_session(&mut self, fact: &Fact) {
        let Fact::SessionOpened {
            agent, epoch, journal, incarnation, restart, capacity, runtimes, agent_version, ..
        } = fact
        else {
            return;
        };
        let site_id = self.site_of(*agent).expect("only the agent of a site opens sessions");
        if self.site(site_id).log.incarnation != *incarnation {
            // It may have another policy now.
            self.refusals.values_mut().for_each(|by_site| drop(by_site.remove(&site_id)));
        }
        let site = self.site_mut(site_id);
        site.epoch = *epoch;
        site.lost = None;
        site.capacity = Some(capacity.clone());
        site.runtimes.clone_from(runtimes);
        site.agent_version = Some(agent_version.clone());
        site.log.incarnation = *incarnation;
        if let Some(positions) = restart {
            // Nothing goes any more that an earlier journal was told of.
            self.going.remove(&site_id);
            self.forget_ready_at(site_id);
            let site = self.site_mut(site_id);
            site.log = Log {
                journal: Some(*journal),
                incarnation: *incarnation,
                last_report: positions.last_report,
                last_command: positions.last_command,
                is_unheard: true,
                ..Log::default()
            };
            let busy: Vec<_> = site.busy.keys().copied().collect();
            for (run, step) in busy {
                let step = &mut self.run_mut(run).steps[step.index()];
                for active in step.active.values_mut().filter(|active| active.site == site_id) {
                    // The number was one of the old log.
                    active.command = atoll_model::id::CommandSeq(0);
                }
            }
        }
    }
}
