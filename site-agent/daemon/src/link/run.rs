//! Keeping the link: connect, hold a session, renew, recover, come back.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use atoll_model::id::AgentId;
use atoll_model::session::{AgentFrame, ControlBody, ControlFrame};
use atoll_proto::{Received, split_agent_frame, v1};
use futures::StreamExt as _;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Status, Streaming};

use super::backoff::{Backoff, random};
use super::bulk::{self, LogSource};
use super::certify::{Candidate, CertifyError, recover, renew};
use super::connection::{ConnectError, Connection, says_expired};
use super::credentials::LinkCredentials;
use super::identity::{Identity, IdentityError, IdentityKey};
use super::servers::{Pause, Servers, urls};
use super::{signatures, tls};

/// Frames that wait for the stream. Reports are bounded by credits; so many mean that the server reads nothing.
const FRAMES_WAITING_MAX: usize = 1_024;
/// Pause after a renewal that failed, at most.
const RENEWAL_PAUSE_MAX: Duration = Duration::from_secs(300);

/// What happens to the link, in order.
#[derive(Debug)]
pub enum LinkEvent {
    /// A stream is open: say `Hello`.
    Connected,
    Frame(ControlFrame),
    Disconnected,
}

/// Why the link ended for good.
#[derive(Debug, thiserror::Error)]
pub enum LinkEnd {
    #[error("the agent was told to stop")]
    Stopped,
    #[error("{0}")]
    GaveUp(String),
    #[error(transparent)]
    Identity(#[from] IdentityError),
}

/// What the link is told.
#[derive(Debug)]
enum Order {
    Disconnect,
    GiveUp(String),
}

/// An agent that has joined, with its keys.
#[derive(Debug)]
pub(crate) struct Held {
    pub(super) identity: Identity,
    pub(super) key: IdentityKey,
    /// Where a new certificate is stored before it is used; nowhere for an agent that ends with its process.
    pub(super) directory: Option<PathBuf>,
}

impl Held {
    pub(crate) const fn agent(&self) -> AgentId {
        self.identity.agent
    }
}

/// What a link works with.
pub struct LinkOptions {
    /// Where identity and keys are.
    pub directory: PathBuf,
    /// `host:port` of the control plane, if it is not the one that the identity names; of several servers, with commas.
    pub server: Option<String>,
    /// Takes what happens. The link waits while it is full.
    pub events: mpsc::Sender<LinkEvent>,
    pub logs: Arc<dyn LogSource>,
}

impl std::fmt::Debug for LinkOptions {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("LinkOptions").field("directory", &self.directory).finish_non_exhaustive()
    }
}

/// The way to the control plane, for the driver. Cheap to clone; never waits.
#[derive(Debug, Clone)]
pub struct LinkHandle {
    session: Arc<Mutex<Option<Session>>>,
    orders: mpsc::UnboundedSender<Order>,
    connection: watch::Receiver<Option<Connection>>,
}

/// What there is to an open stream.
#[derive(Debug, Clone)]
struct Session {
    frames: mpsc::Sender<AgentFrame>,
    broken: CancellationToken,
}

impl LinkHandle {
    /// Sends a frame on the stream that is open; without one, or with one that takes nothing, the frame is dropped, and
    /// said again in the next session.
    pub fn send(&self, frame: AgentFrame) {
        let session = self.session.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(session) = session
            && let Err(mpsc::error::TrySendError::Full(_)) = session.frames.try_send(frame)
        {
            session.broken.cancel();
        }
    }

    /// Ends the stream; a new one follows when the back-off says so, unless the link is to give up.
    pub fn disconnect(&self, give_up: Option<String>) {
        let order = give_up.map_or(Order::Disconnect, Order::GiveUp);
        // A link that has ended has no stream.
        let _ = self.orders.send(order);
    }

    /// Where transfers get their URLs from.
    pub fn credentials(&self) -> LinkCredentials {
        LinkCredentials { connection: self.connection.clone() }
    }
}

/// The link, not yet running.
pub struct Link {
    held: Held,
    events: mpsc::Sender<LinkEvent>,
    logs: Arc<dyn LogSource>,
    servers: Servers,
    session: Arc<Mutex<Option<Session>>>,
    orders: mpsc::UnboundedReceiver<Order>,
    connection: watch::Sender<Option<Connection>>,
    /// The TLS key that is to be certified next; kept until it is.
    candidate: Option<Candidate>,
    /// Whether the server takes the certificate for expired, whatever this machine's clock says.
    told_expired: bool,
}

impl std::fmt::Debug for Link {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Link").field("held", &self.held).finish_non_exhaustive()
    }
}

/// Why one connection ended.
#[derive(Debug, thiserror::Error)]
enum Interruption {
    #[error(transparent)]
    Connect(#[from] ConnectError),
    #[error("no new certificate")]
    Certify(#[from] CertifyError),
    #[error("the stream has ended: {}", .0.message())]
    Stream(#[source] Status),
    #[error("the control plane has ended the stream")]
    Closed,
    #[error("the control plane does not take what is sent")]
    Stalled,
    #[error("a new certificate takes the place of the old one")]
    Renewed,
    #[error("the agent has ended the stream")]
    Ordered,
    #[error(transparent)]
    End(#[from] LinkEnd),
}

impl Interruption {
    /// What the server has answered.
    fn status(&self) -> Option<&Status> {
        match self {
            Self::Stream(status) | Self::Certify(CertifyError::Unavailable(status)) => Some(status),
            Self::Connect(_)
            | Self::Certify(_)
            | Self::Closed
            | Self::Stalled
            | Self::Renewed
            | Self::Ordered
            | Self::End(_) => None,
        }
    }

    /// Whether the server does not take the certificate any more, on a connection that it was good enough to open.
    fn is_unauthenticated(&self) -> bool {
        matches!(self, Self::Stream(status) if status.code() == tonic::Code::Unauthenticated)
    }
}

impl From<IdentityError> for Interruption {
    fn from(error: IdentityError) -> Self {
        Self::End(error.into())
    }
}

impl Link {
    /// # Errors
    /// When no agent has joined with the directory, or what it holds is damaged.
    pub fn new(options: LinkOptions) -> Result<(Self, LinkHandle), IdentityError> {
        let mut identity = Identity::load(&options.directory)?;
        if let Some(server) = &options.server {
            identity.url = urls(server);
        }
        let key = IdentityKey::load(&options.directory)?;
        let held = Held { identity, key, directory: Some(options.directory) };
        Ok(Self::of(held, options.events, options.logs))
    }

    /// A link of the agent, which tells `events` what happens.
    pub(crate) fn of(held: Held, events: mpsc::Sender<LinkEvent>, logs: Arc<dyn LogSource>) -> (Self, LinkHandle) {
        let session = Arc::new(Mutex::new(None));
        let (order, orders) = mpsc::unbounded_channel();
        let (connection, connected) = watch::channel(None);
        let handle = LinkHandle { session: Arc::clone(&session), orders: order, connection: connected };
        let servers = Servers::of(&held.identity.url);
        let link =
            Self { held, events, logs, servers, session, orders, connection, candidate: None, told_expired: false };
        (link, handle)
    }

    pub const fn identity(&self) -> &Identity {
        &self.held.identity
    }

    /// Keeps the link until it is to stop, or gives up.
    pub async fn run(mut self, shutdown: CancellationToken) -> LinkEnd {
        let mut backoff = Backoff::default();
        loop {
            let started = Instant::now();
            let mut greeted = false;
            let interrupted = shutdown.run_until_cancelled(self.hold(&mut greeted)).await;
            self.leave().await;
            let interruption = match interrupted {
                None => return LinkEnd::Stopped,
                Some(Interruption::End(end)) => return end,
                Some(interruption) => interruption,
            };
            self.told_expired |= says_expired(&interruption) || interruption.is_unauthenticated();
            if let Interruption::Renewed = interruption {
                tracing::info!(agent = %self.held.identity.agent, "the agent's certificate was renewed");
                continue;
            }
            if greeted {
                self.servers.reached();
            }
            let url = self.servers.current().to_owned();
            let wait = match self.servers.failed(interruption.status()) {
                Pause::Nothing => {
                    // Somebody is there: this is no outage.
                    backoff = Backoff::default();
                    Duration::ZERO
                }
                Pause::Short(wait) => wait.mul_f64(0.5 + random() / 2.0),
                Pause::BackOff => backoff.next(greeted.then(|| started.elapsed()), random()),
            };
            let wait_ms = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX);
            let reason = with_causes(&interruption);
            tracing::warn!(url, reason, wait_ms, "the link to the control plane is down");
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = shutdown.cancelled() => return LinkEnd::Stopped,
                end = given_up(&mut self.orders) => return end,
            }
        }
    }

    /// Tells the driver that a stream has ended, if one was open.
    async fn leave(&mut self) {
        self.connection.send_replace(None);
        let session = self.session.lock().unwrap_or_else(PoisonError::into_inner).take();
        if session.is_some() {
            // A driver that has ended wants no events.
            let _ = self.events.send(LinkEvent::Disconnected).await;
        }
    }

    /// One connection, from its opening to its end.
    async fn hold(&mut self, greeted: &mut bool) -> Interruption {
        match self.connect().await {
            Ok(connection) => match self.converse(connection, greeted).await {
                Ok(never) => match never {},
                Err(interruption) => interruption,
            },
            Err(interruption) => interruption,
        }
    }

    async fn connect(&mut self) -> Result<Connection, Interruption> {
        if self.told_expired || self.held.identity.is_expired(SystemTime::now()) {
            let config = tls::with_identity(&self.held.identity, false).map_err(ConnectError::from)?;
            let connection = Connection::open(self.servers.current(), config).await?;
            let candidate = self.candidate()?;
            let identity = recover(&self.held.identity, &self.held.key, &candidate, &connection).await;
            self.certified(candidate, identity)?;
            self.told_expired = false;
            tracing::info!(agent = %self.held.identity.agent, "the agent's identity was recovered");
        }
        let config = tls::with_identity(&self.held.identity, true).map_err(ConnectError::from)?;
        Ok(Connection::open(self.servers.current(), config).await?)
    }

    fn candidate(&mut self) -> Result<Candidate, CertifyError> {
        self.candidate.take().map_or_else(Candidate::make, Ok)
    }

    /// Stores a new certificate before it is used; without one, the same key is asked for again.
    fn certified(
        &mut self,
        candidate: Candidate,
        identity: Result<Identity, CertifyError>,
    ) -> Result<(), Interruption> {
        match identity {
            Ok(identity) => {
                if let Some(directory) = &self.held.directory {
                    identity.store(directory)?;
                }
                self.held.identity = identity;
                Ok(())
            }
            Err(error) => {
                self.candidate = Some(candidate);
                Err(error.into())
            }
        }
    }

    async fn converse(
        &mut self,
        connection: Connection,
        greeted: &mut bool,
    ) -> Result<std::convert::Infallible, Interruption> {
        let (frames, outgoing) = mpsc::channel::<AgentFrame>(FRAMES_WAITING_MAX);
        let outgoing = ReceiverStream::new(outgoing)
            .flat_map(|frame| futures::stream::iter(split_agent_frame(v1::AgentFrame::from(frame))));
        let opened = connection.client().session(outgoing).await;
        let mut incoming = opened.map_err(Interruption::Stream)?.into_inner();
        let broken = CancellationToken::new();
        let session = Session { frames, broken: broken.clone() };
        *self.session.lock().unwrap_or_else(PoisonError::into_inner) = Some(session);
        self.connection.send_replace(Some(connection.clone()));
        self.tell(LinkEvent::Connected).await?;

        let mut tasks = JoinSet::new();
        let renewal = sleep_until(self.held.identity.renew_at(random()));
        tokio::pin!(renewal);
        loop {
            tokio::select! {
                biased;
                order = self.orders.recv() => return Err(match order {
                    Some(Order::GiveUp(reason)) => LinkEnd::GaveUp(reason).into(),
                    Some(Order::Disconnect) | None => Interruption::Ordered,
                }),
                () = broken.cancelled() => return Err(Interruption::Stalled),
                () = &mut renewal => {
                    match self.renew(&connection).await {
                        Ok(()) => return Err(Interruption::Renewed),
                        Err(Interruption::Certify(error)) => {
                            tracing::warn!(reason = %error, "the agent's certificate could not be renewed yet");
                            let pause = (self.held.identity.lifetime / 20).min(RENEWAL_PAUSE_MAX);
                            renewal.set(sleep_until(SystemTime::now() + pause));
                        }
                        Err(other) => return Err(other),
                    }
                }
                frame = next_frame(&mut incoming) => {
                    let frame = frame?;
                    if matches!(frame.body, ControlBody::Welcome(_)) && !*greeted {
                        *greeted = true;
                        tasks.spawn(bulk::serve(connection.clone(), Arc::clone(&self.logs)));
                    }
                    self.tell(LinkEvent::Frame(frame)).await?;
                }
                Some(ended) = tasks.join_next(), if !tasks.is_empty() => {
                    if let Ok(Err(status)) = ended {
                        tracing::debug!(reason = status.message(), "the stream for logs has ended");
                    }
                }
            }
        }
    }

    async fn renew(&mut self, connection: &Connection) -> Result<(), Interruption> {
        let candidate = self.candidate()?;
        let identity = renew(&self.held.identity, &self.held.key, &candidate, connection).await;
        self.certified(candidate, identity)
    }

    async fn tell(&self, event: LinkEvent) -> Result<(), Interruption> {
        self.events.send(event).await.map_err(|_| LinkEnd::Stopped.into())
    }
}

async fn next_frame(incoming: &mut Streaming<v1::ControlFrame>) -> Result<ControlFrame, Interruption> {
    let message = incoming.message().await.map_err(Interruption::Stream)?.ok_or(Interruption::Closed)?;
    let received = Received::<ControlFrame>::try_from(message);
    let Received { mut frame, refused } =
        received.map_err(|error| Interruption::Stream(Status::invalid_argument(error.to_string())))?;
    for error in refused {
        tracing::warn!(reason = %error, "part of a frame was not understood");
    }
    signatures::drop_false(&mut frame);
    Ok(frame)
}

async fn given_up(orders: &mut mpsc::UnboundedReceiver<Order>) -> LinkEnd {
    loop {
        match orders.recv().await {
            Some(Order::GiveUp(reason)) => return LinkEnd::GaveUp(reason),
            // There is no stream to end.
            Some(Order::Disconnect) => {}
            None => std::future::pending().await,
        }
    }
}

async fn sleep_until(at: SystemTime) {
    tokio::time::sleep(at.duration_since(SystemTime::now()).unwrap_or_default()).await;
}

fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        // A status shows its code, message and causes at once; they stand here already, or follow.
        if !cause.is::<Status>() && !text.ends_with(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        next = cause.source();
    }
    text
}
