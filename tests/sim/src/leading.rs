//! Who leads: servers that share a journal, of which one at a time may write, under a lease.
//!
//! The journal refuses the append of whoever was superseded. A leader that is held up, or cut off from the journal, goes on
//! for as long as it believes in its lease, and after a pause for a moment longer.

use std::time::Duration;

use atoll_model::time::Timestamp;
use control_plane_core::{ControlPlane, Fact, FinishedRun, Snapshot};

use crate::journal::File;
use crate::restoring::Backup;
use crate::server::Server;
use crate::world::{Occurrence, Process, World};

/// How long a leader is believed that has stopped to renew its lease.
const LEASE: Duration = Duration::from_secs(3);
/// How much earlier the lease is over for its holder.
const MARGIN: Duration = Duration::from_millis(500);
/// The longest that a leader which was held up takes to ask whether it leads still.
const NOTICES_WITHIN_MICROS: u64 = 600_000;

/// The journal that all servers share, and which of them may write to it.
#[derive(Debug, Default)]
pub(crate) struct Store {
    pub(crate) file: File<Snapshot, Fact>,
    /// Only what is written under this epoch is taken.
    pub(crate) epoch: u64,
    /// When another may lead, if the lease is not being renewed.
    free_from: Option<Timestamp>,
    pub(crate) backup: Option<Backup>,
}

impl World {
    /// The server that leads, whatever others may think.
    pub(crate) fn leader(&self) -> Option<&Server> {
        self.servers.iter().find(|server| server.leads == Some(self.store.epoch))
    }

    pub(crate) fn leading_core(&self) -> Option<&ControlPlane> {
        self.leader().and_then(|server| server.core.as_ref())
    }

    pub(crate) fn leading_index(&self) -> Option<usize> {
        self.servers.iter().position(|server| server.leads == Some(self.store.epoch))
    }

    /// A server to which somebody comes: any that believes that it leads.
    pub(crate) fn some_leader(&mut self) -> Option<usize> {
        let believing: Vec<usize> = (0..self.servers.len())
            .filter(|server| self.servers[*server].core.is_some() && self.servers[*server].leads.is_some())
            .collect();
        if believing.is_empty() { None } else { Some(*self.rng.pick(&believing)) }
    }

    /// Takes the lead under a new epoch.
    pub(crate) fn lead(&mut self, server: usize) {
        self.store.epoch += 1;
        self.store.free_from = None;
        if self.servers.len() > 1 {
            self.take_in(server);
            let (config, now) = (self.server_config(), self.server_time(server));
            let state = &mut self.servers[server];
            let core = state.core.take().expect("it is up").take_over(config.clone(), now);
            let (snapshot, facts) = self.store.file.read();
            let recovered = ControlPlane::recover(config, snapshot, facts, now);
            assert!(recovered.snapshot() == core.snapshot(), "what was followed is not what was");
            core.check();
            state.core = Some(core);
        }
        let state = &mut self.servers[server];
        state.leads = Some(self.store.epoch);
        state.leads_until = None;
        self.trace(|| format!("server {server} leads, epoch {}", self.store.epoch));
        for run in self.history.acknowledged.clone() {
            assert!(self.is_known(run), "{run} was acknowledged, and is lost");
        }
        self.arm_server(server);
    }

    /// Looks now and then for what is new.
    pub(crate) fn follow_on(&mut self, server: usize) {
        let process = self.servers[server].process;
        let delay = self.rng.spread(50_000, 60_000_000);
        self.after(delay, Occurrence::Follow(server, process));
        if self.store.epoch == 0 {
            self.after(Duration::ZERO, Occurrence::TakeOver(server, process));
        } else if let Some(at) = self.store.free_from {
            self.at(at, Occurrence::TakeOver(server, process));
        }
    }

    pub(crate) fn follows(&mut self, server: usize, process: Process) {
        let state = &self.servers[server];
        if state.process != process || state.leads.is_some() {
            return;
        }
        if !state.is_cut_off {
            self.take_in(server);
        }
        self.follow_on(server);
    }

    /// Takes in all that is durable.
    fn take_in(&mut self, server: usize) {
        let (config, now) = (self.server_config(), self.server_time(server));
        let state = &mut self.servers[server];
        let core = state.core.as_mut().expect("it is up");
        match self.store.file.read_behind(state.followed) {
            Some(facts) => core.follow(facts),
            None => {
                let (snapshot, facts) = self.store.file.read();
                *core = ControlPlane::recover(config, snapshot, facts, now);
            }
        }
        state.followed = self.store.file.end();
    }

    /// Whoever follows may lead if nobody's lease is valid any more.
    pub(crate) fn take_over(&mut self, server: usize, process: Process) {
        let state = &self.servers[server];
        if state.process != process || state.core.is_none() || state.leads.is_some() || state.is_cut_off {
            return;
        }
        let is_free = self.store.epoch == 0 || self.store.free_from.is_some_and(|at| at <= self.now);
        if is_free {
            self.lead(server);
        }
    }

    /// The leader does not renew its lease any more: the others wait for its end.
    pub(crate) fn lease_runs_out(&mut self, server: usize) {
        if self.store.free_from.is_some() || self.servers.len() == 1 {
            return;
        }
        let left = LEASE - self.rng.micros(0, 500_000);
        let free_from = self.now + left;
        self.store.free_from = Some(free_from);
        self.servers[server].leads_until = Some(free_from - MARGIN);
        for other in 0..self.servers.len() {
            let process = self.servers[other].process;
            let at = free_from + self.rng.micros(1, 100_000);
            self.at(at, Occurrence::TakeOver(other, process));
        }
    }

    /// The leader asks for its lease again: that succeeds while no other has asked.
    fn renew(&mut self, server: usize) {
        if self.servers[server].leads == Some(self.store.epoch) {
            self.store.free_from = None;
            self.servers[server].leads_until = None;
        }
    }

    /// Whether what it has decided is not to be: the journal refuses the append of whoever was superseded, and what needs no
    /// append it does not do itself once its lease may be over.
    pub(crate) fn is_refused(&self, server: usize) -> bool {
        let state = &self.servers[server];
        if state.pending.has_facts() {
            return state.leads != Some(self.store.epoch);
        }
        state.leads_until.is_some_and(|until| until <= self.now)
    }

    /// A server that leads no more ends its process, and begins anew as one that follows.
    pub(crate) fn step_down(&mut self, server: usize) {
        self.history.depositions += 1;
        self.trace(|| format!("server {server} leads no more"));
        let delay = self.rng.spread(100_000, 5_000_000);
        self.crash_server_for(server, delay);
    }

    /// The process is held up: nothing of it happens for a while, and it does not know.
    pub(crate) fn stall_server(&mut self, server: usize, lasts: Duration) {
        let state = &mut self.servers[server];
        let (process, leads) = (state.process, state.leads == Some(self.store.epoch));
        if state.core.is_none() || state.stalled_until > self.now {
            return;
        }
        state.stalled_until = self.now + lasts;
        self.trace(|| format!("server {server} is held up for {lasts:?}"));
        if leads {
            self.lease_runs_out(server);
        }
        let notices = lasts + self.rng.micros(0, NOTICES_WITHIN_MICROS);
        self.after(notices, Occurrence::LeaseLook(server, process));
    }

    /// It cannot reach the journal for a while.
    pub(crate) fn cut_off_server(&mut self, server: usize, lasts: Duration) {
        if self.servers.len() == 1 || self.servers[server].is_cut_off {
            return;
        }
        self.servers[server].is_cut_off = true;
        self.trace(|| format!("server {server} cannot reach the journal for {lasts:?}"));
        if self.servers[server].leads == Some(self.store.epoch) {
            self.lease_runs_out(server);
            let process = self.servers[server].process;
            if let Some(until) = self.servers[server].leads_until {
                self.at(until, Occurrence::LeaseLook(server, process));
            }
        }
        self.after(lasts, Occurrence::Reached(server));
    }

    /// It can reach the journal again.
    pub(crate) fn reaches_store(&mut self, server: usize) {
        self.servers[server].is_cut_off = false;
        self.renew(server);
    }

    /// A leader asks whether it is one.
    pub(crate) fn lease_look(&mut self, server: usize, process: Process) {
        let state = &self.servers[server];
        if state.process != process || state.core.is_none() || state.leads.is_none() {
            return;
        }
        let over = state.leads_until.is_some_and(|until| until <= self.now);
        if state.is_cut_off && over || state.leads != Some(self.store.epoch) {
            return self.step_down(server);
        }
        if !state.is_cut_off {
            self.renew(server);
        }
    }

    /// The history holds a run, unless whoever wrote it is gone.
    pub(crate) fn kept(&mut self, server: usize, process: Process, run: FinishedRun, last: bool) {
        let state = &self.servers[server];
        if state.process != process || state.leads != Some(self.store.epoch) {
            return;
        }
        let id = run.id();
        self.trace(|| format!("the history holds {id}"));
        if last
            && let Some(core) = state.core.as_ref()
            && let (Some(live), kept) = (core.run(id), run.view())
        {
            assert_eq!((live.state, &live.outputs), (kept.state, &kept.outputs), "{id} as it is kept");
        }
        self.kept_runs.insert(id, run);
        if last {
            self.server_event(server, process, control_plane_core::Event::RunKept { run: id });
        }
    }

    /// Whether anybody can still be told of a run.
    pub(crate) fn is_known(&self, run: atoll_model::id::RunId) -> bool {
        self.kept_runs.contains_key(&run) || self.leading_core().is_some_and(|core| core.run(run).is_some())
    }
}
