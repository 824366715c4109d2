//! The world of one seed: virtual time, what is about to happen, everybody in it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use atoll_model::elements::ElementSet;
use atoll_model::id::{AgentId, Attempt, CommandSeq, ObjectId, RunId, StepIndex, TransferId};
use atoll_model::time::Timestamp;
use atoll_model::value::ObjectRef;
use control_plane_core::{Fact, FinishedRun, KeyId};

use crate::clients::Clients;
use crate::faults::Fault;
use crate::history::History;
use crate::leading::Store;
use crate::machine::Key;
use crate::network::{Direction, Link, Network};
use crate::rng::{Digest, Rng, mix};
use crate::scenario::Scenario;
use crate::server::Server;
use crate::site::Site;
use crate::sources::Emission;

/// When the world begins.
const BEGINNING: Timestamp = Timestamp(1_790_000_000_000_000);
/// Events at one point of time, beyond which somebody goes round in circles.
const STANDSTILL_MAX: u32 = 20_000;

#[derive(Debug)]
pub(crate) struct World {
    pub(crate) scenario: Scenario,
    pub(crate) now: Timestamp,
    pub(crate) rng: Rng,
    agenda: BTreeMap<(Timestamp, u64), Occurrence>,
    next_number: u64,
    pub(crate) servers: Vec<Server>,
    pub(crate) store: Store,
    /// Runs that the history holds.
    pub(crate) kept_runs: BTreeMap<RunId, FinishedRun>,
    pub(crate) sites: Vec<Site>,
    pub(crate) network: Network,
    pub(crate) bucket: BTreeMap<CopyName, BucketCopy>,
    pub(crate) rpcs: BTreeMap<u64, Rpc>,
    pub(crate) next_call: u64,
    pub(crate) clients: Clients,
    pub(crate) history: History,
    pub(crate) digest: Digest,
    /// Whether faults may still happen.
    pub(crate) unquiet: bool,
    /// Points at which somebody could have crashed, so far.
    pub(crate) points: u64,
    pub(crate) events: u64,
    standstill: u32,
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct BucketCopy {
    pub(crate) corrupt: bool,
}

/// Where a copy stands in the bucket: its object, and what the key that encrypts it makes of the name, 0 without one.
pub(crate) type CopyName = (ObjectId, u64);

pub(crate) fn copy_name(copy: &control_plane_core::BucketCopy) -> CopyName {
    let key = copy.encryption.as_ref().map(|encryption| &encryption.key);
    let letters = |key: &KeyId| key.project.bytes().map(u64::from).chain([u64::from(key.number)]).collect::<Vec<_>>();
    (copy.object.id, key.map_or(0, |key| mix(&letters(key)) | 1))
}

/// What a call is answered.
#[derive(Debug)]
pub(crate) enum Answer {
    /// The agents that give what was asked for.
    Holders(Vec<AgentId>),
    /// Somebody else will give it after this time.
    AskAgain(Duration),
    /// Where it may be read or written.
    Copy(CopyName),
    /// Records up to this number have started their runs.
    Emitted { through: u64, offset: Option<Arc<str>>, refused: Option<String> },
}

/// A unary call of an agent.
#[derive(Debug)]
pub(crate) struct Rpc {
    pub(crate) site: usize,
    pub(crate) process: u64,
    pub(crate) ask: Ask,
}

#[derive(Debug, Clone, Copy)]
pub(crate) enum Ask {
    /// `before` is the site's agent from which a part came.
    Fetch {
        object: ObjectRef,
        intent: u64,
        try_number: u64,
        before: Option<AgentId>,
    },
    Advertise,
    Offers {
        object: ObjectRef,
        intent: u64,
        try_number: u64,
    },
    OfferFailed {
        object: ObjectRef,
        intent: u64,
        try_number: u64,
        holder: AgentId,
        before: bool,
        /// Who is asked then.
        next: Option<AgentId>,
    },
    Push {
        transfer: TransferId,
        object: ObjectRef,
        try_number: u64,
    },
    Emit(Emission),
}

/// Where bytes come from.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Source {
    /// After a part came from another site.
    Bucket { name: CopyName, before: Option<AgentId> },
    /// The next is asked if this one does not give it.
    Site { holder: AgentId, next: Option<AgentId> },
}

/// A process, by the number of its start: what was meant for an earlier one is lost.
pub(crate) type Process = u64;

#[derive(Debug)]
pub(crate) enum Occurrence {
    ServerSync(usize, Process),
    ServerTimer(usize, Process),
    ServerStart(usize),
    /// One that stands by looks for what is new.
    Follow(usize, Process),
    /// One that stands by may lead, if nobody does.
    TakeOver(usize, Process),
    /// A leader asks whether it is one.
    LeaseLook(usize, Process),
    /// A server can reach the journal again.
    Reached(usize),
    SiteEvent(usize, Process, Box<site_agent_core::Event>),
    SiteSync(usize, Process),
    SiteTimer(usize, Process),
    SiteStart(usize),
    Connect(usize, Process),
    Arrive(u64, Direction),
    /// One side of a stream finds out that it is broken.
    NoticeServer(u64),
    NoticeAgent(u64),
    ProcessExits {
        site: usize,
        boot: u64,
        key: Key,
    },
    /// It was asked to end.
    ProcessKilled {
        site: usize,
        boot: u64,
        key: Key,
    },
    NullFinishes {
        site: usize,
        process: Process,
        run: RunId,
        step: StepIndex,
        attempt: Attempt,
        elements: ElementSet,
    },
    /// The next of the objects that may go.
    Evicts {
        site: usize,
        process: Process,
        order: CommandSeq,
        objects: Vec<ObjectRef>,
        done: usize,
    },
    Collected {
        site: usize,
        process: Process,
        key: Key,
        outputs: bool,
    },
    RpcArrives(u64),
    RpcAnswered(u64, Result<Answer, String>),
    RpcExpires(u64),
    Downloaded {
        site: usize,
        process: Process,
        object: ObjectRef,
        intent: u64,
        try_number: u64,
        source: Source,
    },
    Uploaded {
        site: usize,
        process: Process,
        transfer: TransferId,
        object: ObjectRef,
        name: CopyName,
        try_number: u64,
    },
    Deleted {
        server: usize,
        process: Process,
        name: CopyName,
    },
    Looked {
        server: usize,
        process: Process,
        name: CopyName,
        transfer: TransferId,
    },
    /// An answer of the bucket, late.
    BucketAnswers {
        server: usize,
        process: Process,
        event: Box<control_plane_core::Event>,
    },
    /// The history has a run.
    Kept {
        server: usize,
        process: Process,
        run: Box<FinishedRun>,
        last: bool,
    },
    Client(usize),
    Fault(Fault),
}

impl World {
    pub(crate) fn new(scenario: Scenario) -> Self {
        let mut rng = Rng::new(scenario.seed);
        let sites = (0..scenario.sites).map(|index| Site::new(index, &mut rng, &scenario)).collect();
        let server_clock_offset = scenario.clock_offset_max / 100;
        let servers = (0..scenario.servers).map(|_| Server::new(server_clock_offset, &mut rng)).collect();
        let mut world = Self {
            now: BEGINNING,
            agenda: BTreeMap::new(),
            next_number: 0,
            servers,
            store: Store::default(),
            kept_runs: BTreeMap::new(),
            sites,
            network: Network::default(),
            bucket: BTreeMap::new(),
            rpcs: BTreeMap::new(),
            next_call: 0,
            clients: Clients::default(),
            history: History::default(),
            digest: Digest::default(),
            unquiet: true,
            points: 0,
            events: 0,
            standstill: 0,
            rng,
            scenario,
        };
        let slow = world.scenario.slow_links;
        world.network.links.resize_with(world.scenario.sites, || Link { slow, ..Link::default() });
        for server in 0..world.scenario.servers {
            world.start_server(server);
        }
        world.enrol_sites();
        world.plan_clients();
        world.plan_sources();
        world.plan_faults();
        world
    }

    /// How much time has passed.
    pub(crate) fn elapsed(&self) -> Duration {
        self.now.saturating_since(BEGINNING)
    }

    pub(crate) fn after(&mut self, delay: Duration, occurrence: Occurrence) {
        self.at(self.now + delay, occurrence);
    }

    pub(crate) fn at(&mut self, time: Timestamp, occurrence: Occurrence) {
        self.next_number += 1;
        self.agenda.insert((time.max(self.now), self.next_number), occurrence);
    }

    /// Lets the next thing happen; nothing if nothing ever will again before `end`.
    pub(crate) fn step(&mut self, end: Timestamp) -> bool {
        let Some((&(time, number), _)) = self.agenda.first_key_value() else { return false };
        if time > end {
            self.now = end;
            return false;
        }
        let occurrence = self.agenda.remove(&(time, number)).expect("it was just seen");
        self.standstill = if time > self.now { 0 } else { self.standstill + 1 };
        assert!(self.standstill < STANDSTILL_MAX, "time stands still at {occurrence:?}");
        self.now = time;
        self.events += 1;
        match self.asleep_until(&occurrence) {
            Some(until) => self.at(until, occurrence),
            None => self.happen(occurrence),
        }
        true
    }

    pub(crate) fn trace(&self, text: impl FnOnce() -> String) {
        if self.scenario.trace {
            println!("{:>13.6} {}", self.elapsed().as_secs_f64(), text());
        }
    }

    /// Until when a process is held up to which this would happen.
    fn asleep_until(&self, occurrence: &Occurrence) -> Option<Timestamp> {
        let until = match occurrence {
            Occurrence::ServerSync(server, _)
            | Occurrence::ServerTimer(server, _)
            | Occurrence::Follow(server, _)
            | Occurrence::TakeOver(server, _)
            | Occurrence::LeaseLook(server, _)
            | Occurrence::BucketAnswers { server, .. }
            | Occurrence::Kept { server, .. } => self.servers[*server].stalled_until,
            // Asked until the bucket answers.
            Occurrence::Deleted { server, .. } | Occurrence::Looked { server, .. } => {
                self.servers[*server].stalled_until.max(self.bucket_gone_until().unwrap_or_default())
            }
            Occurrence::Arrive(stream, Direction::ToServer) | Occurrence::NoticeServer(stream) => {
                let (server, _) = self.network.streams.get(stream)?.server?;
                self.servers[server].stalled_until
            }
            Occurrence::SiteEvent(site, ..)
            | Occurrence::SiteSync(site, _)
            | Occurrence::SiteTimer(site, _)
            | Occurrence::Connect(site, _)
            | Occurrence::NullFinishes { site, .. }
            | Occurrence::Collected { site, .. }
            | Occurrence::Evicts { site, .. }
            | Occurrence::Downloaded { site, .. }
            | Occurrence::Uploaded { site, .. } => self.sites[*site].stalled_until,
            Occurrence::Arrive(stream, Direction::ToAgent) | Occurrence::NoticeAgent(stream) => {
                self.sites[self.network.streams.get(stream)?.site].stalled_until
            }
            Occurrence::RpcAnswered(rpc, _) | Occurrence::RpcExpires(rpc) => {
                self.sites[self.rpcs.get(rpc)?.site].stalled_until
            }
            Occurrence::ServerStart(_)
            | Occurrence::SiteStart(_)
            | Occurrence::Reached(_)
            | Occurrence::ProcessExits { .. }
            | Occurrence::ProcessKilled { .. }
            | Occurrence::RpcArrives(_)
            | Occurrence::Client(_)
            | Occurrence::Fault(_) => return None,
        };
        (until > self.now).then_some(until)
    }

    /// When the bucket is back that answers nobody now.
    pub(crate) fn bucket_gone_until(&self) -> Option<Timestamp> {
        let outages = self.scenario.bucket_outages.iter().map(|outage| (BEGINNING + outage.at, outage.lasts));
        outages.filter(|(at, _)| *at <= self.now).map(|(at, lasts)| at + lasts).filter(|until| *until > self.now).max()
    }

    fn happen(&mut self, occurrence: Occurrence) {
        match occurrence {
            Occurrence::ServerSync(server, process) => self.server_sync(server, process),
            Occurrence::ServerTimer(server, process) => self.server_timer(server, process),
            Occurrence::ServerStart(server) => self.start_server(server),
            Occurrence::Follow(server, process) => self.follows(server, process),
            Occurrence::TakeOver(server, process) => self.take_over(server, process),
            Occurrence::LeaseLook(server, process) => self.lease_look(server, process),
            Occurrence::Reached(server) => self.reaches_store(server),
            Occurrence::SiteEvent(site, process, event) => self.site_event(site, process, *event),
            Occurrence::SiteSync(site, process) => self.site_sync(site, process),
            Occurrence::SiteTimer(site, process) => self.site_timer(site, process),
            Occurrence::SiteStart(site) => self.start_site(site),
            Occurrence::Connect(site, process) => self.connect(site, process),
            Occurrence::Arrive(stream, direction) => self.arrive(stream, direction),
            Occurrence::NoticeServer(stream) => self.notice_server(stream),
            Occurrence::NoticeAgent(stream) => self.notice_agent(stream),
            Occurrence::ProcessExits { site, boot, key } => self.process_exits(site, boot, key),
            Occurrence::ProcessKilled { site, boot, key } => self.process_killed(site, boot, key),
            Occurrence::NullFinishes { site, process, run, step, attempt, elements } => {
                let at = self.site_time(site);
                let event = site_agent_core::Event::NullFinished { run, step, attempt, elements, at };
                self.site_event(site, process, event);
            }
            Occurrence::Evicts { site, process, order, objects, done } => {
                self.evict_next(site, process, (order, objects), done);
            }
            Occurrence::Collected { site, process, key, outputs } => self.collected(site, process, key, outputs),
            Occurrence::RpcArrives(rpc) => self.rpc_arrives(rpc),
            Occurrence::RpcAnswered(rpc, result) => self.rpc_answered(rpc, result),
            Occurrence::RpcExpires(rpc) => self.rpc_answered(rpc, Err("no answer".to_owned())),
            Occurrence::Downloaded { site, process, object, intent, try_number, source } => {
                self.downloaded(site, process, (object, intent), (try_number, source));
            }
            Occurrence::Uploaded { site, process, transfer, object, name, try_number } => {
                self.uploaded(site, process, (transfer, object), (name, try_number));
            }
            Occurrence::Deleted { server, process, name } => self.deleted(server, process, name),
            Occurrence::Looked { server, process, name, transfer } => {
                self.looked(server, process, (name, transfer));
            }
            Occurrence::BucketAnswers { server, process, event } => self.server_event(server, process, *event),
            Occurrence::Kept { server, process, run, last } => self.kept(server, process, *run, last),
            Occurrence::Client(client) => self.client_acts(client),
            Occurrence::Fault(fault) => self.fault(fault),
        }
    }

    /// What the control plane has decided counts from now on.
    pub(crate) fn became_durable(&mut self, facts: &[Fact]) {
        self.history.at = self.elapsed();
        for fact in facts {
            self.history.decided(fact);
            self.note_emitted(fact);
            if let Fact::RunRemoved { run } = fact {
                assert!(self.kept_runs.contains_key(run), "{run} is forgotten, and the history does not hold it");
            }
        }
    }

    /// Objects that are confined, and those of them that are where they must not be.
    pub(crate) fn confined_in_bucket(&self) -> BTreeSet<ObjectId> {
        let objects = self.bucket.keys().map(|(object, _)| *object);
        objects.filter(|object| self.history.confined.contains_key(object)).collect()
    }
}
