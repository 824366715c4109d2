//! Who is at the other end of a connection.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::SystemTime;

use atoll_proto::EXPORTER_LABEL;
use rustls::ServerConnection;
use tonic::{Request, Status};

use crate::identity::AgentIdentity;

/// What TLS has established of a connection; cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Peer(Arc<Established>);

#[derive(Debug)]
struct Established {
    remote: SocketAddr,
    /// The agent that the client certificate names, and the end of that certificate.
    identity: Option<(AgentIdentity, SystemTime)>,
    exporter: [u8; 32],
}

impl Peer {
    /// # Errors
    /// When the handshake is not complete.
    pub(super) fn of_connection(remote: SocketAddr, tls: &ServerConnection) -> Result<Self, rustls::Error> {
        let exporter = tls.export_keying_material([0; 32], EXPORTER_LABEL, None)?;
        let certificate = tls.peer_certificates().and_then(<[_]>::first);
        let identity = certificate.and_then(AgentIdentity::of_certificate);
        Ok(Self(Arc::new(Established { remote, identity, exporter })))
    }

    pub(super) fn of_request<T>(request: &Request<T>) -> Result<Self, Status> {
        request.extensions().get().cloned().ok_or_else(|| Status::internal("the connection is not known"))
    }

    pub(super) fn remote(&self) -> SocketAddr {
        self.0.remote
    }

    /// Keying material of this very connection, known to its two ends alone.
    pub(super) fn exporter(&self) -> &[u8; 32] {
        &self.0.exporter
    }

    /// The agent at the other end, and when its certificate ends. A connection outlives the handshake in which the
    /// certificate was verified, so its end is looked at again.
    pub(super) fn agent(&self) -> Result<(&AgentIdentity, SystemTime), Status> {
        match &self.0.identity {
            Some((identity, not_after)) if *not_after > SystemTime::now() => Ok((identity, *not_after)),
            Some(_) => Err(Status::unauthenticated("the agent's certificate has expired: recover or renew it")),
            None => Err(Status::unauthenticated("this call needs the certificate of an agent")),
        }
    }
}
