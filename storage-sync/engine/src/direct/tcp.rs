//! TCP: several connections to a holder, on each of which requests are answered in the order in which they came. A second
//! request waits behind each that is being answered, so that no round trip passes between two of them.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::{Buf as _, Bytes};
use rustls::pki_types::ServerName;
use tokio::io::{AsyncWriteExt as _, ReadHalf, WriteHalf};
use tokio::net::TcpStream;
use tokio::sync::{Mutex, oneshot};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::DirectError;
use super::frame::{Answer, Request, encode, receive};
use super::serve::Outlet;
use crate::transfer::Filler;

/// Asked for by readers and ignored by holders: agents are known by their certificates.
pub(super) const SERVER_NAME: &str = "atoll-agent";
/// Encrypted at once, and given to the system at once.
const BUFFER_BYTES: usize = 256 << 10;
/// A reader that takes no byte for so long is not held.
const STALL: Duration = Duration::from_secs(60);

/// What both ends ask of their system for a connection.
pub(super) fn prepare(stream: &TcpStream) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    // It does not take every lost packet for a sign of congestion. Where it cannot be had, the system's own choice stays.
    if let Err(error) = rustix::net::sockopt::set_tcp_congestion(stream, "bbr") {
        tracing::debug!(%error, "the system offers no BBR");
    }
    Ok(())
}

type Served = tokio_rustls::server::TlsStream<TcpStream>;

/// The holder's end of a connection.
pub(super) struct Sending(WriteHalf<Served>);

impl Sending {
    pub(super) fn new(mut stream: Served) -> (ReadHalf<Served>, Self) {
        stream.get_mut().1.set_buffer_limit(Some(BUFFER_BYTES));
        let (from, to) = tokio::io::split(stream);
        (from, Self(to))
    }
}

impl Outlet for Sending {
    async fn send(&mut self, mut bytes: Bytes) -> std::io::Result<()> {
        while !bytes.is_empty() {
            let written = tokio::time::timeout(STALL, self.0.write(&bytes)).await??;
            bytes.advance(written);
        }
        Ok(())
    }

    async fn flush(&mut self) -> std::io::Result<()> {
        tokio::time::timeout(STALL, self.0.flush()).await?
    }
}

/// The reader's end of one connection.
#[derive(Debug)]
pub(super) struct Lane {
    writer: Mutex<Writer>,
    reader: Mutex<ReadHalf<TlsStream<TcpStream>>>,
    broken: AtomicBool,
    /// Requests that were sent, or are about to be, and have no answer.
    waiting: AtomicUsize,
    stall: Duration,
}

#[derive(Debug)]
struct Writer {
    half: WriteHalf<TlsStream<TcpStream>>,
    /// Told when the request before the next has its answer.
    turn: Option<oneshot::Receiver<()>>,
}

/// A place in the queue of a lane. It breaks the lane if the answer to its request was not taken whole: what follows could
/// not be told from it.
#[derive(Debug)]
pub(super) struct Place {
    lanes: Arc<Vec<Lane>>,
    index: usize,
    /// There while an answer is waited for.
    done: Option<oneshot::Sender<()>>,
}

impl Place {
    /// On the lane on which the fewest wait.
    pub(super) fn take(lanes: &Arc<Vec<Lane>>) -> Self {
        let waiting = |lane: &(usize, &Lane)| lane.1.waiting.load(Ordering::Relaxed);
        let (index, _) = lanes.iter().enumerate().min_by_key(waiting).expect("there is at least one connection");
        Self::on(lanes, index)
    }

    /// On a certain lane.
    pub(super) fn on(lanes: &Arc<Vec<Lane>>, index: usize) -> Self {
        lanes[index].waiting.fetch_add(1, Ordering::Relaxed);
        Self { lanes: Arc::clone(lanes), index, done: None }
    }

    /// The answer to a request; the bytes that come with it go into `filler`.
    pub(super) async fn ask(mut self, request: &Request, filler: Option<&mut Filler>) -> Result<Answer, DirectError> {
        let lanes = Arc::clone(&self.lanes);
        let lane = &lanes[self.index];
        let (done, next_turn) = oneshot::channel();
        let turn = {
            let mut writer = lane.writer.lock().await;
            self.done = Some(done);
            let sent = async {
                writer.half.write_all(&encode(request)).await?;
                writer.half.flush().await
            };
            match tokio::time::timeout(lane.stall, sent).await {
                Ok(sent) => sent.map_err(lost)?,
                Err(_) => return Err(lost("it takes no request")),
            }
            writer.turn.replace(next_turn)
        };
        if let Some(turn) = turn {
            turn.await.map_err(|_| lost("the connection was given up"))?;
        }
        let answered = receive(&mut *lane.reader.lock().await, filler, lane.stall).await?;
        if let Some(done) = self.done.take() {
            // Nobody may come after it.
            let _ = done.send(());
        }
        Ok(answered)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let lane = &self.lanes[self.index];
        lane.waiting.fetch_sub(1, Ordering::Relaxed);
        if self.done.is_some() {
            lane.broken.store(true, Ordering::Relaxed);
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
        let stream = TlsConnector::from(tls).connect(name, stream).await.map_err(lost)?;
        let chain = stream.get_ref().1.peer_certificates().map(<[_]>::to_vec);
        let (read, write) = tokio::io::split(stream);
        let writer = Mutex::new(Writer { half: write, turn: None });
        let (broken, waiting) = (AtomicBool::new(false), AtomicUsize::new(0));
        Ok((Self { writer, reader: Mutex::new(read), broken, waiting, stall }, chain))
    }

    pub(super) fn is_open(&self) -> bool {
        !self.broken.load(Ordering::Relaxed)
    }
}
