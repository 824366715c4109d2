//! Where readers come in: TCP and UDP at one address.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::frame::read;
use super::identity::agent_of;
use super::quic;
use super::serve::{Reader, Serving};
use super::tcp::{Sending, prepare};

/// Of all readers together; each has at most nine.
const CONNECTIONS_MAX: usize = 512;
/// Ports that are tried.
const TRIES: u32 = 20;
const HANDSHAKE: Duration = Duration::from_secs(10);
/// A reader that asks nothing for so long is not held.
const IDLE: Duration = Duration::from_secs(60);
/// How often the certificate is looked at that QUIC shows.
const RENEWAL: Duration = Duration::from_secs(60);

#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address}")]
pub struct ListenError {
    address: SocketAddr,
    #[source]
    source: std::io::Error,
}

/// A holder that listens, until it is stopped.
#[derive(Debug)]
pub struct Listening {
    pub address: SocketAddr,
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl Listening {
    /// Closes all connections.
    pub async fn stop(self) {
        self.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// Listens on `address`, TCP and UDP; with port 0, on one that is free for both.
///
/// # Errors
/// When the system does not give the address.
pub async fn listen(serving: Arc<Serving>, address: SocketAddr) -> Result<Listening, ListenError> {
    let failed = |source| ListenError { address, source };
    let server = quic::server_config(serving.tls.server()).map_err(failed)?;
    let (listener, endpoint) = bind(address, server).await.map_err(failed)?;
    let bound = listener.local_addr().map_err(failed)?;
    let (stop, tasks) = (CancellationToken::new(), TaskTracker::new());
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let tcp = accept_tcp(listener, Arc::clone(&serving), Arc::clone(&places), stop.clone(), tasks.clone());
    tasks.spawn(tcp);
    tasks.spawn(accept_quic(endpoint, serving, places, stop.clone(), tasks.clone()));
    Ok(Listening { address: bound, stop, tasks })
}

/// Both on one port. One that the system picks is free for TCP, and most often for UDP.
async fn bind(address: SocketAddr, server: quinn::ServerConfig) -> std::io::Result<(TcpListener, quinn::Endpoint)> {
    let mut tries = 0;
    loop {
        tries += 1;
        let listener = TcpListener::bind(address).await?;
        match quic::endpoint(listener.local_addr()?, Some(server.clone())) {
            Err(error) if address.port() == 0 && error.kind() == ErrorKind::AddrInUse && tries < TRIES => {}
            endpoint => return Ok((listener, endpoint?)),
        }
    }
}

async fn accept_tcp(
    listener: TcpListener,
    serving: Arc<Serving>,
    places: Arc<Semaphore>,
    stop: CancellationToken,
    tasks: TaskTracker,
) {
    loop {
        let Some(accepted) = stop.run_until_cancelled(listener.accept()).await else { return };
        let Ok((stream, from)) = accepted else {
            // Out of descriptors, most likely: those in use come back.
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let Ok(place) = Arc::clone(&places).try_acquire_owned() else { continue };
        let (serving, stop) = (Arc::clone(&serving), stop.clone());
        tasks.spawn(async move {
            if let Some(Err(error)) = stop.run_until_cancelled(serve_tcp(&serving, stream, place)).await {
                tracing::debug!(%from, %error, "a reader's connection has ended");
            }
        });
    }
}

async fn serve_tcp(serving: &Serving, stream: TcpStream, _place: OwnedSemaphorePermit) -> std::io::Result<()> {
    prepare(&stream)?;
    let handshake = TlsAcceptor::from(serving.tls.server()).accept(stream);
    let stream = tokio::time::timeout(HANDSHAKE, handshake).await??;
    let peer = agent_of(stream.get_ref().1.peer_certificates());
    let reader = Reader::new(peer.ok_or_else(|| std::io::Error::other("the certificate names no agent"))?);
    let (mut from, mut to) = Sending::new(stream);
    while let Some(request) = tokio::time::timeout(IDLE, read(&mut from)).await?? {
        serving.answer(&reader, request, &mut to).await?;
    }
    Ok(())
}

async fn accept_quic(
    endpoint: quinn::Endpoint,
    serving: Arc<Serving>,
    places: Arc<Semaphore>,
    stop: CancellationToken,
    tasks: TaskTracker,
) {
    let mut shown = serving.tls.server();
    loop {
        let incoming = tokio::select! {
            () = stop.cancelled() => break,
            () = tokio::time::sleep(RENEWAL) => {
                let current = serving.tls.server();
                if !Arc::ptr_eq(&shown, &current) && let Ok(config) = quic::server_config(Arc::clone(&current)) {
                    endpoint.set_server_config(Some(config));
                    shown = current;
                }
                continue;
            }
            incoming = endpoint.accept() => incoming,
        };
        let Some(incoming) = incoming else { break };
        let Ok(place) = Arc::clone(&places).try_acquire_owned() else {
            incoming.refuse();
            continue;
        };
        let (serving, inner, stop) = (Arc::clone(&serving), tasks.clone(), stop.clone());
        tasks.spawn(async move {
            if let Some(Err(error)) = stop.run_until_cancelled(serve_quic(&serving, incoming, &inner, place)).await {
                tracing::debug!(%error, "a reader's connection has ended");
            }
        });
    }
    endpoint.close(0u32.into(), b"");
}

async fn serve_quic(
    serving: &Arc<Serving>,
    incoming: quinn::Incoming,
    tasks: &TaskTracker,
    _place: OwnedSemaphorePermit,
) -> std::io::Result<()> {
    let connection = tokio::time::timeout(HANDSHAKE, incoming).await??;
    let chain = connection
        .peer_identity()
        .and_then(|identity| identity.downcast::<Vec<rustls::pki_types::CertificateDer<'static>>>().ok());
    let peer = agent_of(chain.as_deref().map(Vec::as_slice));
    let reader = Arc::new(Reader::new(peer.ok_or_else(|| std::io::Error::other("the certificate names no agent"))?));
    loop {
        let (mut to, mut from) = connection.accept_bi().await?;
        let (serving, reader) = (Arc::clone(serving), Arc::clone(&reader));
        tasks.spawn(async move {
            let answering = async {
                match read(&mut from).await? {
                    Some(request) => serving.answer(&reader, request, &mut to).await,
                    None => Ok(()),
                }
            };
            if let Err(error) = answering.await {
                // The connection is gone, or will be; or the reader has lost interest in this one.
                tracing::debug!(%error, "a request was not answered to its end");
                let _ = to.reset(1u32.into());
                return;
            }
            // A reader that has gone needs no end.
            let _ = to.finish();
        });
    }
}
