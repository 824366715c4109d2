//! The shell of the control plane, as far as the world needs one.

use std::collections::BTreeMap;
use std::time::Duration;

use atoll_model::id::{AgentId, ObjectId, TransferId};
use atoll_model::time::Timestamp;
use control_plane_core::{
    Command, Config, ConnectionId, ControlPlane, Event, Fact, Rejection, Request, RequestId, Response, Snapshot,
};

use crate::journal::Journal;
use crate::network::Direction;
use crate::scenario::Who;
use crate::world::{Occurrence, Process, World};

#[derive(Debug, Default)]
pub(crate) struct Server {
    pub(crate) core: Option<ControlPlane>,
    pub(crate) process: Process,
    pub(crate) journal: Journal<Snapshot, Fact, Command>,
    timer_at: Option<Timestamp>,
    syncing: bool,
    next_request: u64,
    asked: BTreeMap<RequestId, Asker>,
}

/// Who waits for a reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Asker {
    Client(usize),
    Agent(u64),
}

impl World {
    pub(crate) fn start_server(&mut self) {
        if self.server.core.is_some() {
            return;
        }
        let (snapshot, facts) = self.server.journal.read();
        let core = ControlPlane::recover(Config::default(), snapshot, facts, self.now);
        core.check();
        self.server.process += 1;
        self.server.core = Some(core);
        self.trace(|| format!("server starts ({})", self.server.process));
        for run in &self.history.acknowledged {
            let known = self.server.core.as_ref().and_then(|core| core.run(*run));
            assert!(known.is_some(), "{run} was acknowledged, and is lost");
        }
        self.arm_server();
    }

    pub(crate) fn crash_server(&mut self) {
        let delay = self.rng.spread(50_000, 30_000_000);
        self.crash_server_for(delay);
    }

    pub(crate) fn crash_server_for(&mut self, delay: Duration) {
        if self.server.core.take().is_none() {
            return;
        }
        self.history.crashes += 1;
        self.history.last_crash = self.elapsed();
        self.trace(|| "server crashes".to_owned());
        self.server.journal.crash();
        self.server.process += 1;
        self.server.timer_at = None;
        self.server.syncing = false;
        self.server.asked.clear();
        self.server_streams_break();
        self.after(delay, Occurrence::ServerStart);
    }

    pub(crate) fn server_event(&mut self, process: Process, event: Event) {
        if self.server.process != process {
            return;
        }
        let now = self.now;
        let Some(core) = self.server.core.as_mut() else { return };
        let text = self.scenario.trace.then(|| format!("{event:?}"));
        let step = core.handle(event, now);
        core.check();
        if let Some(text) = text {
            self.trace(|| format!("server < {text}"));
            for fact in &step.facts {
                self.trace(|| format!("server   fact {fact:?}"));
            }
        }
        for fact in &step.facts {
            self.history.decided(fact);
            if let Fact::AgentLost { agent, .. } = fact {
                self.assert_lease_over(*agent);
            }
        }
        self.server.journal.append(&step.facts, step.commands);
        if self.crash_point(Who::Server, None) {
            return;
        }
        if !self.server.syncing {
            self.server.syncing = true;
            let delay = self.rng.micros(50, 4_000);
            self.after(delay, Occurrence::ServerSync(process));
        }
        self.arm_server();
    }

    pub(crate) fn server_sync(&mut self, process: Process) {
        if self.server.process != process {
            return;
        }
        self.server.syncing = false;
        let commands = self.server.journal.sync(&mut self.digest);
        self.check_server_recovery();
        if self.crash_point(Who::Server, None) {
            return;
        }
        for command in commands {
            self.server_performs(command);
            if self.crash_point(Who::Server, None) {
                return;
            }
        }
    }

    pub(crate) fn server_timer(&mut self, process: Process) {
        if self.server.process != process {
            return;
        }
        self.server.timer_at = None;
        let due = self.server.core.as_ref().and_then(ControlPlane::next_timeout);
        if due.is_some_and(|due| due <= self.now) {
            self.server_event(process, Event::TimeoutElapsed);
        } else {
            self.arm_server();
        }
    }

    pub(crate) fn ask_server(&mut self, asker: Asker, body: Request) -> RequestId {
        self.server.next_request += 1;
        let request = RequestId(self.server.next_request);
        self.server.asked.insert(request, asker);
        self.server_event(self.server.process, Event::Request { request, body });
        request
    }

    pub(crate) fn deleted(&mut self, process: Process, object: ObjectId) {
        self.bucket.remove(&object);
        self.server_event(process, Event::BucketObjectDeleted { object });
    }

    pub(crate) fn looked(&mut self, process: Process, object: ObjectId, transfer: TransferId) {
        let present = self.bucket.contains_key(&object);
        self.server_event(process, Event::BucketObjectSeen { object, transfer, present });
    }

    /// What an agent has is given to another only when it can start nothing of it any more.
    fn assert_lease_over(&self, agent: AgentId) {
        for (index, site) in self.sites.iter().enumerate().filter(|(_, site)| site.agent == agent) {
            let until = self.world_time(index, site.lease_until);
            assert!(until <= self.now, "{} is taken for lost, and has a lease until {until:?}", site.name);
        }
    }

    fn arm_server(&mut self) {
        let Some(at) = self.server.core.as_ref().and_then(ControlPlane::next_timeout) else { return };
        if self.server.timer_at.is_none_or(|armed| at < armed) {
            self.server.timer_at = Some(at);
            self.at(at, Occurrence::ServerTimer(self.server.process));
        }
    }

    fn server_performs(&mut self, command: Command) {
        self.trace(|| format!("server > {command:?}"));
        match command {
            Command::Reply { request, result } => self.reply(request, result),
            Command::Send { connection, frame } => {
                let Some(stream) = self.network.streams.get(&connection.0) else { return };
                if stream.server.is_some() {
                    let site = stream.site;
                    let at = self.now + self.latency(site);
                    self.enqueue_to_agent(connection.0, at, frame);
                }
            }
            Command::Close { connection: ConnectionId(stream) } => {
                if let Some(known) = self.network.streams.get_mut(&stream) {
                    known.server = None;
                    let site = known.site;
                    let delay = self.latency(site) * 2;
                    self.after(delay, Occurrence::NoticeAgent(stream));
                }
            }
            Command::DeleteFromBucket { object } => {
                let delay = self.rng.micros(500, 200_000);
                let process = self.server.process;
                self.after(delay, Occurrence::Deleted { process, object: object.id });
            }
            Command::LookInBucket { object, transfer } => {
                let delay = self.rng.micros(500, 200_000);
                let process = self.server.process;
                self.after(delay, Occurrence::Looked { process, object: object.id, transfer });
            }
            // Runs are kept in memory for longer than a scenario lasts.
            Command::KeepRun { .. } => {}
        }
    }

    fn reply(&mut self, request: RequestId, result: Result<Response, Rejection>) {
        match self.server.asked.remove(&request) {
            Some(Asker::Client(client)) => self.client_hears(client, request, result),
            Some(Asker::Agent(rpc)) => {
                let Some(site) = self.rpcs.get(&rpc).map(|rpc| rpc.site) else { return };
                if !self.network.links[site].is_blocked(Direction::ToAgent) {
                    let delay = self.latency(site);
                    let result = result.map(|_| ()).map_err(|rejection| rejection.to_string());
                    self.after(delay, Occurrence::RpcAnswered(rpc, result));
                }
            }
            None => {}
        }
    }

    /// What is recovered from facts is what the live core has; now and then from a checkpoint.
    fn check_server_recovery(&mut self) {
        let look = self.rng.below(64);
        let Some(core) = self.server.core.as_ref().filter(|_| look < 2 && self.server.journal.is_settled()) else {
            return;
        };
        let (snapshot, facts) = self.server.journal.read();
        let recovered = ControlPlane::recover(Config::default(), snapshot, facts, self.now);
        let live = core.snapshot();
        assert!(recovered.snapshot() == live, "what is recovered is not what was");
        if look == 0 {
            self.server.journal.compact(&live);
        }
    }
}
