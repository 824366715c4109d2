//! How often agents are heard of, and for how long they may go on unheard: the control plane says so with every lease.

use std::time::Duration;

use atoll_model::id::SiteId;
use atoll_model::limits;
use atoll_model::session::LeaseGrant;
use atoll_model::time::Timestamp;

use crate::control_plane::ControlPlane;

/// Heartbeats in one session lease: two may get lost, and each may be a fifth late.
const HEARTBEATS_PER_LEASE: u32 = 3;
/// Heartbeats in one work lease, at least, however many agents there are: so that the session lease stays well within it.
const HEARTBEATS_PER_WORK_LEASE_MIN: u32 = 5;

impl ControlPlane {
    /// How far apart heartbeats are: all agents together send so many a second and no more, as long as each is heard often
    /// enough within its work lease.
    pub(crate) fn heartbeat_interval(&self) -> Duration {
        let paced = Duration::from_secs(self.agents_expected() as u64) / limits::HEARTBEATS_PER_SECOND_MAX;
        self.config.heartbeat.max(paced.min(self.config.work_lease / HEARTBEATS_PER_WORK_LEASE_MIN))
    }

    /// What a heartbeat that is answered now is worth.
    pub(crate) fn session_lease(&self) -> Duration {
        self.config.session_lease.max(self.heartbeat_interval() * HEARTBEATS_PER_LEASE)
    }

    /// Those that are connected; after a start everyone is about to come back.
    fn agents_expected(&self) -> usize {
        if self.now < self.started_at + self.config.restart_grace {
            self.state.sites.len()
        } else {
            self.sessions.by_site.len()
        }
    }

    /// Grants a site its leases, from when it sent what is answered.
    pub(crate) fn grant(&mut self, site: SiteId, answers: Timestamp) -> LeaseGrant {
        let (session, heartbeat) = (self.session_lease(), self.heartbeat_interval());
        if let Some(presence) = self.sessions.presence.get_mut(&site) {
            presence.granted(session);
        }
        LeaseGrant { answers, session, work: self.config.work_lease.max(session), heartbeat }
    }

    /// How long a site may be unheard before it counts as silent.
    pub(crate) fn lease_of(&self, site: SiteId) -> Duration {
        self.sessions.presence.get(&site).map_or(self.config.session_lease, crate::sessions::Presence::lease)
    }
}
