//! The shell of a control plane, as far as the world needs one.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use atoll_model::id::{AgentId, ObjectId, TransferId};
use atoll_model::time::Timestamp;
use control_plane_core::{
    BucketCopy, Command, Config, ConnectionId, ControlPlane, Encryption, Event, Fact, Rejection, Request, RequestId,
    Response, WrappedKey,
};

use crate::faults::Victim;
use crate::journal::{Pending, Position};
use crate::network::Direction;
use crate::rng::{Rng, mix};
use crate::scenario::Scenario;
use crate::world::{Answer, Ask, CopyName, Occurrence, Process, Rpc, World, copy_name};

/// Of so many deletions that a process left behind one was not sent.
const LEFT_BEHIND_PER_LOST: u64 = 2;

#[derive(Debug, Default)]
pub(crate) struct Server {
    pub(crate) core: Option<ControlPlane>,
    pub(crate) process: Process,
    /// The epoch under which it leads, as far as it knows.
    pub(crate) leads: Option<u64>,
    pub(crate) pending: Pending<Fact, Command>,
    /// How far it has followed the journal.
    pub(crate) followed: Position,
    /// When its lease is over by its own reckoning, if it is not being renewed.
    pub(crate) leads_until: Option<Timestamp>,
    /// The process is held up until then.
    pub(crate) stalled_until: Timestamp,
    /// It cannot reach the journal that it shares with others.
    pub(crate) is_cut_off: bool,
    clock_ahead: Duration,
    timer_at: Option<Timestamp>,
    syncing: bool,
    next_request: u64,
    asked: BTreeMap<RequestId, Asker>,
    /// When the history will have all that it was given.
    keeps_until: Timestamp,
    /// Objects that this process is deleting from the bucket.
    pub(crate) deleting: BTreeSet<ObjectId>,
}

/// Who waits for a reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Asker {
    Client(usize),
    Agent(u64),
    /// Its own shell.
    Shell,
}

impl Server {
    pub(crate) fn new(clock_offset_max: Duration, rng: &mut Rng) -> Self {
        let clock_ahead = Duration::from_micros(rng.below(clock_offset_max.as_micros() as u64 + 1));
        Self { clock_ahead, ..Self::default() }
    }

    /// What of it dies with its process.
    fn forget(&mut self) {
        self.core = None;
        self.process += 1;
        self.leads = None;
        self.leads_until = None;
        self.pending.clear();
        self.timer_at = None;
        self.syncing = false;
        self.asked.clear();
        self.deleting.clear();
    }
}

impl World {
    pub(crate) fn server_time(&self, server: usize) -> Timestamp {
        self.now + self.servers[server].clock_ahead
    }

    pub(crate) fn server_config(&self) -> Config {
        let Scenario { keep_finished, keep_finished_bytes, .. } = self.scenario;
        Config { keep_finished, keep_finished_bytes, ..Config::default() }
    }

    /// A server begins: alone it leads at once, among several it follows first.
    pub(crate) fn start_server(&mut self, server: usize) {
        if self.servers[server].core.is_some() {
            return;
        }
        if self.servers[server].is_cut_off {
            return self.after(Duration::from_secs(5), Occurrence::ServerStart(server));
        }
        let is_alone = self.servers.len() == 1;
        if is_alone {
            self.store.file.open();
        }
        let (snapshot, facts) = self.store.file.read();
        let core = ControlPlane::recover(self.server_config(), snapshot, facts, self.server_time(server));
        core.check();
        let state = &mut self.servers[server];
        state.process += 1;
        state.core = Some(core);
        state.followed = self.store.file.end();
        self.trace(|| format!("server {server} starts ({})", self.servers[server].process));
        if is_alone {
            self.lead(server);
        } else {
            self.follow_on(server);
        }
    }

    pub(crate) fn crash_server(&mut self, server: usize) {
        let delay = self.rng.spread(50_000, 30_000_000);
        self.crash_server_for(server, delay);
    }

    pub(crate) fn crash_server_for(&mut self, server: usize, delay: Duration) {
        if self.servers[server].core.is_none() {
            return;
        }
        self.history.crashes += 1;
        self.history.last_crash = self.elapsed();
        self.trace(|| format!("server {server} crashes"));
        let is_leader = self.servers[server].leads == Some(self.store.epoch);
        let is_alone = self.servers.len() == 1;
        if is_leader && !self.servers[server].is_cut_off {
            let state = &mut self.servers[server];
            let (file, digest) = (&mut self.store.file, &mut self.digest);
            let survivors = state.pending.crash(file, digest, &mut self.rng, is_alone);
            self.became_durable(&survivors);
        }
        self.servers[server].forget();
        self.server_streams_break(server);
        if is_leader {
            self.lease_runs_out(server);
        }
        self.after(delay, Occurrence::ServerStart(server));
    }

    pub(crate) fn server_event(&mut self, server: usize, process: Process, event: Event) {
        if self.servers[server].process != process || self.servers[server].leads.is_none() {
            return;
        }
        let now = self.server_time(server);
        let Some(core) = self.servers[server].core.as_mut() else { return };
        let text = self.scenario.trace.then(|| format!("{event:?}"));
        let step = core.handle(event, now);
        if !step.facts.is_empty() {
            // Without one the state is what it was.
            core.check();
        }
        if let Some(text) = text {
            self.trace(|| format!("server {server} < {text}"));
            for fact in &step.facts {
                self.trace(|| format!("server {server}   fact {fact:?}"));
            }
        }
        if self.servers[server].leads == Some(self.store.epoch) {
            for fact in &step.facts {
                if let Fact::AgentLost { agent, .. } = fact {
                    self.assert_lease_over(*agent);
                }
            }
        }
        self.servers[server].pending.push(step.facts, step.commands, self.now);
        if self.crash_point(Victim::Server(server)) {
            return;
        }
        self.schedule_server_sync(server);
        self.arm_server(server);
    }

    fn schedule_server_sync(&mut self, server: usize) {
        if self.servers[server].syncing || self.servers[server].pending.is_empty() {
            return;
        }
        self.servers[server].syncing = true;
        let process = self.servers[server].process;
        let delay = self.rng.micros(50, 4_000);
        self.after(delay, Occurrence::ServerSync(server, process));
    }

    pub(crate) fn server_sync(&mut self, server: usize, process: Process) {
        if self.servers[server].process != process {
            return;
        }
        self.servers[server].syncing = false;
        if self.servers[server].is_cut_off {
            // It tries for as long as its lease lasts.
            self.servers[server].syncing = true;
            return self.after(Duration::from_millis(200), Occurrence::ServerSync(server, process));
        }
        if self.is_refused(server) {
            return self.step_down(server);
        }
        let state = &mut self.servers[server];
        let synced = state.pending.sync(&mut self.store.file, &mut self.digest);
        self.became_durable(&synced.facts);
        if !synced.facts.is_empty() {
            self.check_server_recovery(server);
        }
        if self.crash_point(Victim::Server(server)) {
            return;
        }
        for (_, command) in synced.commands {
            self.server_performs(server, command);
            if self.crash_point(Victim::Server(server)) {
                return;
            }
        }
    }

    pub(crate) fn server_timer(&mut self, server: usize, process: Process) {
        if self.servers[server].process != process {
            return;
        }
        self.servers[server].timer_at = None;
        let due = self.servers[server].core.as_ref().and_then(ControlPlane::next_timeout);
        if due.is_some_and(|due| due <= self.server_time(server)) {
            self.server_event(server, process, Event::TimeoutElapsed);
        } else {
            self.arm_server(server);
        }
    }

    pub(crate) fn ask_server(&mut self, server: usize, asker: Asker, body: Request) -> RequestId {
        let state = &mut self.servers[server];
        state.next_request += 1;
        let request = RequestId(state.next_request);
        state.asked.insert(request, asker);
        let process = state.process;
        self.server_event(server, process, Event::Request { request, body });
        request
    }

    pub(crate) fn deleted(&mut self, server: usize, process: Process, name: CopyName) {
        let object = name.0;
        // Drawn apart, so that it shifts nothing of the rest.
        let moment = u64::try_from(self.elapsed().as_micros()).unwrap_or(u64::MAX);
        if self.servers[server].process == process {
            self.servers[server].deleting.remove(&object);
        } else if mix(&[self.scenario.seed, moment]).is_multiple_of(LEFT_BEHIND_PER_LOST) {
            return;
        }
        self.bucket.remove(&name);
        self.answer_of_bucket(server, process, Event::BucketObjectDeleted { object });
    }

    /// Some answers are so late that it is asked again.
    fn answer_of_bucket(&mut self, server: usize, process: Process, event: Event) {
        if self.unquiet && self.scenario.partitions > 0 && self.rng.chance(30) {
            let delay = self.rng.micros(1_000_000, 120_000_000);
            self.after(delay, Occurrence::BucketAnswers { server, process, event: Box::new(event) });
        } else {
            self.server_event(server, process, event);
        }
    }

    pub(crate) fn looked(&mut self, server: usize, process: Process, (name, transfer): (CopyName, TransferId)) {
        let (object, present) = (name.0, self.bucket.contains_key(&name));
        self.answer_of_bucket(server, process, Event::BucketObjectSeen { object, transfer, present });
    }

    /// What an agent has is given to another only when it can start nothing of it any more.
    fn assert_lease_over(&self, agent: AgentId) {
        for site in self.sites.iter().filter(|site| site.agent == agent) {
            let until = site.work_until;
            assert!(until <= self.now, "{} is taken for lost, and has a lease until {until:?}", site.name);
        }
    }

    pub(crate) fn arm_server(&mut self, server: usize) {
        let state = &self.servers[server];
        let Some(at) = state.core.as_ref().and_then(ControlPlane::next_timeout) else { return };
        let at = at - state.clock_ahead;
        if state.timer_at.is_none_or(|armed| at < armed) {
            let process = state.process;
            self.servers[server].timer_at = Some(at);
            self.at(at, Occurrence::ServerTimer(server, process));
        }
    }

    fn server_performs(&mut self, server: usize, command: Command) {
        self.trace(|| format!("server {server} > {command:?}"));
        let process = self.servers[server].process;
        match command {
            Command::Reply { request, result } => self.reply(server, request, result),
            Command::Send { connection, frame } => {
                let Some(stream) = self.network.streams.get(&connection.0) else { return };
                if stream.server == Some((server, process)) {
                    // I3: a lease counts from a heartbeat, which may have come after another has taken the lead.
                    let leads = self.servers[server].leads == Some(self.store.epoch);
                    assert!(leads || frame.lease.is_none(), "server {server} grants a lease, and leads no more");
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
            Command::DeleteFromBucket { copy } => {
                let delay = self.rng.spread(500, 2_000_000);
                self.servers[server].deleting.insert(copy.object.id);
                self.after(delay, Occurrence::Deleted { server, process, name: copy_name(&copy) });
            }
            Command::LookInBucket { copy, transfer } => {
                let delay = self.rng.micros(500, 200_000);
                self.after(delay, Occurrence::Looked { server, process, name: copy_name(&copy), transfer });
            }
            Command::KeepRun { run, last } => {
                // One after the other, in their order.
                let at = (self.now + self.rng.spread(500, 2_000_000)).max(self.servers[server].keeps_until);
                self.servers[server].keeps_until = at;
                self.at(at, Occurrence::Kept { server, process, run: Box::new(run), last });
            }
        }
    }

    fn reply(&mut self, server: usize, request: RequestId, result: Result<Response, Rejection>) {
        match self.servers[server].asked.remove(&request) {
            Some(Asker::Client(client)) => self.client_hears(client, (server, request), result),
            Some(Asker::Agent(rpc)) => {
                let Some(site) = self.rpcs.get(&rpc).map(|rpc| rpc.site) else { return };
                if result.is_ok() {
                    self.assert_not_being_deleted(server, rpc);
                }
                if let Ok(Response::Authorised { copy, .. }) = &result {
                    self.make_key(server, copy);
                }
                let result = self.find_in_bucket(server, rpc, result);
                if !self.network.links[site].is_blocked(Direction::ToAgent) {
                    let delay = self.latency(site);
                    let answer = |response| match response {
                        Response::Offered { ask_again: Some(time), .. } => Answer::AskAgain(time),
                        Response::Offered { holders, .. } => {
                            Answer::Holders(holders.into_iter().map(|holder| holder.agent).collect())
                        }
                        Response::Authorised { copy, .. } => Answer::Copy(copy_name(&copy)),
                        Response::Emitted { through, offset, refused } => Answer::Emitted { through, offset, refused },
                        Response::Submitted { .. }
                        | Response::Enrolled { .. }
                        | Response::Certify { .. }
                        | Response::Staged { .. }
                        | Response::ProjectKey { .. }
                        | Response::Done => Answer::Holders(Vec::new()),
                    };
                    let result = result.map(answer).map_err(|rejection| rejection.to_string());
                    self.after(delay, Occurrence::RpcAnswered(rpc, result));
                }
            }
            Some(Asker::Shell) | None => {}
        }
    }

    /// What is read from the bucket has to be there: only a control plane that was restored from a backup believes in what
    /// has gone since.
    fn find_in_bucket(
        &mut self,
        server: usize,
        rpc: u64,
        result: Result<Response, Rejection>,
    ) -> Result<Response, Rejection> {
        let (Ok(Response::Authorised { copy, within: None }), Some(Rpc { site, ask: Ask::Fetch { object, .. }, .. })) =
            (&result, self.rpcs.get(&rpc))
        else {
            return result;
        };
        if self.bucket.contains_key(&copy_name(copy)) || self.bucket_gone_until().is_some() {
            return result;
        }
        let id = object.id;
        assert!(self.history.restored > 0, "{id} is read from the bucket, and somebody has taken it out of there");
        let (agent, message) = (self.sites[*site].agent, "it is not in the bucket".to_owned());
        let fault = Request::BucketFault { agent, object: id, message: message.clone() };
        self.ask_server(server, Asker::Shell, fault);
        Err(Rejection::NotFound(message))
    }

    /// The first who is to encrypt anything by a key makes it.
    fn make_key(&mut self, server: usize, copy: &BucketCopy) {
        if let Some(Encryption { key, wrapped: None }) = &copy.encryption {
            let wrapped = WrappedKey::new(&self.elapsed().as_micros().to_le_bytes());
            let body = Request::KeepProjectKey { key: key.clone(), wrapped, instead_of: None };
            self.ask_server(server, Asker::Shell, body);
        }
    }

    /// What is recovered from facts is what the live core has; now and then from a checkpoint.
    fn check_server_recovery(&mut self, server: usize) {
        let look = self.rng.below(64);
        let state = &self.servers[server];
        let Some(core) = state.core.as_ref().filter(|_| look < 2 && state.pending.is_empty()) else { return };
        let (snapshot, facts) = self.store.file.read();
        let recovered = ControlPlane::recover(self.server_config(), snapshot, facts, self.server_time(server));
        let live = core.snapshot();
        assert!(recovered.snapshot() == live, "what is recovered is not what was");
        if look == 0 {
            self.store.file.compact(&live);
        }
    }
}
