//! The driver: one thread owns the control plane's core, another its journal.
//!
//! The core's thread drains everything that has arrived, handles it, and hands facts (encoded), commands, answers and
//! registrations over as one [`Batch`]; the journal's thread appends as many batches as have piled up, makes them
//! durable with one barrier, and only then carries out what they ask for, in order. So nobody is ever told, sent or
//! shown what is not durable, and a journal that fails ends everything: nothing more can be carried out.

mod batch;
mod clock;
mod deletion;
mod follow;
mod keeper;
mod notice;
mod pump;
mod query;
mod recovery;
mod start;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use atoll_model::session::ControlFrame;
use control_plane_core::{ConnectionId, ControlPlane, Event, Rejection, Request, RequestId, Response};
use control_plane_postgres::{Leader, News, Taken};
use tokio::sync::{broadcast, mpsc, oneshot, watch};

pub(crate) use clock::wall_clock;
pub(crate) use deletion::{BucketOrder, delete_objects};
pub(crate) use follow::{Following, follow};
pub(crate) use keeper::Log;
pub use notice::Changed;
pub(crate) use notice::Notices;
use query::Query;
pub(crate) use recovery::{JOURNAL_FORMAT, recover};
pub(crate) use start::{Beginning, Driver, DriverError, start};

/// Inputs that wait for the core's thread: as many as it handles in a few milliseconds; beyond it, senders wait.
const INBOX_LENGTH: usize = 4_096;
/// Frames that wait for one connection. A peer that reads nothing while so many pile up is cut off; it resumes from its
/// journal when it comes back.
const CONNECTION_QUEUE_LENGTH: usize = 1_024;

/// The driver has ended: the process is going down.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the control plane is shutting down")]
pub struct Stopped;

impl From<Stopped> for Rejection {
    fn from(stopped: Stopped) -> Self {
        Self::Unavailable(stopped.to_string())
    }
}

/// The way to the core, for every other part of the shell. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Handle {
    inbox: mpsc::Sender<Input>,
    numbers: Arc<Numbers>,
    notices: Notices,
    leader: watch::Receiver<Option<Leader>>,
}

#[derive(Debug, Default)]
struct Numbers {
    request: AtomicU64,
    connection: AtomicU64,
}

/// A connection that the core may send frames to.
#[derive(Debug)]
pub struct Connection {
    pub id: ConnectionId,
    /// What to write on the stream, in order; its end means that the stream is to be ended. Boxed, because a channel
    /// keeps room for some thirty, and most connections say nothing.
    pub frames: mpsc::Receiver<Box<ControlFrame>>,
}

/// What arrives at the core's thread.
#[derive(Debug)]
enum Input {
    Event(Event),
    Request {
        request: RequestId,
        body: Request,
        reply: oneshot::Sender<Result<Response, Rejection>>,
    },
    Query(Box<dyn Query>),
    Connected {
        connection: ConnectionId,
        frames: mpsc::Sender<Box<ControlFrame>>,
    },
    /// What the leader has made durable, where this server follows it.
    News(News),
    /// This server leads from now on.
    Lead(Box<Taken>),
    /// Ends the driver after everything that was sent before.
    Shutdown,
}

impl Handle {
    fn new(notices: Notices, leader: watch::Receiver<Option<Leader>>) -> (Self, mpsc::Receiver<Input>) {
        let (inbox, inputs) = mpsc::channel(INBOX_LENGTH);
        (Self { inbox, numbers: Arc::default(), notices, leader }, inputs)
    }

    /// Whom this server follows; nobody if it leads itself.
    pub fn leader(&self) -> Option<Leader> {
        self.leader.borrow().clone()
    }

    /// Waits until this server leads; whether it came to that before the driver has ended.
    pub(crate) async fn wait_to_lead(&self) -> bool {
        self.leader.clone().wait_for(Option::is_none).await.is_ok()
    }

    /// Hands an event to the core; waits while too many are on their way.
    ///
    /// # Errors
    /// When the driver has ended.
    pub async fn submit(&self, event: Event) -> Result<(), Stopped> {
        self.inbox.send(Input::Event(event)).await.map_err(|_| Stopped)
    }

    /// Whether so much waits for the core's thread, which waits for the journal's, that whoever brings more would wait.
    pub(crate) fn is_behind(&self) -> bool {
        self.inbox.capacity() == 0
    }

    /// Makes a request and waits for its reply, which comes after everything that it says is durable.
    ///
    /// # Errors
    /// When the core refuses it; [`Rejection::Unavailable`] when the driver has ended.
    pub async fn request(&self, body: Request) -> Result<Response, Rejection> {
        let request = RequestId(self.numbers.request.fetch_add(1, Ordering::Relaxed));
        let (reply, replied) = oneshot::channel();
        self.inbox.send(Input::Request { request, body, reply }).await.map_err(|_| Stopped)?;
        replied.await.map_err(|_| Stopped)?
    }

    /// Makes a request whose reply nobody waits for; whether it could be handed over at once.
    pub(crate) fn request_in_passing(&self, body: Request) -> bool {
        let request = RequestId(self.numbers.request.fetch_add(1, Ordering::Relaxed));
        let (reply, _) = oneshot::channel();
        self.inbox.try_send(Input::Request { request, body, reply }).is_ok()
    }

    /// Looks at the core's state. The answer comes after everything that was seen is durable.
    ///
    /// # Errors
    /// [`Rejection::Unavailable`] when the driver has ended.
    pub async fn query<R: Send + 'static>(
        &self,
        ask: impl FnOnce(&ControlPlane) -> R + Send + 'static,
    ) -> Result<R, Rejection> {
        let (query, answer) = query::prepare(ask);
        self.inbox.send(Input::Query(query)).await.map_err(|_| Stopped)?;
        Ok(answer.await.map_err(|_| Stopped)?)
    }

    /// Is told whenever something durable has changed from now on.
    pub fn changes(&self) -> broadcast::Receiver<Changed> {
        self.notices.subscribe()
    }

    /// Registers a stream that was accepted. Whoever ends it submits [`Event::ConnectionLost`].
    ///
    /// # Errors
    /// When the driver has ended.
    pub async fn connect(&self) -> Result<Connection, Stopped> {
        let id = ConnectionId(self.numbers.connection.fetch_add(1, Ordering::Relaxed));
        let (sender, frames) = mpsc::channel(CONNECTION_QUEUE_LENGTH);
        self.inbox.send(Input::Connected { connection: id, frames: sender }).await.map_err(|_| Stopped)?;
        Ok(Connection { id, frames })
    }

    /// Ends the driver: agents are told that the control plane is going down.
    pub(crate) async fn shut_down(&self) {
        // If the driver has ended already, nothing is left to be done.
        let _ = self.inbox.send(Input::Shutdown).await;
    }
}
