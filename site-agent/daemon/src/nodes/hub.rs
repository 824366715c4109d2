//! The agent's side: it listens for workers, keeps what is known of them, and brings the shims of their slots to the executor
//! as sockets of this machine.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::TcpListener;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use atoll_model::resources::Capacity;
use site_agent_core::event::{Node, NodeId};
use tokio::sync::mpsc::UnboundedSender;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::credentials::{AgentCredentials, CredentialError};
use super::frame::{Offer, ToWorker, VERSION, Welcome};
use super::roster::{self, Remembered, Roster};
use super::serve;
use crate::config::WorkerSettings;
use crate::executor::local::conclude_lost;
use crate::shim::protocol::{End, Key, PROTOCOL_VERSION, SlotSetup};

/// What the executor hears of the workers.
pub(crate) enum Tidings {
    /// These are all that there are.
    Changed(BTreeMap<NodeId, Known>),
    /// What [`Nodes::reach`] asked for.
    Reached { slot: u32, how: Reached },
}

/// What became of the shim of a slot that was looked for.
#[derive(Debug)]
pub(crate) enum Reached {
    /// It lives. It says its greeting first.
    Shim(UnixStream),
    /// Nothing of it runs any more; this is how its attempts have ended.
    Gone(Vec<(Key, End)>),
}

/// A worker, as the executor sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Known {
    pub name: String,
    pub node: Node,
    pub gpus: Vec<String>,
    /// It goes when nothing of the agent's is left there.
    pub is_leaving: bool,
    /// After so long without work it is to leave.
    pub idle: Option<Duration>,
    /// Of the protocol that its shims speak.
    pub version: u8,
}

/// What the hub works with.
#[derive(Debug, Clone)]
pub(crate) struct NodesOptions {
    pub settings: WorkerSettings,
    pub data_dir: PathBuf,
    pub slots_dir: PathBuf,
    /// Whether the site runs steps that are to be kept from everything else.
    pub is_strict: bool,
}

/// Workers cannot be listened for.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HubError {
    #[error(transparent)]
    Credentials(#[from] CredentialError),
    #[error("workers cannot be listened for at {address}: `[workers] listen` says where")]
    Listen { address: String, source: io::Error },
    #[error("no thread is to be had to listen for workers")]
    Thread(#[source] io::Error),
}

/// The way to the workers. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Nodes {
    pub(super) shared: Arc<Shared>,
}

impl std::fmt::Debug for Nodes {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Nodes").finish_non_exhaustive()
    }
}

pub(super) struct Shared {
    state: Mutex<State>,
    tell: Box<dyn Fn(Tidings) + Send + Sync>,
    pub(super) options: NodesOptions,
    began: Instant,
    pub(super) stopping: CancellationToken,
}

#[derive(Default)]
struct State {
    nodes: BTreeMap<NodeId, Worker>,
    next: u32,
    sessions: u64,
    /// Slots whose shims are to be connected.
    wanted: BTreeMap<u32, Wanted>,
}

struct Worker {
    name: String,
    remembered: Remembered,
    version: u8,
    session: Option<Session>,
    /// When it was heard of last, or this process began.
    away_since: Instant,
    is_leaving: bool,
    idle: Option<Duration>,
}

struct Session {
    instance: u128,
    /// One connection of it.
    number: u64,
    sender: UnboundedSender<ToWorker>,
    /// Cancelled with it: its slots are not heard either then, so that all of them are looked for when it is back.
    ended: DropGuard,
}

struct Wanted {
    node: NodeId,
    path: PathBuf,
    /// The other end of a slot that was to be started; nothing of one that is looked for.
    started: Option<UnixStream>,
}

impl Nodes {
    /// Listens for workers, and tells of them from a thread of its own.
    ///
    /// # Errors
    /// When the address cannot be had, or there are no credentials.
    pub(crate) fn start(
        options: NodesOptions,
        tell: impl Fn(Tidings) + Send + Sync + 'static,
    ) -> Result<Self, HubError> {
        let credentials = AgentCredentials::open(&options.data_dir)?;
        let address = options.settings.listen;
        let listen = |source| HubError::Listen { address: address.to_string(), source };
        let listener = TcpListener::bind(address).map_err(listen)?;
        listener.set_nonblocking(true).map_err(listen)?;
        let bound = listener.local_addr().map_err(listen)?;
        let folders = [options.data_dir.clone(), options.slots_dir.clone()];
        credentials.write_token(options.settings.addresses(bound), folders)?;
        let tls = credentials.tls()?;
        let mut state = State::default();
        for (name, remembered) in roster::read(&options.data_dir) {
            state.add(name, remembered);
        }
        let (tell, stopping) = (Box::new(tell), CancellationToken::new());
        let shared = Shared { state: Mutex::new(state), tell, options, began: Instant::now(), stopping };
        let shared = Arc::new(shared);
        let nodes = Self { shared: Arc::clone(&shared) };
        tracing::info!(address = %bound, "workers may join here");
        let run = move || serve::serve(&shared, listener, tls);
        std::thread::Builder::new().name("atoll-workers".to_owned()).spawn(run).map_err(HubError::Thread)?;
        Ok(nodes)
    }

    /// The worker of this name, if it is known.
    pub(crate) fn named(&self, name: &str) -> Option<NodeId> {
        let state = self.shared.state();
        state.nodes.iter().find(|(_, worker)| worker.name == name).map(|(id, _)| *id)
    }

    /// Whether a worker of this name is connected.
    pub(crate) fn has_joined(&self, name: &str) -> bool {
        let state = self.shared.state();
        state.nodes.values().any(|worker| worker.name == name && worker.session.is_some())
    }

    /// A worker gets nothing new, and goes when it has nothing left.
    pub(crate) fn let_leave(&self, node: NodeId) {
        self.shared.leaves(node);
    }

    pub(crate) fn known(&self) -> BTreeMap<NodeId, Known> {
        self.shared.state().known()
    }

    /// Has a shim started in a slot of a worker: what is said to the socket is said to it as soon as it is connected. Where
    /// it cannot be, the socket closes.
    ///
    /// # Errors
    /// When the system gives no sockets.
    pub(crate) fn start_shim(
        &self,
        (slot, path): (u32, &Path),
        node: NodeId,
        setup: &SlotSetup,
        forgotten: &BTreeSet<Key>,
    ) -> io::Result<UnixStream> {
        let (near, far) = UnixStream::pair()?;
        let setup = serde_json::to_string(setup)?;
        let mut state = self.shared.state();
        let session = state.nodes.get(&node).and_then(|worker| worker.session.as_ref());
        let forgotten = forgotten.iter().copied().collect();
        let start = ToWorker::Start { slot, path: path.to_owned(), setup, forgotten };
        if session.is_some_and(|session| session.sender.send(start).is_ok()) {
            state.wanted.insert(slot, Wanted { node, path: path.to_owned(), started: Some(far) });
        }
        Ok(near)
    }

    /// Looks for the shim of a slot: answered when its worker has said what is there, or is lost.
    pub(crate) fn reach(&self, slot: u32, path: &Path, node: NodeId) {
        let mut state = self.shared.state();
        state.wanted.insert(slot, Wanted { node, path: path.to_owned(), started: None });
        if let Some(session) = state.nodes.get(&node).and_then(|worker| worker.session.as_ref()) {
            // One that ends just now is asked when it comes back.
            let _ = session.sender.send(ToWorker::Reach { slot, path: path.to_owned() });
        }
    }

    /// Nothing is left at a worker that leaves.
    pub(crate) fn bid_farewell(&self, node: NodeId) {
        let mut state = self.shared.state();
        let Some(worker) = state.nodes.remove(&node) else { return };
        if let Some(session) = worker.session {
            // It may be gone already.
            let _ = session.sender.send(ToWorker::Farewell);
        }
        tracing::info!(worker = worker.name, "a worker has left");
        self.shared.changed(&state);
    }

    pub(crate) fn leash(&self) -> Duration {
        self.shared.options.settings.leash()
    }

    pub(crate) fn stop(&self) {
        self.shared.stopping.cancel();
    }
}

impl State {
    fn add(&mut self, name: String, remembered: Remembered) -> NodeId {
        self.next += 1;
        let id = NodeId(self.next);
        let worker = Worker {
            name,
            remembered,
            version: PROTOCOL_VERSION,
            session: None,
            away_since: Instant::now(),
            is_leaving: false,
            idle: None,
        };
        self.nodes.insert(id, worker);
        id
    }

    fn known(&self) -> BTreeMap<NodeId, Known> {
        let known = |(id, worker): (&NodeId, &Worker)| {
            let is_open = worker.session.is_some() && !worker.is_leaving;
            let node = Node { capacity: worker.remembered.capacity.clone(), is_open };
            let (name, gpus) = (worker.name.clone(), worker.remembered.gpus.clone());
            (*id, Known { name, node, gpus, is_leaving: worker.is_leaving, idle: worker.idle, version: worker.version })
        };
        self.nodes.iter().map(known).collect()
    }

    fn roster(&self) -> Roster {
        self.nodes.values().map(|worker| (worker.name.clone(), worker.remembered.clone())).collect()
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells of it before anything else changes.
    fn changed(&self, state: &State) {
        let (known, roster) = (state.known(), state.roster());
        if let Err(error) = roster::write(&self.options.data_dir, &roster) {
            tracing::warn!(%error, "the workers cannot be written down: the next agent does not wait for them");
        }
        (self.tell)(Tidings::Changed(known));
    }

    /// Why a worker is not wanted here.
    fn objection(&self, offer: &Offer) -> Option<String> {
        let (own, shims) = offer.versions;
        if own != VERSION || shims > PROTOCOL_VERSION {
            return Some("it is of another version than the agent: run the same program on both".to_owned());
        }
        match &offer.not_strict {
            Some(why) if self.options.is_strict => {
                Some(format!("this site runs steps with `isolation: strict`, and the worker's machine cannot: {why}"))
            }
            Some(_) | None => None,
        }
    }

    /// Whether another process of this name is connected.
    pub(super) fn is_taken(&self, offer: &Offer) -> bool {
        let taken = |worker: &Worker| worker.session.as_ref().is_some_and(|other| other.instance != offer.instance);
        self.state().nodes.values().any(|worker| worker.name == offer.name && taken(worker))
    }

    /// Takes in a worker; which it is, and the number of this connection. What it is told goes to `sender`.
    ///
    /// # Errors
    /// When it is not wanted, and why.
    pub(super) fn join(&self, offer: Offer, sender: UnboundedSender<ToWorker>) -> Result<(NodeId, u64), String> {
        if let Some(why) = self.objection(&offer) {
            return Err(why);
        }
        if self.is_taken(&offer) {
            return Err(format!(
                "another worker is connected as {}: give each a name of its own, `--name`",
                offer.name
            ));
        }
        let mut state = self.state();
        let found = state.nodes.iter().find(|(_, worker)| worker.name == offer.name).map(|(id, _)| *id);
        let capacity = Capacity { disk_free_bytes: 0, ..offer.capacity };
        let remembered = Remembered { capacity, gpus: offer.gpus };
        let id = found.unwrap_or_else(|| state.add(offer.name.clone(), remembered.clone()));
        let wanted: Vec<(u32, PathBuf)> = {
            state.wanted.retain(|_, wanted| wanted.node != id || wanted.started.is_none());
            let of_worker = state.wanted.iter().filter(|(_, wanted)| wanted.node == id);
            of_worker.map(|(slot, wanted)| (*slot, wanted.path.clone())).collect()
        };
        let welcome = Welcome { silence_max: self.options.settings.silence_max() };
        let reaches = wanted.into_iter().map(|(slot, path)| ToWorker::Reach { slot, path });
        for frame in std::iter::once(ToWorker::Welcome(welcome)).chain(reaches) {
            sender.send(frame).map_err(|_| "its connection has ended".to_owned())?;
        }
        state.sessions += 1;
        let number = state.sessions;
        let worker = state.nodes.get_mut(&id).expect("it was found or added");
        (worker.remembered, worker.version, worker.is_leaving) = (remembered, offer.versions.1, false);
        worker.idle = offer.idle;
        worker.session =
            Some(Session { instance: offer.instance, number, sender, ended: CancellationToken::new().drop_guard() });
        tracing::info!(worker = offer.name, "a worker has joined");
        self.changed(&state);
        Ok((id, number))
    }

    /// The connection of a worker has ended.
    pub(super) fn part(&self, id: NodeId, number: u64, why: &str) {
        let mut state = self.state();
        let Some(worker) = state.nodes.get_mut(&id) else { return };
        if worker.session.as_ref().is_some_and(|session| session.number == number) {
            worker.session = None;
            worker.away_since = Instant::now();
            tracing::warn!(worker = worker.name, why, "a worker is away");
            // The sockets of what was being started close: it is looked for when the worker is back.
            state.wanted.retain(|_, wanted| wanted.node != id || wanted.started.is_none());
            self.changed(&state);
        }
    }

    pub(super) fn leaves(&self, id: NodeId) {
        let mut state = self.state();
        if let Some(worker) = state.nodes.get_mut(&id) {
            worker.is_leaving = true;
            tracing::info!(worker = worker.name, "a worker takes nothing new, and leaves when what it has is done");
        }
        self.changed(&state);
    }

    pub(super) fn cleared(&self, id: NodeId, slot: u32, ended: Vec<(Key, End)>) {
        let mut state = self.state();
        // One that was looked for twice may have been started anew meanwhile.
        if state.wanted.get(&slot).is_some_and(|wanted| wanted.node == id && wanted.started.is_none()) {
            state.wanted.remove(&slot);
            drop(state);
            (self.tell)(Tidings::Reached { slot, how: Reached::Gone(ended) });
        }
    }

    /// The connection of a slot has come; the socket that it is to be joined with, if anybody wants it, and what is cancelled
    /// when it must end.
    pub(super) fn take(&self, instance: u128, slot: u32) -> io::Result<Option<(UnixStream, CancellationToken)>> {
        let mut state = self.state();
        let session = state.wanted.get(&slot).and_then(|wanted| state.nodes.get(&wanted.node)?.session.as_ref());
        let Some(session) = session.filter(|session| session.instance == instance) else { return Ok(None) };
        let ended = session.ended.token().clone();
        let Some(wanted) = state.wanted.remove(&slot) else { return Ok(None) };
        drop(state);
        if let Some(far) = wanted.started {
            return Ok(Some((far, ended)));
        }
        let (near, far) = UnixStream::pair()?;
        (self.tell)(Tidings::Reached { slot, how: Reached::Shim(near) });
        Ok(Some((far, ended)))
    }

    /// Gives up workers that were not heard of for long: by then their shims have given up by themselves.
    pub(super) fn give_up_lost(&self) {
        let mut state = self.state();
        let lost_after = self.options.settings.lost_after();
        let is_lost = |worker: &Worker| worker.session.is_none() && worker.away_since.elapsed() >= lost_after;
        let lost: Vec<NodeId> = state.nodes.iter().filter(|(_, worker)| is_lost(worker)).map(|(id, _)| *id).collect();
        for worker in lost.iter().filter_map(|id| state.nodes.remove(id)) {
            tracing::error!(worker = worker.name, "a worker is lost: what it ran is interrupted");
        }
        // Of a worker that this process never knew a shim may go on for a while.
        let is_over = |node: &NodeId| node.0 <= state.next || self.began.elapsed() >= lost_after;
        let is_forsaken = |wanted: &Wanted| !state.nodes.contains_key(&wanted.node) && is_over(&wanted.node);
        let forsaken = state.wanted.iter().filter(|(_, wanted)| is_forsaken(wanted));
        let forsaken: Vec<(u32, PathBuf)> = forsaken.map(|(slot, wanted)| (*slot, wanted.path.clone())).collect();
        if !lost.is_empty() {
            self.changed(&state);
        }
        drop(state);
        for (slot, path) in forsaken {
            match conclude_lost(&path) {
                Ok(ended) => {
                    self.state().wanted.remove(&slot);
                    (self.tell)(Tidings::Reached { slot, how: Reached::Gone(ended) });
                }
                // It is tried again.
                Err(error) => tracing::error!(slot, %error, "the log of a slot of a lost worker cannot be read"),
            }
        }
    }
}
