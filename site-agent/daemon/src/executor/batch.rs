//! Executors by batch systems: an attempt whose inputs are ready becomes a job of the site's cluster, or an element of an
//! array. What speaks to the cluster is a [`BatchSystem`]: Slurm, Kubernetes, or one that a template describes. Everything
//! before and after is as for the site's own processes. The job's slot is in a folder that the cluster's nodes share with the
//! agent, and so is the job's word of its start and end ([`crate::shim::job`]).

mod calls;
mod desk;
pub(crate) mod kubernetes;
mod pilots;
mod queue;
mod slurm;
mod system;
pub(crate) mod template;
mod waits;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use atoll_model::id::AgentId;
use tokio_util::sync::CancellationToken;

use self::calls::{Answer, Call};
use self::desk::Desk;
use self::kubernetes::Kubernetes;
pub(crate) use self::pilots::{Crew, Pilots, PilotsOptions};
use self::queue::Queue;
use self::slurm::Slurm;
use self::system::BatchSystem;
use self::template::Templated;
pub(crate) use self::waits::BatchWait;
use self::waits::Waits;
use crate::clock::wall_clock;
use crate::config::{BatchSettings, Config, KubernetesSettings, ShimProgram, SlurmSettings};
use crate::executor::local::Watch;
use crate::shim::job::evidence::JobsFolder;
use crate::shim::protocol::{Common, Key, Notice, Order};
use crate::telemetry::{Meters, level};

/// How often the words of jobs are looked for while there are any.
const LOOK_INTERVAL: Duration = Duration::from_millis(200);
const IDLE_INTERVAL: Duration = Duration::from_secs(60);

/// Which system, and what the administrator says of it.
#[derive(Debug, Clone)]
pub(crate) enum SystemSettings {
    Slurm(SlurmSettings),
    Template(BatchSettings),
    Kubernetes(Box<KubernetesSettings>),
}

impl SystemSettings {
    /// Nothing where executions are no jobs.
    pub(crate) fn of(config: &Config) -> Option<Self> {
        let of_slurm = config.slurm.clone().map(Self::Slurm);
        let of_template = || config.batch.clone().map(Self::Template);
        let of_kubernetes = || config.kubernetes.clone().map(|settings| Self::Kubernetes(Box::new(settings)));
        of_slurm.or_else(of_template).or_else(of_kubernetes)
    }

    /// What speaks to it, and the program that its jobs begin with.
    fn system(
        self,
        agent: AgentId,
        data_dir: &Path,
        program: ShimProgram,
    ) -> anyhow::Result<(Arc<dyn BatchSystem>, ShimProgram)> {
        Ok(match self {
            Self::Slurm(settings) => (Arc::new(Slurm::new(settings, agent.to_string())), program),
            Self::Template(settings) => (Arc::new(Templated::new(settings)), program),
            Self::Kubernetes(settings) => {
                let cluster = Kubernetes::open(*settings, agent.to_string(), data_dir.to_owned())?;
                (Arc::new(cluster), kubernetes::on_volume(program, data_dir)?)
            }
        })
    }
}

/// What the executor works with.
pub(crate) struct BatchOptions {
    pub settings: SystemSettings,
    pub agent: AgentId,
    pub data_dir: PathBuf,
    pub jobs_dir: PathBuf,
    pub program: ShimProgram,
    pub meters: Arc<Meters>,
    /// Where it says how long jobs wait.
    pub wait: BatchWait,
    pub failed: CancellationToken,
}

/// An attempt whose inputs are ready.
#[derive(Debug)]
pub(crate) struct Handed {
    /// Of its step, for people who look at the cluster's queue.
    pub label: String,
    pub common: Arc<Common>,
    pub order: Order,
}

/// What the thread of the executor hears.
enum Heard {
    Hand(Handed),
    Kill(Key),
    Forget(Key),
    Answer(Answer),
    Quit,
}

/// The way to the executor.
#[derive(Debug)]
pub(crate) struct Jobs {
    heard: Sender<Heard>,
    folder: JobsFolder,
}

/// An attempt that a process before this one had submitted, or meant to.
pub(crate) struct FoundJob {
    pub key: Key,
    /// When it began, if it has.
    pub since: Option<atoll_model::time::Timestamp>,
}

impl Jobs {
    /// Finds what is in the cluster's queue, and looks after it from now on. What happens is told by `tell`.
    ///
    /// # Errors
    /// When the shared folder cannot be read or made.
    pub(crate) fn start(
        options: BatchOptions,
        tell: impl Fn(Vec<Notice>) + Send + 'static,
    ) -> anyhow::Result<(Self, Vec<FoundJob>)> {
        let BatchOptions { settings, agent, data_dir, jobs_dir, program, meters, wait, failed } = options;
        let folder = JobsFolder::new(jobs_dir);
        let (system, program) = settings.system(agent, &data_dir, program)?;
        let desk = Desk::open(Arc::clone(&system), program, data_dir, folder.clone())?;
        let queue = Queue::open(desk.clone(), Instant::now())?;
        let found = queue.unfinished().map(|key| FoundJob { key, since: desk.started(key) }).collect();
        let (heard, to_hear) = channel();
        let (calls, to_call) = channel();
        let (answers, watch) = (heard.clone(), Watch(failed.clone()));
        thread::Builder::new().name("atoll-batch-calls".to_owned()).spawn(move || {
            let _watch = watch;
            calls::run(&system, &to_call, &answers);
        })?;
        let watch = Watch(failed);
        thread::Builder::new().name("atoll-batch".to_owned()).spawn(move || {
            let _watch = watch;
            Clerk { queue, desk, heard: to_hear, calls, meters, waits: Waits::default(), wait }.run(&tell);
        })?;
        Ok((Self { heard, folder }, found))
    }

    pub(crate) fn hand(&self, handed: Handed) {
        self.say(Heard::Hand(handed));
    }

    pub(crate) fn kill(&self, key: Key) {
        self.say(Heard::Kill(key));
    }

    pub(crate) fn forget(&self, key: Key) {
        self.say(Heard::Forget(key));
    }

    /// The folder in which an attempt works, and leaves what it leaves.
    pub(crate) fn slot(&self, key: Key) -> PathBuf {
        self.folder.slot(key)
    }

    fn say(&self, what: Heard) {
        // A thread that has panicked has ended the agent.
        let _ = self.heard.send(what);
    }
}

impl Drop for Jobs {
    fn drop(&mut self) {
        self.say(Heard::Quit);
    }
}

/// The thread that looks after the jobs.
struct Clerk {
    queue: Queue,
    desk: Desk,
    heard: Receiver<Heard>,
    calls: Sender<Call>,
    meters: Arc<Meters>,
    waits: Waits,
    wait: BatchWait,
}

impl Clerk {
    fn run(mut self, tell: &dyn Fn(Vec<Notice>)) {
        loop {
            let now = Instant::now();
            if let Err(error) = self.read_news(now) {
                tracing::error!(%error, "the words of jobs cannot be read");
            }
            if let Some(call) = self.queue.next_call(now) {
                // The thread that calls ends with this one.
                let _ = self.calls.send(call);
            }
            self.show(now);
            let notices = self.queue.take_notices();
            if !notices.is_empty() {
                tell(notices);
            }
            let Some(heard) = self.wait(now) else { return };
            for heard in heard {
                if !self.take(heard, Instant::now()) {
                    return;
                }
            }
        }
    }

    /// What is heard until it is time to look; nothing if nobody is there any more.
    fn wait(&self, now: Instant) -> Option<Vec<Heard>> {
        let interval = if self.queue.unfinished().next().is_some() { LOOK_INTERVAL } else { IDLE_INTERVAL };
        let at = self
            .queue
            .next_look()
            .map_or(now + interval, |at| at.clamp(now + Duration::from_millis(10), now + interval));
        match self.heard.recv_timeout(at.saturating_duration_since(Instant::now())) {
            Ok(first) => Some(std::iter::once(first).chain(self.heard.try_iter()).collect()),
            Err(RecvTimeoutError::Timeout) => Some(Vec::new()),
            Err(RecvTimeoutError::Disconnected) => None,
        }
    }

    fn take(&mut self, heard: Heard, now: Instant) -> bool {
        match heard {
            Heard::Hand(handed) => self.queue.hand(handed, now),
            Heard::Kill(key) => self.queue.kill(key, now),
            Heard::Forget(key) => self.queue.forget(key),
            Heard::Answer(answer) => self.queue.answered(answer, now),
            Heard::Quit => return false,
        }
        true
    }

    fn read_news(&mut self, now: Instant) -> io::Result<()> {
        if self.queue.unfinished().next().is_none() {
            return Ok(());
        }
        let keys: std::collections::BTreeMap<String, Key> =
            self.queue.unfinished().map(|key| (key.folder(), key)).collect();
        let news = self.desk.news()?;
        // The word of the start stands before that of the end.
        for (name, is_end) in &news {
            let Some(key) = keys.get(name).copied() else { continue };
            if !*is_end && !self.queue.is_started(key) {
                if let Some(started) = self.desk.started_news(key)? {
                    self.queue.started(key, started);
                }
            } else if *is_end
                && !self.queue.is_ended(key)
                && let Some(ended) = self.desk.ended_news(key)?
            {
                self.queue.ended(key, ended, now);
            }
        }
        Ok(())
    }

    fn show(&mut self, now: Instant) {
        let (waiting, running) = self.queue.levels();
        self.meters.jobs_waiting.set(level(waiting));
        self.meters.jobs_running.set(level(running));
        for wait in self.queue.waits.drain(..) {
            self.meters.job_wait_seconds.observe(wait.as_secs_f64());
            self.waits.begun(wait, now);
        }
        self.wait.set(self.waits.expected(self.queue.longest_wait(wall_clock()), now));
        self.wait.set_waiting(self.queue.reasons());
    }
}
