//! B7: when many sites fall silent together, the fault is on this side or in between, and nobody is declared lost. It ends
//! when they come back, when so many have come back that the rest are few, or when a person says of a site that it is lost.

use atoll_model::id::{SiteId, SiteName};
use atoll_model::time::Timestamp;

use crate::command::{Rejection, Response};
use crate::control_plane::ControlPlane;
use crate::sessions::Silence;

/// Sites that must fall silent together before their number can stop anyone from being declared lost: below it, silence
/// of single sites is what it looks like.
const BREAKER_SITES_MIN: usize = 3;
/// Of all sites, in hundredths: more silent at once means that the fault is on this side, or in between.
const BREAKER_PERCENT: usize = 30;
/// How long a count of the silent sites is used: each of them asks for it when its time has come, and they are many.
const SILENCE_KEPT: std::time::Duration = std::time::Duration::from_secs(1);

impl ControlPlane {
    /// Whether so many sites fell silent within a lease of each other that this is not about the one.
    pub(crate) fn too_many_are_silent(&mut self, site: SiteId, heard_at: Timestamp) -> bool {
        if self.sessions.silence.as_ref().is_none_or(|silence| self.now.saturating_since(silence.at) >= SILENCE_KEPT) {
            self.sessions.silence = Some(self.count_silent());
        }
        let lease = self.lease_of(site);
        let Some(Silence { total, since, .. }) = &self.sessions.silence else { return false };
        let first = since.partition_point(|at| *at + lease < heard_at);
        let after = since.partition_point(|at| *at <= heard_at + lease);
        let together = after.saturating_sub(first);
        together >= BREAKER_SITES_MIN && together * 100 > total * BREAKER_PERCENT
    }

    fn count_silent(&self) -> Silence {
        let watched = self.state.sites.iter().filter(|(_, site)| {
            site.agent.is_some() && site.revoked.is_none() && site.lost.is_none() && site.log.journal.is_some()
        });
        let (mut total, mut since) = (0, Vec::new());
        for (site, _) in watched {
            total += 1;
            let last = self.sessions.presence.get(site).map_or(Timestamp::ZERO, |presence| presence.heard_at);
            if self.now.saturating_since(last) > self.lease_of(*site) {
                since.push(last);
            }
        }
        since.sort_unstable();
        Silence { at: self.now, total, since }
    }

    /// The site would have been declared lost if it were alone.
    pub(crate) fn hold_back(&mut self, site: SiteId) {
        self.sessions.held.insert(site);
    }

    /// The site was heard, or its fate is decided.
    pub(crate) fn release_held(&mut self, site: SiteId) {
        self.sessions.held.remove(&site);
        self.sessions.silence = None;
    }

    /// What people are told of a site that would have been declared lost if it were alone.
    pub(crate) fn held_back_with(&self, site: SiteId) -> Option<String> {
        self.sessions.held.contains(&site).then(|| {
            "it was not heard for too long, and is not declared lost because too many fell silent with it; \
             if it is gone for good, say so with `atoll site lost`"
                .to_owned()
        })
    }

    /// Sites that were not declared lost because too many fell silent together, for people to decide about.
    pub fn held_back(&self) -> usize {
        self.sessions.held.len()
    }

    /// A person knows that a site is gone. Its leases have run out by then, or this is refused: nothing starts there any
    /// more.
    pub(crate) fn declare_site_lost(&mut self, name: &SiteName) -> Result<Response, Rejection> {
        let Some(site) = self.state.site_names.get(name).copied() else {
            return Err(Rejection::NotFound(format!("there is no site {name}")));
        };
        let state = self.state.site(site);
        if let Some(reason) = &state.revoked {
            return Err(Rejection::Conflict(format!("site {name} is revoked: {reason}")));
        }
        if state.agent.is_none() || state.log.journal.is_none() {
            return Err(Rejection::Conflict(format!("no agent has been connected from site {name}")));
        }
        if state.lost.is_some() {
            return Ok(Response::Done);
        }
        let heard_at = self.sessions.presence.get(&site).map_or(Timestamp::ZERO, |presence| presence.heard_at);
        let silent = self.now.saturating_since(heard_at);
        if silent < self.config.lost_after {
            let left = (self.config.lost_after - silent).as_secs() + 1;
            return Err(Rejection::Conflict(format!(
                "site {name} was heard {} s ago, and may start work under its lease for {left} s more: say it again then, \
                 or revoke the site",
                silent.as_secs()
            )));
        }
        self.declare_lost(site);
        Ok(Response::Done)
    }
}
