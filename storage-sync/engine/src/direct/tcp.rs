//! TCP: several connections to a holder, on each of which requests are answered in the order in which they came. A second
//! request waits behind each that is being answered, so that no round trip passes between two of them.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncWriteExt as _, ReadHalf, WriteHalf};
use tokio::net::TcpStream;
use tokio::sync::{Mutex, oneshot};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::DirectError;
use super::frame::{Answer, Request, encode, read_answer, read_bytes};
use super::serve::Outlet;
use crate::hash::SEGMENT_BYTES;

/// Asked for by readers and ignored by holders: agents are known by their certificates.
pub(super) const SERVER_NAME: &str = "atoll-agent";
/// Encrypted ahead of what the system takes.
const BUFFER_BYTES: usize = 512 << 10;

/// How many bytes follow an answer.
pub(super) fn announced(answer: &Answer) -> Result<usize, DirectError> {
    match answer {
        Answer::Bytes { wire_bytes, .. } if *wire_bytes <= SEGMENT_BYTES => Ok(*wire_bytes as usize),
        Answer::Bytes { wire_bytes, .. } => {
            Err(DirectError::Lost(format!("it wants to send {wire_bytes} bytes at once")))
        }
        Answer::Granted | Answer::Described { .. } | Answer::Looked { .. } | Answer::Refused { .. } => Ok(0),
    }
}

/// What both ends ask of their system for a connection.
pub(super) fn prepare(stream: &TcpStream) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    // It does not take every lost packet for a sign of congestion. Where it cannot be had, the system's own choice stays.
    if let Err(error) = rustix::net::sockopt::set_tcp_congestion(stream, "bbr") {
        tracing::debug!(%error, "the system offers no BBR");
    }
    Ok(())
}

/// The holder's end of a connection.
pub(super) struct Sending(pub(super) WriteHalf<tokio_rustls::server::TlsStream<TcpStream>>);

impl Outlet for Sending {
    async fn send(&mut self, bytes: Bytes) -> std::io::Result<()> {
        self.0.write_all(&bytes).await
    }

    async fn flush(&mut self) -> std::io::Result<()> {
        self.0.flush().await
    }
}

/// The reader's end of one connection.
#[derive(Debug)]
pub(super) struct Lane {
    writer: Mutex<Writer>,
    reader: Mutex<ReadHalf<TlsStream<TcpStream>>>,
    broken: AtomicBool,
    /// Requests that were sent, or are about to be, and have no answer.
    pub(super) waiting: AtomicUsize,
    stall: Duration,
}

#[derive(Debug)]
struct Writer {
    half: WriteHalf<TlsStream<TcpStream>>,
    /// Told when the request before the next has its answer.
    turn: Option<oneshot::Receiver<()>>,
}

/// Counts a request, and breaks the lane if its answer was not taken whole: what follows could not be told from it.
struct Waiting<'a> {
    lane: &'a Lane,
    done: Option<oneshot::Sender<()>>,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.lane.waiting.fetch_sub(1, Ordering::Relaxed);
        if self.done.is_some() {
            self.lane.broken.store(true, Ordering::Relaxed);
        }
    }
}

fn lost(error: impl std::fmt::Display) -> DirectError {
    DirectError::Lost(error.to_string())
}

impl Lane {
    pub(super) async fn connect(
        tls: Arc<rustls::ClientConfig>,
        address: SocketAddr,
        stall: Duration,
    ) -> Result<(Self, Option<Vec<rustls::pki_types::CertificateDer<'static>>>), DirectError> {
        let stream = TcpStream::connect(address).await.map_err(lost)?;
        prepare(&stream).map_err(lost)?;
        let name = ServerName::try_from(SERVER_NAME).expect("it is a name");
        let mut stream = TlsConnector::from(tls).connect(name, stream).await.map_err(lost)?;
        stream.get_mut().1.set_buffer_limit(Some(BUFFER_BYTES));
        let chain = stream.get_ref().1.peer_certificates().map(<[_]>::to_vec);
        let (read, write) = tokio::io::split(stream);
        let writer = Mutex::new(Writer { half: write, turn: None });
        let (broken, waiting) = (AtomicBool::new(false), AtomicUsize::new(0));
        Ok((Self { writer, reader: Mutex::new(read), broken, waiting, stall }, chain))
    }

    pub(super) fn is_open(&self) -> bool {
        !self.broken.load(Ordering::Relaxed)
    }

    /// The answer to a request, and the bytes that come with it.
    pub(super) async fn ask(&self, request: &Request) -> Result<(Answer, Vec<u8>), DirectError> {
        self.waiting.fetch_add(1, Ordering::Relaxed);
        let (done, next_turn) = oneshot::channel();
        let mut waiting = Waiting { lane: self, done: Some(done) };
        let turn = {
            let mut writer = self.writer.lock().await;
            let sent = async {
                writer.half.write_all(&encode(request)).await?;
                writer.half.flush().await
            };
            match tokio::time::timeout(self.stall, sent).await {
                Ok(sent) => sent.map_err(lost)?,
                Err(_) => return Err(lost("it takes no request")),
            }
            writer.turn.replace(next_turn)
        };
        if let Some(turn) = turn {
            turn.await.map_err(|_| lost("the connection was given up"))?;
        }
        let mut reader = self.reader.lock().await;
        let answer = read_answer(&mut *reader, self.stall).await.map_err(DirectError::Lost)?;
        let length = announced(&answer)?;
        let bytes = read_bytes(&mut *reader, length, self.stall).await.map_err(DirectError::Lost)?;
        drop(reader);
        if let Some(done) = waiting.done.take() {
            // Nobody may come after it.
            let _ = done.send(());
        }
        Ok((answer, bytes))
    }
}
