//! Tokens, enrolment, renewal, recovery, revocation: who may speak for a site.

use std::time::Duration;

use atoll_model::id::{AgentId, SiteId, SiteName, TokenId};
use atoll_model::limits;
use atoll_model::placement::Labels;
use atoll_model::session::{ControlBody, Goodbye};

use crate::command::{Rejection, Response};
use crate::control_plane::ControlPlane;
use crate::fact::Fact;
use crate::state::Agent;

/// A request whose answer was lost is repeated within this time; later, an old counter means a copied identity.
const REPEAT_WINDOW: Duration = Duration::from_secs(10 * 60);

impl ControlPlane {
    pub(crate) fn create_token(
        &mut self,
        token: TokenId,
        secret_hash: [u8; 32],
        site: SiteName,
        labels: Labels,
        lifetime: Duration,
    ) -> Result<Response, Rejection> {
        if self.state.tokens.contains_key(&token) {
            return Err(Rejection::Conflict(format!("there is a {token} already")));
        }
        let site_id = match self.state.site_names.get(&site) {
            Some(known) if self.state.site(*known).revoked.is_some() => {
                let reason = format!("site {site} is revoked; remove it before a new agent joins under its name");
                return Err(Rejection::Conflict(reason));
            }
            Some(known) => *known,
            None => self.state.last_site.next(),
        };
        let expires_at = self.now + lifetime;
        self.record(Fact::TokenCreated { token, secret_hash, site, site_id, labels, expires_at });
        Ok(Response::Done)
    }

    pub(crate) fn enrol(
        &mut self,
        token: TokenId,
        secret_hash: [u8; 32],
        identity_key: [u8; 32],
        agent: AgentId,
    ) -> Result<Response, Rejection> {
        let Some(known) = self.state.tokens.get(&token) else {
            return Err(Rejection::Forbidden("the join token is not known here; make a new one".to_owned()));
        };
        if known.secret_hash != secret_hash {
            return Err(Rejection::Forbidden("the join token is damaged: its secret is wrong".to_owned()));
        }
        let site = known.site;
        let name = self.state.site(site).name.clone();
        if let Some(reason) = &self.state.site(site).revoked {
            return Err(Rejection::Forbidden(format!("site {name} is revoked: {reason}")));
        }
        match known.redeemed {
            Some((key, agent)) if key == identity_key && self.state.site_of(agent) == Some(site) => {
                // The answer was lost.
                self.trusted_site(agent)?;
                let join_counter = self.state.agents[&agent].join_counter;
                return Ok(Response::Enrolled { agent, site: name, join_counter });
            }
            Some(_) => {
                let reason = "the join token was already used; each joins one agent, make another".to_owned();
                return Err(Rejection::Forbidden(reason));
            }
            None => {}
        }
        if self.now > known.expires_at {
            let reason = format!("the join token expired at {}; make a new one", known.expires_at);
            return Err(Rejection::Forbidden(reason));
        }
        if let Some(before) = self.state.site(site).agent {
            self.end_session(site, Goodbye::Revoked { reason: format!("{before} was replaced by {agent}") });
            self.give_away(site, &format!("a new agent has joined site {name}"));
        }
        self.record(Fact::AgentEnrolled { token, agent, identity_key, at: self.now });
        self.wake_stuck(site);
        Ok(Response::Enrolled { agent, site: name, join_counter: 1 })
    }

    /// The site of an agent that may do what its certificate says.
    pub(crate) fn trusted_site(&self, agent: AgentId) -> Result<SiteId, Rejection> {
        let Some(known) = self.state.agents.get(&agent) else {
            return Err(Rejection::Forbidden(format!("{agent} is not known here")));
        };
        let Some(site) = self.state.site_of(agent) else {
            return Err(Rejection::Forbidden(format!("{agent} does not speak for its site any more")));
        };
        if let Some(reason) = &self.state.site(site).revoked {
            return Err(Rejection::Forbidden(format!("site {} is revoked: {reason}", self.state.site(site).name)));
        }
        match &known.quarantined {
            Some(reason) => Err(Rejection::Forbidden(reason.clone())),
            None => Ok(site),
        }
    }

    pub(crate) fn renew_certificate(&mut self, agent: AgentId, join_counter: u64) -> Result<Response, Rejection> {
        self.trusted_site(agent)?;
        self.certify(agent, join_counter, false)
    }

    pub(crate) fn recover_identity(
        &mut self,
        agent: AgentId,
        identity_key: [u8; 32],
        join_counter: u64,
    ) -> Result<Response, Rejection> {
        self.trusted_site(agent)?;
        let known = &self.state.agents[&agent];
        if known.identity_key != identity_key {
            return Err(Rejection::Forbidden(format!("the identity key is not that of {agent}")));
        }
        let dark = self.now.saturating_since(known.certified_at + limits::CERTIFICATE_LIFETIME);
        if dark > limits::RECOVERY_WINDOW {
            let days = limits::RECOVERY_WINDOW.as_secs() / 86_400;
            let reason = format!("the certificate ended more than {days} days ago; join again with a new token");
            return Err(Rejection::Forbidden(reason));
        }
        let repeated = is_repeat(known, join_counter, self.now);
        if known.recoveries >= limits::RECOVERIES_MAX && !repeated {
            let reason = format!("{} recoveries are used up; join again with a new token", limits::RECOVERIES_MAX);
            return Err(Rejection::Forbidden(reason));
        }
        self.certify(agent, join_counter, true)
    }

    fn certify(&mut self, agent: AgentId, join_counter: u64, recovery: bool) -> Result<Response, Rejection> {
        let known = &self.state.agents[&agent];
        let site_id = known.site;
        let site = self.state.site(site_id).name.clone();
        if is_repeat(known, join_counter, self.now) {
            // The answer was lost.
            return Ok(Response::Certify { agent, site, join_counter: known.join_counter });
        }
        if known.join_counter != join_counter {
            let reason = format!("two agents use the identity of site {site}: one came with a counter of the past");
            self.quarantine(agent, site_id, reason.clone());
            return Err(Rejection::Forbidden(reason));
        }
        let join_counter = join_counter + 1;
        self.record(Fact::AgentCertified { agent, join_counter, recovery, at: self.now });
        Ok(Response::Certify { agent, site, join_counter })
    }

    /// E6: two agents with one identity; which is the right one is for a person to find out.
    pub(crate) fn quarantine(&mut self, agent: AgentId, site: SiteId, reason: String) {
        self.record(Fact::AgentQuarantined { agent, reason: reason.clone() });
        self.end_session(site, Goodbye::Revoked { reason });
    }

    pub(crate) fn end_session(&mut self, site: SiteId, goodbye: Goodbye) {
        if let Some(session) = self.sessions.by_site.get(&site) {
            let (connection, epoch) = (session.connection, session.epoch);
            self.send(connection, site, epoch, ControlBody::Goodbye(goodbye));
            self.close_session(site);
        }
    }

    pub(super) fn site_named(&self, site: &SiteName) -> Result<SiteId, Rejection> {
        let known = self.state.site_names.get(site).copied();
        known.ok_or_else(|| Rejection::NotFound(format!("there is no site {site}")))
    }

    pub(crate) fn drain_site(&mut self, site: &SiteName, drained: bool) -> Result<Response, Rejection> {
        let site = self.site_named(site)?;
        if self.state.site(site).drained != drained {
            self.record(Fact::SiteDrained { site, drained });
            if drained {
                self.withdraw_from(site);
            }
            self.site_came_back(site);
        }
        Ok(Response::Done)
    }

    pub(crate) fn revoke_site(&mut self, site: &SiteName, reason: String) -> Result<Response, Rejection> {
        let id = self.site_named(site)?;
        if self.state.site(id).revoked.is_none() {
            self.record(Fact::SiteRevoked { site: id, reason: reason.clone() });
            self.end_session(id, Goodbye::Revoked { reason });
            self.give_away(id, &format!("site {site} was revoked"));
        }
        Ok(Response::Done)
    }

    pub(crate) fn remove_site(&mut self, site: &SiteName) -> Result<Response, Rejection> {
        let id = self.site_named(site)?;
        let known = self.state.site(id);
        if !known.busy.is_empty() {
            return Err(Rejection::Conflict(format!("site {site} has executions; drain or revoke it first")));
        }
        let needed = self.state.objects.values().any(|object| {
            object.sites == [id]
                && object.uses.iter().any(|usage| self.state.runs.get(&usage.run).is_some_and(|r| r.is_live()))
        });
        if needed && known.revoked.is_none() {
            return Err(Rejection::Conflict(format!(
                "runs that are alive have data at site {site} only; revoke it first"
            )));
        }
        self.end_session(id, Goodbye::Revoked { reason: format!("site {site} was removed") });
        self.give_away(id, &format!("site {site} was removed"));
        self.record(Fact::SiteRemoved { site: id });
        self.sessions.presence.remove(&id);
        Ok(Response::Done)
    }
}

/// The counter before the last change, shortly after it: the answer was lost, and the request is made again.
fn is_repeat(agent: &Agent, join_counter: u64, now: atoll_model::time::Timestamp) -> bool {
    join_counter + 1 == agent.join_counter && now.saturating_since(agent.certified_at) <= REPEAT_WINDOW
}
