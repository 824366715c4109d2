//! The `local` executor: a thread that keeps slots supplied, hears their shims, and has inputs made ready and outputs
//! taken in by threads beside it.

mod actions;
mod attempts;
mod cgroups;
mod collect;
mod commons;
mod components;
mod confining;
mod containers;
mod deployed;
mod environments;
mod exports;
mod gpus;
mod handle;
mod images;
mod imports;
mod live;
mod making;
mod moved;
mod nodes;
mod orders;
mod places;
mod preparing;
mod python;
mod recovery;
mod returned;
mod services;
mod slot;
mod slots;
mod staging;
mod strays;
mod take;
#[cfg(test)]
mod tests;
mod workers;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use atoll_model::id::SiteName;
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::io::Errno;
use site_agent_core::Event;
use site_agent_core::event::{FoundAttempt, FoundState, Node, NodeId, Seal};
use storage_sync_engine::store::SiteStore;
use tokio::sync::mpsc::UnboundedSender;
use tokio_util::sync::CancellationToken;

use crate::accounts::Accounts;
use crate::config::{AccountSettings, Exports, Imports, ShimProgram};
use crate::emitted::Emitted;
use crate::executor::batch::{BatchOptions, FoundJob, Jobs, Pilots, PilotsOptions};
use crate::nodes::{Nodes, NodesOptions};
use crate::shim::protocol::{Common, FromShim, Key};
use crate::telemetry::{Meters, Spans, level};
use crate::withheld::Withheld;

use self::attempts::{Attempts, Place};
use self::collect::Collection;
use self::recovery::Recovered;
use self::services::Services;
use self::slots::Slots;
use self::workers::Workers;

pub(crate) use self::cgroups::{AgentCgroups, Survey, survey};
pub(crate) use self::components::ComponentRunner;
pub(crate) use self::confining::Confining;
pub(crate) use self::containers::ContainerEngine;
pub(crate) use self::deployed::Ledger;
pub(crate) use self::gpus::counted;
pub(crate) use self::handle::{Executor, LetActionsGo, Order, key};
pub(crate) use self::live::{LogPlace, LogPlaces};
pub(crate) use self::python::Interpreter;
pub(crate) use self::recovery::{conclude, conclude_lost, has_work, stop_work};
pub(crate) use self::slot::{launch, reach};

/// A shim that has had nothing to do for this long is let go.
const SHIM_IDLE_MAX: Duration = Duration::from_secs(60);
/// How often the executor looks for idle shims.
const LOOK_INTERVAL: Duration = Duration::from_secs(5);

/// Takes what has happened, in order.
pub(crate) type Tell = Arc<dyn Fn(Vec<Event>) + Send + Sync>;

/// What the executor works with.
pub(crate) struct LocalOptions {
    pub site: SiteName,
    pub data_dir: PathBuf,
    /// The folder of the slots.
    pub slots_dir: PathBuf,
    pub store: SiteStore,
    pub program: ShimProgram,
    pub imports: Imports,
    pub exports: Exports,
    pub withheld: Withheld,
    /// The Python that actions run in, if there is one.
    pub python: Option<Interpreter>,
    /// What starts containers, if there is anything.
    pub engine: Option<ContainerEngine>,
    /// What runs components of WebAssembly, where the program has it.
    pub components: Option<ComponentRunner>,
    /// Bytes of one log that are kept; the middle of a longer one is dropped.
    pub log_bytes_max: u64,
    pub logs: LogPlaces,
    /// Where it says how far actions are.
    pub ledger: Ledger,
    pub tell: Tell,
    pub meters: Arc<Meters>,
    /// Where what is done is told of, if traces are wanted.
    pub spans: Option<Spans>,
    /// Takes what sources emit.
    pub emitted: UnboundedSender<Emitted>,
    /// Where processes are jobs of a cluster.
    pub batch: Option<BatchOptions>,
    /// What executions are kept from.
    pub isolation: Confining,
    /// The kinds of this machine's GPUs, by index.
    pub gpus: Vec<String>,
    /// Which accounts executions run as, if not as this process's own.
    pub accounts: Option<AccountSettings>,
    /// How other machines of the site join, if they may.
    pub nodes: Option<NodesOptions>,
    /// What is made of workers that are jobs of the batch system, if there may be any.
    pub pilots: Option<PilotsOptions>,
    /// Cancelled when a thread of the executor cannot go on: then the agent must not either.
    pub failed: CancellationToken,
}

/// Says so when a thread of the executor panics.
pub(crate) struct Watch(pub CancellationToken);

impl Drop for Watch {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.cancel();
        }
    }
}

/// Finds what earlier processes left, ends what nobody watches over any more, and starts the executor.
///
/// # Errors
/// When the slots cannot be read or prepared.
pub(crate) fn start(mut options: LocalOptions) -> anyhow::Result<Started> {
    let (sender, orders) = channel();
    let bell = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
    let executor = Executor {
        orders: sender,
        bell: Arc::clone(&bell),
        has_python: options.python.is_some(),
        has_containers: options.engine.is_some(),
        has_components: options.components.is_some(),
    };
    let further = options.nodes.take().map(|nodes| nodes::start(nodes, &executor)).transpose()?;
    let pilots = nodes::start_pilots(options.pilots.take(), further.as_ref(), &options.tell)?;
    let mut slots = Slots::open(&options, further.clone())?;
    let mut attempts = Attempts::new(Arc::clone(&options.logs));
    let heard = (further.as_ref(), &orders);
    let Recovered { mut found, stuck } = recovery::recover(&mut slots, heard, &mut attempts, &options.meters)?;
    let jobs = match options.batch.take() {
        Some(batch) => Some(start_jobs(batch, &executor, &mut attempts, &mut found)?),
        None => None,
    };
    let kinds = std::mem::take(&mut options.gpus);
    let at_home = |key: &Key| attempts.get(*key).is_some_and(|known| known.node == NodeId::HOME);
    let gpus = gpus::HeldGpus::open(&options.data_dir.join("gpus"), kinds, attempts.keys().filter(at_home))?;
    let elsewhere = nodes::Elsewhere::new(further);
    let nodes = elsewhere.of_core();
    let services = Services::open(&options.data_dir, &found)?;
    let workers = Workers::start(&options, &executor, &attempts)?;
    stuck.into_iter().for_each(|slot| workers.clear(slot));
    let around = confining::Surroundings {
        hidden: vec![options.data_dir.clone(), options.slots_dir.clone()],
        staged: options.data_dir.join(staging::STAGED),
    };
    let surroundings = orders::Surroundings::new(options.site, options.data_dir.clone(), options.log_bytes_max);
    let local = Local {
        slots,
        jobs,
        attempts,
        workers,
        orders,
        bell,
        tell: options.tell,
        store: options.store,
        surroundings,
        isolation: (options.isolation, around),
        gpus,
        elsewhere,
        services,
        python: options.python,
        accounts: options.accounts.map(Accounts::new),
        emitted: options.emitted,
        emitting: BTreeSet::new(),
        engine: options.engine,
        components: options.components,
        common: None,
        events: Vec::new(),
        meters: options.meters,
        spans: options.spans,
        failed: options.failed.clone(),
        quit: false,
    };
    let watch = Watch(options.failed);
    let run = move || {
        let _watch = watch;
        let nodes = local.elsewhere.nodes.clone();
        local.run();
        nodes.iter().for_each(Nodes::stop);
    };
    let thread = std::thread::Builder::new().name("atoll-executor".to_owned()).spawn(run)?;
    Ok(Started { executor, found, nodes, pilots, thread })
}

/// What runs once the executor does.
pub(crate) struct Started {
    pub(crate) executor: Executor,
    pub(crate) found: Vec<FoundAttempt>,
    pub(crate) nodes: BTreeMap<NodeId, Node>,
    pub(crate) pilots: Option<Pilots>,
    pub(crate) thread: JoinHandle<()>,
}

/// Starts what looks after jobs, and takes in those that are there.
fn start_jobs(
    options: BatchOptions,
    executor: &Executor,
    attempts: &mut Attempts,
    found: &mut Vec<FoundAttempt>,
) -> anyhow::Result<Jobs> {
    let executor = executor.clone();
    let (jobs, found_jobs) = Jobs::start(options, move |notices| {
        executor.order(Order::OfJobs(notices));
        executor.ring();
    })?;
    for FoundJob { key, since } in found_jobs {
        attempts.adopt(key, Place::Job);
        attempts.log_at(key, jobs.slot(key), true);
        let state = since.map_or(FoundState::Queued, |since| FoundState::Running { since });
        let node = NodeId::HOME;
        found.push(FoundAttempt { execution: key.execution, attempt: key.attempt, node, state });
    }
    Ok(jobs)
}

/// The executor's thread.
struct Local {
    slots: Slots,
    /// Where processes are jobs of a cluster, and not of this machine.
    jobs: Option<Jobs>,
    attempts: Attempts,
    workers: Workers,
    orders: Receiver<Order>,
    bell: Arc<OwnedFd>,
    tell: Tell,
    store: SiteStore,
    surroundings: orders::Surroundings,
    isolation: (Confining, confining::Surroundings),
    gpus: gpus::HeldGpus,
    elsewhere: nodes::Elsewhere,
    services: Services,
    python: Option<Interpreter>,
    accounts: Option<Accounts>,
    emitted: UnboundedSender<Emitted>,
    /// Attempts that have emitted, and have not ended.
    emitting: BTreeSet<Key>,
    engine: Option<ContainerEngine>,
    components: Option<ComponentRunner>,
    /// What the executions of the last step have in common.
    common: Option<(commons::CommonOf, Arc<Common>)>,
    events: Vec<Event>,
    meters: Arc<Meters>,
    spans: Option<Spans>,
    failed: CancellationToken,
    quit: bool,
}

impl Local {
    fn run(mut self) {
        let (mut look_at, mut nodes_at) = (Instant::now() + LOOK_INTERVAL, Instant::now());
        // What a shim said right after its greeting was read with that, and its socket will not tell of it again.
        let live: Vec<u32> = self.slots.live().collect();
        live.into_iter().for_each(|slot| self.hear(slot));
        loop {
            while let Ok(order) = self.orders.try_recv() {
                self.take(order);
            }
            if self.quit {
                break;
            }
            self.write();
            self.flush();
            if self.quit {
                // Shims go on without an agent; the next one finds them.
                return;
            }
            self.look_after_nodes_if_due(&mut nodes_at);
            if Instant::now() >= look_at {
                let warm_max = self.python.as_ref().map_or(SHIM_IDLE_MAX, |python| python.settings().idle());
                self.slots.let_idle_go(SHIM_IDLE_MAX, warm_max);
                self.hand_waiting();
                look_at = Instant::now() + LOOK_INTERVAL;
            }
            let ready = match self.wait(look_at.min(nodes_at)) {
                Ok(ready) => ready,
                Err(error) => {
                    tracing::error!(%error, "the executor cannot wait for its shims");
                    return self.failed.cancel();
                }
            };
            for slot in ready {
                self.hear(slot);
            }
        }
    }

    fn flush(&mut self) {
        self.meters.executions_present.set(level(self.attempts.count()));
        self.meters.shims.set(level(self.slots.live().count()));
        if !self.events.is_empty() {
            (self.tell)(std::mem::take(&mut self.events));
        }
    }

    /// Waits for orders or shims; which slots have something to say.
    fn wait(&self, until: Instant) -> Result<Vec<u32>, Errno> {
        let left = until.saturating_duration_since(Instant::now());
        let timeout = Timespec { tv_sec: left.as_secs().cast_signed(), tv_nsec: left.subsec_nanos().into() };
        let live: Vec<u32> = self.slots.live().collect();
        let mut sources = vec![PollFd::new(&*self.bell, PollFlags::IN)];
        for number in &live {
            let shim = self.slots.shim(*number).expect("live slots have a shim");
            let wanted = if shim.wants_to_write() { PollFlags::IN | PollFlags::OUT } else { PollFlags::IN };
            sources.push(PollFd::from_borrowed_fd(shim.socket(), wanted));
        }
        match poll(&mut sources, Some(&timeout)) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error),
        }
        if !sources[0].revents().is_empty() {
            let mut count = [0; 8];
            // Somebody rang; how often does not matter.
            let _ = rustix::io::read(&*self.bell, &mut count);
        }
        Ok(live
            .into_iter()
            .zip(&sources[1..])
            .filter(|(_, source)| !source.revents().is_empty())
            .map(|(slot, _)| slot)
            .collect())
    }

    fn write(&mut self) {
        let live: Vec<u32> = self.slots.live().collect();
        for number in live {
            let written: io::Result<()> = self.slots.shim_mut(number).map_or(Ok(()), slot::Shim::write);
            if written.is_err() {
                self.lose(number);
            }
        }
    }

    fn hear(&mut self, number: u32) {
        let mut frames = Vec::new();
        let Some(shim) = self.slots.shim_mut(number) else { return };
        let gone = shim.read(&mut frames).is_err();
        for frame in frames {
            match frame {
                FromShim::Hello(hello) => {
                    self.slots.greeted(number, &hello);
                    if self.slots.shim_mut(number).is_some_and(|shim| shim.is_found_by(&hello)) {
                        self.found_again(number, hello);
                    }
                }
                FromShim::Notices(notices) => {
                    for notice in notices {
                        self.notice(Place::Slot(number), notice);
                    }
                }
                FromShim::Emitted { key, records } => self.emitted(key, records),
            }
        }
        if gone {
            self.lose(number);
        }
    }

    /// A shim has died, or was let go. What it had claimed is cleared away beside this thread.
    fn lose(&mut self, number: u32) {
        let Some(lost) = self.slots.lose(number) else { return };
        if lost.node != NodeId::HOME {
            return self.look_elsewhere(number);
        }
        self.workers.clear(lost);
    }
}

/// What the thread for outputs is asked to do.
enum Job {
    Collect(Box<Collection>),
    /// The attempt is over: its folders may go, after a last look at what it was lent.
    Release {
        key: Key,
        kept: Option<PathBuf>,
        lent: Option<storage_sync_engine::store::Lent>,
        check: bool,
    },
    DropSealed(Vec<Seal>),
}
