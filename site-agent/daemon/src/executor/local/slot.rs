//! A slot as the agent sees it: its directory, the shim that owns it, and what that shim was handed.

use std::collections::{BTreeSet, VecDeque};
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use atoll_model::action::Warm;
use atoll_model::id::{RunId, StepIndex};
use site_agent_core::event::NodeId;
use site_agent_spawn::filters_of;

use super::slots::{Wanted, Warmth, warmth};
use crate::config::ShimProgram;
use crate::shim::connection::Connection;
use crate::shim::protocol::{
    self, Common, FromShim, Hello, Isolation, Key, Order, Outputs, PROTOCOL_VERSION, SlotSetup, TELLS_OUTPUTS, Terms,
    ToShim,
};
use crate::shim::{LAST_WORDS, SOCKET, UNPROTECTED, log, make_private, remove_whatever};

/// How long a shim may take to greet: it answers whatever it runs, unless the machine is at its end.
const GREETING_TIMEOUT: Duration = Duration::from_secs(30);

/// A step of a run: what executions queue behind.
pub(super) type StepKey = (RunId, StepIndex);

#[derive(Debug)]
pub(super) struct Slot {
    pub number: u32,
    pub path: PathBuf,
    pub state: SlotState,
    /// The machine that it is on.
    pub node: NodeId,
    /// Of the shim that this process started there last: whether it is confined, and whether it is plain.
    pub made: Option<(bool, bool)>,
    /// Ends that its next shim need not remember.
    pub forgotten: BTreeSet<Key>,
}

#[derive(Debug)]
pub(super) enum SlotState {
    /// No shim, and nothing left of one.
    Empty,
    Live(Box<Shim>),
    /// Its shim has died, and what it left is being cleared away.
    Clearing,
}

/// The agent's end of a shim.
#[derive(Debug)]
pub(super) struct Shim {
    connection: Connection,
    /// Absent if another process started it.
    child: Option<Child>,
    /// What it was handed and has not said to have ended, in that order.
    pub handed: VecDeque<(Key, StepKey)>,
    /// What is to go with the next write.
    orders: Vec<(Arc<Common>, Vec<Order>)>,
    forget: Vec<Key>,
    /// Nothing until it has greeted.
    pub isolation: Option<Isolation>,
    /// Of the protocol that it speaks. One that this process started is of the same program.
    version: u8,
    pub idle_since: Instant,
    /// Whether it has given up what rights alone could do; nothing if that is not known, and then it gets nothing more to do.
    pub confined: Option<bool>,
    /// The worker that waits in it, as far as this process knows.
    pub warmth: Option<Warmth>,
    /// How many like it are to wait.
    pub warm: Option<Warm>,
    pub asked_back: bool,
    /// Whether it has no namespaces of its own, which engines of containers want to make themselves.
    pub is_plain: bool,
    /// Whether it was found again on another machine and has not said what it has.
    pub is_found: bool,
}

/// A shim that cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ShimError {
    #[error("the shim cannot be started from {program}", program = .program.display())]
    Start { program: PathBuf, source: io::Error },
    #[error("the slot {path} cannot be prepared", path = .path.display())]
    Prepare { path: PathBuf, source: io::Error },
    #[error("the shim of {path} does not answer", path = .path.display())]
    Silent { path: PathBuf, source: io::Error },
    #[error("the shim of {path} speaks version {version}, and this agent at most {PROTOCOL_VERSION}: run a newer agent", path = .path.display())]
    Newer { path: PathBuf, version: u8 },
}

impl Slot {
    pub(super) fn new(slots: &Path, number: u32) -> Self {
        let (path, forgotten) = (slots.join(number.to_string()), BTreeSet::new());
        Self { number, path, state: SlotState::Empty, node: NodeId::HOME, made: None, forgotten }
    }

    pub(super) fn shim(&self) -> Option<&Shim> {
        match &self.state {
            SlotState::Live(shim) => Some(shim),
            SlotState::Empty | SlotState::Clearing => None,
        }
    }

    pub(super) fn shim_mut(&mut self) -> Option<&mut Shim> {
        match &mut self.state {
            SlotState::Live(shim) => Some(shim),
            SlotState::Empty | SlotState::Clearing => None,
        }
    }

    /// Starts a shim. The slot's log must have been read, and the strays of its last shim ended.
    pub(super) fn start(&mut self, program: &ShimProgram, setup: &SlotSetup) -> Result<(), ShimError> {
        let (stream, child) = launch(&self.path, &self.forgotten, program, setup)?;
        self.begin(stream, Some(child), setup)
    }

    /// Begins with a shim that was started here, or on another machine, which `stream` leads to.
    pub(super) fn begin(
        &mut self,
        stream: UnixStream,
        child: Option<Child>,
        setup: &SlotSetup,
    ) -> Result<(), ShimError> {
        let mut shim = Shim::new(stream).map_err(|source| ShimError::Prepare { path: self.path.clone(), source })?;
        shim.child = child;
        (shim.confined, shim.is_plain) = (Some(setup.confined), setup.setup.no_namespace);
        self.made = Some((setup.confined, setup.setup.no_namespace));
        self.state = SlotState::Live(Box::new(shim));
        self.forgotten.clear();
        Ok(())
    }

    /// Goes on with a shim of another machine that is connected again.
    pub(super) fn go_on(&mut self, stream: UnixStream) -> io::Result<()> {
        let mut shim = Shim::new(stream)?;
        shim.is_found = true;
        if let Some((confined, is_plain)) = self.made {
            (shim.confined, shim.is_plain) = (Some(confined), is_plain);
        }
        self.state = SlotState::Live(Box::new(shim));
        Ok(())
    }

    /// Connects to the shim that an earlier process of the agent left, if it lives, and hears what it has.
    pub(super) fn connect(&mut self) -> Result<Option<Hello>, ShimError> {
        let silent = |source| ShimError::Silent { path: self.path.clone(), source };
        match reach(&self.path).map_err(silent)? {
            Some(stream) => self.greet(stream),
            None => Ok(None),
        }
    }

    /// Hears what a shim has that lives. What it is kept from is known only of one of this machine.
    pub(super) fn greet(&mut self, stream: UnixStream) -> Result<Option<Hello>, ShimError> {
        let silent = |source| ShimError::Silent { path: self.path.clone(), source };
        let mut shim = match Shim::new(stream) {
            Ok(shim) => shim,
            Err(error) => return Err(silent(error)),
        };
        match shim.wait_for_greeting() {
            Ok(Some(hello)) if hello.version > PROTOCOL_VERSION => {
                Err(ShimError::Newer { path: self.path.clone(), version: hello.version })
            }
            Ok(Some(hello)) => {
                shim.isolation = Some(hello.isolation);
                shim.version = hello.version;
                let is_here = self.node == NodeId::HOME;
                let filters = (filters_of(hello.pid).filter(|_| is_here), filters_of(std::process::id()));
                // What it has beyond this process is its own doing.
                shim.confined = if let (Some(of_shim), Some(own)) = filters { Some(of_shim > own) } else { None };
                // One that was to have some, and could not, has complained.
                let is_unprotected = hello.complaints.iter().any(|complaint| complaint.ends_with(UNPROTECTED));
                shim.is_plain = hello.isolation == Isolation::Nothing && !is_unprotected;
                self.state = SlotState::Live(Box::new(shim));
                Ok(Some(hello))
            }
            // It ended between the connection and the greeting.
            Ok(None) => Ok(None),
            Err(error) => Err(silent(error)),
        }
    }

    /// What a shim that could not go on wrote before it ended.
    pub(super) fn last_words(&self) -> Option<String> {
        fs::read_to_string(self.path.join(LAST_WORDS)).ok().map(|words| words.trim().to_owned())
    }
}

/// Starts a shim in a slot. The slot's log must have been read, and the strays of its last shim ended.
///
/// # Errors
/// When the slot cannot be prepared, or the shim not be started.
pub(crate) fn launch(
    path: &Path,
    forgotten: &BTreeSet<Key>,
    program: &ShimProgram,
    setup: &SlotSetup,
) -> Result<(UnixStream, Child), ShimError> {
    let prepare = |source| ShimError::Prepare { path: path.to_owned(), source };
    make_private(path).map_err(prepare)?;
    let mut ended = log::read(path).map_err(prepare)?.ended;
    ended.retain(|key, _| !forgotten.contains(key));
    log::replace(path, &ended).map_err(prepare)?;
    let folder = File::open(path).map_err(prepare)?;
    let socket = short_path(&folder);
    remove_whatever(&path.join(SOCKET)).map_err(prepare)?;
    remove_whatever(&path.join(LAST_WORDS)).map_err(prepare)?;
    let listener = UnixListener::bind(&socket).map_err(prepare)?;
    let stream = UnixStream::connect(&socket).map_err(prepare)?;
    let setup = serde_json::to_string(setup).map_err(|error| prepare(error.into()))?;
    let child = Command::new(&program.program)
        .args(&program.arguments)
        .arg(setup)
        .stdin(Stdio::from(OwnedFd::from(listener)))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .map_err(|source| ShimError::Start { program: program.program.clone(), source })?;
    Ok((stream, child))
}

/// Connects to the shim of a slot of this machine, if it lives.
///
/// # Errors
/// When that cannot be told.
pub(crate) fn reach(path: &Path) -> io::Result<Option<UnixStream>> {
    let folder = match File::open(path) {
        Ok(folder) => folder,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    match UnixStream::connect(short_path(&folder)) {
        Ok(stream) => Ok(Some(stream)),
        Err(error) if matches!(error.kind(), io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound) => Ok(None),
        Err(error) => Err(error),
    }
}

/// The path of the socket by way of a descriptor: socket addresses are at most 108 bytes long.
fn short_path(folder: &File) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", folder.as_raw_fd())).join(SOCKET)
}

impl Shim {
    fn new(stream: UnixStream) -> io::Result<Self> {
        Ok(Self {
            connection: Connection::new(stream)?,
            child: None,
            handed: VecDeque::new(),
            orders: Vec::new(),
            forget: Vec::new(),
            isolation: None,
            version: PROTOCOL_VERSION,
            confined: None,
            idle_since: Instant::now(),
            warmth: None,
            warm: None,
            asked_back: false,
            is_plain: false,
            is_found: false,
        })
    }

    fn wait_for_greeting(&mut self) -> io::Result<Option<Hello>> {
        let Connection { stream, input, .. } = &mut self.connection;
        stream.set_nonblocking(false)?;
        stream.set_read_timeout(Some(GREETING_TIMEOUT))?;
        loop {
            let mut position = 0;
            match protocol::decode(input, &mut position).map_err(io::Error::other)? {
                Some(FromShim::Hello(hello)) => {
                    input.drain(..position);
                    stream.set_nonblocking(true)?;
                    return Ok(Some(hello));
                }
                Some(FromShim::Notices(_) | FromShim::Emitted { .. }) => {
                    return Err(io::Error::other("it does not greet"));
                }
                None => {}
            }
            let mut chunk = [0; 4096];
            match stream.read(&mut chunk) {
                Ok(0) => return Ok(None),
                Ok(read) => input.extend_from_slice(&chunk[..read]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(None),
                Err(error) => return Err(error),
            }
        }
    }

    pub(super) fn socket(&self) -> BorrowedFd<'_> {
        self.connection.stream.as_fd()
    }

    pub(super) fn is_idle(&self) -> bool {
        self.handed.is_empty()
    }

    /// Whether it was found again, and `hello` says what it has.
    pub(super) fn is_found_by(&mut self, hello: &Hello) -> bool {
        self.version = hello.version;
        std::mem::take(&mut self.is_found)
    }

    pub(super) fn set_version(&mut self, version: u8) {
        self.version = version;
    }

    pub(super) fn wants_to_write(&self) -> bool {
        self.connection.wants_to_write()
    }

    /// Whether it can do what is asked for, and is made for it.
    pub(super) fn suits(&self, wanted: Wanted) -> bool {
        self.confined == Some(wanted.confined) && self.is_plain == wanted.plain && self.version >= wanted.version
    }

    pub(super) fn hand(&mut self, common: &Arc<Common>, order: Order, step: StepKey) {
        (self.warmth, self.warm) = (warmth(common), common.warm);
        self.handed.push_back((order.key, step));
        match self.orders.last_mut() {
            Some((known, orders)) if Arc::ptr_eq(known, common) => orders.push(order),
            Some(_) | None => self.orders.push((Arc::clone(common), vec![order])),
        }
    }

    /// Has the worker wait that executions call which have this in common.
    pub(super) fn warm_up(&mut self, common: &Common) {
        if let Some(worker) = common.worker.clone() {
            (self.warmth, self.warm, self.idle_since) = (warmth(common), common.warm, Instant::now());
            self.say(&ToShim::WarmUp { common: common.clone(), worker });
        }
    }

    pub(super) fn forget(&mut self, key: Key) {
        self.forget.push(key);
    }

    pub(super) fn say(&mut self, message: &ToShim) {
        self.gather();
        self.connection.say(message);
    }

    /// Turns what was gathered into frames, in order.
    fn gather(&mut self) {
        for (common, orders) in self.orders.drain(..) {
            let mut common = Common::clone(&common);
            if common.outputs == Outputs::Told && self.version < TELLS_OUTPUTS {
                common.outputs = Outputs::Kept;
            }
            let (terms, kept) = (std::mem::take(&mut common.terms), common.kept.take());
            let account = common.account.take();
            let start = match common.worker.clone() {
                Some(worker) => {
                    let inputs = orders.iter().map(|order| order.inputs.clone()).collect();
                    ToShim::Call { common, worker, orders, inputs }
                }
                None => match common.container.clone() {
                    Some(container) => ToShim::Contain { common, container, orders },
                    None => ToShim::Start { common, orders },
                },
            };
            let is_plain = terms == Terms::default();
            let start = if is_plain { start } else { ToShim::Under { terms, start: Box::new(start) } };
            let start = match kept {
                Some(kept) => ToShim::Keep { kept, start: Box::new(start) },
                None => start,
            };
            self.connection.say(&match account {
                Some(account) => ToShim::As { account, start: Box::new(start) },
                None => start,
            });
        }
        if !self.forget.is_empty() {
            self.connection.say(&ToShim::Forget(std::mem::take(&mut self.forget)));
        }
    }

    /// Writes what there is to say, as far as the socket takes it.
    pub(super) fn write(&mut self) -> io::Result<()> {
        self.gather();
        self.connection.write()
    }

    /// Reads what it has said. An error means that it has gone; `frames` holds what it said before.
    pub(super) fn read(&mut self, frames: &mut Vec<FromShim>) -> io::Result<()> {
        self.connection.read(frames)
    }

    /// Waits for the end of a shim whose socket has closed, so that no zombie stays. Its number is gone with it.
    pub(super) fn bury(&mut self) {
        if let Some(mut child) = self.child.take() {
            // A shim that closes its socket and lives on is none any more.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
