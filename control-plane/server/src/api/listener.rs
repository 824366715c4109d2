//! The listener for people: TLS handshakes on tasks of their own, then HTTP.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::serve::ListenerExt as _;
use rustls::ServerConfig;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Handshakes at a time, so that strangers cannot fill the memory with them.
const HANDSHAKES_MAX: usize = 128;
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Pause after an accept that failed, which mostly means that no file descriptor is left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Serves people until `shutdown`; what was asked before is answered.
///
/// # Errors
/// When the listener fails.
pub(crate) async fn serve(
    listener: TcpListener,
    tls: Option<Arc<ServerConfig>>,
    router: Router,
    shutdown: CancellationToken,
) -> io::Result<()> {
    match tls {
        None => {
            let listener = listener.tap_io(|stream| {
                if let Err(error) = stream.set_nodelay(true) {
                    tracing::debug!(%error, "a connection goes on with delays");
                }
            });
            axum::serve(listener, router).with_graceful_shutdown(shutdown.cancelled_owned()).await
        }
        Some(tls) => {
            let local = listener.local_addr()?;
            let (sender, connections) = mpsc::channel(HANDSHAKES_MAX);
            let tasks = TaskTracker::new();
            tasks.spawn(accept(listener, TlsAcceptor::from(tls), sender, shutdown.clone(), tasks.clone()));
            let secured = Secured { connections, local };
            axum::serve(secured, router).with_graceful_shutdown(shutdown.cancelled_owned()).await?;
            tasks.close();
            tasks.wait().await;
            Ok(())
        }
    }
}

/// Connections whose handshake is done.
#[derive(Debug)]
struct Secured {
    connections: mpsc::Receiver<(TlsStream<TcpStream>, SocketAddr)>,
    local: SocketAddr,
}

impl axum::serve::Listener for Secured {
    type Io = TlsStream<TcpStream>;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        match self.connections.recv().await {
            Some(connection) => connection,
            // Accepting has ended with the shutdown, which ends the serving too.
            None => std::future::pending().await,
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.local)
    }
}

async fn accept(
    listener: TcpListener,
    acceptor: TlsAcceptor,
    connections: mpsc::Sender<(TlsStream<TcpStream>, SocketAddr)>,
    shutdown: CancellationToken,
    tasks: TaskTracker,
) {
    let handshakes = Arc::new(Semaphore::new(HANDSHAKES_MAX));
    loop {
        let admitted = async { (Arc::clone(&handshakes).acquire_owned().await, listener.accept().await) };
        let Some((permit, accepted)) = shutdown.run_until_cancelled(admitted).await else { return };
        let (stream, remote) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let (acceptor, connections, shutdown) = (acceptor.clone(), connections.clone(), shutdown.clone());
        tasks.spawn(async move {
            let _permit = permit;
            match shutdown.run_until_cancelled(shake_hands(acceptor, stream)).await {
                Some(Ok(stream)) => {
                    // Nobody takes it any more when the server is going down.
                    let _ = connections.send((stream, remote)).await;
                }
                Some(Err(error)) => tracing::debug!(%remote, %error, "a handshake has failed"),
                None => {}
            }
        });
    }
}

async fn shake_hands(acceptor: TlsAcceptor, stream: TcpStream) -> io::Result<TlsStream<TcpStream>> {
    stream.set_nodelay(true)?;
    tokio::time::timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream)).await?
}
