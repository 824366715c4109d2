//! The reader: connections to holders, made when they are needed, kept while they are used.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use atoll_model::id::AgentId;
use futures::future::try_join_all;
use tokio::sync::Mutex;
use tokio::task::JoinSet;

use super::frame::{Answer, Request};
use super::identity::{AgentTls, agent_of};
use super::links::{Links, Measured};
use super::quic::QuicPeer;
use super::tcp::{Lane, Place};
use super::{DirectConfig, DirectError, Offer, Transport, quic};
use crate::transfer::Filler;

/// A holder that is this near has as many connections as there are cores to decrypt what comes on them, and at least two.
const NEAR: Duration = Duration::from_millis(3);
const CONNECTIONS_NEAR: usize = 2;

fn connections_near() -> usize {
    std::thread::available_parallelism().map_or(CONNECTIONS_NEAR, usize::from).max(CONNECTIONS_NEAR)
}

/// Reaches holders. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Dialer {
    pub(super) inner: Arc<Inner>,
}

#[derive(Debug)]
pub(super) struct Inner {
    tls: AgentTls,
    pub(super) config: DirectConfig,
    pub(super) links: Links,
    endpoint: OnceLock<quinn::Endpoint>,
    peers: Mutex<HashMap<(AgentId, Transport), Peer>>,
}

/// Connections to a holder that have shown a ticket.
#[derive(Debug, Clone)]
pub(super) enum Peer {
    Quic(QuicPeer),
    Tcp(Arc<Vec<Lane>>),
}

impl Peer {
    pub(super) fn is_open(&self) -> bool {
        match self {
            Self::Quic(peer) => peer.is_open(),
            Self::Tcp(lanes) => lanes.iter().all(Lane::is_open),
        }
    }

    /// Requests that may wait at a time, so that the line is never idle.
    pub(super) fn requests_max(&self) -> usize {
        match self {
            Self::Quic(_) => 8,
            // Where there are few, a third of each covers the moment in which what came is taken in.
            Self::Tcp(lanes) => lanes.len() * if lanes.len() > CONNECTIONS_NEAR { 2 } else { 3 },
        }
    }

    pub(super) async fn ask(&self, request: &Request) -> Result<Answer, DirectError> {
        match self {
            Self::Quic(peer) => peer.ask(request, None).await,
            Self::Tcp(lanes) => Place::take(lanes).ask(request, None).await,
        }
    }

    /// Asks for a range.
    pub(super) async fn bring(&self, request: Request, mut filler: Filler) -> (Filler, Result<Answer, DirectError>) {
        match self {
            Self::Quic(peer) => {
                let answered = peer.ask(&request, Some(&mut filler)).await;
                (filler, answered)
            }
            Self::Tcp(lanes) => {
                let place = Place::take(lanes);
                // On a task of its own: what comes on different connections is decrypted by different cores.
                let mut receiving = JoinSet::new();
                receiving.spawn(async move {
                    let answered = place.ask(&request, Some(&mut filler)).await;
                    (filler, answered)
                });
                match receiving.join_next().await.map(|joined| joined.map_err(tokio::task::JoinError::try_into_panic)) {
                    Some(Ok(received)) => received,
                    Some(Err(Ok(panic))) => std::panic::resume_unwind(panic),
                    // Only a runtime that is going down cancels it.
                    Some(Err(Err(_))) | None => std::future::pending().await,
                }
            }
        }
    }

    /// Shows a ticket on every connection.
    async fn show(&self, ticket: &[u8]) -> Result<(), DirectError> {
        let request = Request::Show { ticket: ticket.to_vec() };
        let answers = match self {
            Self::Quic(_) => vec![self.ask(&request).await?],
            Self::Tcp(lanes) => {
                let places = (0..lanes.len()).map(|index| Place::on(lanes, index).ask(&request, None));
                try_join_all(places).await?
            }
        };
        let refusal = answers.into_iter().find(|answer| *answer != Answer::Granted);
        refusal.map_or(Ok(()), |answer| Err(unexpected(answer)))
    }
}

pub(super) fn unexpected(answer: Answer) -> DirectError {
    match answer {
        Answer::Refused { message } => DirectError::Refused(message),
        Answer::NotYet => DirectError::NotYet,
        Answer::Granted
        | Answer::Described { .. }
        | Answer::Coming { .. }
        | Answer::Bytes { .. }
        | Answer::Looked { .. } => DirectError::Lost("its answer does not fit the request".to_owned()),
    }
}

impl Dialer {
    /// What is measured is kept in `file`, if one is named.
    pub fn new(tls: AgentTls, config: DirectConfig, file: Option<PathBuf>) -> Self {
        let links = Links::open(file);
        let inner = Inner { tls, config, links, endpoint: OnceLock::new(), peers: Mutex::default() };
        Self { inner: Arc::new(inner) }
    }

    /// What is known of the way to a holder.
    pub fn measured(&self, holder: AgentId) -> Measured {
        self.inner.links.of(holder)
    }

    /// Finds out whether a holder can be reached and accepts the ticket, and how far away it is.
    ///
    /// # Errors
    /// Why not, for people.
    pub async fn reach(&self, offer: &Offer) -> Result<Duration, String> {
        let wanted = self.inner.config.only.unwrap_or(Transport::Tcp);
        self.inner.peer(offer, wanted).await.map_err(|error| error.to_string())?;
        Ok(self.measured(offer.holder).round_trip.unwrap_or_default())
    }
}

impl Inner {
    /// A connected holder that has accepted the offer's ticket: by this transport, or by the other where this one cannot
    /// be had.
    pub(super) async fn peer(&self, offer: &Offer, wanted: Transport) -> Result<(Transport, Peer), DirectError> {
        let other = match wanted {
            Transport::Quic => Transport::Tcp,
            Transport::Tcp => Transport::Quic,
        };
        let first = match self.peer_by(offer, wanted).await {
            Ok(peer) => return Ok((wanted, peer)),
            Err(error @ DirectError::Refused(_)) => return Err(error),
            Err(error) => error,
        };
        if self.config.only.is_some() {
            return Err(first);
        }
        match self.peer_by(offer, other).await {
            Ok(peer) => Ok((other, peer)),
            Err(DirectError::Lost(second)) => Err(DirectError::Lost(format!("{first}; {second}"))),
            Err(other @ (DirectError::Refused(_) | DirectError::NotYet)) => Err(other),
        }
    }

    async fn peer_by(&self, offer: &Offer, transport: Transport) -> Result<Peer, DirectError> {
        // Held over the connecting: whoever comes meanwhile wants the same.
        let mut peers = self.peers.lock().await;
        let key = (offer.holder, transport);
        if let Some(peer) = peers.get(&key).filter(|peer| peer.is_open()).cloned()
            && peer.show(&offer.ticket).await.is_ok()
        {
            return Ok(peer);
        }
        peers.remove(&key);
        let mut failures = Vec::new();
        for address in &offer.addresses {
            let connecting = self.connect(offer, transport, *address);
            let failure = match tokio::time::timeout(self.config.connect_timeout, connecting).await {
                Ok(Ok(peer)) => {
                    peers.insert(key, peer.clone());
                    return Ok(peer);
                }
                Ok(Err(error @ DirectError::Refused(_))) => return Err(error),
                Ok(Err(error)) => error.to_string(),
                Err(_) => format!("no answer within {} seconds", self.config.connect_timeout.as_secs_f32()),
            };
            failures.push(format!("{address} by {transport:?}: {failure}"));
        }
        if failures.is_empty() {
            failures.push("it says of no address that it listens there".to_owned());
        }
        Err(DirectError::Lost(failures.join("; ")))
    }

    async fn connect(&self, offer: &Offer, transport: Transport, address: SocketAddr) -> Result<Peer, DirectError> {
        let (tls, stall) = (self.tls.client(), self.config.stall_timeout);
        let peer = match transport {
            Transport::Quic => {
                let link = self.links.of(offer.holder);
                let peer = QuicPeer::connect(self.endpoint(address)?, tls, address, stall, &link).await?;
                let identity = peer.connection.peer_identity();
                let chain = identity
                    .and_then(|identity| identity.downcast::<Vec<rustls::pki_types::CertificateDer<'static>>>().ok());
                is_holder(offer.holder, chain.as_deref().map(Vec::as_slice))?;
                self.links.learn_round_trip(offer.holder, peer.connection.rtt());
                Peer::Quic(peer)
            }
            Transport::Tcp => {
                let (first, chain) = Lane::connect(Arc::clone(&tls), address, stall).await?;
                is_holder(offer.holder, chain.as_deref())?;
                let began = Instant::now();
                let peer = Peer::Tcp(Arc::new(vec![first]));
                peer.show(&offer.ticket).await?;
                let round_trip = began.elapsed();
                self.links.learn_round_trip(offer.holder, round_trip);
                let wanted = if round_trip < NEAR {
                    connections_near().min(self.config.connections_max)
                } else {
                    self.config.connections_max
                };
                let more = (1..wanted.max(1)).map(|_| Lane::connect(Arc::clone(&tls), address, stall));
                let mut lanes = Vec::with_capacity(wanted);
                for (lane, chain) in try_join_all(more).await? {
                    is_holder(offer.holder, chain.as_deref())?;
                    lanes.push(lane);
                }
                if let Peer::Tcp(first) = peer {
                    lanes.extend(Arc::into_inner(first).into_iter().flatten());
                }
                Peer::Tcp(Arc::new(lanes))
            }
        };
        peer.show(&offer.ticket).await?;
        Ok(peer)
    }

    fn endpoint(&self, address: SocketAddr) -> Result<&quinn::Endpoint, DirectError> {
        if let Some(endpoint) = self.endpoint.get() {
            return Ok(endpoint);
        }
        let any: SocketAddr = if address.is_ipv4() { ([0, 0, 0, 0], 0).into() } else { ([0u16; 8], 0).into() };
        let endpoint = quic::endpoint(any, None).map_err(|error| DirectError::Lost(error.to_string()))?;
        Ok(self.endpoint.get_or_init(|| endpoint))
    }
}

fn is_holder(holder: AgentId, chain: Option<&[rustls::pki_types::CertificateDer<'_>]>) -> Result<(), DirectError> {
    match agent_of(chain) {
        Some((agent, _)) if agent == holder => Ok(()),
        Some((agent, _)) => Err(DirectError::Lost(format!("another agent listens there: {agent}"))),
        None => Err(DirectError::Lost("who listens there is no agent".to_owned())),
    }
}
