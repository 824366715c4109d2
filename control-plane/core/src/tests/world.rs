//! A control plane and agents that do what a test says.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use atoll_model::id::{
    AgentId, Attempt, CommandSeq, Epoch, ExecutionId, JournalId, ObjectId, ReportSeq, RunId, SiteName, StepIndex,
    TokenId, TransferId,
};
use atoll_model::placement::Labels;
use atoll_model::resources::Capacity;
use atoll_model::session::{
    AgentBody, AgentFrame, ControlBody, ControlFrame, Dispatch, DispatchElements, EXPORT_RUNTIME, FailureReason,
    FinishedElement, Goodbye, Heartbeat, Hello, Inventory, InventoryItem, LeaseGrant, LocalState, NotStartedReason,
    Outcome, Report, SiteCommand, StartedElement, Verdict, Welcome,
};
use atoll_model::time::Timestamp;
use atoll_model::value::{FileName, FileRef, ObjectKind, ObjectRef, Value};
use atoll_model::workflow::{Surroundings, Work, Workflow, parse};
use indexmap::IndexMap;

use crate::view::{ExecutionState, RunState, RunTags};
use crate::{
    BucketCopy, Command, Config, ConnectionId, ControlPlane, Event, Fact, FinishedRun, Rejection, Request, RequestId,
    Response,
};

struct Nothing;

impl Surroundings for Nothing {
    fn action(&self, reference: &str) -> Result<Work, String> {
        Err(format!("there is no action {reference}"))
    }
}

pub(crate) fn workflow(source: &str) -> Arc<Workflow> {
    match parse("test.yaml", source, &Nothing) {
        Ok(workflow) => Arc::new(workflow),
        Err(diagnostics) => panic!("{diagnostics:?}"),
    }
}

pub(crate) struct World {
    pub(crate) core: ControlPlane,
    pub(crate) config: Config,
    pub(crate) facts: Vec<Fact>,
    pub(crate) now: Timestamp,
    pub(crate) agents: BTreeMap<String, Agent>,
    pub(crate) deletes: Vec<BucketCopy>,
    pub(crate) looks: Vec<(ObjectRef, TransferId)>,
    /// Runs that are to be kept for the last time.
    pub(crate) history: Vec<FinishedRun>,
    /// Whether the history answers at once.
    pub(crate) keeps_history: bool,
    pub(crate) replies: BTreeMap<RequestId, Result<Response, Rejection>>,
    pub(crate) closed: Vec<ConnectionId>,
    /// Whether each event is followed by a recovery; off where a test has too many.
    pub(crate) compare_recovery: bool,
    /// The version of the protocol that agents speak.
    pub(crate) protocol: u32,
    next: u64,
}

pub(crate) struct Agent {
    pub(crate) id: AgentId,
    pub(crate) connection: ConnectionId,
    pub(crate) epoch: Epoch,
    pub(crate) journal: JournalId,
    pub(crate) boot_nonce: u64,
    pub(crate) incarnation: u64,
    pub(crate) last_command: CommandSeq,
    pub(crate) last_report: ReportSeq,
    pub(crate) acknowledged_report: ReportSeq,
    /// Everything that it has reported, if it keeps what was acknowledged.
    pub(crate) kept: Vec<Report>,
    pub(crate) capacity: Capacity,
    pub(crate) runtimes: Vec<String>,
    /// Frames that arrived and were not looked at.
    pub(crate) frames: VecDeque<ControlFrame>,
    pub(crate) commands: VecDeque<SiteCommand>,
    pub(crate) verdicts: Vec<Verdict>,
    pub(crate) welcome: Option<Welcome>,
    pub(crate) is_ready: bool,
    pub(crate) goodbye: Option<Goodbye>,
    /// How far its machine's clock is ahead of the control plane's.
    pub(crate) clock_ahead: Duration,
    /// What it was granted last.
    pub(crate) lease: Option<LeaseGrant>,
}

pub(crate) const T0: Timestamp = Timestamp(1_800_000_000_000_000);

impl World {
    pub(crate) fn new() -> Self {
        Self::with(|_| {})
    }

    pub(crate) fn with(change: impl FnOnce(&mut Config)) -> Self {
        let mut config = Config { started_at: T0, ..Config::default() };
        change(&mut config);
        Self {
            core: ControlPlane::recover(config.clone(), None, Vec::new(), T0),
            config,
            facts: Vec::new(),
            now: T0,
            agents: BTreeMap::new(),
            deletes: Vec::new(),
            looks: Vec::new(),
            history: Vec::new(),
            keeps_history: true,
            replies: BTreeMap::new(),
            closed: Vec::new(),
            compare_recovery: true,
            protocol: 1,
            next: 1,
        }
    }

    /// With these sites, each joined and ready.
    pub(crate) fn with_sites(sites: &[&str]) -> Self {
        let mut world = Self::new();
        sites.iter().for_each(|site| world.add_site(site));
        world
    }

    pub(crate) fn add_site(&mut self, site: &str) {
        self.join(site, &[]);
        self.connect(site);
    }

    pub(crate) fn unique(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    pub(crate) fn handle(&mut self, event: Event) {
        let step = self.core.handle(event, self.now);
        let mut kept = Vec::new();
        self.core.check();
        self.facts.extend(step.facts);
        for command in step.commands {
            match command {
                Command::Reply { request, result } => {
                    assert!(self.replies.insert(request, result).is_none(), "a request is answered once");
                }
                Command::Send { connection, frame } => {
                    let agent = self.agents.values_mut().find(|agent| agent.connection == connection);
                    if let Some(agent) = agent {
                        agent.frames.push_back(frame);
                    }
                }
                Command::Close { connection } => self.closed.push(connection),
                Command::DeleteFromBucket { copy } => self.deletes.push(copy),
                Command::LookInBucket { copy, transfer } => self.looks.push((copy.object, transfer)),
                Command::KeepRun { run, last: true } => kept.push(run),
                Command::KeepRun { last: false, .. } => {}
            }
        }
        if self.compare_recovery {
            let recovered = self.recovered();
            assert_eq!(recovered.snapshot(), self.core.snapshot(), "recovered state equals live state");
        }
        for run in kept {
            let id = run.id();
            self.history.push(run);
            if self.keeps_history {
                self.handle(Event::RunKept { run: id });
            }
        }
    }

    pub(crate) fn recovered(&self) -> ControlPlane {
        ControlPlane::recover(self.config.clone(), None, self.facts.iter().cloned(), self.now)
    }

    /// The process is killed and started again: everything that is not a fact is gone.
    pub(crate) fn restart(&mut self) {
        self.core = self.recovered();
        self.core.check();
        for agent in self.agents.values_mut() {
            agent.frames.clear();
            agent.connection = ConnectionId(0);
        }
    }

    /// Everything decided since is gone, as if a backup of that time had been restored; agents have no connection.
    pub(crate) fn set_back(&mut self, facts: usize) {
        self.facts.truncate(facts);
        self.restart();
    }

    /// Comes back with this inventory, and reports again what is asked for.
    pub(crate) fn catch_up(&mut self, site: &str, inventory: Vec<InventoryItem>) {
        self.connect_with(site, inventory);
        let agent = &self.agents[site];
        let after = agent.welcome.as_ref().unwrap().resume_after;
        let reports = agent.kept[usize::try_from(after.0).unwrap()..].to_vec();
        self.frame(site, AgentBody::Reports { first: after.next(), reports });
        self.receive(site);
    }

    pub(crate) fn request(&mut self, body: Request) -> RequestId {
        let request = RequestId(self.unique());
        self.handle(Event::Request { request, body });
        request
    }

    pub(crate) fn ask(&mut self, body: Request) -> Result<Response, Rejection> {
        let request = self.request(body);
        self.replies.remove(&request).expect("answered at once")
    }

    pub(crate) fn advance(&mut self, by: Duration) {
        let until = self.now + by;
        while let Some(next) = self.core.next_timeout().filter(|next| *next <= until) {
            self.now = self.now.max(next);
            self.handle(Event::TimeoutElapsed);
        }
        self.now = until;
        self.handle(Event::TimeoutElapsed);
    }

    /// Time passes while these agents send heartbeats.
    pub(crate) fn advance_with(&mut self, by: Duration, heard: &[&str]) {
        let until = self.now + by;
        while self.now < until {
            self.advance(Duration::from_secs(15));
            heard.iter().for_each(|site| self.heartbeat(site));
        }
    }

    pub(crate) fn join(&mut self, site: &str, labels: &[(&str, &str)]) {
        let token = TokenId::from_bits(u128::from(self.unique()));
        let labels: Labels = labels.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let name: SiteName = site.parse().unwrap();
        let lifetime = Duration::from_secs(3_600);
        self.ask(Request::CreateToken { token, secret_hash: [7; 32], site: name, labels, lifetime }).unwrap();
        let id = AgentId::from_bits(u128::from(self.unique()));
        let key = [u8::try_from(self.next % 251).unwrap(); 32];
        self.ask(Request::Enrol { token, secret_hash: [7; 32], identity_key: key, agent: id }).unwrap();
        let agent = Agent {
            id,
            connection: ConnectionId(0),
            epoch: Epoch(0),
            journal: JournalId::from_bits(u128::from(self.unique())),
            boot_nonce: self.unique(),
            incarnation: 1,
            last_command: CommandSeq(0),
            last_report: ReportSeq(0),
            acknowledged_report: ReportSeq(0),
            kept: Vec::new(),
            capacity: Capacity {
                cpu_millis: 4_000,
                memory_bytes: 8 << 30,
                disk_free_bytes: 1 << 40,
                ..Capacity::default()
            },
            runtimes: ["command", EXPORT_RUNTIME].map(str::to_owned).to_vec(),
            frames: VecDeque::new(),
            commands: VecDeque::new(),
            verdicts: Vec::new(),
            welcome: None,
            clock_ahead: Duration::ZERO,
            lease: None,
            is_ready: false,
            goodbye: None,
        };
        self.agents.insert(site.to_owned(), agent);
    }

    pub(crate) fn connect(&mut self, site: &str) {
        self.connect_with(site, Vec::new());
        assert!(self.agents[site].is_ready, "{site} is ready");
    }

    /// Says hello and sends this inventory.
    pub(crate) fn connect_with(&mut self, site: &str, inventory: Vec<InventoryItem>) {
        self.hello(site);
        let last_report = self.agents[site].last_report;
        self.frame(site, AgentBody::Inventory(Inventory { items: inventory, last_report }));
        self.receive(site);
    }

    pub(crate) fn hello(&mut self, site: &str) {
        let connection = ConnectionId(self.unique());
        let now = self.now;
        let agent = self.agents.get_mut(site).unwrap();
        agent.connection = connection;
        agent.frames.clear();
        agent.is_ready = false;
        agent.goodbye = None;
        let hello = Hello {
            agent: agent.id,
            journal: agent.journal,
            incarnation: agent.incarnation,
            boot_nonce: agent.boot_nonce,
            protocol_min: 1,
            protocol_max: self.protocol,
            agent_version: "test".to_owned(),
            capacity: agent.capacity.clone(),
            runtimes: agent.runtimes.clone(),
            last_command: agent.last_command,
            acknowledged_report: agent.acknowledged_report,
            last_report: agent.last_report,
            first_report: ReportSeq(u64::from(!agent.kept.is_empty())),
            clock: now,
            wall_clock: now + agent.clock_ahead,
        };
        self.frame(site, AgentBody::Hello(hello));
        self.receive(site);
    }

    pub(crate) fn frame(&mut self, site: &str, body: AgentBody) {
        let agent = &self.agents[site];
        let frame = AgentFrame { epoch: agent.epoch, acknowledged: agent.last_command, body };
        let (connection, agent) = (agent.connection, agent.id);
        self.handle(Event::FrameReceived { connection, agent, frame });
    }

    /// Takes in what has arrived at an agent, without acknowledging it.
    pub(crate) fn receive(&mut self, site: &str) {
        let agent = self.agents.get_mut(site).unwrap();
        while let Some(frame) = agent.frames.pop_front() {
            agent.acknowledged_report = agent.acknowledged_report.max(frame.acknowledged);
            agent.lease = frame.lease.or(agent.lease.take());
            match frame.body {
                ControlBody::Welcome(welcome) => {
                    agent.epoch = frame.epoch;
                    agent.welcome = Some(welcome);
                }
                ControlBody::Verdicts(verdicts) => agent.verdicts = verdicts,
                ControlBody::Commands { first, commands } => {
                    for (number, command) in (first.0..).zip(commands) {
                        assert!(number <= agent.last_command.0 + 1, "commands arrive without a gap");
                        if number == agent.last_command.0 + 1 {
                            agent.last_command = CommandSeq(number);
                            agent.commands.push_back(command);
                        }
                    }
                }
                ControlBody::Ready => agent.is_ready = true,
                ControlBody::Acknowledge => {}
                ControlBody::Goodbye(goodbye) => agent.goodbye = Some(goodbye),
            }
        }
    }

    pub(crate) fn disconnect(&mut self, site: &str) {
        let connection = self.agents[site].connection;
        self.handle(Event::ConnectionLost { connection });
    }

    pub(crate) fn heartbeat(&mut self, site: &str) {
        let agent = &self.agents[site];
        let (sent_at, wall_clock) = (self.now, self.now + agent.clock_ahead);
        let heartbeat = Heartbeat { sent_at, wall_clock, capacity: agent.capacity.clone(), ..Heartbeat::default() };
        self.frame(site, AgentBody::Heartbeat(heartbeat));
        self.receive(site);
    }

    /// Every command that the agent got and the test did not look at; acknowledges them.
    pub(crate) fn commands(&mut self, site: &str) -> Vec<SiteCommand> {
        self.receive(site);
        let commands: Vec<_> = self.agents.get_mut(site).unwrap().commands.drain(..).collect();
        if !commands.is_empty() {
            self.frame(site, AgentBody::Acknowledge);
        }
        commands
    }

    /// The executions that were dispatched to the agent, with their attempts; other commands are dropped.
    pub(crate) fn dispatched(&mut self, site: &str) -> Vec<(ExecutionId, Attempt)> {
        self.commands(site).iter().flat_map(executions_of).collect()
    }

    /// The one execution that was dispatched to the agent.
    pub(crate) fn dispatched_one(&mut self, site: &str) -> (ExecutionId, Attempt) {
        let dispatched = self.dispatched(site);
        assert_eq!(dispatched.len(), 1, "one execution is dispatched: {dispatched:?}");
        dispatched[0]
    }

    /// The pushes that were ordered from the agent.
    pub(crate) fn pushes(&mut self, site: &str) -> Vec<(TransferId, ObjectRef)> {
        let push = |command| match command {
            SiteCommand::Push { transfer, object } => Some((transfer, object)),
            _ => None,
        };
        self.commands(site).into_iter().filter_map(push).collect()
    }

    pub(crate) fn report(&mut self, site: &str, reports: Vec<Report>) {
        let agent = self.agents.get_mut(site).unwrap();
        let first = agent.last_report.next();
        agent.last_report = ReportSeq(agent.last_report.0 + reports.len() as u64);
        agent.kept.extend(reports.iter().cloned());
        self.frame(site, AgentBody::Reports { first, reports });
        self.receive(site);
    }

    pub(crate) fn start(&mut self, site: &str, execution: (ExecutionId, Attempt)) {
        let (ExecutionId { run, step, element }, attempt) = execution;
        let elements = vec![StartedElement { element, attempt, at: self.now }];
        self.report(site, vec![Report::Started { run, step, elements }]);
    }

    pub(crate) fn end(&mut self, site: &str, execution: (ExecutionId, Attempt), outcome: Outcome, outputs: Vec<Value>) {
        let report = self.finished(execution, outcome, outputs);
        self.report(site, vec![report]);
    }

    pub(crate) fn finished(&self, execution: (ExecutionId, Attempt), outcome: Outcome, outputs: Vec<Value>) -> Report {
        let (ExecutionId { run, step, element }, attempt) = execution;
        let started = !matches!(outcome, Outcome::NotStarted { .. });
        let finished = FinishedElement {
            element,
            attempt,
            started_at: started.then_some(self.now),
            finished_at: self.now,
            outcome,
            outputs,
            usage: Default::default(),
            logs: Default::default(),
        };
        Report::Finished { run, step, elements: vec![finished] }
    }

    pub(crate) fn succeed(&mut self, site: &str, execution: (ExecutionId, Attempt), outputs: Vec<Value>) {
        self.end(site, execution, Outcome::Succeeded, outputs);
    }

    pub(crate) fn fail(&mut self, site: &str, execution: (ExecutionId, Attempt)) {
        self.end(site, execution, failed("exit code 1"), Vec::new());
    }

    pub(crate) fn submit(&mut self, source: &str) -> RunId {
        self.try_submit(source, &[]).unwrap()
    }

    pub(crate) fn submit_tagged(&mut self, source: &str, tags: RunTags) -> RunId {
        self.send_in(source, &[], tags).unwrap()
    }

    pub(crate) fn try_submit(&mut self, source: &str, inputs: &[(&str, Value)]) -> Result<RunId, Rejection> {
        self.send_in(source, inputs, RunTags::default())
    }

    /// A workflow that no file says so.
    pub(crate) fn submit_workflow(&mut self, workflow: Workflow) -> RunId {
        self.send(Arc::new(workflow), "", IndexMap::new(), RunTags::default()).unwrap()
    }

    fn send_in(&mut self, source: &str, inputs: &[(&str, Value)], tags: RunTags) -> Result<RunId, Rejection> {
        let inputs = inputs.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect();
        self.send(workflow(source), source, inputs, tags)
    }

    fn send(
        &mut self,
        workflow: Arc<Workflow>,
        source: &str,
        inputs: IndexMap<String, Value>,
        tags: RunTags,
    ) -> Result<RunId, Rejection> {
        let run = RunId::from_bits(u128::from(self.unique()));
        let (source, submitted_by, traceparent) = (Arc::from(source), "test".to_owned(), None);
        let request = Request::Submit { run, workflow, source, inputs, submitted_by, traceparent, tags };
        self.ask(request).map(|_| run)
    }

    pub(crate) fn state(&self, run: RunId) -> RunState {
        self.core.run(run).unwrap().state
    }

    pub(crate) fn count(&self, run: RunId, state: ExecutionState) -> u64 {
        self.core.run(run).unwrap().counts.get(&state).copied().unwrap_or(0)
    }

    pub(crate) fn state_of(&self, execution: ExecutionId) -> ExecutionState {
        self.core.execution(execution).unwrap().state
    }

    /// Pushes that were ordered are carried out.
    pub(crate) fn carry_out_pushes(&mut self, site: &str) -> usize {
        let pushes = self.pushes(site);
        let count = pushes.len();
        for (transfer, object) in pushes {
            let at = self.now;
            self.report(site, vec![Report::Pushed { transfer, object, wire_bytes: object.bytes, at }]);
        }
        count
    }

    /// The bucket is looked into where that was asked for.
    pub(crate) fn carry_out_looks(&mut self, present: bool) -> usize {
        let looks = std::mem::take(&mut self.looks);
        for (object, transfer) in &looks {
            self.handle(Event::BucketObjectSeen { object: object.id, transfer: *transfer, present });
        }
        looks.len()
    }

    /// Deletions from the bucket that were asked for are carried out; where a look comes first, nothing is found.
    pub(crate) fn carry_out_deletes(&mut self) -> Vec<ObjectId> {
        self.carry_out_looks(false);
        let deletes: Vec<_> = self.deletes.drain(..).map(|copy| copy.object.id).collect();
        deletes.iter().for_each(|object| self.handle(Event::BucketObjectDeleted { object: *object }));
        deletes
    }

    pub(crate) fn objects_in_bucket(&self) -> u64 {
        self.core.counters().objects_in_bucket
    }
}

pub(crate) fn executions_of(command: &SiteCommand) -> Vec<(ExecutionId, Attempt)> {
    let SiteCommand::Dispatch(Dispatch { run, step, attempt, elements, .. }) = command else { return Vec::new() };
    let elements: Vec<u32> = match elements {
        DispatchElements::Plain(elements) => elements.iter().collect(),
        DispatchElements::Bound(bound) => bound.iter().map(|(element, _)| *element).collect(),
    };
    let execution = |element| (ExecutionId { run: *run, step: *step, element }, *attempt);
    elements.into_iter().map(execution).collect()
}

pub(crate) fn failed(message: &str) -> Outcome {
    Outcome::Failed { reason: FailureReason::ExitCode, exit_code: Some(1), message: message.to_owned() }
}

pub(crate) fn interrupted() -> Outcome {
    Outcome::Interrupted { message: "the machine went down".to_owned() }
}

pub(crate) fn not_started(reason: NotStartedReason) -> Outcome {
    Outcome::NotStarted { reason, message: "not started".to_owned() }
}

pub(crate) fn item(execution: (ExecutionId, Attempt), state: LocalState) -> InventoryItem {
    InventoryItem { execution: execution.0, attempt: execution.1, state }
}

pub(crate) fn object(number: u8, bytes: u64) -> ObjectRef {
    ObjectRef { id: ObjectId::from_digest([number; 32]), kind: ObjectKind::File, bytes }
}

pub(crate) fn file(number: u8, bytes: u64) -> Value {
    let name = FileName::new(b"data").unwrap();
    Value::File(FileRef { object: object(number, bytes).id, bytes, name, executable: false })
}

pub(crate) fn execution(run: RunId, step: u16, element: u32) -> ExecutionId {
    ExecutionId { run, step: StepIndex(step), element }
}
