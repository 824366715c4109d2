//! An agent that starts and ends whatever it is handed, at once.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex};

use atoll_model::id::{AgentId, Attempt, CommandSeq, Epoch, JournalId, ObjectId, ReportSeq, RunId, StepIndex};
use atoll_model::resources::Capacity;
use atoll_model::session::{
    AgentBody, AgentFrame, ControlBody, ControlFrame, Dispatch, DispatchElements, FinishedElement, Hello, Inventory,
    Logs, Outcome, PROTOCOL_VERSION_MIN, Report, SiteCommand, StartedElement, StepTemplate, Usage,
};
use atoll_model::value::{FileName, FileRef, ObjectKind, ObjectRef, Value};
use control_plane_core::{ConnectionId, Event};
use storage_sync_engine::bucket::Bucket;
use tokio::sync::{mpsc, watch};

use crate::driver::{Handle, wall_clock};

/// What an execution of a step yields, in the order of its outputs; with nothing it stays running.
pub(crate) type Work = Arc<dyn Fn(&StepTemplate, u32) -> Option<Vec<Value>> + Send + Sync>;

/// Cheap to clone.
#[derive(Clone)]
pub(crate) struct Agent {
    handle: Handle,
    bucket: Bucket,
    id: AgentId,
    connection: ConnectionId,
    work: Work,
    state: Arc<Mutex<State>>,
    ready: watch::Sender<bool>,
}

struct State {
    frames: Option<mpsc::Receiver<Box<ControlFrame>>>,
    epoch: Epoch,
    commands: CommandSeq,
    reports: ReportSeq,
    templates: HashMap<(RunId, StepIndex), StepTemplate>,
    /// What it holds, by name.
    objects: HashMap<ObjectId, Vec<u8>>,
    /// Frames that it was sent, by kind.
    seen: Vec<&'static str>,
}

impl Agent {
    pub(crate) async fn connect(handle: &Handle, bucket: &Bucket, id: AgentId, work: Work) -> Self {
        let connection = handle.connect().await.unwrap();
        let state = State {
            frames: Some(connection.frames),
            epoch: Epoch(0),
            commands: CommandSeq(0),
            reports: ReportSeq(0),
            templates: HashMap::new(),
            objects: HashMap::new(),
            seen: Vec::new(),
        };
        let state = Arc::new(Mutex::new(state));
        let agent = Self {
            handle: handle.clone(),
            bucket: bucket.clone(),
            id,
            connection: connection.id,
            work,
            state,
            ready: watch::Sender::new(false),
        };
        agent.say(AgentBody::Hello(agent.hello())).await;
        agent
    }

    fn hello(&self) -> Hello {
        Hello {
            agent: self.id,
            journal: JournalId::from_bits(self.id.bits()),
            incarnation: 1,
            boot_nonce: 1,
            protocol_min: PROTOCOL_VERSION_MIN,
            protocol_max: PROTOCOL_VERSION_MIN,
            agent_version: "0.1.0".to_owned(),
            capacity: Capacity {
                cpu_millis: 8_000,
                memory_bytes: 8 << 30,
                disk_free_bytes: 1 << 40,
                ..Capacity::default()
            },
            runtimes: vec!["command".to_owned()],
            last_command: CommandSeq(0),
            acknowledged_report: ReportSeq(0),
            first_report: ReportSeq(0),
            last_report: ReportSeq(0),
            clock: wall_clock(),
            wall_clock: wall_clock(),
        }
    }

    /// Keeps a file in the site's store, and returns the value that refers to it.
    pub(crate) fn keep(&self, name: &str, content: &[u8]) -> Value {
        let object = ObjectId::from_digest(*blake3::hash(content).as_bytes());
        self.state.lock().unwrap().objects.insert(object, content.to_vec());
        let name = FileName::new(name.as_bytes()).unwrap();
        Value::File(FileRef { object, bytes: content.len() as u64, name, executable: false })
    }

    pub(crate) async fn ready(&self) {
        self.ready.subscribe().wait_for(|ready| *ready).await.unwrap();
    }

    /// What it was sent so far.
    pub(crate) fn seen(&self) -> Vec<&'static str> {
        self.state.lock().unwrap().seen.clone()
    }

    /// Answers frames until the control plane ends the stream.
    pub(crate) async fn run(self) {
        let mut frames = self.state.lock().unwrap().frames.take().unwrap();
        while let Some(frame) = frames.recv().await {
            self.answer(*frame).await;
        }
        // The control plane may be gone altogether.
        let _ = self.handle.submit(Event::ConnectionLost { connection: self.connection }).await;
    }

    async fn answer(&self, frame: ControlFrame) {
        self.state.lock().unwrap().epoch = frame.epoch;
        match frame.body {
            ControlBody::Welcome(_) => {
                self.note("welcome");
                self.say(AgentBody::Inventory(Inventory::default())).await;
            }
            ControlBody::Verdicts(_) => self.note("verdicts"),
            ControlBody::Ready => {
                self.note("ready");
                self.ready.send_replace(true);
            }
            ControlBody::Acknowledge => self.note("acknowledge"),
            ControlBody::Goodbye(_) => self.note("goodbye"),
            ControlBody::Commands { first, commands } => {
                self.note("commands");
                self.state.lock().unwrap().commands = CommandSeq(first.0 + commands.len() as u64 - 1);
                for command in commands {
                    self.obey(command).await;
                }
            }
        }
    }

    async fn obey(&self, command: SiteCommand) {
        match command {
            SiteCommand::Prepare(template) => {
                self.state.lock().unwrap().templates.insert((template.run, template.step), *template);
            }
            SiteCommand::Dispatch(dispatch) => self.dispatch(dispatch).await,
            SiteCommand::Push { transfer, object } => {
                let content = self.state.lock().unwrap().objects.get(&object.id).unwrap().clone();
                let wire_bytes = content.len() as u64;
                let stream = futures::stream::iter([Ok(content.into())]);
                self.bucket.put_stream(object, Box::pin(stream)).await.unwrap();
                let at = wall_clock();
                self.report(vec![Report::Pushed { transfer, object, wire_bytes, at }]).await;
            }
            SiteCommand::Cancel { .. }
            | SiteCommand::CancelPush { .. }
            | SiteCommand::Forget { .. }
            | SiteCommand::Delegate(_)
            | SiteCommand::Withdraw { .. }
            | SiteCommand::Evict { .. }
            | SiteCommand::ProposeEviction { .. }
            | SiteCommand::Replicate { .. }
            | SiteCommand::MakeReady(_)
            | SiteCommand::Verify { .. }
            | SiteCommand::Unknown { .. } => {}
        }
    }

    async fn dispatch(&self, dispatch: Dispatch) {
        let Dispatch { run, step, attempt, elements, .. } = dispatch;
        let elements: Vec<u32> = match elements {
            DispatchElements::Plain(set) => set.iter().collect(),
            DispatchElements::Bound(bound) => bound.into_iter().map(|(element, _)| element).collect(),
        };
        let template = self.state.lock().unwrap().templates.get(&(run, step)).unwrap().clone();
        let at = wall_clock();
        let started = elements.iter().map(|element| StartedElement { element: *element, attempt, at }).collect();
        let outcome = |element: &u32| Some(self.finished(*element, attempt, (self.work)(&template, *element)?));
        let finished: Vec<FinishedElement> = elements.iter().filter_map(outcome).collect();
        let mut reports = vec![Report::Started { run, step, elements: started }];
        if !finished.is_empty() {
            reports.push(Report::Finished { run, step, elements: finished });
        }
        self.report(reports).await;
    }

    fn finished(&self, element: u32, attempt: Attempt, outputs: Vec<Value>) -> FinishedElement {
        let at = wall_clock();
        let stdout = ObjectRef { id: ObjectId::from_digest([4; 32]), kind: ObjectKind::File, bytes: 5 };
        FinishedElement {
            element,
            attempt,
            started_at: Some(at),
            finished_at: at,
            outcome: Outcome::Succeeded,
            outputs,
            usage: Usage { cpu_micros: 1_500_000, max_rss_bytes: 1_024, disk_written_bytes: 4_096, ..Usage::default() },
            logs: Logs { stdout: Some(stdout), stderr: None },
        }
    }

    async fn report(&self, reports: Vec<Report>) {
        let first = {
            let mut state = self.state.lock().unwrap();
            let first = state.reports.next();
            state.reports.0 += reports.len() as u64;
            first
        };
        self.say(AgentBody::Reports { first, reports }).await;
    }

    async fn say(&self, body: AgentBody) {
        let frame = {
            let state = self.state.lock().unwrap();
            AgentFrame { epoch: state.epoch, acknowledged: state.commands, body }
        };
        let event = Event::FrameReceived { connection: self.connection, agent: self.id, frame };
        self.handle.submit(event).await.unwrap();
    }

    fn note(&self, frame: &'static str) {
        self.state.lock().unwrap().seen.push(frame);
    }
}

impl fmt::Debug for Agent {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Agent").field("id", &self.id).finish_non_exhaustive()
    }
}
