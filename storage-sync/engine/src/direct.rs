//! Objects straight from one site's store into another's, agent to agent.
//!
//! Both ends show the certificates that the control plane gave them, over TLS 1.3. The reader shows a [`Ticket`] that the
//! control plane has signed, names an object of it, and asks for ranges of its canonical stream, several at a time; the
//! holder reads them out of its store as they are asked for. What arrives is verified and kept as everything that is
//! fetched is ([`crate::transfer`]). There are two ways for the bytes, behind one seam: QUIC, one connection with a stream
//! for each request, and TCP, several connections on each of which requests are answered in turn. Which of them is faster
//! is measured for each holder with what is fetched anyway, and remembered.
//!
//! [`Ticket`]: atoll_model::ticket::Ticket

mod connect;
mod frame;
mod identity;
mod links;
mod listen;
mod pace;
mod quic;
mod serve;
mod session;
mod tcp;

use std::net::SocketAddr;
use std::time::Duration;

use atoll_model::id::{AgentId, SiteName};
use atoll_model::value::ObjectRef;

pub use connect::Dialer;
pub use identity::{AgentTls, IdentityError};
pub use links::Measured;
pub use listen::{ListenError, Listening, listen};
pub use serve::Serving;
pub(crate) use session::Session;

/// Where an object is to be had, and by which right.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Offer {
    pub holder: AgentId,
    /// Where the holder listens, as it says; which of them can be reached is found out.
    pub addresses: Vec<SocketAddr>,
    /// As [`atoll_model::ticket::SignedTicket::to_bytes`] makes it.
    pub ticket: Vec<u8>,
}

/// How bytes come from another site.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Transport {
    Quic,
    Tcp,
}

/// What the holder's own site has a say in: whatever tickets say, this may refuse.
pub trait Host: Send + Sync + std::fmt::Debug {
    /// Whether an object may go to a site.
    ///
    /// # Errors
    /// Why not, for people.
    fn admit(&self, to: &SiteName, object: ObjectRef) -> Result<(), String>;
    /// A copy in the store is damaged, and in quarantine now.
    fn damaged(&self, object: ObjectRef, message: &str);
    /// Bytes have left the site.
    fn sent(&self, to: AgentId, object: ObjectRef, wire_bytes: u64);
}

#[derive(Debug, Clone)]
pub struct DirectConfig {
    /// How long a connection may take to come about, before the next way is tried.
    pub connect_timeout: Duration,
    /// TCP connections to one holder that is far away; to one that is near, two.
    pub connections_max: usize,
    /// A request that brings no byte for this long is given up, and the connection with it.
    pub stall_timeout: Duration,
    /// Only this way, whatever was measured.
    pub only: Option<Transport>,
}

impl Default for DirectConfig {
    fn default() -> Self {
        Self {
            connect_timeout: Duration::from_secs(4),
            // What a kernel gives one connection to send from (4 MiB) is a third of what is under way at 1 Gbit/s and
            // 100 ms; and of eight that share a loss, seven go on.
            connections_max: 8,
            stall_timeout: Duration::from_secs(15),
            only: None,
        }
    }
}

/// Why a holder gives nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum DirectError {
    /// It cannot be reached, or was lost.
    #[error("{0}")]
    Lost(String),
    /// It says no.
    #[error("it refuses: {0}")]
    Refused(String),
    /// It is itself being given what was asked for.
    #[error("it has not got that far itself")]
    NotYet,
}
