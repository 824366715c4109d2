//! Reading one object from one holder.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use atoll_model::id::AgentId;
use atoll_model::value::ObjectRef;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::connect::{Dialer, Peer, unexpected};
use super::frame::{Answer, Request};
use super::links::{Choice, Measured, TELLING_BYTES};
use super::{DirectError, Offer, Transport};
use crate::hash::SEGMENT_BYTES;
use crate::transfer::Filler;

/// Bytes of a second of a link of which nothing is known: 1 Gbit/s.
const UNKNOWN_RATE: f64 = 125e6;
/// Less costs the processor more than it saves after a crash.
const RANGE_BYTES_MIN: u64 = 2 << 20;
/// Of a large object, no more than this part of it is under way at a time: one twenty-fourth.
const UNDER_WAY_PART: u64 = 24;
/// On a link that is faster, compressing takes longer than sending: bytes of a second.
const COMPRESS_BELOW: f64 = 150e6;
/// How long a way that is tried may take to show what it can.
const TRIAL: Duration = Duration::from_secs(2);
/// Before a holder that is itself being given the object is asked again for what it has not got: twice as long each time.
const ASK_AGAIN: (Duration, Duration) = (Duration::from_millis(20), Duration::from_millis(500));
/// One that gets nothing for so long is left.
const RELAY_PATIENCE: Duration = Duration::from_secs(30);

/// Ranges of one object's stream.
#[derive(Debug)]
pub(crate) struct Session {
    dialer: Dialer,
    offer: Offer,
    object: ObjectRef,
    pub(crate) stream_bytes: u64,
    /// Of a large file, what is to be asked for at a time.
    pub(crate) range_bytes: u64,
    way: tokio::sync::RwLock<Way>,
    began: Instant,
    /// Since the way was taken.
    received: AtomicU64,
    requests: std::sync::Arc<Semaphore>,
    compress: bool,
    /// The holder is itself being given the object: how fast it comes says nothing of the link.
    relayed: bool,
    /// When something came last.
    came_at: Mutex<Instant>,
}

#[derive(Debug)]
struct Way {
    peer: Peer,
    choice: Choice,
    since: Instant,
}

impl Session {
    /// # Errors
    /// When the holder cannot be reached, or refuses.
    pub(crate) async fn open(dialer: &Dialer, offer: Offer, object: ObjectRef) -> Result<Self, DirectError> {
        let inner = &dialer.inner;
        let choice = match inner.config.only {
            Some(transport) => Choice { transport, floor: None },
            None => inner.links.choose(offer.holder, object.bytes),
        };
        let (transport, peer) = inner.peer(&offer, choice.transport).await?;
        let (stream_bytes, relayed) = describe(&peer, object).await?;
        let floor = choice.floor.filter(|_| transport == choice.transport && !relayed);
        let requests = std::sync::Arc::new(Semaphore::new(peer.requests_max()));
        let link = inner.links.of(offer.holder);
        let compress = link.best().is_some_and(|rate| rate < COMPRESS_BELOW);
        let range_bytes = range_bytes(&link, peer.requests_max(), object.bytes);
        let began = Instant::now();
        let way = Way { peer, choice: Choice { transport, floor }, since: began };
        Ok(Self {
            dialer: dialer.clone(),
            offer,
            object,
            stream_bytes,
            range_bytes,
            way: tokio::sync::RwLock::new(way),
            began,
            received: AtomicU64::new(0),
            requests,
            compress,
            relayed,
            came_at: Mutex::new(began),
        })
    }

    pub(crate) fn holder(&self) -> AgentId {
        self.offer.holder
    }

    pub(crate) fn requests_max(&self) -> usize {
        self.requests.available_permits().max(1)
    }

    async fn permit(&self) -> OwnedSemaphorePermit {
        let requests = std::sync::Arc::clone(&self.requests);
        requests.acquire_owned().await.expect("the semaphore is never closed")
    }

    /// Brings the bytes from `start` on, as many as `filler` wants. `count` hears how many come over the wire for them, also
    /// of what is given up halfway.
    ///
    /// # Errors
    /// When the holder is lost, or has nothing (more) to give.
    pub(crate) async fn bring(
        &self,
        start: u64,
        filler: Filler,
        count: &(dyn Fn(u64) + Sync),
    ) -> Result<(), DirectError> {
        let end = start + filler.left();
        let _permit = self.permit().await;
        self.leave_slow_way().await?;
        let (peer, transport) = {
            let way = self.way.read().await;
            (way.peer.clone(), way.choice.transport)
        };
        let (filler, first) = self.ask_patiently(&peer, end, filler, count).await;
        match first {
            // A connection may have been closed while nobody used it, and one that broke may be made again at once.
            Err(DirectError::Lost(message)) => {
                tracing::debug!(holder = %self.offer.holder, ?transport, message, "a connection was lost");
                match self.reconnect(&peer, transport).await {
                    Ok(peer) => self.ask_patiently(&peer, end, filler, count).await.1,
                    Err(error) => Err(error),
                }
            }
            first => first,
        }
    }

    /// As often as the holder has not got that far itself.
    async fn ask_patiently(
        &self,
        peer: &Peer,
        end: u64,
        mut filler: Filler,
        count: &(dyn Fn(u64) + Sync),
    ) -> (Filler, Result<(), DirectError>) {
        let mut pause = ASK_AGAIN.0;
        loop {
            let (same, result) = self.ask(peer, end, filler, count).await;
            if result != Err(DirectError::NotYet) {
                return (same, result);
            }
            filler = same;
            let came_at = *self.came_at.lock().unwrap_or_else(PoisonError::into_inner);
            if came_at.elapsed() > RELAY_PATIENCE {
                let message = format!("it gets nothing of it itself for {} seconds", RELAY_PATIENCE.as_secs());
                return (filler, Err(DirectError::Refused(message)));
            }
            tokio::time::sleep(pause).await;
            pause = ASK_AGAIN.1.min(2 * pause);
        }
    }

    async fn ask(
        &self,
        peer: &Peer,
        end: u64,
        filler: Filler,
        count: &(dyn Fn(u64) + Sync),
    ) -> (Filler, Result<(), DirectError>) {
        let (start, before) = (end - filler.left(), filler.wire_bytes());
        let request = Request::Range { object: self.object, start, end, compress: self.compress };
        let (filler, answered) = peer.bring(request, filler).await;
        let came = filler.wire_bytes() - before;
        let result = match answered {
            Ok(Answer::Bytes { .. }) => Ok(()),
            Ok(answer) => Err(unexpected(answer)),
            Err(error) => Err(error),
        };
        count(came);
        if came > 0 {
            *self.came_at.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
        }
        self.received.fetch_add(came, Ordering::Relaxed);
        (filler, result)
    }

    /// A connection in place of one that broke, unless somebody has made one already.
    async fn reconnect(&self, broken: &Peer, transport: Transport) -> Result<Peer, DirectError> {
        let mut way = self.way.write().await;
        if way.choice.transport == transport && !way.peer.is_open() || same(&way.peer, broken) {
            let (transport, peer) = self.dialer.inner.peer(&self.offer, transport).await?;
            way.peer = peer;
            way.choice = Choice { transport, floor: None };
        }
        Ok(way.peer.clone())
    }

    /// What is only tried is left when it is slower than what is known.
    async fn leave_slow_way(&self) -> Result<(), DirectError> {
        let slow = {
            let way = self.way.read().await;
            let took = way.since.elapsed();
            let rate = self.received.load(Ordering::Relaxed) as f64 / took.as_secs_f64();
            way.choice.floor.is_some_and(|floor| took >= TRIAL && rate < floor as f64)
        };
        if !slow {
            return Ok(());
        }
        let mut way = self.way.write().await;
        if way.choice.floor.is_none() {
            return Ok(());
        }
        let (received, took) = (self.received.swap(0, Ordering::Relaxed), way.since.elapsed());
        let tried = way.choice.transport;
        self.dialer.inner.links.learn(self.offer.holder, tried, received.max(TELLING_BYTES), took);
        let other = match tried {
            Transport::Quic => Transport::Tcp,
            Transport::Tcp => Transport::Quic,
        };
        let (transport, peer) = self.dialer.inner.peer(&self.offer, other).await?;
        *way = Way { peer, choice: Choice { transport, floor: None }, since: Instant::now() };
        Ok(())
    }

    /// What came is not what its name says: asks the holder to look at its copy. Whether that is damaged.
    pub(crate) async fn doubt(&self) -> Result<bool, DirectError> {
        let peer = self.way.read().await.peer.clone();
        let answer = peer.ask(&Request::Doubt { object: self.object }).await?;
        let Answer::Looked { damaged } = answer else { return Err(unexpected(answer)) };
        Ok(damaged)
    }

    /// The object is there: how fast it came counts for the next.
    pub(crate) async fn finished(&self) {
        let way = self.way.read().await;
        let received = self.received.load(Ordering::Relaxed);
        if !self.relayed {
            self.dialer.inner.links.learn(self.offer.holder, way.choice.transport, received, way.since.elapsed());
        }
        tracing::debug!(
            object = %self.object.id, holder = %self.offer.holder, transport = ?way.choice.transport, received,
            relayed = self.relayed,
            seconds = self.began.elapsed().as_secs_f64(), "fetched from another site"
        );
    }
}

/// The length of an object's stream, and whether the holder is itself being given it.
async fn describe(peer: &Peer, object: ObjectRef) -> Result<(u64, bool), DirectError> {
    let (asked_at, mut pause) = (Instant::now(), ASK_AGAIN.0);
    loop {
        let answer = peer.ask(&Request::Describe { object }).await?;
        if let Answer::Described { stream_bytes } = answer {
            return Ok((stream_bytes, false));
        }
        if let Answer::Coming { stream_bytes } = answer {
            return Ok((stream_bytes, true));
        }
        if answer != Answer::NotYet || asked_at.elapsed() >= RELAY_PATIENCE {
            return Err(unexpected(answer));
        }
        tokio::time::sleep(pause).await;
        pause = ASK_AGAIN.1.min(2 * pause);
    }
}

/// What is asked for at a time of an object of so many bytes. It is to keep the line busy while requests are on their way:
/// twice what the line holds. And all that is under way is what a crash may bring twice: however slow the line seems (a busy
/// machine answers late), that is a small part of the object.
fn range_bytes(link: &Measured, requests: usize, object_bytes: u64) -> u64 {
    let requests = requests.max(1) as u64;
    let round_trip = link.round_trip.unwrap_or_default().as_secs_f64();
    let held = link.best().unwrap_or(UNKNOWN_RATE) * round_trip;
    let wanted = ((4.0 * held) as u64 / requests).next_power_of_two();
    let bearable = 1 << (object_bytes / UNDER_WAY_PART / requests).max(1).ilog2();
    wanted.min(bearable).clamp(RANGE_BYTES_MIN, SEGMENT_BYTES)
}

fn same(one: &Peer, other: &Peer) -> bool {
    match (one, other) {
        (Peer::Tcp(one), Peer::Tcp(other)) => std::sync::Arc::ptr_eq(one, other),
        (Peer::Quic(one), Peer::Quic(other)) => one.connection.stable_id() == other.connection.stable_id(),
        (Peer::Tcp(_), Peer::Quic(_)) | (Peer::Quic(_), Peer::Tcp(_)) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::super::links::Links;
    use super::*;

    #[test]
    fn ranges_follow_the_link_so_that_little_is_under_way_and_the_line_is_never_idle() {
        let range_bytes = |rate: Option<u64>, round_trip_ms: u64, requests: usize, object_bytes: u64| {
            let (links, holder) = (Links::open(None), AgentId::from_bits(1));
            links.learn_round_trip(holder, Duration::from_millis(round_trip_ms));
            if let Some(rate) = rate {
                links.learn(holder, Transport::Tcp, rate, Duration::from_secs(1));
            }
            range_bytes(&links.of(holder), requests, object_bytes)
        };
        let large = 10 << 30;
        assert_eq!(range_bytes(None, 0, 6, large), 2 << 20);
        assert_eq!(range_bytes(Some(1_000_000_000), 1, 6, large), 2 << 20);
        assert_eq!(range_bytes(None, 100, 16, large), 4 << 20);
        assert_eq!(range_bytes(Some(125_000_000), 50, 16, large), 2 << 20);
        assert_eq!(range_bytes(Some(1_250_000_000), 100, 16, large), SEGMENT_BYTES);
        // What is under way is a small part of what there is.
        assert_eq!(range_bytes(Some(1_250_000_000), 100, 16, 2 << 30), 4 << 20);
        assert_eq!(range_bytes(None, 100, 6, 256 << 20), 2 << 20);
        assert_eq!(range_bytes(None, 100, 6, 1), 2 << 20);
    }
}
