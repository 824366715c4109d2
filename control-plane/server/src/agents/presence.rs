//! Which agents have a session that the core has welcomed.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use atoll_model::id::AgentId;
use control_plane_core::ConnectionId;
use tokio_util::sync::CancellationToken;

/// Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(super) struct Presence(Arc<Mutex<HashMap<AgentId, (ConnectionId, CancellationToken)>>>);

impl Presence {
    /// The core has sent a welcome on this connection; `ending` is cancelled with it.
    pub(super) fn arrive(&self, agent: AgentId, connection: ConnectionId, ending: CancellationToken) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(agent, (connection, ending));
    }

    pub(super) fn leave(&self, agent: AgentId, connection: ConnectionId) {
        let mut present = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if present.get(&agent).is_some_and(|(newest, _)| *newest == connection) {
            present.remove(&agent);
        }
    }

    /// What ends with the agent's session, if it has one.
    pub(super) fn session_of(&self, agent: AgentId) -> Option<CancellationToken> {
        let present = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        present.get(&agent).map(|(_, ending)| ending.child_token())
    }
}
