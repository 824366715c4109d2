//! The agent's process: everything is opened, found again, started, and stopped here.

mod folders;

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context as _;
use atoll_model::id::JournalId;
use atoll_model::resources::{IsolationProfile, NODES_RUNTIME, SLURM_RUNTIME};
use atoll_model::session::{CONTAINER_RUNTIME, EXPORT_RUNTIME, PYTHON_RUNTIME, WASM_RUNTIME};
use atoll_model::time::Timestamp;
use site_agent_core::event::{Arrival, Found};
use site_agent_core::{Agent, Boot, Event};
use storage_sync_engine::store::{SiteStore, StoreError};
use storage_sync_engine::transfer::{NotedArrival, TransferConfig, Transfers};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::accounts;
use crate::clock::Clock;
use crate::config::{Config, ShimProgram, found_gpus};
use crate::direct::Direct;
use crate::driver::{Beginning, Driver, Inbox, Performer, direct_share, open_journal};
use crate::emitted::{self, Emitted};
use crate::executor::batch::{BatchOptions, BatchWait, PilotsOptions, SystemSettings};
use crate::executor::local::{self, Executor, Ledger, LocalOptions, Order};
use crate::link::{Identity, Link, LinkCredentials, LinkEnd, LinkEvent, LinkOptions, http_client};
use crate::logs::Logs;
use crate::nodes::NodesOptions;
use crate::scrub::keep_scrubbing;
use crate::shim::log::boot_id;
use crate::telemetry::{self, Meters, Traces};
use crate::withheld::Withheld;
use crate::{IDENTITY, lock, measure};
use folders::{make_folders, open_ways, settle_slots};

/// Bytes of one log that are kept.
const LOG_BYTES_MAX: u64 = 64 << 20;
/// Reports that are not acknowledged may take this much of the disk before nothing new is started (B5).
const OUTBOX_BYTES_MAX: u64 = 256 << 20;
/// Below this much room on its disk, the site takes no new work (E1): more than the 64 MiB that the journal gives up of its
/// own when the disk is full, so that its reserve is not taken for room.
const DISK_FREE_BYTES_MIN: u64 = 96 << 20;
const LINK_EVENTS_MAX: usize = 256;
/// How much of what was verified an agent that is killed may have to hash again.
const CHECKPOINT_INTERVAL: Duration = Duration::from_secs(60);
/// How long the end of the agent waits for a collector of traces.
const LAST_EXPORT_MAX: Duration = Duration::from_secs(2);

/// Runs the agent until `shutdown`.
pub(crate) async fn run(mut config: Config, shutdown: CancellationToken) -> anyhow::Result<()> {
    make_folders(&config)?;
    let _lock = lock::lock(&config.data_dir)?;
    let _work_lock = config.work_dir.as_deref().map(lock::lock).transpose()?;
    let slots_dir = settle_slots(&config)?;
    let isolation = look_around(&mut config)?;
    open_ways(&config, &slots_dir)?;
    let meters = Arc::new(Meters::new());
    let metrics = listen_for_metrics(&config).await?;
    let told = (BatchWait::new(), Ledger::default());
    let running = Running::start(&config, slots_dir.clone(), &isolation, &meters, &told)?;
    let Running { link, inbox, driver, executor, executing, transfers, tasks, traces, failed, direct, withheld } =
        running;
    open_ways(&config, &slots_dir)?;
    let (link, events, emitted) = link;
    let store = transfers.store().clone();
    let mut joined = tokio::task::spawn_blocking(move || driver.join());
    let stopping = CancellationToken::new();
    let measuring = measure::keep_measuring(
        config.clone(),
        transfers.clone(),
        inbox.clone(),
        Arc::clone(&meters),
        told,
        stopping.clone(),
    );
    tasks.spawn(measuring);
    tasks.spawn(keep_checkpoints(store.clone(), CHECKPOINT_INTERVAL, stopping.clone()));
    tasks.spawn(keep_scrubbing(config.scrub, store.clone(), inbox.clone(), stopping.clone()));
    tasks.spawn(forward(events, inbox.clone(), Arc::clone(&meters)));
    tasks.spawn(emitted::hand_on(emitted, direct.1.clone(), executor.clone(), tasks.clone(), stopping.clone()));
    if let Some(listener) = metrics {
        tasks.spawn(telemetry::serve(listener, Arc::clone(&meters), stopping.clone()));
    }
    let listening = direct.0.start(&config, &transfers, &inbox, &meters, &withheld).await?;
    let listens_at = listening.as_ref().map(|listening| listening.address);
    tasks.spawn(direct.0.advertise(direct.1, listens_at, config.clone(), stopping.clone()));
    let traced = traces.map(|traces| tasks.spawn(traces.run()));
    let linked = link.run(stopping.child_token());
    tokio::pin!(linked);
    let result = tokio::select! {
        () = shutdown.cancelled() => Ok(()),
        end = &mut linked => match end {
            LinkEnd::Stopped => Ok(()),
            end @ (LinkEnd::GaveUp(_) | LinkEnd::Identity(_)) => Err(anyhow::Error::new(end)),
        },
        () = failed.cancelled() => Err(anyhow::anyhow!("the executor cannot go on; what runs is found again at the next start")),
        driven = &mut joined => driven.unwrap_or_else(|error| Err(error.into())).context("the agent's journal failed"),
    };
    // In this order: nothing new arrives, what has arrived is made durable, and shims are left to themselves.
    stopping.cancel();
    if let Some(listening) = listening {
        listening.stop().await;
    }
    inbox.shut_down();
    if !joined.is_finished() {
        joined.await??;
    }
    executor.order(Order::Quit);
    executor.ring();
    let executed = tokio::task::spawn_blocking(move || executing.join()).await?;
    executed.map_err(|_| anyhow::anyhow!("the executor's thread has panicked"))?;
    last_export(traced).await;
    store.checkpoint().context("the site's store cannot be closed")?;
    if config.stop_work_on_exit {
        tokio::task::spawn_blocking(move || local::stop_work(&config.data_dir, &slots_dir)).await??;
    }
    tracing::info!("the agent has ended");
    result
}

async fn listen_for_metrics(config: &Config) -> anyhow::Result<Option<tokio::net::TcpListener>> {
    let Some(address) = config.metrics_listen else { return Ok(None) };
    Ok(Some(telemetry::listen(address).await?))
}

async fn last_export(traced: Option<tokio::task::JoinHandle<()>>) {
    if let Some(traced) = traced
        && tokio::time::timeout(LAST_EXPORT_MAX, traced).await.is_err()
    {
        tracing::warn!("the last spans could not be exported in time");
    }
}

/// Everything of a running agent.
struct Running {
    link: (Link, mpsc::Receiver<LinkEvent>, mpsc::UnboundedReceiver<Emitted>),
    inbox: Inbox,
    driver: Driver,
    executor: Executor,
    executing: std::thread::JoinHandle<()>,
    transfers: Transfers,
    tasks: TaskTracker,
    traces: Option<Traces>,
    failed: CancellationToken,
    direct: (Direct, LinkCredentials),
    withheld: Withheld,
}

impl Running {
    fn start(
        config: &Config,
        slots_dir: PathBuf,
        isolation: &local::Confining,
        meters: &Arc<Meters>,
        kept: &(BatchWait, Ledger),
    ) -> anyhow::Result<Self> {
        let data_dir = &config.data_dir;
        let store = SiteStore::open(&data_dir.join("store")).context("the site's store cannot be opened")?;
        let (inbox, inputs) = Inbox::new();
        let (link_events, events) = mpsc::channel(LINK_EVENTS_MAX);
        let (places, withheld) = (local::LogPlaces::default(), Withheld::new(store.clone()));
        let logs = Arc::new(Logs { store: store.clone(), places: Arc::clone(&places), withheld: withheld.clone() });
        let (link, link_handle) = Link::new(LinkOptions {
            directory: data_dir.join(IDENTITY),
            server: config.server.clone(),
            events: link_events,
            logs,
        })?;
        let identity = link.identity().clone();
        tracing::info!(site = %identity.site, agent = %identity.agent, data_dir = %data_dir.display(), "the agent starts");
        let failed = CancellationToken::new();
        let (to_emit, emitted) = mpsc::unbounded_channel();
        let (spans, traces) = telemetry::start_exporter(config, &identity, meters)?.unzip();
        let stored = (&store, &withheld, places);
        let told = (teller(&inbox), to_emit, spans);
        let measured = (meters, kept, &failed);
        let options = local_options(config, &identity, (slots_dir, isolation), stored, told, measured)?;
        let local::Started { executor, found: attempts, nodes, pilots, thread: executing } = local::start(options)?;
        let recovered = open_journal(&data_dir.join("journal"), config.journal)?;
        let (journal, snapshot, facts, checkpoint_bytes) = recovered.into_parts();
        let (clock, tasks) = (Clock::start(), TaskTracker::new());
        let core = core_config(config, &identity, (&executor, isolation), journal.identity().0, clock.booted_at())?;
        let arrivals = arrivals(&store).context("what was fetched cannot be found again")?;
        let (agent, step) = Agent::recover(core, snapshot, facts, Found { attempts, arrivals, nodes }, clock.read());
        let client = http_client(&identity).context("no client for transfers")?;
        let credentials = link_handle.credentials();
        let direct = Direct::new(&identity, data_dir).context("no client for other agents")?;
        let (asks, settings) = (Arc::new(credentials.clone()), TransferConfig::default());
        let transfers = Transfers::with_direct(store.clone(), client, asks, settings, Some(direct.dialer()));
        let performer = Performer {
            inbox: inbox.clone(),
            link: link_handle,
            executor: executor.clone(),
            transfers: transfers.clone(),
            store: store.clone(),
            evict_idle: config.evict_idle,
            runtime: tokio::runtime::Handle::current(),
            tasks: tasks.clone(),
            running: crate::driver::Running::default(),
            meters: Arc::clone(meters),
            withheld: withheld.clone(),
            pilots,
        };
        let beginning = Beginning { agent, step, clock, withheld: withheld.clone() };
        let driver = Driver::start(beginning, inputs, journal, checkpoint_bytes, performer)?;
        let (link, direct) = ((link, events, emitted), (direct, credentials));
        Ok(Self { link, inbox, driver, executor, executing, transfers, tasks, traces, failed, direct, withheld })
    }
}

/// What the executor works with.
fn local_options(
    config: &Config,
    identity: &Identity,
    (slots_dir, isolation): (PathBuf, &local::Confining),
    (store, withheld, logs): (&SiteStore, &Withheld, local::LogPlaces),
    (tell, emitted, spans): (local::Tell, mpsc::UnboundedSender<emitted::Emitted>, Option<telemetry::Spans>),
    (meters, (batch_wait, ledger), failed): (&Arc<Meters>, &(BatchWait, Ledger), &CancellationToken),
) -> anyhow::Result<LocalOptions> {
    Ok(LocalOptions {
        site: identity.site.clone(),
        data_dir: config.data_dir.clone(),
        slots_dir: slots_dir.clone(),
        store: store.clone(),
        program: config.shim_program.clone().map_or_else(ShimProgram::own, Ok)?,
        isolation: isolation.clone(),
        gpus: config.gpus.clone().unwrap_or_default(),
        accounts: config.accounts.clone(),
        batch: batch_options(config, identity, meters, batch_wait, failed)?,
        pilots: PilotsOptions::of(config, identity.agent),
        nodes: config.workers.clone().map(|settings| NodesOptions {
            settings,
            data_dir: config.data_dir.clone(),
            slots_dir,
            is_strict: isolation.strict.is_ok(),
        }),
        imports: config.imports.clone(),
        exports: config.exports.clone(),
        withheld: withheld.clone(),
        python: find_python(config),
        engine: find_engine(config),
        components: find_runner(config)?,
        log_bytes_max: LOG_BYTES_MAX,
        logs,
        ledger: ledger.clone(),
        tell,
        emitted,
        meters: Arc::clone(meters),
        spans,
        failed: failed.clone(),
    })
}

/// How executions become jobs, where the administrator says so.
fn batch_options(
    config: &Config,
    identity: &Identity,
    meters: &Arc<Meters>,
    wait: &BatchWait,
    failed: &CancellationToken,
) -> anyhow::Result<Option<BatchOptions>> {
    let Some(settings) = SystemSettings::of(config) else { return Ok(None) };
    Ok(Some(BatchOptions {
        settings,
        agent: identity.agent,
        data_dir: config.data_dir.clone(),
        jobs_dir: config.jobs_dir(),
        program: config.shim_program.clone().map_or_else(ShimProgram::own, Ok)?,
        meters: Arc::clone(meters),
        wait: wait.clone(),
        failed: failed.clone(),
    }))
}

/// Fetches that a process before this one has carried to their end, and may not have put on record.
fn arrivals(store: &SiteStore) -> Result<Vec<Arrival>, StoreError> {
    let noted = storage_sync_engine::transfer::arrivals(store)?;
    let arrival = |noted: NotedArrival| Arrival {
        object: noted.object,
        intent: noted.intent,
        wire_bytes: noted.wire_bytes,
        direct: direct_share(noted.direct),
        at: Timestamp::ZERO + noted.since_epoch,
    };
    Ok(noted.into_iter().map(arrival).collect())
}

/// The number of this start of the machine.
fn boot_number() -> anyhow::Result<u128> {
    let id = boot_id().context("the system does not say which start of the machine this is")?;
    let id: uuid::Uuid = id.parse().with_context(|| format!("{id:?} is no number of a start of the machine"))?;
    Ok(id.as_u128())
}

/// Finds out what the machine has and allows, as far as the configuration leaves it to that.
fn look_around(config: &mut Config) -> anyhow::Result<local::Confining> {
    let isolation = confining(config)?;
    // Those of a cluster are not this machine's.
    if config.gpus.is_none() && config.jobs_max().is_none() {
        config.gpus = Some(found_gpus());
    }
    config.closed = config.closed.take().or_else(|| isolation.refuses_all()).or_else(|| accounts::refuses_all(config));
    Ok(isolation)
}

/// How executions are kept apart here. Without the strictest profile, work that asks for it goes to other sites.
fn confining(config: &Config) -> anyhow::Result<local::Confining> {
    if config.jobs_max().is_some() {
        return Ok(local::Confining::of_jobs(config.isolation.clone()));
    }
    let program = config.shim_program.clone().map_or_else(ShimProgram::own, Ok)?;
    let confining = local::Confining::try_out(config.isolation.clone(), &program);
    if let Err(why) = &confining.strict {
        tracing::warn!(why, "steps with `isolation: strict` cannot run here");
    }
    Ok(confining)
}

/// The Python of the site, if it has one. Without it work for Python goes to other sites.
fn find_python(config: &Config) -> Option<local::Interpreter> {
    let program = config.python.program();
    match local::Interpreter::find(&config.python, &config.data_dir) {
        Ok(interpreter) => Some(interpreter),
        Err(error) => {
            let error = format!("{:#}", anyhow::Error::new(error));
            tracing::warn!(program = %program.display(), error, "there is no Python here that actions can run in");
            None
        }
    }
}

/// What starts containers at the site, if anything does. Without it work for containers goes to other sites.
fn find_engine(config: &Config) -> Option<local::ContainerEngine> {
    if config.jobs_max().is_some() {
        // Nodes of a cluster have their own images, and what is here says nothing of what is there.
        return None;
    }
    match local::ContainerEngine::find(&config.container, &config.data_dir, &config.slots_dir()) {
        Ok(found) => {
            if let Some(engine) = &found {
                tracing::info!(program = %engine.program().display(), "containers can run here");
            }
            found
        }
        Err(error) => {
            let error = format!("{:#}", anyhow::Error::new(error));
            tracing::warn!(error, "no containers can run here");
            None
        }
    }
}

/// What runs components of WebAssembly, if this program was built with it. Without it work of that kind goes to other sites.
fn find_runner(config: &Config) -> anyhow::Result<Option<local::ComponentRunner>> {
    if config.jobs_max().is_some() {
        // What is compiled stands in the agent's own folders, which nodes of a cluster do not see.
        return Ok(None);
    }
    let program = config.shim_program.clone().map_or_else(ShimProgram::own, Ok)?;
    Ok(local::ComponentRunner::find(&program, &config.data_dir)?)
}

fn core_config(
    config: &Config,
    identity: &Identity,
    (executor, isolation): (&Executor, &local::Confining),
    new_journal: u128,
    booted_at: Timestamp,
) -> anyhow::Result<site_agent_core::Config> {
    let found = [
        (PYTHON_RUNTIME, executor.has_python()),
        (CONTAINER_RUNTIME, executor.has_containers()),
        (WASM_RUNTIME, executor.has_components()),
        (IsolationProfile::STRICT_RUNTIME, isolation.strict.is_ok()),
        (NODES_RUNTIME, config.slurm.is_some()),
        (SLURM_RUNTIME, config.slurm.is_some()),
    ];
    let found = found.into_iter().filter_map(|(runtime, is_there)| is_there.then_some(runtime));
    let runtimes = ["command", EXPORT_RUNTIME].into_iter().chain(found);
    Ok(site_agent_core::Config {
        agent: identity.agent,
        new_journal: JournalId::from_bits(new_journal),
        agent_version: env!("CARGO_PKG_VERSION").to_owned(),
        runtimes: runtimes.map(str::to_owned).collect(),
        boot: Boot { id: boot_number()?, at: booted_at },
        capacity: measure::capacity(config),
        outbox_bytes_max: OUTBOX_BYTES_MAX,
        disk_free_bytes_min: DISK_FREE_BYTES_MIN,
        disk_bytes: measure::disk_bytes(config),
        policy: config.policy.clone(),
        pilots: measure::pilots(config),
    })
}

/// Shared, because a channel of the standard library is cloned for each thread that sends on it.
fn teller(inbox: &Inbox) -> local::Tell {
    let inbox = Mutex::new(inbox.clone());
    Arc::new(move |events| inbox.lock().unwrap_or_else(PoisonError::into_inner).tell(events))
}

/// Tells the core what happens to the link.
async fn forward(mut events: mpsc::Receiver<LinkEvent>, inbox: Inbox, meters: Arc<Meters>) {
    let boot_nonce = uuid::Uuid::now_v7().as_u64_pair().1;
    while let Some(event) = events.recv().await {
        inbox.tell(vec![match event {
            LinkEvent::Connected => {
                meters.sessions.inc();
                meters.link_up.set(1);
                Event::Connected { boot_nonce, wall_clock: crate::clock::wall_clock() }
            }
            LinkEvent::Frame(frame) => Event::FrameReceived { frame },
            LinkEvent::Disconnected => {
                meters.link_up.set(0);
                Event::Disconnected
            }
        }]);
    }
}

/// Has the store write down again and again what it has verified.
async fn keep_checkpoints(store: SiteStore, interval: Duration, shutdown: CancellationToken) {
    while shutdown.run_until_cancelled(tokio::time::sleep(interval)).await.is_some() {
        let store = store.clone();
        match tokio::task::spawn_blocking(move || store.checkpoint()).await {
            Ok(Ok(())) => {}
            // It is tried again, and at worst more is hashed after the next start.
            Ok(Err(error)) => tracing::warn!(%error, "what the store has verified cannot be written down"),
            Err(error) => tracing::error!(%error, "the checkpoint of the store has panicked"),
        }
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test that fails here has failed")]

    use super::*;

    #[tokio::test]
    async fn what_was_verified_is_written_down_while_the_agent_runs() {
        let folder = tempfile::tempdir().unwrap();
        let (root, file) = (folder.path().join("store"), folder.path().join("file"));
        let store = SiteStore::open(&root).unwrap();
        let stopping = CancellationToken::new();
        let keeping = keep_checkpoints(store.clone(), Duration::from_millis(1), stopping.clone());
        let written = async {
            std::fs::write(&file, "content").unwrap();
            let object = store.ingest(&file).unwrap().object;
            let is_there = || std::fs::read(root.join("verified")).is_ok_and(|bytes| names(&bytes, object.id.digest()));
            while !is_there() {
                tokio::task::yield_now().await;
            }
            stopping.cancel();
        };
        tokio::time::timeout(Duration::from_secs(30), futures::future::join(keeping, written)).await.unwrap();
    }

    fn names(bytes: &[u8], digest: &[u8; 32]) -> bool {
        bytes.windows(32).any(|window| window == digest)
    }
}
