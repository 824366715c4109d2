//! The listener for agents: own accept loop, TLS, then gRPC; whatever is no call of an agent goes to the router beside it
//! (the bucket's URLs).

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use atoll_model::limits::MESSAGE_BYTES_MAX;
use atoll_proto::v1::agents_server::AgentsServer;
use control_plane_postgres::Leader;
use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::Status;
use tonic::body::Body;
use tonic::server::NamedService;
use tonic::service::Routes;
use tonic::transport::Server;
use tonic::transport::server::Connected;
use tower::Service;

use super::Agents;
use super::peer::Peer;
use super::service::Calls;
use crate::driver::Handle;
use crate::patience::{Patience, Patient};

/// Handshakes at a time: a fleet that comes back together must not starve what is connected already.
const HANDSHAKES_MAX: usize = 256;
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// A NAT drops a silent connection after minutes; a ping that is not answered ends it within half a minute.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(20);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);
/// Bytes that may be on their way unread on one stream, and on one connection: enough for a batch of reports over a link of
/// 100 Mbit/s and 100 ms.
const STREAM_WINDOW_BYTES: u32 = 1 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 4 << 20;
/// What an agent says goes on by pings at least, and a transfer by its bytes; the end of one may wait for a disk.
const PATIENCE: Patience = Patience { greeting: HANDSHAKE_TIMEOUT, silence: Some(Duration::from_secs(120)) };
/// Encoded bytes of a message that needs no certificate: a signing request and two keys.
const IDENTITY_BYTES_MAX: usize = 64 << 10;
/// Pause after an accept that failed, which mostly means that no file descriptor is left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

#[derive(Debug, thiserror::Error)]
#[error("the listener for agents has failed")]
pub struct ServeError(#[from] tonic::transport::Error);

/// Serves agents until `shutdown`: sessions end then, and other calls are answered.
///
/// # Errors
/// When the listener fails.
pub async fn serve(
    agents: Agents,
    listener: TcpListener,
    tls: Arc<ServerConfig>,
    beside: axum::Router,
    shutdown: CancellationToken,
) -> Result<(), ServeError> {
    let (sender, connections) = mpsc::channel(HANDSHAKES_MAX);
    let tasks = agents.0.tasks.clone();
    tasks.spawn(accept(listener, TlsAcceptor::from(tls), sender, shutdown.clone(), tasks.clone()));
    let service = ByCaller::new(agents.clone());
    let ending = async {
        shutdown.cancelled().await;
        agents.0.closing.cancel();
    };
    Server::builder()
        .http2_keepalive_interval(Some(KEEPALIVE_INTERVAL))
        .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .accept_http1(true)
        .add_routes(Routes::from(beside).add_service(service))
        .serve_with_incoming_shutdown(ReceiverStream::new(connections), ending)
        .await?;
    tasks.close();
    tasks.wait().await;
    Ok(())
}

async fn accept(
    listener: TcpListener,
    acceptor: TlsAcceptor,
    connections: mpsc::Sender<io::Result<Connection>>,
    shutdown: CancellationToken,
    tasks: TaskTracker,
) {
    let handshakes = Arc::new(Semaphore::new(HANDSHAKES_MAX));
    loop {
        let admitted = async {
            let permit = Arc::clone(&handshakes).acquire_owned().await;
            (permit, listener.accept().await)
        };
        let Some((permit, accepted)) = shutdown.run_until_cancelled(admitted).await else { return };
        let (stream, remote) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(error = ?error, "a connection could not be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let (acceptor, connections, shutdown) = (acceptor.clone(), connections.clone(), shutdown.clone());
        tasks.spawn(async move {
            let _permit = permit;
            match shutdown.run_until_cancelled(shake_hands(acceptor, stream, remote)).await {
                Some(Ok(connection)) => {
                    // Nobody takes it any more when the server is going down.
                    let _ = connections.send(Ok(connection)).await;
                }
                Some(Err(error)) => tracing::debug!(%remote, error = %error, "a handshake has failed"),
                None => {}
            }
        });
    }
}

async fn shake_hands(acceptor: TlsAcceptor, stream: TcpStream, remote: SocketAddr) -> io::Result<Connection> {
    stream.set_nodelay(true)?;
    let stream = tokio::time::timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream)).await??;
    let peer = Peer::of_connection(remote, stream.get_ref().1).map_err(io::Error::other)?;
    Ok(Connection { stream: Patient::new(stream, PATIENCE), peer })
}

/// The same calls with two limits: room for a message is made when its head has come, and a stranger gets little.
#[derive(Debug, Clone)]
struct ByCaller {
    handle: Handle,
    of_agents: AgentsServer<Calls>,
    of_strangers: AgentsServer<Calls>,
}

impl ByCaller {
    fn new(agents: Agents) -> Self {
        let handle = agents.0.handle.clone();
        let service = AgentsServer::new(Calls(agents)).max_encoding_message_size(MESSAGE_BYTES_MAX);
        Self {
            handle,
            of_agents: service.clone().max_decoding_message_size(MESSAGE_BYTES_MAX),
            of_strangers: service.max_decoding_message_size(IDENTITY_BYTES_MAX),
        }
    }
}

impl NamedService for ByCaller {
    const NAME: &'static str = <AgentsServer<Calls> as NamedService>::NAME;
}

impl Service<http::Request<Body>> for ByCaller {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = <AgentsServer<Calls> as Service<http::Request<Body>>>::Future;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Service::<http::Request<Body>>::poll_ready(&mut self.of_agents, context)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        if let Some(leader) = self.handle.leader() {
            let answer = standing_by(&leader).into_http();
            return Box::pin(std::future::ready(Ok(answer)));
        }
        let is_agent = request.extensions().get().is_some_and(|peer: &Peer| peer.agent().is_ok());
        if is_agent { self.of_agents.call(request) } else { self.of_strangers.call(request) }
    }
}

/// What a server that stands by answers: where the leader is, if there is one.
fn standing_by(leader: &Leader) -> Status {
    let mut status = Status::unavailable("this server stands by");
    let address = if leader.is_alive { leader.agent_address.as_str() } else { "" };
    // An address that is no metadata would be one that no agent can use.
    if let Ok(address) = address.parse() {
        status.metadata_mut().insert("atoll-leader", address);
    }
    status
}

/// A connection whose handshake is done.
#[derive(Debug)]
struct Connection {
    stream: Patient<TlsStream<TcpStream>>,
    peer: Peer,
}

impl Connected for Connection {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        self.peer.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a panic is a failed test")]

    use storage_sync_engine::bucket::{Bucket, BucketOptions};
    use storage_sync_journal::MemoryDisk;

    use super::*;
    use crate::agents::Settings;
    use crate::identity::Authority;
    use crate::testing::Core;

    /// What a call of this many bytes is answered without a certificate.
    async fn status_of(service: &mut ByCaller, call: &str, bytes: usize) -> (String, String) {
        let mut body = vec![0];
        body.extend_from_slice(&u32::try_from(bytes).unwrap().to_be_bytes());
        body.resize(body.len() + bytes, 0);
        let request = http::Request::post(format!("/{}/{call}", ByCaller::NAME))
            .header("content-type", "application/grpc")
            .body(Body::new(http_body_util::Full::from(body)))
            .unwrap();
        let response = service.call(request).await.unwrap();
        let text = |name: &str| response.headers()[name].to_str().unwrap().to_owned();
        (text("grpc-status"), text("grpc-message"))
    }

    #[tokio::test]
    async fn a_stranger_may_say_no_more_than_a_request_for_a_certificate_takes() {
        let core = Core::start(&MemoryDisk::default());
        let directory = tempfile::tempdir().unwrap();
        let authority = Arc::new(Authority::open(directory.path()).unwrap());
        let options = BucketOptions { serve_url: "https://127.0.0.1:1".to_owned(), ..BucketOptions::default() };
        let bucket = Bucket::open(&directory.path().join("bucket").display().to_string(), options).unwrap();
        let config = crate::Config { data_dir: directory.path().to_owned(), ..crate::Config::default() };
        let keys = crate::keys::Keys::open(&config).unwrap();
        let agents = Agents::new(core.handle.clone(), authority, (bucket, keys), Settings::default());
        let mut service = ByCaller::new(agents);
        for call in ["Enrol", "Recover"] {
            let (status, message) = status_of(&mut service, call, IDENTITY_BYTES_MAX + 1).await;
            assert_eq!(status, (tonic::Code::OutOfRange as i32).to_string(), "{call}: {message}");
            let (_, message) = status_of(&mut service, call, IDENTITY_BYTES_MAX).await;
            assert!(!message.contains("too%20large") && !message.contains("too large"), "{call}: {message}");
        }
    }
}
