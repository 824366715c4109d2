//! The process of an agent: its driver, its journal, its link.

use std::collections::VecDeque;
use std::time::Duration;

use atoll_model::id::{AgentId, JournalId, SiteName};
use atoll_model::resources::Capacity;
use atoll_model::session::{ControlFrame, EXPORT_RUNTIME, Heartbeat};
use atoll_model::time::Timestamp;
use site_agent_core::{Agent, Boot, Command, Config, Event, Fact, Snapshot};

use crate::faults::Victim;
use crate::journal::{File, Pending};
use crate::machine::Machine;
use crate::network::{Direction, Stream};
use crate::rng::Rng;
use crate::scenario::Scenario;
use crate::world::{Ask, Occurrence, Process, World};

#[derive(Debug)]
pub(crate) struct Site {
    pub(crate) name: SiteName,
    pub(crate) agent: AgentId,
    pub(crate) core: Option<Agent>,
    pub(crate) process: Process,
    pub(crate) file: File<Snapshot, Fact>,
    pub(crate) pending: Pending<Fact, Command>,
    journals: u64,
    pub(crate) stream: Option<u64>,
    failures: u32,
    /// Why the agent does not connect any more.
    pub(crate) gave_up: Option<String>,
    pub(crate) enrolled: bool,
    pub(crate) standing: Standing,
    timer_at: Option<Timestamp>,
    syncing: bool,
    pub(crate) machine: Machine,
    /// When all that was granted to it has run out: to start anything, and to start what waits for what is here.
    pub(crate) session_until: Timestamp,
    pub(crate) work_until: Timestamp,
    /// The agent is held up until then.
    pub(crate) stalled_until: Timestamp,
    /// What streams that are over still held, or have brought once, with their numbers.
    pub(crate) late_frames: VecDeque<(u64, ControlFrame)>,
    /// By how much the wall clock was set ahead since the agent started.
    pub(crate) wall_ahead: Duration,
    /// The machine will not come back.
    pub(crate) is_dead: bool,
    clock_ahead: Duration,
    clock_behind: Duration,
    capacity: Capacity,
}

/// Whether a site is one of the control plane's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Standing {
    Trusted,
    /// Somebody is about to revoke it, or has.
    Revoked,
    /// Revoked, and another has joined under its name.
    Replaced,
}

impl Site {
    pub(crate) fn new(index: usize, rng: &mut Rng, scenario: &Scenario) -> Self {
        let (clock_ahead, clock_behind) = clock(rng, scenario);
        let identity = if scenario.cloned && index + 1 == scenario.sites { 0 } else { index };
        Self {
            name: format!("s{identity}").parse().expect("a name of a site"),
            agent: AgentId::from_bits(1_000 + identity as u128),
            core: None,
            process: 0,
            file: File::default(),
            pending: Pending::default(),
            journals: 0,
            stream: None,
            failures: 0,
            gave_up: None,
            enrolled: false,
            standing: Standing::Trusted,
            timer_at: None,
            syncing: false,
            machine: Machine::default(),
            session_until: Timestamp::ZERO,
            work_until: Timestamp::ZERO,
            stalled_until: Timestamp::ZERO,
            late_frames: VecDeque::new(),
            wall_ahead: Duration::ZERO,
            is_dead: false,
            clock_ahead,
            clock_behind,
            capacity: Capacity {
                cpu_millis: rng.between(2, 4) as u32 * 1_000,
                memory_bytes: 8 << 30,
                disk_free_bytes: 1 << 40,
                ..Capacity::default()
            },
        }
    }
}

/// By how much a clock is ahead, or behind.
fn clock(rng: &mut Rng, scenario: &Scenario) -> (Duration, Duration) {
    let skew = Duration::from_micros(rng.below(scenario.clock_offset_max.as_micros() as u64 + 1));
    if rng.chance(500) { (skew, Duration::ZERO) } else { (Duration::ZERO, skew) }
}

impl World {
    /// The time as the site's clock has it.
    pub(crate) fn site_time(&self, site: usize) -> Timestamp {
        self.now + self.sites[site].clock_ahead - self.sites[site].clock_behind
    }

    pub(crate) fn world_time(&self, site: usize, at: Timestamp) -> Timestamp {
        at + self.sites[site].clock_behind - self.sites[site].clock_ahead
    }

    fn agent_config(&self, site: usize) -> Config {
        let ahead = self.site_time(site).saturating_since(self.now);
        let behind = self.now.saturating_since(self.site_time(site));
        let site = &self.sites[site];
        let booted_at = site.machine.booted_at + ahead - behind;
        Config {
            agent: site.agent,
            new_journal: JournalId::from_bits(site.agent.bits() << 32 | u128::from(site.journals)),
            agent_version: "0.1.0".to_owned(),
            runtimes: ["command", EXPORT_RUNTIME].map(str::to_owned).to_vec(),
            boot: Boot { id: u128::from(site.machine.boot), at: booted_at },
            capacity: site.capacity.clone(),
            outbox_bytes_max: 1 << 30,
            disk_free_bytes_min: 1 << 30,
            disk_bytes: 1 << 40,
            policy: Default::default(),
            pilots: None,
        }
    }

    pub(crate) fn start_site(&mut self, site: usize) {
        if self.sites[site].core.is_some() || !self.sites[site].enrolled || self.sites[site].is_dead {
            return;
        }
        if self.unquiet && self.sites[site].process > 0 && self.rng.chance(self.scenario.journals_lost) {
            self.trace(|| format!("{} loses its journal", self.sites[site].name));
            self.history.journals_lost += 1;
            self.sites[site].file.lose();
            self.sites[site].journals += 1;
        }
        if self.unquiet && self.scenario.clocks_jump {
            // A process takes the wall clock as it finds it, and goes on with the time since boot.
            let (ahead, behind) = clock(&mut self.rng, &self.scenario);
            (self.sites[site].clock_ahead, self.sites[site].clock_behind) = (ahead, behind);
        }
        self.sites[site].wall_ahead = Duration::ZERO;
        self.sites[site].file.open();
        let config = self.agent_config(site);
        let (snapshot, facts) = self.sites[site].file.read();
        let found = self.sites[site].machine.found();
        let now = self.site_time(site);
        let (core, step) = Agent::recover(config, snapshot, facts, found, now);
        core.check();
        let state = &mut self.sites[site];
        state.process += 1;
        state.core = Some(core);
        state.failures = 0;
        state.pending.push(step.facts, step.commands, self.now);
        let process = state.process;
        self.trace(|| format!("{} starts ({process})", self.sites[site].name));
        self.schedule_sync(site);
        self.arm_site(site);
        self.after(Duration::from_millis(1), Occurrence::Connect(site, process));
        self.emit_again(site);
    }

    /// The agent's process is killed; what runs goes on.
    pub(crate) fn crash_site(&mut self, site: usize) {
        if self.sites[site].core.take().is_none() {
            return;
        }
        self.history.crashes += 1;
        self.history.last_crash = self.elapsed();
        self.trace(|| format!("{} crashes", self.sites[site].name));
        let state = &mut self.sites[site];
        state.pending.crash(&mut state.file, &mut self.digest, &mut self.rng, true);
        state.pending.clear();
        state.late_frames.clear();
        state.process += 1;
        state.timer_at = None;
        state.syncing = false;
        state.machine.fetching.clear();
        state.machine.relayed_by.clear();
        state.machine.pushing.clear();
        state.machine.watched.clear();
        self.agent_closes(site);
        let delay = self.rng.spread(20_000, 60_000_000);
        self.after(delay, Occurrence::SiteStart(site));
    }

    pub(crate) fn site_event(&mut self, site: usize, process: Process, event: Event) {
        if self.sites[site].process != process {
            return;
        }
        let now = self.site_time(site);
        let text = self.scenario.trace.then(|| format!("{event:?}"));
        let Some(core) = self.sites[site].core.as_mut() else { return };
        let step = core.handle(event, now);
        core.check();
        if let Some(text) = text {
            let name = &self.sites[site].name;
            self.trace(|| format!("{name} < {text}"));
            for fact in &step.facts {
                self.trace(|| format!("{name}   fact {fact:?}"));
            }
        }
        self.sites[site].pending.push(step.facts, step.commands, self.now);
        if self.crash_point(Victim::Site(site)) {
            return;
        }
        self.schedule_sync(site);
        self.arm_site(site);
    }

    /// Hands an event to whichever process of the agent there is.
    pub(crate) fn tell_site(&mut self, site: usize, delay: Duration, event: Event) {
        let process = self.sites[site].process;
        self.after(delay, Occurrence::SiteEvent(site, process, Box::new(event)));
    }

    pub(crate) fn site_sync(&mut self, site: usize, process: Process) {
        if self.sites[site].process != process {
            return;
        }
        self.sites[site].syncing = false;
        let state = &mut self.sites[site];
        let synced = state.pending.sync(&mut state.file, &mut self.digest);
        if !synced.facts.is_empty() {
            self.check_site_recovery(site);
        }
        if self.crash_point(Victim::Site(site)) {
            return;
        }
        for (decided_at, command) in synced.commands {
            self.trace(|| format!("{} > {command:?}", self.sites[site].name));
            self.site_performs(site, command, decided_at);
            if self.crash_point(Victim::Site(site)) {
                return;
            }
        }
    }

    pub(crate) fn site_timer(&mut self, site: usize, process: Process) {
        if self.sites[site].process != process {
            return;
        }
        self.sites[site].timer_at = None;
        let due = self.sites[site].core.as_ref().and_then(Agent::next_timeout);
        if due.is_some_and(|due| due <= self.site_time(site)) {
            self.site_event(site, process, Event::TimeoutElapsed);
        } else {
            self.arm_site(site);
        }
    }

    /// The clock of the machine, which somebody may have set since the agent started.
    fn wall_clock(&self, site: usize) -> Timestamp {
        self.site_time(site) + self.sites[site].wall_ahead
    }

    /// Somebody sets the clock of a machine, and the agent measures it.
    pub(crate) fn set_wall_clock(&mut self, site: usize) {
        self.sites[site].wall_ahead = self.rng.spread(1_000_000, 3_600_000_000);
        self.measure(site);
    }

    /// The load that the shell measures, with the disk as it is.
    pub(crate) fn measure(&mut self, site: usize) {
        let disk_free_bytes = match self.scenario.tight {
            _ if self.sites[site].machine.is_full => 1 << 20,
            // So little that it makes room, and enough to go on.
            true => 1 << 36,
            false => 1 << 40,
        };
        let capacity = Capacity { disk_free_bytes, ..self.sites[site].capacity.clone() };
        let store_bytes = self.sites[site].machine.store.len() as u64 * 1_000;
        let wall_clock = self.wall_clock(site);
        let heartbeat = Heartbeat { capacity, wall_clock, store_bytes, ..Heartbeat::default() };
        self.tell_site(site, Duration::ZERO, Event::Measured { heartbeat });
    }

    pub(crate) fn connect(&mut self, site: usize, process: Process) {
        let state = &self.sites[site];
        if state.process != process || state.core.is_none() || state.stream.is_some() || state.gave_up.is_some() {
            return;
        }
        let Some(server) = self.some_leader().filter(|_| self.network.links[site].is_clear()) else {
            return self.reconnect(site);
        };
        self.sites[site].failures = 0;
        self.network.next_stream += 1;
        let number = self.network.next_stream;
        let stream = Stream {
            site,
            agent: Some(process),
            server: Some((server, self.servers[server].process)),
            to_server: Default::default(),
            to_agent: Default::default(),
        };
        self.network.streams.insert(number, stream);
        self.sites[site].stream = Some(number);
        let delay = self.latency(site) * 2;
        // The nonce is drawn once for each process: two that alternate are two agents.
        let boot_nonce = crate::rng::mix(&[self.scenario.seed, site as u64, process]);
        let wall_clock = self.wall_clock(site);
        self.tell_site(site, delay, Event::Connected { boot_nonce, wall_clock });
        if self.scenario.direct.is_some() {
            self.call(site, Ask::Advertise);
        }
    }

    /// Tries again later.
    pub(crate) fn reconnect(&mut self, site: usize) {
        let state = &mut self.sites[site];
        state.failures = (state.failures + 1).min(6);
        let most = 1_000_000 << state.failures;
        let process = state.process;
        let delay = self.rng.micros(most / 2, most);
        self.after(delay, Occurrence::Connect(site, process));
    }

    pub(crate) fn latency(&mut self, site: usize) -> Duration {
        if self.network.links[site].slow { self.rng.micros(500_000, 8_000_000) } else { self.rng.spread(100, 100_000) }
    }

    /// The agent's side of its stream is closed; the other side hears of it if it can.
    pub(crate) fn agent_closes(&mut self, site: usize) {
        let Some(number) = self.sites[site].stream.take() else { return };
        if let Some(stream) = self.network.streams.get_mut(&number) {
            stream.agent = None;
            stream.to_agent.clear();
        }
        let hears = !self.network.links[site].is_blocked(Direction::ToServer);
        let delay = if hears { self.latency(site) * 2 } else { Duration::from_secs(self.rng.between(20, 200)) };
        self.after(delay, Occurrence::NoticeServer(number));
    }

    fn schedule_sync(&mut self, site: usize) {
        if self.sites[site].syncing || self.sites[site].pending.is_empty() {
            return;
        }
        self.sites[site].syncing = true;
        let process = self.sites[site].process;
        let delay = self.rng.micros(50, 4_000);
        self.after(delay, Occurrence::SiteSync(site, process));
    }

    fn arm_site(&mut self, site: usize) {
        let Some(at) = self.sites[site].core.as_ref().and_then(Agent::next_timeout) else { return };
        let at = self.world_time(site, at);
        if self.sites[site].timer_at.is_none_or(|armed| at < armed) {
            self.sites[site].timer_at = Some(at);
            let process = self.sites[site].process;
            self.at(at, Occurrence::SiteTimer(site, process));
        }
    }

    /// What is recovered from facts is what the live core has; now and then from a checkpoint.
    fn check_site_recovery(&mut self, site: usize) {
        let look = self.rng.below(64);
        let state = &self.sites[site];
        let Some(core) = state.core.as_ref().filter(|_| look < 2 && state.pending.is_empty()) else { return };
        let (snapshot, facts) = state.file.read();
        let (config, found, live) = (self.agent_config(site), state.machine.found(), core.snapshot());
        let now = self.site_time(site);
        let (recovered, _) = Agent::recover(config.clone(), snapshot, facts, found.clone(), now);
        let (expected, _) = Agent::recover(config, Some(live.clone()), [], found, now);
        assert!(recovered.snapshot() == expected.snapshot(), "what is recovered is not what was");
        if look == 0 {
            self.sites[site].file.compact(&live);
        }
    }
}
