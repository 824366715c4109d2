//! A real control plane, and sites that do in virtual time what it tells them.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::sync::Arc;
use std::time::Duration;

use atoll_model::id::{
    AgentId, Attempt, CommandSeq, Epoch, ExecutionId, JournalId, ObjectId, ReportSeq, RunId, TokenId, TransferId,
};
use atoll_model::session::{
    AgentBody, AgentFrame, DirectShare, FinishedElement, Hello, Inventory, Outcome, Report, StartedElement,
};
use atoll_model::time::Timestamp;
use atoll_model::value::{ObjectRef, Value};
use atoll_model::workflow::Workflow;
use control_plane_core::look_ahead::{Goal, Links};
use control_plane_core::view::{RunState, RunTags};
use control_plane_core::{
    Command, Config, ConnectionId, ControlPlane, Event, RecordedSite, Rejection, Request, RequestId, Response,
};
use indexmap::IndexMap;

use crate::site::{Errand, Site};

/// Far beyond what any trace takes: nobody is lost in a replay.
const FOREVER: Duration = Duration::from_secs(100 * 365 * 86_400);
const BEGINNING: Timestamp = Timestamp(1_800_000_000_000_000);

#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
    #[error("the control plane refused: {0}")]
    Refused(#[from] Rejection),
    #[error("{0}")]
    Site(String),
    #[error("the run has come to a stop and has not ended: {0}")]
    Stopped(String),
    #[error("the run has ended as {0:?}")]
    Ended(RunState),
    #[error("the run fails: {0}")]
    Failed(String),
}

/// What executions take, and make.
pub(crate) trait Script {
    fn seconds(&self, execution: ExecutionId) -> f64;
    fn outputs(&self, execution: ExecutionId) -> Vec<Value>;
}

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Happening {
    Ended {
        site: usize,
        execution: ExecutionId,
        attempt: Attempt,
        started_at: Timestamp,
    },
    Fetched {
        site: usize,
        object: ObjectRef,
        from: Option<usize>,
        execution: ExecutionId,
    },
    Pushed {
        site: usize,
        transfer: TransferId,
        object: ObjectRef,
    },
    /// Another site will have it to give.
    AsksAgain {
        site: usize,
        object: ObjectRef,
        execution: ExecutionId,
    },
}

pub(crate) struct World<'a> {
    pub(crate) script: Box<dyn Script + 'a>,
    links: Links,
    pub(crate) core: ControlPlane,
    pub(crate) now: Timestamp,
    pub(crate) sites: Vec<Site>,
    happenings: BinaryHeap<Reverse<(Timestamp, u64, Happening)>>,
    /// Frames on their way, which takes no time, and errands that they brought.
    errands: Vec<(usize, Errand)>,
    replies: BTreeMap<RequestId, Result<Response, Rejection>>,
    /// Fetches that nobody serves yet.
    unserved: BTreeMap<ObjectId, Vec<(usize, ObjectRef, ExecutionId)>>,
    pub(crate) in_bucket: BTreeSet<ObjectId>,
    numbers: u64,
}

impl<'a> World<'a> {
    pub(crate) fn new(script: Box<dyn Script + 'a>, links: Links, goal: Goal) -> Self {
        let config = Config {
            session_lease: FOREVER,
            work_lease: FOREVER,
            lost_after: FOREVER,
            keep_finished: FOREVER,
            keep_finished_bytes: u64::MAX,
            goal,
            started_at: BEGINNING,
            ..Config::default()
        };
        Self {
            script,
            links,
            core: ControlPlane::recover(config, None, Vec::new(), BEGINNING),
            now: BEGINNING,
            sites: Vec::new(),
            happenings: BinaryHeap::new(),
            errands: Vec::new(),
            replies: BTreeMap::new(),
            unserved: BTreeMap::new(),
            in_bucket: BTreeSet::new(),
            numbers: 0,
        }
    }

    pub(crate) fn number(&mut self) -> u64 {
        self.numbers += 1;
        self.numbers
    }

    pub(crate) fn join(&mut self, joining: &RecordedSite) -> Result<(), ReplayError> {
        let number = self.sites.len();
        let token = TokenId::from_bits(u128::from(self.number()));
        let (secret_hash, site, labels) = ([1; 32], joining.name.clone(), joining.labels.clone());
        self.ask(Request::CreateToken { token, secret_hash, site, labels, lifetime: FOREVER })?;
        let agent = AgentId::from_bits(u128::from(self.number()));
        let mut identity_key = [2; 32];
        identity_key[..8].copy_from_slice(&self.number().to_be_bytes());
        self.ask(Request::Enrol { token, secret_hash, identity_key, agent })?;
        let connection = ConnectionId(self.number());
        let journal = JournalId::from_bits(u128::from(self.number()));
        let processors = (joining.capacity.cpu_millis / 1_000).max(1);
        self.sites.push(Site::new(agent, connection, processors));
        let hello = Hello {
            agent,
            journal,
            incarnation: 1,
            boot_nonce: self.number(),
            protocol_min: 1,
            protocol_max: 1,
            agent_version: env!("CARGO_PKG_VERSION").to_owned(),
            capacity: joining.capacity.clone(),
            runtimes: joining.runtimes.clone(),
            last_command: CommandSeq(0),
            acknowledged_report: ReportSeq(0),
            last_report: ReportSeq(0),
            first_report: ReportSeq(0),
            clock: self.now,
            wall_clock: self.now,
        };
        self.frame(number, AgentBody::Hello(hello))?;
        self.frame(number, AgentBody::Inventory(Inventory::default()))?;
        if joining.listens {
            self.ask(Request::Advertise { agent, addresses: vec![joining.name.to_string()], relays: false })?;
        }
        Ok(())
    }

    fn frame(&mut self, site: usize, body: AgentBody) -> Result<(), ReplayError> {
        let Site { agent, connection, epoch, last_command, .. } = self.sites[site];
        let epoch = if matches!(body, AgentBody::Hello(_)) { Epoch(0) } else { epoch };
        let frame = AgentFrame { epoch, acknowledged: last_command, body };
        self.handle(Event::FrameReceived { connection, agent, frame })
    }

    fn report(&mut self, site: usize, report: Report) -> Result<(), ReplayError> {
        let first = self.sites[site].last_report.next();
        self.sites[site].last_report = first;
        self.frame(site, AgentBody::Reports { first, reports: vec![report] })
    }

    pub(crate) fn ask(&mut self, body: Request) -> Result<Response, ReplayError> {
        let request = RequestId(self.number());
        self.handle(Event::Request { request, body })?;
        let reply = self.replies.remove(&request).expect("what is asked here is answered at once");
        Ok(reply?)
    }

    fn handle(&mut self, event: Event) -> Result<(), ReplayError> {
        let step = self.core.handle(event, self.now);
        for command in step.commands {
            match command {
                Command::Reply { request, result } => {
                    self.replies.insert(request, result);
                }
                Command::Send { connection, frame } => {
                    let Some(site) = self.sites.iter().position(|site| site.connection == connection) else { continue };
                    let errands = self.sites[site].receive(frame).map_err(ReplayError::Site)?;
                    self.errands.extend(errands.into_iter().map(|errand| (site, errand)));
                }
                Command::Close { .. } => return Err(ReplayError::Site("a connection was closed".to_owned())),
                Command::DeleteFromBucket { copy } => {
                    let object = copy.object.id;
                    self.in_bucket.remove(&object);
                    self.handle(Event::BucketObjectDeleted { object })?;
                }
                Command::LookInBucket { copy, transfer } => {
                    let object = copy.object.id;
                    let present = self.in_bucket.contains(&object);
                    self.handle(Event::BucketObjectSeen { object, transfer, present })?;
                }
                Command::KeepRun { .. } => {}
            }
        }
        Ok(())
    }

    /// Submits a run and brings it to its end.
    pub(crate) fn carry_out(
        &mut self,
        run: RunId,
        workflow: &Arc<Workflow>,
        inputs: &IndexMap<String, Value>,
        tags: &RunTags,
    ) -> Result<(), ReplayError> {
        self.ask(Request::Submit {
            run,
            workflow: Arc::clone(workflow),
            source: Arc::from(""),
            inputs: inputs.clone(),
            submitted_by: "replay".to_owned(),
            traceparent: None,
            tags: tags.clone(),
        })?;
        loop {
            self.settle()?;
            let view = self.core.run(run).expect("it is kept for ever");
            match view.state {
                RunState::Submitted | RunState::Running | RunState::Cancelling => {}
                RunState::Succeeded => return Ok(()),
                ended @ (RunState::Failed | RunState::Cancelled) => return Err(ReplayError::Ended(ended)),
            }
            self.advance(run)?;
        }
    }

    /// Does what can be done now.
    fn settle(&mut self) -> Result<(), ReplayError> {
        loop {
            if let Some((site, errand)) = self.errands.pop() {
                self.run_errand(site, errand)?;
            } else if let Some(site) = self.sites.iter().position(|site| site.free > 0 && !site.ready.is_empty()) {
                self.start_one(site)?;
            } else {
                return Ok(());
            }
        }
    }

    fn run_errand(&mut self, site: usize, errand: Errand) -> Result<(), ReplayError> {
        match errand {
            Errand::Push(transfer, object) => {
                self.happens_after(object.bytes, Happening::Pushed { site, transfer, object });
            }
            Errand::TellOfCopy(object) => {
                self.report(site, Report::ReplicaEnded { object, failure: None })?;
            }
            Errand::Fetch(object, execution) => {
                let agent = self.sites[site].agent;
                let response = self.ask(Request::Offers { agent, object: object.id })?;
                let Response::Offered { holders, ask_again, .. } = response else {
                    return Err(ReplayError::Site(format!("offers were answered with {response:?}")));
                };
                if let Some(time) = ask_again {
                    self.happens(self.now + time, Happening::AsksAgain { site, object, execution });
                    return Ok(());
                }
                let from = holders.first().map(|holder| holder.agent);
                let from = from.and_then(|agent| self.sites.iter().position(|site| site.agent == agent));
                if from.is_some() || self.in_bucket.contains(&object.id) {
                    self.happens_after(object.bytes, Happening::Fetched { site, object, from, execution });
                } else {
                    self.unserved.entry(object.id).or_default().push((site, object, execution));
                }
            }
        }
        Ok(())
    }

    fn start_one(&mut self, site: usize) -> Result<(), ReplayError> {
        let Some((execution, attempt)) = self.sites[site].ready.pop_front() else { return Ok(()) };
        self.sites[site].free -= 1;
        let ExecutionId { run, step, element } = execution;
        let started_at = self.now;
        let lasts = Duration::from_secs_f64(self.script.seconds(execution));
        self.happens(started_at + lasts, Happening::Ended { site, execution, attempt, started_at });
        let elements = vec![StartedElement { element, attempt, at: started_at }];
        self.report(site, Report::Started { run, step, elements })
    }

    fn happens(&mut self, at: Timestamp, happening: Happening) {
        let number = self.number();
        self.happenings.push(Reverse((at, number, happening)));
    }

    fn happens_after(&mut self, bytes: u64, happening: Happening) {
        let at = self.now + Duration::from_micros(self.links.micros(bytes));
        self.happens(at, happening);
    }

    /// Lets time pass until something happens.
    fn advance(&mut self, run: RunId) -> Result<(), ReplayError> {
        let next = self.happenings.peek().map(|Reverse((at, ..))| *at);
        let timeout = self.core.next_timeout().filter(|timeout| next.is_none_or(|next| *timeout < next));
        if let Some(timeout) = timeout {
            if timeout > self.now + FOREVER / 2 {
                let counts = self.core.run(run).map(|view| view.counts);
                return Err(ReplayError::Stopped(format!("{counts:?}")));
            }
            self.now = self.now.max(timeout);
            return self.handle(Event::TimeoutElapsed);
        }
        let Some(Reverse((at, _, happening))) = self.happenings.pop() else {
            return Err(ReplayError::Stopped("nothing happens any more".to_owned()));
        };
        self.now = self.now.max(at);
        match happening {
            Happening::Ended { site, execution, attempt, started_at } => {
                let ExecutionId { run, step, element } = execution;
                let outputs = self.script.outputs(execution);
                for output in &outputs {
                    output.visit_objects(&mut |object| {
                        self.sites[site].store.insert(object.id);
                    });
                }
                self.sites[site].ended(execution);
                let finished = FinishedElement {
                    element,
                    attempt,
                    started_at: Some(started_at),
                    finished_at: self.now,
                    outcome: Outcome::Succeeded,
                    outputs,
                    usage: Default::default(),
                    logs: Default::default(),
                };
                self.report(site, Report::Finished { run, step, elements: vec![finished] })
            }
            Happening::Fetched { site, object, from, execution } => {
                self.sites[site].fetched(object.id);
                let direct = from.map(|from| DirectShare { holder: self.sites[from].agent, wire_bytes: object.bytes });
                let (wire_bytes, at) = (object.bytes, self.now);
                self.report(site, Report::Fetched { object, wire_bytes, direct, execution, at })?;
                if self.sites[site].copying.remove(&object.id) {
                    self.report(site, Report::ReplicaEnded { object, failure: None })?;
                }
                Ok(())
            }
            Happening::Pushed { site, transfer, object } => {
                self.in_bucket.insert(object.id);
                let waiting = self.unserved.remove(&object.id).unwrap_or_default();
                for (reader, object, execution) in waiting {
                    let fetched = Happening::Fetched { site: reader, object, from: None, execution };
                    self.happens_after(object.bytes, fetched);
                }
                let (wire_bytes, at) = (object.bytes, self.now);
                self.report(site, Report::Pushed { transfer, object, wire_bytes, at })
            }
            Happening::AsksAgain { site, object, execution } => self.run_errand(site, Errand::Fetch(object, execution)),
        }
    }
}
