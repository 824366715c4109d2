//! QUIC: one connection to a holder, one stream for each request.

use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use quinn::congestion::CubicConfig;
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::{Endpoint, EndpointConfig, MtuDiscoveryConfig, RecvStream, SendStream, TransportConfig, VarInt};
use rustix::net::sockopt;

use super::DirectError;
use super::frame::{Answer, Request, encode, receive};
use super::links::Measured;
use super::serve::Outlet;
use crate::transfer::Filler;

/// Of a UDP socket, each way: the arrivals of some 60 ms at 1 Gbit/s, so that a busy processor loses none.
const SOCKET_BYTES: usize = 8 << 20;
/// Under way at least on one connection: 1 Gbit/s times 250 ms. quinn's own is for 100 Mbit/s and 100 ms.
const WINDOW_BYTES: u32 = 32 << 20;
/// Under way at most: 10 Gbit/s times 100 ms.
const WINDOW_BYTES_MAX: u32 = 128 << 20;
/// Of one stream, which is one range of a segment: all of it may be under way.
const STREAM_WINDOW_BYTES: u32 = 16 << 20;
const STREAMS_MAX: u32 = 64;
/// Packets that are sent before anything is known of the path.
const FIRST_WINDOW_BYTES: u64 = 64 * 1200;
/// Looked for where the path allows it: within a machine or a data centre.
const PACKET_BYTES_MAX: u16 = 8_972;
const IDLE: Duration = Duration::from_secs(30);
const KEEP_ALIVE: Duration = Duration::from_secs(10);

/// What may be under way on a link of which this is known: twice what it holds, so that a lost packet stops nothing.
fn window(link: &Measured) -> u32 {
    let held = link.best().unwrap_or(0.0) * link.round_trip.unwrap_or_default().as_secs_f64();
    ((2.0 * held) as u32).clamp(WINDOW_BYTES, WINDOW_BYTES_MAX)
}

/// `window` is of what is received; the other end's bounds what is sent.
fn transport(window: u32) -> Arc<TransportConfig> {
    let mut cubic = CubicConfig::default();
    cubic.initial_window(FIRST_WINDOW_BYTES);
    let mut mtu = MtuDiscoveryConfig::default();
    mtu.upper_bound(PACKET_BYTES_MAX);
    let mut transport = TransportConfig::default();
    transport
        .receive_window(window.into())
        .stream_receive_window(STREAM_WINDOW_BYTES.into())
        .send_window(WINDOW_BYTES_MAX.into())
        // A range that is whole is of use; the beginnings of eight are not.
        .send_fairness(false)
        .max_concurrent_bidi_streams(STREAMS_MAX.into())
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .datagram_receive_buffer_size(None)
        .congestion_controller_factory(Arc::new(cubic))
        .mtu_discovery_config(Some(mtu))
        .keep_alive_interval(Some(KEEP_ALIVE))
        .max_idle_timeout(Some(IDLE.try_into().expect("half a minute is a timeout")));
    Arc::new(transport)
}

pub(super) fn server_config(tls: Arc<rustls::ServerConfig>) -> std::io::Result<quinn::ServerConfig> {
    let crypto = QuicServerConfig::try_from(tls).map_err(std::io::Error::other)?;
    let mut config = quinn::ServerConfig::with_crypto(Arc::new(crypto));
    // Requests are small.
    config.transport_config(transport(WINDOW_BYTES));
    Ok(config)
}

pub(super) fn endpoint(address: SocketAddr, server: Option<quinn::ServerConfig>) -> std::io::Result<Endpoint> {
    let socket = UdpSocket::bind(address)?;
    // The system may allow less, and gives what it allows.
    sockopt::set_socket_recv_buffer_size(&socket, SOCKET_BYTES)?;
    sockopt::set_socket_send_buffer_size(&socket, SOCKET_BYTES)?;
    Endpoint::new(EndpointConfig::default(), server, socket, Arc::new(quinn::TokioRuntime))
}

impl Outlet for SendStream {
    async fn send(&mut self, bytes: Bytes) -> std::io::Result<()> {
        self.write_chunk(bytes).await.map_err(Into::into)
    }

    async fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// The reader's end of a connection.
#[derive(Debug, Clone)]
pub(super) struct QuicPeer {
    pub(super) connection: quinn::Connection,
    pub(super) stall: Duration,
}

fn lost(error: impl std::fmt::Display) -> DirectError {
    DirectError::Lost(error.to_string())
}

impl QuicPeer {
    pub(super) async fn connect(
        endpoint: &Endpoint,
        tls: Arc<rustls::ClientConfig>,
        address: SocketAddr,
        stall: Duration,
        link: &Measured,
    ) -> Result<Self, DirectError> {
        let crypto = QuicClientConfig::try_from(tls).map_err(lost)?;
        let mut config = quinn::ClientConfig::new(Arc::new(crypto));
        config.transport_config(transport(window(link)));
        let connecting = endpoint.connect_with(config, address, super::tcp::SERVER_NAME).map_err(lost)?;
        Ok(Self { connection: connecting.await.map_err(lost)?, stall })
    }

    async fn stream(&self, request: &Request) -> Result<(SendStream, RecvStream), DirectError> {
        let (mut to, from) = self.connection.open_bi().await.map_err(lost)?;
        to.write_all(&encode(request)).await.map_err(lost)?;
        to.finish().map_err(lost)?;
        Ok((to, from))
    }

    /// The answer to a request; the bytes that come with it go into `filler`.
    pub(super) async fn ask(&self, request: &Request, filler: Option<&mut Filler>) -> Result<Answer, DirectError> {
        let (_to, mut from) = self.stream(request).await?;
        receive(&mut from, filler, self.stall).await
    }

    pub(super) fn is_open(&self) -> bool {
        self.connection.close_reason().is_none()
    }
}

#[cfg(test)]
mod tests {
    use atoll_model::id::AgentId;

    use super::super::Transport;
    use super::super::links::Links;
    use super::*;

    #[test]
    fn windows_follow_the_link_that_was_measured() {
        let window = |megabits: u64, round_trip_ms: u64| {
            let (links, holder) = (Links::open(None), AgentId::from_bits(1));
            links.learn_round_trip(holder, Duration::from_millis(round_trip_ms));
            links.learn(holder, Transport::Tcp, megabits * 125_000, Duration::from_secs(1));
            window(&links.of(holder))
        };
        assert_eq!(super::window(&Measured::default()), WINDOW_BYTES, "nothing is known");
        assert_eq!(window(1_000, 50), WINDOW_BYTES);
        assert_eq!(window(5_000, 50), 62_500_000);
        assert_eq!(window(100_000, 100), WINDOW_BYTES_MAX);
    }
}
