//! The listener for people: TLS handshakes on tasks of their own, then HTTP.

use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use hyper_util::service::TowerToHyperService;
use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::patience::{Patience, Patient};

/// Handshakes at a time, so that strangers cannot fill the memory with them.
const HANDSHAKES_MAX: usize = 128;
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// For the head of a request, and between two of them on one connection.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);
/// An HTTP/2 connection whose other end has gone is found out by a ping within this time, twice.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(20);
/// What a request is about may take its time without a byte going either way.
const PATIENCE: Patience = Patience { greeting: HANDSHAKE_TIMEOUT, silence: None };
/// Pause after an accept that failed, which mostly means that no file descriptor is left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Serves people until `shutdown`; what was asked before is answered.
pub(crate) async fn serve(
    listener: TcpListener,
    tls: Option<Arc<ServerConfig>>,
    router: Router,
    shutdown: CancellationToken,
) {
    let connections = TaskTracker::new();
    let handshakes = Arc::new(Semaphore::new(HANDSHAKES_MAX));
    let acceptor = tls.map(TlsAcceptor::from);
    loop {
        let admitted = async { (Arc::clone(&handshakes).acquire_owned().await, listener.accept().await) };
        let Some((permit, accepted)) = shutdown.run_until_cancelled(admitted).await else { break };
        let (stream, remote) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "a connection goes on with delays");
        }
        let (acceptor, router, shutdown) = (acceptor.clone(), router.clone(), shutdown.clone());
        connections.spawn(async move {
            let Some(acceptor) = acceptor else {
                drop(permit);
                return converse(stream, router, shutdown).await;
            };
            let shaken = shutdown.run_until_cancelled(shake_hands(acceptor, stream)).await;
            drop(permit);
            match shaken {
                Some(Ok(stream)) => converse(stream, router, shutdown).await,
                Some(Err(error)) => tracing::debug!(%remote, %error, "a handshake has failed"),
                None => {}
            }
        });
    }
    connections.close();
    connections.wait().await;
}

async fn shake_hands(
    acceptor: TlsAcceptor,
    stream: TcpStream,
) -> io::Result<tokio_rustls::server::TlsStream<TcpStream>> {
    tokio::time::timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream)).await?
}

/// Answers the requests of one connection; when the server is to end, those that have come.
async fn converse<S>(stream: S, router: Router, shutdown: CancellationToken)
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let mut builder = Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT);
    builder.http2().timer(TokioTimer::new()).keep_alive_interval(KEEPALIVE_INTERVAL);
    let stream = TokioIo::new(Patient::new(stream, PATIENCE));
    let mut connection = pin!(builder.serve_connection_with_upgrades(stream, TowerToHyperService::new(router)));
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = shutdown.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(error, "a connection has ended");
    }
}
