//! Pilots: workers that are jobs of the site's batch system, for what would be over sooner than a job begins. As many are
//! submitted as what waits would fill, and as the administrator allows; each leaves when it has had nothing to do for a while.
//! A pilot more or less does no harm, and one that is lost is a worker that is lost.

mod fleet;

use std::path::PathBuf;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use atoll_model::id::AgentId;
use atoll_model::units::format_duration;

use self::fleet::{Fleet, Gone, Plan};
use super::SystemSettings;
use super::desk::{Desk, new_token};
use super::system::{Becomes, NewJob, NotSubmitted, SHIM_BYTES, TIME_MARGIN, job_name};
use crate::clock::wall_clock;
use crate::config::{Config, PilotSettings, ShimProgram};
use crate::shim::job::evidence::{Asked, Batch, JobsFolder, VERSION};
use crate::shim::protocol::Common;

/// Below the agent's data directory: what was submitted, and what it said.
const FOLDER: [&str; 2] = ["workers", "pilots"];
/// Between two listings, however often it changes what is wanted.
const LIST_INTERVAL_MIN: Duration = Duration::from_secs(1);
/// While nothing is wanted, pilots that have joined are looked for so many times more rarely.
const AT_REST: u32 = 6;

/// What pilots are made of.
pub(crate) struct PilotsOptions {
    pub system: SystemSettings,
    pub pilots: PilotSettings,
    pub agent: AgentId,
    pub data_dir: PathBuf,
}

impl PilotsOptions {
    /// Nothing where there may be none.
    pub(crate) fn of(config: &Config, agent: AgentId) -> Option<Self> {
        let (system, pilots) = (SystemSettings::of(config)?, config.pilots()?.clone());
        Some(Self { system, pilots, agent, data_dir: config.data_dir.clone() })
    }
}

/// What the keeper of pilots asks of, and tells, the rest of the agent.
pub(crate) trait Crew: Send {
    /// Whether the worker of this name is connected.
    fn has_joined(&self, name: &str) -> bool;

    /// Whether there are none to be had for the time being.
    fn barred(&self, barred: bool);
}

/// The way to who looks after the pilots.
#[derive(Debug, Clone)]
pub(crate) struct Pilots {
    wanted: Sender<u32>,
}

impl Pilots {
    /// Finds the pilots that were submitted before, and looks after them from now on.
    ///
    /// # Errors
    /// When their folder cannot be read or made, or there is no thread to be had.
    pub(crate) fn start(options: PilotsOptions, crew: impl Crew + 'static) -> anyhow::Result<Self> {
        let PilotsOptions { system, pilots, agent, data_dir } = options;
        let folder = JobsFolder::new(FOLDER.iter().fold(data_dir.clone(), |path, name| path.join(name)));
        std::fs::create_dir_all(folder.path())?;
        let (system, program) = system.system(agent, &data_dir, ShimProgram::own()?)?;
        let desk = Desk::open(system, program, data_dir.clone(), folder)?;
        let fleet = Fleet::open(&desk, pilots.max, Instant::now())?;
        let (wanted, to_hear) = channel();
        let words = Words { program: std::env::current_exe()?, data_dir, pilots };
        let mut keeper = Keeper { desk, words, fleet, crew: Box::new(crew), list_at: Instant::now(), told: false };
        thread::Builder::new().name("atoll-pilots".to_owned()).spawn(move || keeper.run(&to_hear))?;
        Ok(Self { wanted })
    }

    /// So many would be filled by what waits.
    pub(crate) fn want(&self, count: u32) {
        // The thread ends with the agent.
        let _ = self.wanted.send(count);
    }
}

/// What each pilot is called with.
struct Words {
    program: PathBuf,
    data_dir: PathBuf,
    pilots: PilotSettings,
}

impl Words {
    fn of(&self, name: &str) -> Vec<String> {
        let pilots = &self.pilots;
        let (cpus, memory) = (pilots.cpus.to_string(), pilots.offered_memory().to_string());
        let (time, drain) = (format_duration(pilots.worker_time()), format_duration(pilots.drain()));
        let (program, data_dir) = (self.program.display().to_string(), self.data_dir.display().to_string());
        let idle = format_duration(pilots.idle);
        let flags = [
            ("--data-dir", data_dir),
            ("--name", name.to_owned()),
            ("--cpus", cpus),
            ("--memory", memory),
            ("--time-limit", time),
            ("--drain", drain),
            ("--idle", idle),
        ];
        let flags = flags.into_iter().flat_map(|(flag, value)| [flag.to_owned(), value]);
        [program, "worker".to_owned()].into_iter().chain(flags).collect()
    }

    /// What a job is given beside what is asked for stands in what the administrator says of a pilot.
    fn common(&self) -> Common {
        Common {
            cpu_millis: Some(self.pilots.cpus.saturating_mul(1_000)),
            memory_bytes: Some(self.pilots.memory - SHIM_BYTES),
            time: Some(self.pilots.time.saturating_sub(TIME_MARGIN)),
            ..Common::default()
        }
    }
}

/// The thread that looks after the pilots: it calls the batch system itself, and may be held up by it.
struct Keeper {
    desk: Desk,
    words: Words,
    fleet: Fleet,
    crew: Box<dyn Crew>,
    list_at: Instant,
    /// That the system cannot be reached was said.
    told: bool,
}

impl Keeper {
    fn run(&mut self, to_hear: &Receiver<u32>) {
        loop {
            match to_hear.recv_timeout(self.pause()) {
                Ok(count) => {
                    self.fleet.want(to_hear.try_iter().last().unwrap_or(count), Instant::now());
                    self.list_at = self.list_at.min(Instant::now() + LIST_INTERVAL_MIN);
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            self.look(Instant::now());
        }
    }

    fn pause(&self) -> Duration {
        self.list_at.saturating_duration_since(Instant::now()).max(Duration::from_millis(10))
    }

    /// Finds out what has become of the pilots, submits what lacks, and takes back what nobody wants any more.
    fn look(&mut self, now: Instant) {
        if self.fleet.lift_bar(now) {
            self.crew.barred(false);
        }
        if now >= self.list_at {
            let poll = self.desk.limits.poll;
            self.list_at = now + if self.fleet.is_at_rest() { poll * AT_REST } else { poll };
            if !self.fleet.is_empty() && !self.list(now) {
                return;
            }
        }
        self.fleet.note_joined(|name| self.crew.has_joined(name));
        match self.fleet.plan(now, self.desk.limits.poll) {
            Plan::Rest => {}
            Plan::TakeBack(tokens) => tokens.iter().for_each(|token| self.cancel(token)),
            Plan::Submit(count) => {
                for _ in 0..count {
                    if !self.submit(now) {
                        break;
                    }
                }
            }
        }
    }

    /// Whether the system has answered.
    fn list(&mut self, now: Instant) -> bool {
        let rows = match self.desk.system.list(&self.fleet.sought()) {
            Ok(rows) => rows,
            Err(why) => {
                self.unreachable(&why);
                return false;
            }
        };
        self.told = false;
        self.fleet.note_joined(|name| self.crew.has_joined(name));
        let news = self.fleet.listed(&rows, now);
        for (token, batch) in &news.found {
            self.desk.write_batch(token, batch);
        }
        for useless in &news.useless {
            self.cancel(&useless.token);
            self.note_failure(useless, now);
        }
        for gone in &news.gone {
            self.note_failure(gone, now);
            self.forget(&gone.token);
        }
        true
    }

    fn note_failure(&mut self, Gone { token, failure }: &Gone, now: Instant) {
        let Some(why) = failure else { return };
        let said = self.desk.said(token, 0).map(|said| format!("; it said: {said}"));
        self.bar(&format!("{why}{}", said.unwrap_or_default()), now);
    }

    fn forget(&self, token: &str) {
        self.desk.remove_batch(token);
        self.desk.remove_said(token, 0);
    }

    /// Short work does not wait for what does not come: for a while its executions are jobs.
    fn bar(&mut self, why: &str, now: Instant) {
        let system = &self.desk.system;
        let (title, place) = (system.title(), system.place());
        tracing::error!(
            why,
            "{title} gives no pilots in {place}: short executions are jobs of their own for some minutes"
        );
        if self.fleet.bar(now) {
            self.crew.barred(true);
        }
    }

    fn unreachable(&mut self, why: &str) {
        if !std::mem::replace(&mut self.told, true) {
            let title = self.desk.system.title();
            tracing::warn!(why, "{title} cannot be reached: pilots that are there go on, and no others come");
        }
    }

    fn cancel(&mut self, token: &str) {
        let Some(batch) = self.fleet.cancelling(token) else { return };
        let Some(number) = &batch.job else { return };
        let number = self.desk.system.number(number, 0, 1);
        tracing::info!(job = number, "a pilot is taken back");
        if let Err(why) = self.desk.system.cancel(&[number], &batch.name) {
            // It is listed and tried again, or leaves by itself.
            self.unreachable(&why);
        }
    }

    /// Whether another may follow.
    fn submit(&mut self, now: Instant) -> bool {
        let token = new_token();
        let batch = Batch {
            version: VERSION,
            name: job_name("pilot", &token),
            keys: Vec::new(),
            at: wall_clock(),
            job: None,
            asked: Asked::default(),
            of_job: self.desk.system.of_job(),
        };
        if let Err(error) = self.desk.try_write_batch(&token, &batch) {
            self.bar(&format!("what is to be submitted cannot be noted: {error}"), now);
            return false;
        }
        let words = self.words.of(&fleet::worker_name(&token));
        let (becomes, common) = (Becomes::Worker(&words), self.words.common());
        let job = NewJob { becomes, folder: &self.desk.folder, token: &token, batch: &batch, common: &common };
        match self.desk.system.submit(&self.desk.system.request(&job)) {
            Ok(number) => {
                tracing::info!(job = number, "a pilot is submitted");
                let batch = Batch { job: Some(number), ..batch };
                self.desk.write_batch(&token, &batch);
                self.fleet.add(token, batch);
                true
            }
            Err(NotSubmitted::Later(why)) => {
                self.forget(&token);
                self.unreachable(&why);
                false
            }
            // It is looked for by its name.
            Err(NotSubmitted::Unclear(why)) => {
                self.fleet.add(token, batch);
                self.unreachable(&why);
                false
            }
            Err(NotSubmitted::Refused(why)) => {
                self.forget(&token);
                self.bar(&why, now);
                false
            }
        }
    }
}

#[cfg(test)]
mod tests;
