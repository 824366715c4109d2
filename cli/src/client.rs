//! The HTTP API, as commands use it.

mod pin;
mod rows;
mod servers;

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Context as _;
use atoll_model::diagnostic::Diagnostic;
use futures::StreamExt as _;
use reqwest::{Method, RequestBuilder, Response, StatusCode};
use serde_json::{Value, json};

use crate::failure::Failure;

pub(crate) use pin::Trust;
pub(crate) use rows::{ExecutionRow, Finished, LedgerRow};
use servers::Servers;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
const KEEPALIVE: Duration = Duration::from_secs(10);
/// Before a connection that broke is made again.
const RECONNECT_PAUSE: Duration = Duration::from_millis(500);
const SUBMIT_RETRIES: u32 = 4;
/// How long a server may be too busy before that is a failure, and the longest pause before it is asked again.
const BUSY_PATIENCE: Duration = Duration::from_secs(600);
const BUSY_PAUSE_MAX: Duration = Duration::from_secs(30);
/// How often in a row that may fail: a server that is started again is back by then.
const RECONNECTS_MAX: u32 = 120;
/// Executions are asked for in pages of this many.
const PAGE: usize = 10_000;

/// A server that requests go to.
#[derive(Debug, Clone)]
pub(crate) struct Client {
    http: reqwest::Client,
    servers: Servers,
    token: String,
}

impl Client {
    /// A client of a server whose CA the token pins.
    ///
    /// # Errors
    /// When the URL is not one that may be used: plain HTTP to another machine, or HTTPS with a token that pins nothing.
    pub(crate) fn new(url: &str, token: &str) -> anyhow::Result<Self> {
        Self::trusting(Trust::Token(token), url, token)
    }

    /// # Errors
    /// As [`Client::new`], and when there are no CAs to trust.
    pub(crate) fn trusting(trust: Trust<'_>, urls: &str, token: &str) -> anyhow::Result<Self> {
        let servers = Servers::of(urls)?;
        let url = servers.current();
        let builder = reqwest::Client::builder().connect_timeout(CONNECT_TIMEOUT).tcp_nodelay(true);
        // A machine that is gone says nothing, not even that.
        let builder = builder.tcp_keepalive(KEEPALIVE);
        let builder = if url.starts_with("https://") {
            let config = pin::client_config(trust).map_err(|error| Failure::Usage(format!("{error:#}")))?;
            builder.tls_backend_preconfigured(config)
        } else {
            builder
        };
        Ok(Self { http: builder.build()?, servers, token: token.to_owned() })
    }

    /// The servers that requests go to, as they were given.
    pub(crate) fn url(&self) -> String {
        self.servers.all()
    }

    pub(crate) async fn get(&self, path: &str) -> anyhow::Result<Value> {
        Ok(self.send(self.request(Method::GET, path)).await?.json().await?)
    }

    /// As [`Self::get`], or why the server has nothing there.
    pub(crate) async fn look_up(&self, path: &str) -> anyhow::Result<Result<Value, String>> {
        match self.get(path).await {
            Ok(document) => Ok(Ok(document)),
            Err(error) => match error.downcast::<Failure>()? {
                Failure::NotFound(reason) => Ok(Err(reason)),
                other @ (Failure::Failed(_)
                | Failure::Usage(_)
                | Failure::Invalid { .. }
                | Failure::Unreachable(_)
                | Failure::Unauthorised(_)) => Err(other.into()),
            },
        }
    }

    pub(crate) async fn post(&self, path: &str, body: &Value) -> anyhow::Result<Value> {
        let response = self.send(self.request(Method::POST, path).json(body)).await?;
        if response.status() == StatusCode::NO_CONTENT {
            return Ok(Value::Null);
        }
        Ok(response.json().await?)
    }

    /// Submits a run. Where the answer is lost it is asked for again under the same key, so that there is one run.
    pub(crate) async fn submit(&self, body: &Value) -> anyhow::Result<Value> {
        let key = uuid::Uuid::now_v7().to_string();
        let mut failures = 0;
        loop {
            let request = self.request(Method::POST, "/runs").header("idempotency-key", &key).json(body);
            // One that is going down, or leads no more, says so; another may take it.
            match self.send_patiently(request.build()?).await {
                Ok(response) if failures < SUBMIT_RETRIES && response.status() == StatusCode::SERVICE_UNAVAILABLE => {
                    failures += 1;
                }
                Ok(response) => return Ok(accepted(response).await?.json().await?),
                Err(error @ Failure::Unreachable(_)) if failures < SUBMIT_RETRIES => {
                    tracing::debug!(%error, "the submission is repeated under its key");
                    failures += 1;
                }
                Err(error) => return Err(error.into()),
            }
            tokio::time::sleep(RECONNECT_PAUSE).await;
        }
    }

    pub(crate) async fn delete(&self, path: &str) -> anyhow::Result<()> {
        self.send(self.request(Method::DELETE, path)).await?;
        Ok(())
    }

    pub(crate) async fn put_document(&self, path: &str, body: &Value) -> anyhow::Result<Value> {
        Ok(self.send(self.request(Method::PUT, path).json(body)).await?.json().await?)
    }

    /// Sends bytes in.
    pub(crate) async fn put(&self, path: &str, body: reqwest::Body) -> anyhow::Result<Value> {
        Ok(self.send(self.request(Method::PUT, path).body(body)).await?.json().await?)
    }

    /// An answer that is read as it comes.
    pub(crate) async fn stream(&self, path: &str) -> anyhow::Result<Response> {
        self.send(self.request(Method::GET, path)).await
    }

    fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.http.request(method, format!("{}/api/v1{path}", self.servers.current())).bearer_auth(&self.token)
    }

    async fn send(&self, request: RequestBuilder) -> anyhow::Result<Response> {
        Ok(accepted(self.send_patiently(request.build()?).await?).await?)
    }

    /// Sends a request. A server that is too busy for it has done nothing, and is asked again when it says, for a while.
    async fn send_patiently(&self, mut request: reqwest::Request) -> Result<Response, Failure> {
        let began = tokio::time::Instant::now();
        loop {
            let again = request.try_clone();
            let response = self.servers.send(&self.http, request).await?;
            let pause = again_after(&response).filter(|pause| began.elapsed() + *pause < BUSY_PATIENCE);
            let (Some(again), Some(pause)) = (again, pause) else { return Ok(response) };
            let reason = refusal(StatusCode::TOO_MANY_REQUESTS, &response.bytes().await.unwrap_or_default());
            eprintln!("the server is busy, asking again in {} s: {reason}", pause.as_secs());
            tokio::time::sleep(pause).await;
            request = again;
        }
    }

    /// Submits a workflow without files and waits for its end.
    pub(crate) async fn submit_and_wait(&self, source: &str, file_name: &str) -> anyhow::Result<Finished> {
        let run = self.submit_source(source, file_name).await?;
        self.wait(&run).await
    }

    /// Submits a workflow without files; the name of its run.
    pub(crate) async fn submit_source(&self, source: &str, file_name: &str) -> anyhow::Result<String> {
        let body = json!({ "source": source, "file_name": file_name, "inputs": {}, "actions": {} });
        let submitted = self.submit(&body).await?;
        Ok(submitted["run"].as_str().context("the answer names no run")?.to_owned())
    }

    /// Waits for the end of a run.
    pub(crate) async fn wait(&self, run: &str) -> anyhow::Result<Finished> {
        self.follow(run, |_| {}).await
    }

    /// Waits for the end of a run, and shows each event of it to `seen`. A connection that breaks is made again, for as
    /// long as the server answers at least once in a while.
    pub(crate) async fn follow(&self, run: &str, mut seen: impl FnMut(&Value)) -> anyhow::Result<Finished> {
        let mut failures = 0;
        loop {
            let outcome = self.events(run, &mut seen).await;
            let document = match outcome {
                Ok(_) => self.get(&format!("/runs/{}?executions=false", segment(run))).await,
                Err(error) => Err(error),
            };
            match document {
                Ok(document) if has_ended(&document) => return Finished::from_document(document),
                Ok(_) => failures = 0,
                Err(error) if failures < RECONNECTS_MAX && is_transient(&error) => failures += 1,
                Err(error) => return Err(error),
            }
            tokio::time::sleep(RECONNECT_PAUSE).await;
        }
    }

    /// Reads events until the run has ended, or the stream has.
    async fn events(&self, run: &str, seen: &mut impl FnMut(&Value)) -> anyhow::Result<()> {
        let mut stream = self.stream(&format!("/runs/{}/events", segment(run))).await?.bytes_stream();
        let mut blocks = EventBlocks::default();
        while let Some(chunk) = stream.next().await {
            blocks.push(&chunk.map_err(|error| unreachable(&self.servers.current(), &error))?);
            while let Some(event) = blocks.next() {
                seen(&event);
                if has_ended(&event) {
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    /// Every execution of a run, in the order of its steps and elements.
    pub(crate) async fn executions(&self, run: &str) -> anyhow::Result<Vec<ExecutionRow>> {
        let mut rows = Vec::new();
        loop {
            let page = self.get(&format!("/runs/{run}?offset={}&limit={PAGE}", rows.len())).await?;
            let executions = page["executions"].as_array().context("the answer has no executions")?;
            for execution in executions {
                rows.push(ExecutionRow::from_document(execution)?);
            }
            if executions.len() < PAGE {
                return Ok(rows);
            }
        }
    }

    pub(crate) async fn ledger(&self, run: &str) -> anyhow::Result<Vec<LedgerRow>> {
        let document = self.get(&format!("/ledger?run={run}")).await?;
        let entries = document["entries"].as_array().context("the answer has no entries")?;
        entries.iter().map(LedgerRow::from_document).collect()
    }

    /// Makes a token for a site, and returns it.
    pub(crate) async fn create_site_token(
        &self,
        site: &str,
        lifetime: Duration,
        labels: &BTreeMap<String, String>,
    ) -> anyhow::Result<String> {
        let body = json!({ "ttl_seconds": lifetime.as_secs(), "labels": labels });
        let document = self.post(&format!("/sites/{site}/tokens"), &body).await?;
        Ok(document["token"].as_str().context("the answer has no token")?.to_owned())
    }

    /// Names of the sites that are ready for work.
    pub(crate) async fn ready_sites(&self) -> anyhow::Result<Vec<String>> {
        let document = self.get("/sites").await?;
        let sites = document["sites"].as_array().context("the answer has no sites")?;
        let ready = sites.iter().filter(|site| site["state"] == "ready");
        Ok(ready.filter_map(|site| site["site"].as_str().map(str::to_owned)).collect())
    }
}

/// Server-sent events, put together from the pieces in which they come.
#[derive(Debug, Default)]
struct EventBlocks {
    pending: Vec<u8>,
}

impl EventBlocks {
    fn push(&mut self, chunk: &[u8]) {
        self.pending.extend(chunk.iter().filter(|byte| **byte != b'\r'));
    }

    /// The data of the next event that is whole; comments and events without data are passed over.
    fn next(&mut self) -> Option<Value> {
        loop {
            let end = self.pending.windows(2).position(|pair| pair == b"\n\n")?;
            let block: Vec<u8> = self.pending.drain(..end + 2).collect();
            let text = String::from_utf8_lossy(&block);
            let data: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("data:")).map(str::trim).collect();
            if let Ok(event) = serde_json::from_str(&data.join("\n")) {
                return Some(event);
            }
        }
    }
}

/// When to ask a busy server again.
fn again_after(response: &Response) -> Option<Duration> {
    if response.status() != StatusCode::TOO_MANY_REQUESTS {
        return None;
    }
    let header = response.headers().get(reqwest::header::RETRY_AFTER).and_then(|header| header.to_str().ok());
    let seconds = header.and_then(|text| text.parse().ok()).unwrap_or(1);
    Some(Duration::from_secs(seconds).clamp(Duration::from_secs(1), BUSY_PAUSE_MAX))
}

/// Whether a run, or the event of one, says that it has ended.
fn has_ended(document: &Value) -> bool {
    matches!(document["state"].as_str(), Some("succeeded" | "failed" | "cancelled"))
}

/// Text for one segment of a path of the API.
pub(crate) fn segment(text: &str) -> String {
    text.bytes()
        .map(|byte| match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b':' => char::from(byte).to_string(),
            other => format!("%{other:02X}"),
        })
        .collect()
}

async fn accepted(response: Response) -> Result<Response, Failure> {
    let status = response.status();
    if status.is_success() {
        return Ok(response);
    }
    let body = response.bytes().await.unwrap_or_default();
    Err(refusal(status, &body))
}

fn is_transient(error: &anyhow::Error) -> bool {
    matches!(error.downcast_ref::<Failure>(), Some(Failure::Unreachable(_)))
}

fn unreachable(url: &str, error: &reqwest::Error) -> Failure {
    let mut reasons = vec![error.to_string()];
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        reasons.push(cause.to_string());
        source = cause.source();
    }
    let last = reasons.pop().unwrap_or_default();
    Failure::Unreachable(format!("cannot reach {url}: {last}"))
}

/// What the server said, as the failure of a command.
fn refusal(status: StatusCode, body: &[u8]) -> Failure {
    let document: Value = serde_json::from_slice(body).unwrap_or_default();
    let error = &document["error"];
    let diagnostics: Vec<Diagnostic> =
        error["diagnostics"].as_array().map(|list| list.iter().map(rows::diagnostic).collect()).unwrap_or_default();
    if !diagnostics.is_empty() {
        return Failure::Invalid { diagnostics, source_text: None };
    }
    let mut message = match error["message"].as_str() {
        Some(message) => message.to_owned(),
        None => format!("the server answered {status}"),
    };
    if let Some(help) = error["help"].as_str() {
        message = format!("{message} ({help})");
    }
    match status {
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Failure::Unauthorised(message),
        StatusCode::BAD_REQUEST | StatusCode::UNPROCESSABLE_ENTITY => Failure::Usage(message),
        StatusCode::NOT_FOUND => Failure::NotFound(message),
        _ => Failure::Failed(message),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_http_is_for_this_machine_only() {
        assert!(Client::new("http://127.0.0.1:1", "token").is_ok());
        assert!(Client::new("http://[::1]:1", "token").is_ok());
        assert!(Client::new("http://192.0.2.1:1", "token").is_err());
        assert!(Client::new("http://127.0.0.1.example.org", "token").is_err());
    }

    #[test]
    fn a_refusal_names_what_would_help() {
        let body = br#"{"error":{"code":"not_found","message":"there is no such run","help":"see `atoll runs`"}}"#;
        let failure = refusal(StatusCode::NOT_FOUND, body);
        assert_eq!(failure.to_string(), "there is no such run (see `atoll runs`)");
        assert!(matches!(failure, Failure::NotFound(_)));
        assert!(matches!(refusal(StatusCode::SERVICE_UNAVAILABLE, b""), Failure::Failed(_)));
        assert!(matches!(refusal(StatusCode::UNAUTHORIZED, b""), Failure::Unauthorised(_)));
    }

    #[test]
    fn events_are_put_together_from_any_pieces() {
        let stream = ": hello\r\n\r\nevent: run\r\ndata: {\"state\":\"running\",\r\ndata: \"é\":1}\r\n\r\nid: 7\n\ndata: [1]\n\ndata: {";
        for size in [1, 2, 3, 7, 1_000] {
            let mut blocks = EventBlocks::default();
            let mut events = Vec::new();
            for chunk in stream.as_bytes().chunks(size) {
                blocks.push(chunk);
                events.extend(std::iter::from_fn(|| blocks.next()));
            }
            assert_eq!(events, [json!({ "state": "running", "é": 1 }), json!([1])], "pieces of {size}");
        }
    }

    #[test]
    fn segments_are_escaped() {
        assert_eq!(segment("a b/c"), "a%20b%2Fc");
        assert_eq!(segment("b3:00"), "b3:00");
    }
}
