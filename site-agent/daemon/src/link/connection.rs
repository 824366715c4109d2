//! One connection to the control plane: TCP, TLS, HTTP/2. It is never replaced behind the back of who uses it.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use atoll_model::limits::MESSAGE_BYTES_MAX;
use atoll_proto::EXPORTER_LABEL;
use atoll_proto::v1::agents_client::AgentsClient;
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use rustls::{AlertDescription, ClientConfig};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tonic::transport::{Channel, Endpoint};

pub(crate) const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);
/// How long a call waits for the beginning of its answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
/// A NAT drops a silent connection after minutes; a ping that is not answered ends it within half a minute.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(20);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);
/// Bytes that may be on their way unread on one stream, and on the connection.
const STREAM_WINDOW_BYTES: u32 = 1 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 4 << 20;

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    #[error("{0:?} is not a URL of the form https://host:port")]
    Url(String),
    #[error("cannot reach {url}")]
    Tcp {
        url: String,
        #[source]
        source: io::Error,
    },
    #[error("cannot agree on TLS with {url}")]
    Tls {
        url: String,
        #[source]
        source: io::Error,
    },
    /// The server is not the one that the join token, or the stored identity, vouches for. Nothing was sent to it.
    #[error("{url} is not the control plane that the join token was made by: its certificate is not of the pinned CA")]
    WrongAuthority { url: String },
    #[error("the connection to {url} cannot be used")]
    Http {
        url: String,
        #[source]
        source: tonic::transport::Error,
    },
    #[error("the TLS configuration cannot be used")]
    Configuration(#[from] rustls::Error),
}

/// An open connection.
#[derive(Debug, Clone)]
pub(super) struct Connection {
    channel: Channel,
    exporter: [u8; 32],
}

impl Connection {
    /// # Errors
    /// When the server cannot be reached, or is not the one that the configuration trusts.
    pub(super) async fn open(url: &str, config: Arc<ClientConfig>) -> Result<Self, ConnectError> {
        let no_url = || ConnectError::Url(url.to_owned());
        let uri = url.parse::<http::Uri>().map_err(|_| no_url())?;
        let host = uri.host().ok_or_else(no_url)?.trim_start_matches('[').trim_end_matches(']');
        let port = uri.port_u16().unwrap_or(443);
        let name = ServerName::try_from(host.to_owned()).map_err(|_| no_url())?;

        let tcp = in_time(TcpStream::connect((host, port))).await;
        let tcp = tcp.and_then(|tcp| tcp.set_nodelay(true).map(|()| tcp));
        let tcp = tcp.map_err(|source| ConnectError::Tcp { url: url.to_owned(), source })?;
        let tls = in_time(TlsConnector::from(config).connect(name, tcp)).await.map_err(|source| {
            let url = url.to_owned();
            match rustls_error(&source) {
                Some(rustls::Error::InvalidCertificate(rustls::CertificateError::UnknownIssuer)) => {
                    ConnectError::WrongAuthority { url }
                }
                Some(_) | None => ConnectError::Tls { url, source },
            }
        })?;
        let exporter = tls.get_ref().1.export_keying_material([0; 32], EXPORTER_LABEL, None)?;

        // The only stream of this channel: one that breaks is not opened again.
        let only = Arc::new(Mutex::new(Some(TokioIo::new(tls))));
        let connector = tower::service_fn(move |_: http::Uri| {
            let stream = only.lock().unwrap_or_else(PoisonError::into_inner).take();
            std::future::ready(stream.ok_or_else(|| io::Error::from(io::ErrorKind::NotConnected)))
        });
        let authority = uri.authority().ok_or_else(no_url)?;
        let channel = Endpoint::from_shared(format!("http://{authority}"))
            .map_err(|_| no_url())?
            .timeout(ANSWER_TIMEOUT)
            .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
            .keep_alive_timeout(KEEPALIVE_TIMEOUT)
            .keep_alive_while_idle(true)
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .connect_with_connector(connector)
            .await
            .map_err(|source| ConnectError::Http { url: url.to_owned(), source })?;
        Ok(Self { channel, exporter })
    }

    pub(super) fn client(&self) -> AgentsClient<Channel> {
        AgentsClient::new(self.channel.clone())
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX)
    }

    /// Keying material of this very connection, known to its two ends alone.
    pub(super) const fn exporter(&self) -> &[u8; 32] {
        &self.exporter
    }
}

async fn in_time<T>(work: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    tokio::time::timeout(CONNECT_TIMEOUT, work).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

fn rustls_error(error: &io::Error) -> Option<&rustls::Error> {
    error.get_ref()?.downcast_ref()
}

/// What was wrong with the certificate that the server showed, if that was it.
pub(super) fn certificate_error(error: &ConnectError) -> Option<&rustls::CertificateError> {
    let ConnectError::Tls { source, .. } = error else { return None };
    if let rustls::Error::InvalidCertificate(error) = rustls_error(source)? { Some(error) } else { None }
}

/// Whether the server has said, after the handshake, that it takes the agent's certificate for expired.
pub(crate) fn says_expired(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(error) = next {
        let inner = error.downcast_ref::<io::Error>().and_then(rustls_error).or_else(|| error.downcast_ref());
        if let Some(rustls::Error::AlertReceived(AlertDescription::CertificateExpired)) = inner {
            return true;
        }
        next = error.source();
    }
    false
}
