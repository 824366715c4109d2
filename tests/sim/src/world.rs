//! The world of one seed: virtual time, what is about to happen, everybody in it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use atoll_model::elements::ElementSet;
use atoll_model::id::{Attempt, ObjectId, RunId, StepIndex, TransferId};
use atoll_model::time::Timestamp;
use atoll_model::value::ObjectRef;

use crate::clients::Clients;
use crate::faults::Fault;
use crate::history::History;
use crate::machine::Key;
use crate::network::{Direction, Network};
use crate::rng::{Digest, Rng};
use crate::scenario::Scenario;
use crate::server::Server;
use crate::site::Site;

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
    pub(crate) server: Server,
    pub(crate) sites: Vec<Site>,
    pub(crate) network: Network,
    pub(crate) bucket: BTreeMap<ObjectId, BucketCopy>,
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

/// A unary call of an agent.
#[derive(Debug)]
pub(crate) struct Rpc {
    pub(crate) site: usize,
    pub(crate) process: u64,
    pub(crate) ask: Ask,
}

#[derive(Debug, Clone, Copy)]
pub(crate) enum Ask {
    Fetch { object: ObjectRef, intent: u64, try_number: u64 },
    Push { transfer: TransferId, object: ObjectRef, try_number: u64 },
}

/// A process, by the number of its start: what was meant for an earlier one is lost.
pub(crate) type Process = u64;

#[derive(Debug)]
pub(crate) enum Occurrence {
    ServerSync(Process),
    ServerTimer(Process),
    ServerStart,
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
    NullFinishes {
        site: usize,
        process: Process,
        run: RunId,
        step: StepIndex,
        attempt: Attempt,
        elements: ElementSet,
    },
    Collected {
        site: usize,
        process: Process,
        key: Key,
        outputs: bool,
    },
    RpcArrives(u64),
    RpcAnswered(u64, Result<(), String>),
    RpcExpires(u64),
    Downloaded {
        site: usize,
        process: Process,
        object: ObjectRef,
        intent: u64,
        try_number: u64,
    },
    Uploaded {
        site: usize,
        process: Process,
        transfer: TransferId,
        object: ObjectRef,
        try_number: u64,
    },
    Deleted {
        process: Process,
        object: ObjectId,
    },
    Looked {
        process: Process,
        object: ObjectId,
        transfer: TransferId,
    },
    Client(usize),
    Fault(Fault),
}

impl World {
    pub(crate) fn new(scenario: Scenario) -> Self {
        let mut rng = Rng::new(scenario.seed);
        let sites = (0..scenario.sites).map(|index| Site::new(index, &mut rng, &scenario)).collect();
        let mut world = Self {
            now: BEGINNING,
            agenda: BTreeMap::new(),
            next_number: 0,
            server: Server::default(),
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
        world.network.links.resize_with(world.scenario.sites, Default::default);
        world.start_server();
        world.enrol_sites();
        world.plan_clients();
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
        self.happen(occurrence);
        true
    }

    pub(crate) fn trace(&self, text: impl FnOnce() -> String) {
        if self.scenario.trace {
            println!("{:>13.6} {}", self.elapsed().as_secs_f64(), text());
        }
    }

    fn happen(&mut self, occurrence: Occurrence) {
        match occurrence {
            Occurrence::ServerSync(process) => self.server_sync(process),
            Occurrence::ServerTimer(process) => self.server_timer(process),
            Occurrence::ServerStart => self.start_server(),
            Occurrence::SiteEvent(site, process, event) => self.site_event(site, process, *event),
            Occurrence::SiteSync(site, process) => self.site_sync(site, process),
            Occurrence::SiteTimer(site, process) => self.site_timer(site, process),
            Occurrence::SiteStart(site) => self.start_site(site),
            Occurrence::Connect(site, process) => self.connect(site, process),
            Occurrence::Arrive(stream, direction) => self.arrive(stream, direction),
            Occurrence::NoticeServer(stream) => self.notice_server(stream),
            Occurrence::NoticeAgent(stream) => self.notice_agent(stream),
            Occurrence::ProcessExits { site, boot, key } => self.process_exits(site, boot, key),
            Occurrence::NullFinishes { site, process, run, step, attempt, elements } => {
                let at = self.site_time(site);
                let event = site_agent_core::Event::NullFinished { run, step, attempt, elements, at };
                self.site_event(site, process, event);
            }
            Occurrence::Collected { site, process, key, outputs } => self.collected(site, process, key, outputs),
            Occurrence::RpcArrives(rpc) => self.rpc_arrives(rpc),
            Occurrence::RpcAnswered(rpc, result) => self.rpc_answered(rpc, result),
            Occurrence::RpcExpires(rpc) => self.rpc_answered(rpc, Err("no answer".to_owned())),
            Occurrence::Downloaded { site, process, object, intent, try_number } => {
                self.downloaded(site, process, (object, intent), try_number);
            }
            Occurrence::Uploaded { site, process, transfer, object, try_number } => {
                self.uploaded(site, process, (transfer, object), try_number);
            }
            Occurrence::Deleted { process, object } => self.deleted(process, object),
            Occurrence::Looked { process, object, transfer } => self.looked(process, object, transfer),
            Occurrence::Client(client) => self.client_acts(client),
            Occurrence::Fault(fault) => self.fault(fault),
        }
    }

    /// Objects that are confined, and those of them that are where they must not be.
    pub(crate) fn confined_in_bucket(&self) -> BTreeSet<ObjectId> {
        self.bucket.keys().filter(|object| self.history.confined.contains(object)).copied().collect()
    }
}
