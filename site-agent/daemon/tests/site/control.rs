//! The control plane of a test: it greets, keeps whatever the agent has, hands over its commands from the one that the
//! agent lacks, and remembers each report once.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use atoll_model::id::{Attempt, CommandSeq, Epoch, ExecutionId, ReportSeq};
use atoll_model::session::{
    AgentBody, AgentFrame, ControlBody, ControlFrame, Credits, FinishedElement, Heartbeat, Hello, Inventory,
    InventoryItem, LeaseGrant, Report, SiteCommand, Verdict, Welcome,
};
use atoll_model::value::ObjectRef;
use atoll_proto::v1::agents_server::{Agents, AgentsServer};
use atoll_proto::v1::{self, AgentBulk, ControlBulk, ReadLog, agent_bulk, control_bulk};
use atoll_proto::{LogStream, Received, split_control_frame};
use futures::{Stream, StreamExt as _};
use rustls::ServerConfig;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::{Request, Response, Status, Streaming};

/// Long enough for a busy machine; nothing waits this long unless something is wrong.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Cheap to clone.
#[derive(Clone)]
pub(crate) struct Control(Arc<Shared>);

struct Shared {
    state: Mutex<State>,
    changed: watch::Sender<u64>,
    _serving: Mutex<JoinSet<()>>,
}

#[derive(Default)]
pub(crate) struct State {
    epoch: Epoch,
    commands: Vec<SiteCommand>,
    frames: Option<mpsc::UnboundedSender<v1::ControlFrame>>,
    bulk: Option<mpsc::UnboundedSender<ControlBulk>>,
    /// Whether reports are taken; else they are as lost.
    deaf: bool,
    /// Whether heartbeats are answered.
    mute: bool,
    /// For sessions and for work.
    leases: Option<(Duration, Duration)>,
    acknowledged: CommandSeq,
    pub(crate) reports: Vec<Report>,
    pub(crate) hellos: Vec<Hello>,
    pub(crate) inventories: Vec<Vec<InventoryItem>>,
    pub(crate) heartbeats: Vec<Heartbeat>,
    logs: BTreeMap<u64, (Vec<u8>, Option<v1::LogEnd>)>,
}

impl State {
    /// Every end that was reported of an execution.
    pub(crate) fn ends(&self, execution: ExecutionId) -> Vec<FinishedElement> {
        let reports = self.reports.iter().filter_map(|report| match report {
            Report::Finished { run, step, elements } if (*run, *step) == (execution.run, execution.step) => {
                Some(elements)
            }
            _ => None,
        });
        reports.flatten().filter(|element| element.element == execution.element).cloned().collect()
    }

    pub(crate) fn is_started(&self, execution: ExecutionId) -> bool {
        self.reports.iter().any(|report| match report {
            Report::Started { run, step, elements } => {
                (*run, *step) == (execution.run, execution.step)
                    && elements.iter().any(|started| started.element == execution.element)
            }
            _ => false,
        })
    }

    /// How far agent and control plane are, for whoever looks why something does not happen.
    pub(crate) fn summary(&self) -> String {
        let (sessions, commands) = (self.inventories.len(), self.commands.len());
        let (acknowledged, reports, heartbeats) = (self.acknowledged, self.reports.len(), self.heartbeats.len());
        let last = self.heartbeats.last();
        format!(
            "{sessions} sessions, {commands} commands, {acknowledged} acknowledged, {reports} reports, {heartbeats} heartbeats: {last:?}"
        )
    }

    /// What has come of a log so far.
    pub(crate) fn log(&self, request: u64) -> &[u8] {
        &self.logs[&request].0
    }

    fn say(&self, body: ControlBody, answers: Option<atoll_model::time::Timestamp>) {
        let (session, work) = self.leases.unwrap_or((Duration::from_secs(45), Duration::from_secs(900)));
        let heartbeat = session / 3;
        let grant = |answers| LeaseGrant { answers, session, work, heartbeat };
        let acknowledged = ReportSeq(self.reports.len() as u64);
        let frame = ControlFrame { epoch: self.epoch, acknowledged, lease: answers.map(grant), body };
        let Some(frames) = &self.frames else { return };
        for part in split_control_frame(frame.into()) {
            // An agent that is gone comes back for it.
            let _ = frames.send(part);
        }
    }

    /// Whether the agent has made every command its own.
    pub(crate) fn acknowledged_all(&self) -> bool {
        self.acknowledged.0 == self.commands.len() as u64
    }

    fn take(&mut self, frame: AgentFrame) {
        self.acknowledged = frame.acknowledged;
        match frame.body {
            AgentBody::Hello(hello) => {
                self.epoch = Epoch(self.epoch.0 + 1);
                let resume_after = ReportSeq(self.reports.len() as u64);
                let (clock, credits) = (hello.clock, Credits { reports: 1_000 });
                self.hellos.push(hello);
                let welcome = Welcome { protocol: 1, resume_after, new_journal: false, credits };
                self.say(ControlBody::Welcome(welcome), Some(clock));
            }
            AgentBody::Inventory(Inventory { items, .. }) => {
                let verdicts = items.iter().map(|_| Verdict::Keep).collect();
                self.inventories.push(items);
                self.say(ControlBody::Verdicts(verdicts), None);
                let known = self.hellos.last().map_or(0, |hello| hello.last_command.0);
                let commands = self.commands[usize::try_from(known).unwrap()..].to_vec();
                if !commands.is_empty() {
                    self.say(ControlBody::Commands { first: CommandSeq(known + 1), commands }, None);
                }
                self.say(ControlBody::Ready, None);
            }
            AgentBody::Reports { first, reports } => {
                for (number, report) in (first.0..).zip(reports) {
                    if !self.deaf && number == self.reports.len() as u64 + 1 {
                        self.reports.push(report);
                    }
                }
                self.say(ControlBody::Acknowledge, None);
            }
            AgentBody::Heartbeat(heartbeat) => {
                let sent_at = heartbeat.sent_at;
                self.heartbeats.push(heartbeat);
                if !self.mute {
                    self.say(ControlBody::Acknowledge, Some(sent_at));
                }
            }
            AgentBody::Acknowledge => {}
        }
    }
}

impl Control {
    pub(crate) fn start(listener: TcpListener, tls: ServerConfig) -> Self {
        let serving = Mutex::new(JoinSet::new());
        let shared = Shared { state: Mutex::default(), changed: watch::Sender::new(0), _serving: serving };
        let control = Self(Arc::new(shared));
        let acceptor = TlsAcceptor::from(Arc::new(tls));
        let connections = futures::stream::unfold((listener, acceptor), async |(listener, acceptor)| {
            loop {
                let (stream, _) = listener.accept().await.ok()?;
                stream.set_nodelay(true).ok()?;
                // An agent may be killed in the middle of it.
                if let Ok(stream) = acceptor.accept(stream).await {
                    return Some((Ok::<_, std::io::Error>(stream), (listener, acceptor)));
                }
            }
        });
        let service = AgentsServer::new(Service(control.clone()));
        let server = tonic::transport::Server::builder().add_service(service);
        control.0._serving.lock().unwrap().spawn(async move {
            server.serve_with_incoming(connections).await.unwrap();
        });
        control
    }

    fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let result = change(&mut self.0.state.lock().unwrap());
        self.0.changed.send_modify(|version| *version += 1);
        result
    }

    pub(crate) fn look<T>(&self, look: impl FnOnce(&State) -> T) -> T {
        look(&self.0.state.lock().unwrap())
    }

    /// Waits until `look` finds something.
    pub(crate) async fn until<T>(&self, what: &str, mut look: impl FnMut(&State) -> Option<T>) -> T {
        let mut changed = self.0.changed.subscribe();
        let found = async {
            loop {
                if let Some(found) = self.look(&mut look) {
                    return found;
                }
                changed.changed().await.unwrap();
            }
        };
        let found = tokio::time::timeout(PATIENCE, found).await;
        found.unwrap_or_else(|_| panic!("{what} does not happen; reported: {:#?}", self.look(|s| s.reports.clone())))
    }

    pub(crate) fn order(&self, commands: Vec<SiteCommand>) {
        self.change(|state| {
            let first = CommandSeq(state.commands.len() as u64 + 1);
            state.commands.extend(commands.clone());
            state.say(ControlBody::Commands { first, commands }, None);
        });
    }

    /// Both leases are so long from the next session on.
    pub(crate) fn lease_for(&self, length: Duration) {
        self.change(|state| state.leases = Some((length, length)));
    }

    /// Heartbeats are not answered from now on, or again.
    pub(crate) fn mute(&self, mute: bool) {
        self.change(|state| state.mute = mute);
    }

    /// Reports are lost from now on, or taken again.
    pub(crate) fn deafen(&self, deaf: bool) {
        self.change(|state| state.deaf = deaf);
    }

    pub(crate) async fn started(&self, execution: ExecutionId) {
        self.until(&format!("the start of {execution}"), |state| state.is_started(execution).then_some(())).await;
    }

    /// The one end of an execution.
    pub(crate) async fn finished(&self, execution: ExecutionId) -> FinishedElement {
        let what = format!("the end of {execution}");
        let mut ends = self.until(&what, |state| Some(state.ends(execution)).filter(|ends| !ends.is_empty())).await;
        assert_eq!(ends.len(), 1, "an execution ends once: {ends:#?}");
        ends.remove(0)
    }

    /// Asks for a log; its number.
    pub(crate) async fn read_log(&self, execution: ExecutionId, stream: LogStream, follow: bool) -> u64 {
        self.read_any(execution, stream, follow, None).await
    }

    /// Asks for an object of the store as if it were a log; its number.
    pub(crate) async fn read_object(&self, execution: ExecutionId, object: ObjectRef) -> u64 {
        self.read_any(execution, LogStream::Stdout, false, Some(object)).await
    }

    async fn read_any(
        &self,
        execution: ExecutionId,
        stream: LogStream,
        follow: bool,
        object: Option<ObjectRef>,
    ) -> u64 {
        let bulk = self.until("the stream for logs", |state| state.bulk.clone()).await;
        let request = self.change(|state| {
            let request = state.logs.len() as u64 + 1;
            state.logs.insert(request, (Vec::new(), None));
            request
        });
        let stream: v1::LogStream = stream.into();
        let read = ReadLog {
            request,
            execution: Some(execution.into()),
            attempt: Attempt::FIRST.0,
            stream: stream.into(),
            offset: 0,
            follow,
            credit_bytes: 1 << 20,
            object: object.map(Into::into),
        };
        bulk.send(ControlBulk { body: Some(control_bulk::Body::Read(read)) }).unwrap();
        request
    }

    /// The whole log, once it has ended.
    pub(crate) async fn whole_log(&self, request: u64) -> Vec<u8> {
        let ended = |state: &State| state.logs[&request].1.is_some().then(|| state.logs[&request].0.clone());
        self.until("the end of a log", ended).await
    }
}

struct Service(Control);

type Outgoing<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

fn outgoing<T: Send + 'static>() -> (mpsc::UnboundedSender<T>, Outgoing<T>) {
    let (sender, receiver) = mpsc::unbounded_channel();
    (sender, Box::pin(UnboundedReceiverStream::new(receiver).map(Ok)))
}

#[tonic::async_trait]
impl Agents for Service {
    type SessionStream = Outgoing<v1::ControlFrame>;
    type BulkStream = Outgoing<ControlBulk>;

    async fn session(
        &self,
        request: Request<Streaming<v1::AgentFrame>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let (sender, frames) = outgoing();
        let (control, mut incoming) = (self.0.clone(), request.into_inner());
        control.change(|state| state.frames = Some(sender));
        let taking = async move {
            while let Ok(Some(message)) = incoming.message().await {
                let Received { frame, refused } = Received::<AgentFrame>::try_from(message).unwrap();
                assert!(refused.is_empty(), "{refused:?}");
                control.change(|state| state.take(frame));
            }
        };
        self.0.0._serving.lock().unwrap().spawn(taking);
        Ok(Response::new(frames))
    }

    async fn bulk(&self, request: Request<Streaming<AgentBulk>>) -> Result<Response<Self::BulkStream>, Status> {
        let (sender, asked) = outgoing();
        let (control, mut incoming) = (self.0.clone(), request.into_inner());
        control.change(|state| state.bulk = Some(sender));
        let taking = async move {
            while let Ok(Some(AgentBulk { body: Some(body) })) = incoming.message().await {
                control.change(|state| match body {
                    agent_bulk::Body::Chunk(chunk) => {
                        state.logs.get_mut(&chunk.request).unwrap().0.extend_from_slice(&chunk.bytes);
                    }
                    agent_bulk::Body::End(end) => {
                        let log = state.logs.get_mut(&end.request).unwrap();
                        log.1 = Some(end);
                    }
                });
            }
        };
        self.0.0._serving.lock().unwrap().spawn(taking);
        Ok(Response::new(asked))
    }

    async fn enrol(&self, _: Request<v1::EnrolRequest>) -> Result<Response<v1::Identity>, Status> {
        Err(Status::unimplemented("it has joined"))
    }

    async fn recover(&self, _: Request<v1::RecoverRequest>) -> Result<Response<v1::Identity>, Status> {
        Err(Status::unimplemented("its certificate is new"))
    }

    async fn renew_certificate(
        &self,
        _: Request<v1::RenewCertificateRequest>,
    ) -> Result<Response<v1::Identity>, Status> {
        Err(Status::unimplemented("its certificate is new"))
    }

    async fn download_url(
        &self,
        _: Request<v1::DownloadUrlRequest>,
    ) -> Result<Response<v1::DownloadUrlResponse>, Status> {
        Err(Status::not_found("there is no bucket"))
    }

    async fn advertise(&self, _: Request<v1::AdvertiseRequest>) -> Result<Response<v1::AdvertiseResponse>, Status> {
        Ok(Response::new(v1::AdvertiseResponse {}))
    }

    async fn offers(&self, _: Request<v1::OffersRequest>) -> Result<Response<v1::OffersResponse>, Status> {
        Ok(Response::new(v1::OffersResponse::default()))
    }

    async fn offer_failed(
        &self,
        _: Request<v1::OfferFailedRequest>,
    ) -> Result<Response<v1::OfferFailedResponse>, Status> {
        Ok(Response::new(v1::OfferFailedResponse {}))
    }

    async fn emit(&self, _: Request<v1::EmitRequest>) -> Result<Response<v1::EmitResponse>, Status> {
        Err(Status::unavailable("it takes no records"))
    }

    async fn upload_plan(&self, _: Request<v1::UploadPlanRequest>) -> Result<Response<v1::UploadPlanResponse>, Status> {
        Err(Status::not_found("there is no bucket"))
    }

    async fn complete_upload(
        &self,
        _: Request<v1::CompleteUploadRequest>,
    ) -> Result<Response<v1::CompleteUploadResponse>, Status> {
        Err(Status::not_found("there is no bucket"))
    }

    async fn probe(&self, _: Request<v1::ProbeRequest>) -> Result<Response<v1::ProbeResponse>, Status> {
        Ok(Response::new(v1::ProbeResponse::default()))
    }

    async fn probe_bucket(
        &self,
        _: Request<v1::ProbeBucketRequest>,
    ) -> Result<Response<v1::ProbeBucketResponse>, Status> {
        Err(Status::not_found("there is no bucket"))
    }

    async fn end_bucket_probe(
        &self,
        _: Request<v1::EndBucketProbeRequest>,
    ) -> Result<Response<v1::EndBucketProbeResponse>, Status> {
        Err(Status::not_found("there is no bucket"))
    }
}
