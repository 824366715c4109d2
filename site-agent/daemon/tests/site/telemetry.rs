//! What an agent tells of itself: figures for Prometheus, and spans over OTLP that make one trace with the control plane's.

use std::time::Duration;

use atoll_model::session::{Binding, BindingSource, Outcome, TemplateWork};
use atoll_model::value::{Type, Value};
use atoll_telemetry::{Work, attempt_span_id, work_span_id};
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{TraceService, TraceServiceServer};
use opentelemetry_proto::tonic::collector::trace::v1::{ExportTraceServiceRequest, ExportTraceServiceResponse};
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1::Span;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_stream::wrappers::TcpListenerStream;

use crate::control::PATIENCE;
use crate::site::{Site, eventually, output};

/// Hands on every span that it is sent, with who sent it.
struct Collector(mpsc::UnboundedSender<(Resource, Span)>);

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: tonic::Request<ExportTraceServiceRequest>,
    ) -> Result<tonic::Response<ExportTraceServiceResponse>, tonic::Status> {
        for sent in request.into_inner().resource_spans {
            let resource = sent.resource.unwrap_or_default();
            for span in sent.scope_spans.into_iter().flat_map(|scope| scope.spans) {
                self.0.send((resource.clone(), span)).unwrap();
            }
        }
        Ok(tonic::Response::new(ExportTraceServiceResponse::default()))
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";

#[tokio::test]
async fn the_work_of_a_site_is_a_part_of_the_trace_of_its_run() {
    let (sender, mut spans) = mpsc::unbounded_channel();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let collector = tonic::transport::Server::builder().add_service(TraceServiceServer::new(Collector(sender)));
    let mut serving = JoinSet::new();
    serving.spawn(collector.serve_with_incoming(TcpListenerStream::new(listener)));
    let mut site = Site::start_with(&format!("otlp = {endpoint:?}")).await;

    let mut step = site.step("echo $TRACEPARENT > @/parent; echo x > \"$ATOLL_OUTPUTS/out\"; exit $code");
    step.environment = vec![("code".to_owned(), "0".to_owned())];
    step.outputs = vec![output("out", Type::File)];
    step.origin.traceparent = Some(format!("00-{TRACE}-b7ad6b7169203331-01"));
    let good = site.run_step(step);
    assert_eq!(site.control.finished(good).await.outcome, Outcome::Succeeded);
    let given = site.trace("parent").await;
    let mut bad = site.step("exit 3");
    bad.origin.traceparent = Some(format!("00-{TRACE}-b7ad6b7169203331-01"));
    let bad = site.run_step(bad);
    site.control.finished(bad).await;
    // Whoever did not want to be traced is not.
    let mut quiet = site.step("true");
    quiet.origin.traceparent = Some(format!("00-{TRACE}-b7ad6b7169203331-00"));
    let quiet = site.run_step(quiet);
    site.control.finished(quiet).await;
    assert!(site.stop_agent().await.success());

    let mut found = Vec::new();
    while let Ok(span) = spans.try_recv() {
        found.push(span);
    }
    let attempt = atoll_model::id::Attempt::FIRST;
    let mut names: Vec<&str> = found.iter().map(|(_, span)| span.name.as_str()).collect();
    names.sort_unstable();
    assert_eq!(names, ["outputs", "process", "process"]);
    assert!(found.iter().all(|(_, span)| hex(&span.trace_id) == TRACE));
    let process = |execution| {
        let id = work_span_id(execution, attempt, Work::Process).to_bytes().to_vec();
        found.iter().find(|(_, span)| span.span_id == id).unwrap()
    };
    let (resource, span) = process(good);
    assert_eq!(
        span.parent_span_id,
        attempt_span_id(good, attempt).to_bytes(),
        "the control plane's span of the attempt"
    );
    assert_eq!(given.trim(), format!("00-{TRACE}-{}-01", hex(&span.span_id)), "what the process tells stands below");
    assert!(span.end_time_unix_nano >= span.start_time_unix_nano);
    let of_resource: Vec<&str> = resource.attributes.iter().map(|attribute| attribute.key.as_str()).collect();
    assert!(of_resource.contains(&"service.name") && of_resource.contains(&"atoll.site"), "{of_resource:?}");
    let (_, failed) = process(bad);
    assert_eq!(failed.status.as_ref().unwrap().message, "exit code 3");
}

#[tokio::test]
async fn an_agent_without_a_collector_works_and_ends_in_time() {
    let mut site = Site::start_with("otlp = 'http://127.0.0.1:9'").await;
    let mut step = site.step("true");
    step.origin.traceparent = Some(format!("00-{TRACE}-b7ad6b7169203331-01"));
    let execution = site.run_step(step);
    assert_eq!(site.control.finished(execution).await.outcome, Outcome::Succeeded);
    let asked = std::time::Instant::now();
    assert!(site.stop_agent().await.success(), "{}", site.agent_log());
    assert!(asked.elapsed() < Duration::from_secs(10));
}

async fn scrape(site: &Site) -> String {
    let log = site.agent_log();
    let line = log.lines().rfind(|line| line.contains("figures are served")).unwrap();
    let line: serde_json::Value = serde_json::from_str(line).unwrap();
    let mut stream = TcpStream::connect(line["address"].as_str().unwrap()).await.unwrap();
    stream.write_all(b"GET /metrics HTTP/1.0\r\nHost: agent\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    tokio::time::timeout(PATIENCE, stream.read_to_string(&mut answer)).await.unwrap().unwrap();
    answer
}

fn figure(text: &str, name: &str) -> u64 {
    let found = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok());
    found.unwrap_or_else(|| panic!("{name} is missing in\n{text}"))
}

#[tokio::test]
async fn the_figures_of_an_agent_are_there_to_be_scraped() {
    let mut site = Site::start_with("metrics_listen = '127.0.0.1:0'").await;
    let good = site.run("true");
    let bad = site.run("exit 1");
    for execution in [good, bad] {
        site.control.finished(execution).await;
    }
    let answer = scrape(&site).await;
    let (head, text) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.0 200"), "{head}");
    for expected in [
        "atoll_agent_executions_started_total 2",
        "atoll_agent_executions_ended_total{how=\"succeeded\"} 1",
        "atoll_agent_executions_ended_total{how=\"failed\"} 1",
        "atoll_agent_link_up 1",
        "atoll_agent_sessions_total 1",
        "atoll_agent_cpu_millis_offered 4000",
        "atoll_agent_closed 0",
    ] {
        assert!(text.lines().any(|line| line == expected), "{expected} is missing in\n{text}");
    }
    assert!(text.ends_with("# EOF\n"));
    assert!(figure(text, "atoll_agent_journal_barrier_seconds_count") > 0);
    // Both slots are left by what ran in them.
    eventually("the release of both", || {
        let kept: usize = site.slots().iter().map(|slot| std::fs::read_dir(slot.join("kept")).unwrap().count()).sum();
        (kept == 0).then_some(())
    })
    .await;
}

#[tokio::test]
async fn an_address_that_is_taken_is_said_at_the_start() {
    let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut site = Site::start().await;
    site.kill_agent();
    let mut command = site.agent_command();
    command.env("ATOLL_AGENT_METRICS_LISTEN", taken.local_addr().unwrap().to_string());
    let refused = command.output().unwrap();
    assert!(!refused.status.success());
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(said.contains("cannot serve /metrics at"), "{said}");
}

#[tokio::test]
async fn a_journal_is_cut_short_while_its_agent_runs_and_loses_nothing_by_it() {
    let mut site = Site::start_with("metrics_listen = '127.0.0.1:0'").await;
    let running = site.run("until [ -e @/gate ]; do sleep 0.02; done");
    site.control.started(running).await;
    // Nothing runs of these: their inputs fill the journal.
    for _ in 0..16 {
        let mut step = site.step("");
        step.work = TemplateWork::Null;
        let source = BindingSource::Value(Value::string("x".repeat(500_000)));
        let execution = site.run_bound(step, vec![Binding { name: "text".to_owned(), source }]);
        site.control.finished(execution).await;
    }
    let text = scrape(&site).await;
    assert!(figure(&text, "atoll_agent_journal_checkpoints_total") > 0, "{text}");
    assert!(figure(&text, "atoll_agent_journal_live_bytes") < 8_000_000, "{text}");
    let commands = site.control.look(|state| state.hellos.len());
    site.kill_agent();
    site.start_agent().await;
    let hello = site.control.look(|state| state.hellos[commands].clone());
    assert_eq!(hello.last_command.0, 2 * 17, "every command is remembered");
    site.open_gate("gate");
    assert_eq!(site.control.finished(running).await.outcome, Outcome::Succeeded);
}
