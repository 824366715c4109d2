//! An agent with a journal in memory, and a control plane that says what a test wants.

use std::time::Duration;

use atoll_model::elements::ElementSet;
use atoll_model::id::{
    AgentId, Attempt, CommandSeq, Epoch, ExecutionId, JournalId, ObjectId, ReportSeq, RunId, StepIndex,
};
use atoll_model::policy::SitePolicy;
use atoll_model::resources::{Capacity, Resources};
use atoll_model::session::{
    AgentBody, AgentFrame, Binding, BindingSource, ControlBody, ControlFrame, Credits, Dispatch, DispatchElements,
    FinishedElement, Heartbeat, InventoryItem, LeaseGrant, Logs, Origin, Outcome, Report, SiteCommand, StepTemplate,
    TemplateOutput, TemplateWork, Usage, Verdict, Welcome,
};
use atoll_model::time::Timestamp;
use atoll_model::value::{FileName, FileRef, ObjectKind, ObjectRef, Type, Value};
use atoll_model::workflow::{OnDisconnect, StartMode};
use site_agent_core::event::{Exit, ExitKind, Found, FoundAttempt, StoredOutputs};
use site_agent_core::{Agent, Boot, Command, Config, Event, Fact, Snapshot, Step};

pub(crate) const RUN: RunId = RunId::from_bits(7);
pub(crate) const FIRST: Attempt = Attempt::FIRST;

pub(crate) struct Site {
    pub(crate) agent: Agent,
    pub(crate) facts: Vec<Fact>,
    pub(crate) commands: Vec<Command>,
    pub(crate) now: Timestamp,
    pub(crate) epoch: u64,
    /// Whether the control plane, when it welcomes the agent, says that it does not know what it gave to it.
    pub(crate) lacking: bool,
    policy: SitePolicy,
    next_command: u64,
    boots: u64,
}

pub(crate) fn config() -> Config {
    Config {
        agent: AgentId::from_bits(1),
        new_journal: JournalId::from_bits(2),
        agent_version: "0.1.0".to_owned(),
        runtimes: vec!["command".to_owned()],
        boot: Boot { id: 3, at: Timestamp(500_000_000) },
        capacity: Capacity {
            cpu_millis: 2_000,
            memory_bytes: 1 << 30,
            disk_free_bytes: 1 << 40,
            ..Capacity::default()
        },
        outbox_bytes_max: 1 << 30,
        disk_free_bytes_min: 1 << 30,
        disk_bytes: 0,
        policy: Default::default(),
        pilots: None,
    }
}

impl Site {
    pub(crate) fn new() -> Self {
        Self::with(config())
    }

    pub(crate) fn with(config: Config) -> Self {
        let now = Timestamp(1_000_000_000);
        let policy = config.policy.clone();
        let (agent, step) = Agent::recover(config, None, [], Found::default(), now);
        let (facts, commands) = (Vec::new(), Vec::new());
        let mut site =
            Self { agent, facts, commands, now, epoch: 0, lacking: false, policy, next_command: 1, boots: 0 };
        site.perform(step);
        site
    }

    /// One with a session.
    pub(crate) fn connected() -> Self {
        let mut site = Self::new();
        site.connect();
        site
    }

    fn perform(&mut self, step: Step) {
        self.facts.extend(step.facts);
        self.commands.extend(step.commands);
        self.agent.check();
    }

    pub(crate) fn event(&mut self, event: Event) {
        let step = self.agent.handle(event, self.now);
        self.perform(step);
    }

    /// Lets time pass, with every timeout on the way.
    pub(crate) fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        while let Some(at) = self.agent.next_timeout().filter(|at| *at <= end) {
            self.now = self.now.max(at);
            self.event(Event::TimeoutElapsed);
        }
        self.now = end;
    }

    /// Kills the process and begins another on the same journal, through the encoding that journals use.
    pub(crate) fn restart(&mut self, attempts: Vec<FoundAttempt>) {
        self.restart_with(Found { attempts, ..Found::default() });
    }

    pub(crate) fn restart_with(&mut self, found: Found) {
        self.restart_in(config().boot, found);
    }

    /// As [`Self::restart`], on a machine that was perhaps started anew.
    pub(crate) fn restart_in(&mut self, boot: Boot, found: Found) {
        let policy = self.policy.clone();
        let config = || Config { boot, policy: policy.clone(), ..config() };
        let facts: Vec<Fact> =
            self.facts.iter().map(|fact| postcard::from_bytes(&postcard::to_stdvec(fact).unwrap()).unwrap()).collect();
        let (replayed, _) = Agent::recover(config(), None, facts.clone(), found.clone(), self.now);
        let snapshot: Snapshot = postcard::from_bytes(&postcard::to_stdvec(&self.agent.snapshot()).unwrap()).unwrap();
        let (agent, step) = Agent::recover(config(), Some(snapshot), [], found, self.now);
        assert_eq!(replayed.snapshot(), agent.snapshot(), "recovered from facts as from a snapshot");
        self.agent = agent;
        self.commands.clear();
        self.perform(step);
    }

    /// Kills the process and loses its journal.
    pub(crate) fn lose_journal(&mut self, attempts: Vec<FoundAttempt>) {
        let found = Found { attempts, ..Found::default() };
        let config = Config { new_journal: JournalId::from_bits(99), ..config() };
        let (agent, step) = Agent::recover(config, None, [], found, self.now);
        self.agent = agent;
        self.facts.clear();
        self.commands.clear();
        self.next_command = 1;
        self.perform(step);
    }

    pub(crate) fn frame(&mut self, acknowledged: u64, body: ControlBody) {
        let acknowledged = ReportSeq(acknowledged);
        let frame = ControlFrame { epoch: Epoch(self.epoch), acknowledged, lease: None, body };
        self.event(Event::FrameReceived { frame });
    }

    pub(crate) fn grant(&mut self) {
        self.grant_with(Duration::from_secs(15));
    }

    /// A lease, and how often the agent is to be heard from now on.
    pub(crate) fn grant_with(&mut self, heartbeat: Duration) {
        let lease =
            Some(LeaseGrant { answers: self.now, session: heartbeat * 3, work: Duration::from_secs(900), heartbeat });
        let frame = ControlFrame {
            epoch: Epoch(self.epoch),
            acknowledged: ReportSeq(0),
            lease,
            body: ControlBody::Acknowledge,
        };
        self.event(Event::FrameReceived { frame });
    }

    /// A whole handshake: everything is kept, the lease is granted. The inventory.
    pub(crate) fn connect(&mut self) -> Vec<InventoryItem> {
        self.connect_with(0, |_| Verdict::Keep)
    }

    pub(crate) fn connect_with(
        &mut self,
        resume_after: u64,
        verdict: impl Fn(&InventoryItem) -> Verdict,
    ) -> Vec<InventoryItem> {
        self.boots += 1;
        self.event(Event::Connected { boot_nonce: self.boots, wall_clock: self.now });
        self.epoch += 1;
        let welcome = Welcome {
            protocol: 1,
            resume_after: ReportSeq(resume_after),
            new_journal: self.lacking,
            credits: Credits { reports: 100 },
        };
        self.frame(resume_after, ControlBody::Welcome(welcome));
        let inventory = self
            .commands
            .iter()
            .rev()
            .find_map(|command| match command {
                Command::Send { frame: AgentFrame { body: AgentBody::Inventory(inventory), .. } } => {
                    Some(inventory.items.clone())
                }
                _ => None,
            })
            .expect("a welcome is answered with an inventory");
        self.frame(resume_after, ControlBody::Verdicts(inventory.iter().map(verdict).collect()));
        self.frame(resume_after, ControlBody::Ready);
        self.grant();
        inventory
    }

    pub(crate) fn command(&mut self, command: SiteCommand) {
        let first = CommandSeq(self.next_command);
        self.next_command += 1;
        self.frame(0, ControlBody::Commands { first, commands: vec![command] });
    }

    pub(crate) fn repeat(&mut self, first: u64, commands: Vec<SiteCommand>) {
        self.frame(0, ControlBody::Commands { first: CommandSeq(first), commands });
    }

    pub(crate) fn prepare(&mut self, template: &StepTemplate) {
        self.command(SiteCommand::Prepare(Box::new(template.clone())));
    }

    pub(crate) fn dispatch(&mut self, step: u16, elements: std::ops::Range<u32>) {
        self.command(SiteCommand::Dispatch(plain(step, elements)));
    }

    pub(crate) fn starts(&self) -> Vec<(ExecutionId, Attempt)> {
        let started = self.commands.iter().filter_map(|command| match command {
            Command::Start { execution, attempt, .. } => Some((*execution, *attempt)),
            _ => None,
        });
        started.collect()
    }

    pub(crate) fn has(&self, wanted: impl Fn(&Command) -> bool) -> bool {
        self.commands.iter().any(wanted)
    }

    /// What was sent since the commands were last cleared, in order.
    pub(crate) fn sent(&self) -> Vec<&AgentFrame> {
        let sent = self.commands.iter().filter_map(|command| match command {
            Command::Send { frame } => Some(frame),
            _ => None,
        });
        sent.collect()
    }

    pub(crate) fn reports(&self) -> Vec<(u64, Report)> {
        let mut numbered = Vec::new();
        for frame in self.sent() {
            if let AgentBody::Reports { first, reports } = &frame.body {
                numbered.extend(
                    reports.iter().cloned().enumerate().map(|(place, report)| (first.0 + place as u64, report)),
                );
            }
        }
        numbered
    }

    pub(crate) fn finished(&self) -> Vec<(u16, FinishedElement)> {
        let reports = self.reports();
        let ends = reports.into_iter().filter_map(|(_, report)| match report {
            Report::Finished { step, elements, .. } => Some((step.0, elements)),
            _ => None,
        });
        ends.flat_map(|(step, elements)| elements.into_iter().map(move |element| (step, element))).collect()
    }

    pub(crate) fn exit(&mut self, execution: ExecutionId, how: ExitKind) {
        let exit = exit_at(self.now, how);
        self.event(Event::Exited { execution, attempt: FIRST, exit, stored: None });
    }

    pub(crate) fn store(&mut self, execution: ExecutionId, outputs: Vec<Value>) {
        let result = Ok(StoredOutputs { outputs, logs: Logs::default(), bytes_out: 0 });
        self.event(Event::OutputsStored { execution, attempt: FIRST, result });
    }

    /// Runs an execution to its success.
    pub(crate) fn succeed(&mut self, execution: ExecutionId) {
        self.event(Event::Started { execution, attempt: FIRST, at: self.now });
        self.exit(execution, ExitKind::Code(0));
        self.store(execution, Vec::new());
    }

    pub(crate) fn measure(&mut self, disk_free_bytes: u64) {
        let capacity = Capacity { disk_free_bytes, ..config().capacity };
        self.event(Event::Measured { heartbeat: Heartbeat { capacity, ..Heartbeat::default() } });
    }
}

/// The end of what ran for a second.
pub(crate) fn exit_at(at: Timestamp, how: ExitKind) -> Exit {
    Exit { started_at: at - Duration::from_secs(1), finished_at: at, how, usage: Usage::default() }
}

pub(crate) fn exec(step: u16, element: u32) -> ExecutionId {
    ExecutionId { run: RUN, step: StepIndex(step), element }
}

pub(crate) fn template(step: u16) -> StepTemplate {
    StepTemplate {
        run: RUN,
        step: StepIndex(step),
        step_name: format!("step{step}"),
        workflow: "test".to_owned(),
        work: TemplateWork::Script("true".to_owned()),
        resources: Resources::default(),
        outputs: Vec::new(),
        bindings: Vec::new(),
        environment: Vec::new(),
        start: StartMode::AtLeastOnce,
        on_disconnect: OnDisconnect::Finish,
        priority: 0,
        origin: Origin::default(),
    }
}

pub(crate) fn with_output(step: u16) -> StepTemplate {
    let output = TemplateOutput { name: "out".to_owned(), r#type: Type::File, optional: false, listed: false };
    StepTemplate { outputs: vec![output], ..template(step) }
}

pub(crate) fn plain(step: u16, elements: std::ops::Range<u32>) -> Dispatch {
    Dispatch {
        run: RUN,
        step: StepIndex(step),
        attempt: FIRST,
        elements: DispatchElements::Plain(ElementSet::from_range(elements)),
        fragment: false,
        start_by: None,
    }
}

/// One execution that reads `out` of the execution of the step before.
pub(crate) fn follower(step: u16) -> Dispatch {
    let source = BindingSource::Output { execution: exec(step - 1, 0), attempt: FIRST, output: "out".to_owned() };
    let binding = Binding { name: "input".to_owned(), source };
    Dispatch { elements: DispatchElements::Bound(vec![(0, vec![binding])]), fragment: true, ..plain(step, 0..1) }
}

pub(crate) fn object(number: u8) -> ObjectRef {
    ObjectRef { id: ObjectId::from_digest([number; 32]), kind: ObjectKind::File, bytes: u64::from(number) }
}

pub(crate) fn file(number: u8) -> Value {
    let ObjectRef { id, bytes, .. } = object(number);
    Value::File(FileRef { object: id, bytes, name: FileName::new(b"file").unwrap(), executable: false })
}

/// One execution that reads an object.
pub(crate) fn reader(step: u16, element: u32, number: u8) -> Dispatch {
    let binding = Binding { name: "input".to_owned(), source: BindingSource::Value(file(number)) };
    Dispatch { elements: DispatchElements::Bound(vec![(element, vec![binding])]), ..plain(step, 0..1) }
}

pub(crate) fn is_success(outcome: &Outcome) -> bool {
    *outcome == Outcome::Succeeded
}
