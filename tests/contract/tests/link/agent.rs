//! An agent as far as the link goes: the link is real, the work is not done.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use atoll_model::id::{CommandSeq, Epoch, JournalId, ReportSeq};
use atoll_model::resources::Capacity;
use atoll_model::session::{
    AgentBody, AgentFrame, ControlBody, ControlFrame, Hello, Inventory, PROTOCOL_VERSION_MIN, Report, SiteCommand,
};
use atoll_model::time::Timestamp;
use bytes::Bytes;
use futures::StreamExt as _;
use futures::stream::BoxStream;
use site_agent_daemon::link::{
    EnrolError, Identity, Link, LinkEnd, LinkEvent, LinkHandle, LinkOptions, LogRequest, LogSource, enrol,
};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::world::{PATIENCE, World};

pub(crate) struct Agent {
    pub(crate) identity: Identity,
    pub(crate) link: LinkHandle,
    events: mpsc::Receiver<LinkEvent>,
    stop: CancellationToken,
    running: JoinHandle<LinkEnd>,
    epoch: Epoch,
}

/// Writes for everybody the same, in chunks.
struct Poem;

#[async_trait::async_trait]
impl LogSource for Poem {
    async fn open(&self, request: LogRequest) -> Result<BoxStream<'static, std::io::Result<Bytes>>, String> {
        match request.stream {
            atoll_proto::LogStream::Stdout => {
                let line = Bytes::from(format!("{:0>99}\n", request.attempt.0));
                Ok(futures::stream::iter((0..LINES).map(move |_| Ok(line.clone()))).boxed())
            }
            atoll_proto::LogStream::Stderr => Err("nothing was kept".to_owned()),
        }
    }
}

/// Lines of a log: more than a log may have on its way unread.
pub(crate) const LINES: usize = 20_000;

/// Joins a site with a fresh token.
pub(crate) async fn join(world: &World, site: &str) -> Result<PathBuf, EnrolError> {
    let token = world.join_token(site, 600).await;
    let directory = world.directory(site);
    enrol(&directory, &token.to_string()).await.map(|_| directory)
}

impl Agent {
    /// Starts the link of an agent that has joined.
    pub(crate) fn start(directory: &Path) -> Self {
        let (sender, events) = mpsc::channel(64);
        let options =
            LinkOptions { directory: directory.to_owned(), server: None, events: sender, logs: Arc::new(Poem) };
        let (link, handle) = Link::new(options).unwrap();
        let identity = link.identity().clone();
        let stop = CancellationToken::new();
        let running = TaskTracker::new().spawn(link.run(stop.clone()));
        Self { identity, link: handle, events, stop, running, epoch: Epoch(0) }
    }

    pub(crate) async fn next(&mut self) -> LinkEvent {
        tokio::time::timeout(PATIENCE, self.events.recv()).await.expect("something happens to the link").unwrap()
    }

    pub(crate) async fn connected(&mut self) {
        while !matches!(self.next().await, LinkEvent::Connected) {}
    }

    pub(crate) async fn disconnected(&mut self) {
        while !matches!(self.next().await, LinkEvent::Disconnected) {}
    }

    pub(crate) async fn frame(&mut self) -> ControlFrame {
        loop {
            match self.next().await {
                LinkEvent::Frame(frame) => return frame,
                LinkEvent::Connected => {}
                LinkEvent::Disconnected => panic!("the stream has ended"),
            }
        }
    }

    pub(crate) fn hello(&self, boot_nonce: u64) -> Hello {
        Hello {
            agent: self.identity.agent,
            journal: JournalId::from_bits(1),
            incarnation: 1,
            boot_nonce,
            protocol_min: PROTOCOL_VERSION_MIN,
            protocol_max: PROTOCOL_VERSION_MIN,
            agent_version: "0.1.0".to_owned(),
            capacity: Capacity {
                cpu_millis: 8_000,
                memory_bytes: 1 << 34,
                disk_free_bytes: 1 << 40,
                ..Capacity::default()
            },
            runtimes: vec!["command".to_owned()],
            last_command: CommandSeq(0),
            acknowledged_report: ReportSeq(0),
            first_report: ReportSeq(0),
            last_report: ReportSeq(0),
            clock: Timestamp::from_micros(1),
            wall_clock: Timestamp::ZERO,
        }
    }

    pub(crate) fn send(&self, body: AgentBody) {
        self.link.send(AgentFrame { epoch: self.epoch, acknowledged: CommandSeq(0), body });
    }

    /// From the opening of the stream until both sides agree that there is nothing yet.
    pub(crate) async fn greet(&mut self, boot_nonce: u64) {
        self.connected().await;
        self.send(AgentBody::Hello(self.hello(boot_nonce)));
        loop {
            let frame = self.frame().await;
            match frame.body {
                ControlBody::Welcome(_) => {
                    self.epoch = frame.epoch;
                    self.send(AgentBody::Inventory(Inventory::default()));
                }
                ControlBody::Ready => return,
                ControlBody::Verdicts(_) | ControlBody::Acknowledge | ControlBody::Commands { .. } => {}
                ControlBody::Goodbye(goodbye) => panic!("{goodbye:?}"),
            }
        }
    }

    /// The next commands, whenever they come.
    pub(crate) async fn commands(&mut self) -> Vec<SiteCommand> {
        loop {
            if let ControlBody::Commands { commands, .. } = self.frame().await.body {
                return commands;
            }
        }
    }

    pub(crate) fn report(&self, first: u64, reports: Vec<Report>) {
        self.send(AgentBody::Reports { first: ReportSeq(first), reports });
    }

    pub(crate) async fn stop(self) -> LinkEnd {
        self.stop.cancel();
        self.running.await.unwrap()
    }

    /// How the link ended by itself.
    pub(crate) async fn ended(self) -> LinkEnd {
        tokio::time::timeout(PATIENCE, self.running).await.expect("the link ends").unwrap()
    }
}
