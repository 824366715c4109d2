//! The holder: answers requests, whichever way they come.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use atoll_model::id::{AgentId, SiteName};
use atoll_model::ticket::Ticket;
use atoll_model::time::Timestamp;
use atoll_model::value::ObjectRef;
use bytes::Bytes;
use tokio::sync::mpsc;

use super::Host;
use super::frame::{Answer, Request, encode};
use super::identity::AgentTls;
use super::pace::Pace;
use crate::buffers::{Buffer, Pool};
use crate::hash::SEGMENT_BYTES;
use crate::store::{SiteStore, StoreError};
use crate::stream::ObjectStream;
use crate::transfer::{Had, Incoming};

/// Read from the store at a time.
const CHUNK_BYTES: usize = 256 << 10;
/// Read ahead of what the network takes, for each request.
const CHUNKS_AHEAD: usize = 2;
/// Streams kept ready on a connection: of a tree it holds the manifests.
const OPEN_MAX: usize = 16;
/// How far the clocks of a holder and the control plane may be apart.
const CLOCK_SKEW: Duration = Duration::from_secs(120);
/// Each tried for whether it shrinks.
const SAMPLE_BYTES: usize = 64 << 10;

/// Everything that connections of one holder share.
#[derive(Debug)]
pub struct Serving {
    store: SiteStore,
    agent: AgentId,
    pub(super) tls: AgentTls,
    host: Arc<dyn Host>,
    pace: Pace,
    chunks: Pool,
    /// What the store is just being given.
    incoming: Incoming,
    /// What was read under tickets that have not expired.
    read: Mutex<HashMap<u128, (Timestamp, u64)>>,
}

/// Where answers go.
pub(super) trait Outlet: Send {
    fn send(&mut self, bytes: Bytes) -> impl Future<Output = std::io::Result<()>> + Send;
    fn flush(&mut self) -> impl Future<Output = std::io::Result<()>> + Send;
}

/// One connection of a reader.
#[derive(Debug)]
pub(super) struct Reader {
    agent: AgentId,
    site: SiteName,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    ticket: Option<Arc<Ticket>>,
    open: Vec<Arc<ObjectStream>>,
}

/// Why nothing is given; goes to the reader as it is.
type Refusal = String;

fn locked<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn now() -> Timestamp {
    Timestamp::ZERO + SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

impl Reader {
    pub(super) fn new((agent, site): (AgentId, SiteName)) -> Self {
        Self { agent, site, state: Mutex::default() }
    }
}

impl Serving {
    /// `rate` is in bytes of a second, all readers together.
    pub fn new(store: SiteStore, agent: AgentId, tls: AgentTls, host: Arc<dyn Host>, rate: Option<u64>) -> Arc<Self> {
        Self::relaying(store, agent, tls, host, rate, Incoming::default())
    }

    /// Like [`Self::new`], and gives what has come of objects that are still on their way.
    pub fn relaying(
        store: SiteStore,
        agent: AgentId,
        tls: AgentTls,
        host: Arc<dyn Host>,
        rate: Option<u64>,
        incoming: Incoming,
    ) -> Arc<Self> {
        let (pace, chunks) = (Pace::new(rate), Pool::new(CHUNK_BYTES));
        Arc::new(Self { store, agent, tls, host, pace, chunks, incoming, read: Mutex::default() })
    }

    /// Answers a request that came on a connection.
    pub(super) async fn answer(&self, reader: &Reader, request: Request, to: &mut impl Outlet) -> std::io::Result<()> {
        let answer = match request {
            Request::Show { ticket } => self.take_ticket(reader, &ticket).map(|()| Answer::Granted),
            Request::Describe { object } => self.describe(reader, object).await,
            Request::Range { object, start, end, compress } => match self.prepare(reader, object, start, end).await {
                Ok(Had::Part(stream)) => {
                    self.send_range(reader, to, stream, (start, end), compress).await?;
                    return to.flush().await;
                }
                Ok(Had::NotYet) => Ok(Answer::NotYet),
                Err(refusal) => Err(refusal),
            },
            Request::Doubt { object } => self.look(reader, object).await.map(|damaged| Answer::Looked { damaged }),
        };
        let answer = answer.unwrap_or_else(|message| Answer::Refused { message });
        to.send(encode(&answer).into()).await?;
        to.flush().await
    }

    fn take_ticket(&self, reader: &Reader, bytes: &[u8]) -> Result<(), Refusal> {
        let ticket = self.tls.open_ticket(bytes).map_err(|error| format!("its ticket is not accepted: {error}"))?;
        if ticket.reader != reader.agent {
            return Err("the ticket was given to another agent".to_owned());
        }
        if ticket.holder != self.agent {
            return Err("the ticket is for what another agent has".to_owned());
        }
        self.check_time(&ticket)?;
        let mut state = locked(&reader.state);
        state.open.retain(|stream| ticket.objects.contains(&stream.object));
        state.ticket = Some(Arc::new(ticket));
        Ok(())
    }

    fn check_time(&self, ticket: &Ticket) -> Result<(), Refusal> {
        let now = now();
        if now.saturating_since(ticket.expires_at) > CLOCK_SKEW {
            let late = now.saturating_since(ticket.expires_at).as_secs();
            return Err(format!("the ticket expired {late} seconds ago, by the clock of {}", self.agent));
        }
        Ok(())
    }

    /// Whether the reader may have the object at all.
    fn authorise(&self, reader: &Reader, object: ObjectRef) -> Result<Arc<Ticket>, Refusal> {
        let ticket = locked(&reader.state).ticket.clone().ok_or("no ticket was shown")?;
        self.check_time(&ticket)?;
        if !ticket.objects.contains(&object) {
            return Err(format!("the ticket is not for {}", object.id));
        }
        self.host.admit(&reader.site, object)?;
        Ok(ticket)
    }

    async fn describe(&self, reader: &Reader, object: ObjectRef) -> Result<Answer, Refusal> {
        self.authorise(reader, object)?;
        if let Some(coming) = self.incoming.of(object) {
            let known = coming.stream_bytes();
            return Ok(known.map_or(Answer::NotYet, |stream_bytes| Answer::Coming { stream_bytes }));
        }
        let stream = self.stream(reader, object).await?;
        Ok(Answer::Described { stream_bytes: stream.stream_bytes() })
    }

    async fn stream(&self, reader: &Reader, object: ObjectRef) -> Result<Arc<ObjectStream>, Refusal> {
        self.authorise(reader, object)?;
        let known = locked(&reader.state).open.iter().find(|stream| stream.object == object).cloned();
        if let Some(stream) = known {
            return Ok(stream);
        }
        let store = self.store.clone();
        let opened = crate::transfer::blocking(move || ObjectStream::of(&store, object)).await;
        let stream = match opened {
            Ok(stream) => Arc::new(stream),
            Err(error) => {
                if let StoreError::Damaged { object, message } = &error {
                    self.host.damaged(*object, message);
                }
                return Err(error.to_string());
            }
        };
        let mut state = locked(&reader.state);
        if state.open.len() >= OPEN_MAX {
            state.open.remove(0);
        }
        state.open.push(Arc::clone(&stream));
        Ok(stream)
    }

    async fn prepare(&self, reader: &Reader, object: ObjectRef, start: u64, end: u64) -> Result<Had, Refusal> {
        let ticket = self.authorise(reader, object)?;
        let stream = match self.incoming.of(object).map(|coming| coming.look(start, end)) {
            Some(Had::Part(stream)) => stream,
            Some(Had::NotYet) => return Ok(Had::NotYet),
            None => self.stream(reader, object).await?,
        };
        if start >= end || end > stream.stream_bytes() || end - start > SEGMENT_BYTES {
            return Err(format!("there is no range from {start} to {end} to be had of it"));
        }
        let now = now();
        let mut read = locked(&self.read);
        read.retain(|_, (expires_at, _)| now.saturating_since(*expires_at) <= CLOCK_SKEW);
        let (_, bytes) = read.entry(ticket.number).or_insert((ticket.expires_at, 0));
        if *bytes + (end - start) > ticket.bytes_max {
            return Err(format!(
                "{} bytes were read under the ticket, and no more than {} may be",
                bytes, ticket.bytes_max
            ));
        }
        *bytes += end - start;
        Ok(Had::Part(stream))
    }

    async fn send_range(
        &self,
        reader: &Reader,
        to: &mut impl Outlet,
        stream: Arc<ObjectStream>,
        (start, end): (u64, u64),
        compress: bool,
    ) -> std::io::Result<()> {
        let object = stream.object;
        if compress && let Some(packed) = compressed(Arc::clone(&stream), start, end).await? {
            let wire_bytes = packed.len() as u64;
            to.send(encode(&Answer::Bytes { wire_bytes, compressed: true }).into()).await?;
            let mut packed = Bytes::from(packed);
            while !packed.is_empty() {
                let chunk = packed.split_to(CHUNK_BYTES.min(packed.len()));
                self.pace.pass(chunk.len()).await;
                to.send(chunk).await?;
            }
            self.host.sent(reader.agent, object, wire_bytes);
            return Ok(());
        }
        let (chunks, mut ready) = mpsc::channel::<std::io::Result<Buffer>>(CHUNKS_AHEAD);
        let pool = self.chunks.clone();
        let reading = tokio::task::spawn_blocking(move || {
            let mut at = start;
            while at < end {
                let mut chunk = pool.take(CHUNK_BYTES.min((end - at) as usize));
                let read = stream.read_exact_at(at, &mut chunk);
                at = if read.is_ok() { at + chunk.len() as u64 } else { end };
                if chunks.blocking_send(read.map(|()| chunk)).is_err() {
                    return;
                }
            }
        });
        let mut told = false;
        while let Some(chunk) = ready.recv().await {
            let chunk = match chunk {
                Ok(chunk) => chunk,
                // Nothing was sent yet: it can still be said.
                Err(error) if !told => {
                    return to.send(encode(&Answer::Refused { message: error.to_string() }).into()).await;
                }
                Err(error) => return Err(error),
            };
            if !told {
                told = true;
                to.send(encode(&Answer::Bytes { wire_bytes: end - start, compressed: false }).into()).await?;
            }
            self.pace.pass(chunk.len()).await;
            to.send(chunk.into_bytes()).await?;
        }
        reading.await?;
        self.host.sent(reader.agent, object, end - start);
        Ok(())
    }

    /// Hashes the copy of an object; whether it is damaged.
    async fn look(&self, reader: &Reader, object: ObjectRef) -> Result<bool, Refusal> {
        self.authorise(reader, object)?;
        let store = self.store.clone();
        match crate::transfer::blocking(move || store.scrub(object)).await {
            Ok(_) => Ok(false),
            Err(StoreError::Damaged { object, message }) => {
                self.host.damaged(object, &message);
                locked(&reader.state).open.clear();
                Ok(true)
            }
            Err(error) => Err(error.to_string()),
        }
    }
}

/// A range in one frame, if samples of it say that this is worth the effort.
async fn compressed(stream: Arc<ObjectStream>, start: u64, end: u64) -> std::io::Result<Option<Vec<u8>>> {
    let length = (end - start) as usize;
    if length < 4 << 10 {
        return Ok(None);
    }
    crate::transfer::blocking(move || {
        let bytes = stream.read_at(start, length)?;
        let shrinks = |sample: &[u8]| -> std::io::Result<bool> {
            Ok(zstd::bulk::compress(sample, 1)?.len() * 10 <= sample.len() * 9)
        };
        let places = [0, length / 2, length.saturating_sub(SAMPLE_BYTES)];
        for place in places {
            if shrinks(&bytes[place..(place + SAMPLE_BYTES).min(length)])? {
                let packed = zstd::bulk::compress(&bytes, 1)?;
                return Ok((packed.len() < length).then_some(packed));
            }
        }
        Ok(None)
    })
    .await
}
