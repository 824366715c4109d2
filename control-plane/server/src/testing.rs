//! A whole control plane in one process, with a journal in memory whose barrier tests hold back, and agents that speak the
//! frames of a session.

#![expect(clippy::unwrap_used, reason = "a panic is a failed test")]

mod agent;
mod gate;
mod schema;

use std::sync::Arc;
use std::time::Duration;

use atoll_model::id::{AgentId, SiteName, TokenId};
use control_plane_core::{Config, Request};
use storage_sync_engine::bucket::{Bucket, BucketOptions};
use storage_sync_journal::{MemoryDisk, Opened, Options};
use tempfile::TempDir;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub(crate) use agent::{Agent, Work};
pub(crate) use gate::Gate;
pub(crate) use schema::Schema;

use crate::admission::{Admission, Limits};
use crate::agents::Logs;
use crate::api::tokens::ApiTokens;
use crate::api::{self, App, Joining};
use crate::audit::Audit;
use crate::config::{Git, Telemetry};
use crate::driver::{
    self, Beginning, BucketOrder, Driver, Handle, JOURNAL_FORMAT, Notices, delete_objects, wall_clock,
};
use crate::history::{FileHistory, History, Keep, Retention, keep_runs};
use crate::keys::Keys;
use crate::repositories::{self, Imports};
use crate::telemetry::{Meters, Traced, start_exporter};

/// The driver alone.
#[derive(Debug)]
pub(crate) struct Core {
    pub(crate) handle: Handle,
    pub(crate) driver: Driver,
    pub(crate) gate: Gate,
    pub(crate) deletions: mpsc::UnboundedReceiver<BucketOrder>,
    pub(crate) kept: mpsc::UnboundedReceiver<Keep>,
    pub(crate) meters: Arc<Meters>,
}

impl Core {
    /// Starts on what the disk holds.
    pub(crate) fn start(disk: &MemoryDisk) -> Self {
        Self::start_with(disk, None, Config { started_at: wall_clock(), ..Config::default() })
    }

    fn start_with(disk: &MemoryDisk, traced: Option<mpsc::Sender<Traced>>, config: Config) -> Self {
        let options = Options::in_memory(disk.clone(), JOURNAL_FORMAT);
        let Opened { journal, checkpoint, batches, format, .. } = storage_sync_journal::open(options).unwrap();
        let gate = Gate::default();
        let (sender, deletions) = mpsc::unbounded_channel();
        let (keeps, kept) = mpsc::unbounded_channel();
        let meters = Arc::new(Meters::new());
        let beginning = Beginning {
            config,
            log: Box::new(gate.over(journal)),
            deposed: None,
            checkpoint,
            batches,
            format,
            deletions: sender,
            history: keeps,
            notices: Notices::new(traced, Arc::clone(&meters)),
            meters: Arc::clone(&meters),
        };
        let (handle, driver) = driver::start(beginning).unwrap();
        Self { handle, driver, gate, deletions, kept, meters }
    }

    /// Makes a site and an identity that speaks for it.
    pub(crate) async fn enrol(&self, site: &str) -> AgentId {
        enrol(&self.handle, site).await
    }
}

async fn enrol(handle: &Handle, site: &str) -> AgentId {
    let site: SiteName = site.parse().unwrap();
    let (token, agent) = (TokenId::from_bits(fresh()), AgentId::from_bits(fresh()));
    let secret_hash = [1; 32];
    let lifetime = Duration::from_secs(60);
    let create = Request::CreateToken { token, secret_hash, site, labels: Default::default(), lifetime };
    handle.request(create).await.unwrap();
    handle.request(Request::Enrol { token, secret_hash, identity_key: [2; 32], agent }).await.unwrap();
    agent
}

pub(crate) fn fresh() -> u128 {
    uuid::Uuid::now_v7().as_u128()
}

/// The driver, the API on a port of its own, and a bucket in a directory.
#[derive(Debug)]
pub(crate) struct Plane {
    pub(crate) handle: Handle,
    pub(crate) bucket: Bucket,
    pub(crate) url: String,
    pub(crate) token: String,
    pub(crate) directory: TempDir,
    client: reqwest::Client,
    tasks: TaskTracker,
    _driver: Driver,
    _serving: tokio_util::sync::DropGuard,
}

impl Plane {
    pub(crate) async fn start() -> Self {
        Self::start_with(&Telemetry::default()).await
    }

    /// One that keeps runs that have ended for so long.
    pub(crate) async fn start_keeping(keep_finished: Duration) -> Self {
        Self::start_as(&Telemetry::default(), Config { keep_finished, ..Config::default() }, Limits::default()).await
    }

    /// One that takes little in at a time.
    pub(crate) async fn start_within(limits: Limits) -> Self {
        let core = Config { live_runs_max: limits.live_runs, ..Config::default() };
        Self::start_as(&Telemetry::default(), core, limits).await
    }

    pub(crate) async fn start_with(telemetry: &Telemetry) -> Self {
        Self::start_as(telemetry, Config::default(), Limits::default()).await
    }

    async fn start_as(telemetry: &Telemetry, core: Config, limits: Limits) -> Self {
        let (traced, traces) = start_exporter(telemetry).unwrap().unzip();
        let core =
            Core::start_with(&MemoryDisk::default(), traced.clone(), Config { started_at: wall_clock(), ..core });
        let Core { handle, driver, deletions, kept, meters, .. } = core;
        let directory = tempfile::tempdir().unwrap();
        let history: Arc<dyn History> = Arc::new(FileHistory::open(directory.path()).unwrap());
        let options = BucketOptions {
            url_lifetime: Duration::from_secs(60),
            serve_url: "https://127.0.0.1:1".to_owned(),
            signing_key: [3; 32],
            ..BucketOptions::default()
        };
        let bucket = Bucket::open(&directory.path().join("bucket").display().to_string(), options).unwrap();
        let tasks = TaskTracker::new();
        let keys = Keys::open(&crate::Config { data_dir: directory.path().to_owned(), ..Default::default() }).unwrap();
        tasks.spawn(delete_objects(bucket.clone(), keys.clone(), handle.clone(), deletions));
        tasks.spawn(keep_runs(Arc::clone(&history), Retention::default(), handle.clone(), kept));
        if let Some(traces) = traces {
            tasks.spawn(traces.run(handle.clone()));
        }
        let tokens = ApiTokens::open(directory.path(), &[9; 32]).unwrap();
        let token = tokens.first().to_owned();
        let spool = directory.path().join("uploads");
        std::fs::create_dir(&spool).unwrap();
        let app = Arc::new(App {
            handle: handle.clone(),
            history,
            bucket: bucket.clone(),
            keys: keys.clone(),
            tokens,
            admission: Admission::new(&limits, directory.path()),
            audit: Audit::open(directory.path()).unwrap(),
            meters,
            logs: Logs::default(),
            joining: Joining { url: "https://127.0.0.1:2".to_owned(), ca_sha256: [9; 32] },
            tasks: tasks.clone(),
            traced,
            imports: Imports::default(),
            spool,
        });
        let git = Git { local: Some(true), ..Git::default() };
        let importing = repositories::Settings::new(git, directory.path().join("imports")).unwrap();
        tasks.spawn(repositories::import_repositories(Arc::clone(&app), importing));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let closing = CancellationToken::new();
        let router = api::router(app);
        tasks.spawn(api::listener::serve(listener, None, router, closing.clone()));
        let client = reqwest::Client::new();
        Self { handle, bucket, url, token, directory, client, tasks, _driver: driver, _serving: closing.drop_guard() }
    }

    /// A site whose agent does the work.
    pub(crate) async fn site(&self, name: &str, work: Work) -> Agent {
        let agent = self.join(name).await;
        self.connect(agent, work).await
    }

    /// A site whose agent has not come yet.
    pub(crate) async fn join(&self, name: &str) -> AgentId {
        enrol(&self.handle, name).await
    }

    pub(crate) async fn connect(&self, agent: AgentId, work: Work) -> Agent {
        let running = Agent::connect(&self.handle, &self.bucket, agent, work).await;
        self.tasks.spawn(running.clone().run());
        running.ready().await;
        running
    }

    /// A request with the token.
    pub(crate) fn ask(&self, method: &str, path: &str) -> reqwest::RequestBuilder {
        self.ask_as(Some(&self.token), method, path)
    }

    pub(crate) fn ask_as(&self, token: Option<&str>, method: &str, path: &str) -> reqwest::RequestBuilder {
        let request = self.client.request(method.parse().unwrap(), format!("{}{path}", self.url));
        match token {
            Some(token) => request.bearer_auth(token),
            None => request,
        }
    }

    /// The status and the JSON of an answer.
    pub(crate) async fn json(&self, request: reqwest::RequestBuilder) -> (u16, serde_json::Value) {
        let response = request.send().await.unwrap();
        let status = response.status().as_u16();
        let bytes = response.bytes().await.unwrap();
        let body = if bytes.is_empty() { serde_json::Value::Null } else { serde_json::from_slice(&bytes).unwrap() };
        (status, body)
    }

    pub(crate) async fn get(&self, path: &str) -> (u16, serde_json::Value) {
        self.json(self.ask("GET", &format!("/api/v1{path}"))).await
    }

    pub(crate) async fn post(&self, path: &str, body: serde_json::Value) -> (u16, serde_json::Value) {
        self.json(self.ask("POST", &format!("/api/v1{path}")).json(&body)).await
    }

    /// Submits a workflow without inputs and waits for its end.
    pub(crate) async fn run(&self, source: &str) -> serde_json::Value {
        let (status, body) = self.post("/runs", serde_json::json!({ "source": source })).await;
        assert_eq!(status, 201, "{body}");
        self.wait(body["run"].as_str().unwrap()).await
    }

    /// Waits for the end of a run, by its events.
    pub(crate) async fn wait(&self, run: &str) -> serde_json::Value {
        let events = self.ask("GET", &format!("/api/v1/runs/{run}/events")).send().await.unwrap();
        assert_eq!(events.status(), 200);
        events.bytes().await.unwrap();
        self.get(&format!("/runs/{run}")).await.1
    }
}
