//! A control plane of its own for each test.

use std::future::Future;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use atoll_proto::JoinToken;
use control_plane_server::Config;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Longer than anything takes that is to happen.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) struct World {
    directory: TempDir,
    url: String,
    token: String,
    pub(crate) http: reqwest::Client,
    stop: CancellationToken,
    running: JoinHandle<()>,
}

impl World {
    pub(crate) async fn start() -> Self {
        Self::start_with(|_| {}).await
    }

    pub(crate) async fn start_with(change: impl FnOnce(&mut Config)) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let ready_file = directory.path().join("ready.json");
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let mut config = Config {
            data_dir: directory.path().join("server"),
            listen: any,
            agent_listen: any,
            plain_http: true,
            ready_file: Some(ready_file.clone()),
            ..Config::default()
        };
        "warn".clone_into(&mut config.telemetry.log);
        change(&mut config);
        let stop = CancellationToken::new();
        let shutdown = stop.clone().cancelled_owned();
        let running = TaskTracker::new().spawn(async { control_plane_server::run(config, shutdown).await.unwrap() });
        let ready =
            until("the server is up", async || serde_json::from_slice::<Value>(&std::fs::read(&ready_file).ok()?).ok());
        let ready = ready.await;
        let text = |field: &str| ready[field].as_str().unwrap().to_owned();
        let http = reqwest::Client::builder().build().unwrap();
        Self { url: text("url"), token: text("token"), http, directory, stop, running }
    }

    /// A directory for an agent.
    pub(crate) fn directory(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub(crate) async fn get(&self, path: &str) -> String {
        let request = self.http.get(format!("{}/api/v1/{path}", self.url)).bearer_auth(&self.token);
        request.send().await.unwrap().error_for_status().unwrap().text().await.unwrap()
    }

    pub(crate) async fn post(&self, path: &str, body: Value) -> Value {
        let request = self.http.post(format!("{}/api/v1/{path}", self.url)).bearer_auth(&self.token);
        let response = request.header("content-type", "application/json").body(body.to_string()).send().await.unwrap();
        let (status, text) = (response.status(), response.text().await.unwrap());
        assert!(status.is_success(), "{path}: {status} {text}");
        serde_json::from_str(&text).unwrap()
    }

    pub(crate) async fn upload(&self, name: &str, bytes: &'static [u8]) -> Value {
        let url = format!("{}/api/v1/uploads?kind=file&name={name}", self.url);
        let response = self.http.put(url).bearer_auth(&self.token).body(bytes).send().await.unwrap();
        serde_json::from_str(&response.error_for_status().unwrap().text().await.unwrap()).unwrap()
    }

    pub(crate) async fn join_token(&self, site: &str, seconds: u64) -> JoinToken {
        let made = self.post(&format!("sites/{site}/tokens"), json!({ "ttl_seconds": seconds })).await;
        made["token"].as_str().unwrap().parse().unwrap()
    }

    pub(crate) async fn state_of(&self, site: &str) -> String {
        let site: Value = serde_json::from_str(&self.get(&format!("sites/{site}")).await).unwrap();
        site["state"].as_str().unwrap().to_owned()
    }

    pub(crate) async fn stop(self) {
        self.stop.cancel();
        self.running.await.unwrap();
    }
}

/// Asks until there is an answer.
pub(crate) async fn until<T, F: Future<Output = Option<T>>>(what: &str, ask: impl Fn() -> F) -> T {
    let asking = async {
        let mut pace = tokio::time::interval(Duration::from_millis(10));
        loop {
            pace.tick().await;
            if let Some(answer) = ask().await {
                return answer;
            }
        }
    };
    tokio::time::timeout(PATIENCE, asking).await.unwrap_or_else(|_| panic!("not within {PATIENCE:?}: {what}"))
}
