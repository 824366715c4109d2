#![expect(clippy::unwrap_used, reason = "a panic is a failed test")]

use std::io;
use std::sync::{Arc, Mutex};

use atoll_model::value::Value;
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{TraceService, TraceServiceServer};
use opentelemetry_proto::tonic::collector::trace::v1::{ExportTraceServiceRequest, ExportTraceServiceResponse};
use opentelemetry_proto::tonic::trace::v1::Span;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::json;
use tokio::sync::mpsc;
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::TcpListenerStream;
use tracing_subscriber::layer::SubscriberExt as _;

use crate::config::Telemetry;
use crate::testing::{Plane, Work};

const FANS_OUT: &str =
    "workflow: fans-out\nsteps:\n  twice:\n    foreach: ${{ [1, 2] }}\n    run: echo\n    outputs: { n: integer }\n";

/// Hands on every span that it is sent.
struct Collector(mpsc::UnboundedSender<Span>);

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: tonic::Request<ExportTraceServiceRequest>,
    ) -> Result<tonic::Response<ExportTraceServiceResponse>, tonic::Status> {
        let resources = request.into_inner().resource_spans.into_iter();
        for span in resources.flat_map(|resource| resource.scope_spans).flat_map(|scope| scope.spans) {
            self.0.send(span).unwrap();
        }
        Ok(tonic::Response::new(ExportTraceServiceResponse::default()))
    }
}

#[tokio::test]
async fn a_run_is_one_trace_from_its_submission_to_its_attempts() {
    let (sender, mut spans) = mpsc::unbounded_channel();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let collector = tonic::transport::Server::builder().add_service(TraceServiceServer::new(Collector(sender)));
    let mut serving = tokio::task::JoinSet::new();
    serving.spawn(collector.serve_with_incoming(TcpListenerStream::new(listener)));
    let plane = Plane::start_with(&Telemetry { otlp_endpoint: Some(endpoint), ..Telemetry::default() }).await;
    let given: Arc<Mutex<Option<String>>> = Arc::default();
    let seen = Arc::clone(&given);
    let work: Work = Arc::new(move |template, element| {
        seen.lock().unwrap().clone_from(&template.origin.traceparent);
        Some(vec![Value::Integer(i64::from(element))])
    });
    plane.site("edge", work).await;
    let parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let (_, run) = plane.post("/runs", json!({ "source": FANS_OUT, "traceparent": parent })).await;
    let id = run["run"].as_str().unwrap().to_owned();
    plane.wait(&id).await;

    let mut found: Vec<Span> = Vec::new();
    while found.len() < 4 {
        found.push(spans.recv().await.unwrap());
    }
    let named = |name: &str| found.iter().filter(|span| span.name == name).collect::<Vec<_>>();
    let (submit, whole, attempts) = (named("submit")[0], named("run fans-out")[0], named("twice"));
    assert_eq!(attempts.len(), 2);
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    assert!(found.iter().all(|span| hex(&span.trace_id) == "0af7651916cd43dd8448eb211c80319c"));
    assert_eq!(hex(&submit.parent_span_id), "b7ad6b7169203331");
    assert_eq!(whole.parent_span_id, submit.span_id);
    assert!(attempts.iter().all(|span| span.parent_span_id == whole.span_id));
    assert_ne!(attempts[0].span_id, attempts[1].span_id);
    let context = format!("00-0af7651916cd43dd8448eb211c80319c-{}-01", hex(&submit.span_id));
    assert_eq!(given.lock().unwrap().as_deref(), Some(context.as_str()));
    let attributes: Vec<&str> = attempts[0].attributes.iter().map(|attribute| attribute.key.as_str()).collect();
    assert_eq!(attributes, ["atoll.run", "atoll.execution", "atoll.step", "atoll.attempt", "atoll.site"]);
    assert!(whole.end_time_unix_nano >= whole.start_time_unix_nano);
}

#[tokio::test]
async fn traces_go_over_https_to_a_collector_that_a_given_ca_vouches_for() {
    let ca_key = KeyPair::generate().unwrap();
    let mut ca = CertificateParams::default();
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca_certificate = ca.self_signed(&ca_key).unwrap();
    let key = KeyPair::generate().unwrap();
    let leaf = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    let leaf = leaf.signed_by(&key, &Issuer::new(ca, ca_key)).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let ca_file = directory.path().join("ca.pem");
    std::fs::write(&ca_file, ca_certificate.pem()).unwrap();

    let (sender, mut spans) = mpsc::unbounded_channel();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("https://localhost:{}", listener.local_addr().unwrap().port());
    let acceptor = tokio_rustls::TlsAcceptor::from(tls(vec![leaf.der().clone()], &key));
    let connections = TcpListenerStream::new(listener).then(move |stream| acceptor.accept(stream.unwrap()));
    let collector = tonic::transport::Server::builder().add_service(TraceServiceServer::new(Collector(sender)));
    let mut serving = tokio::task::JoinSet::new();
    serving.spawn(collector.serve_with_incoming(Box::pin(connections)));
    let telemetry = Telemetry { otlp_endpoint: Some(endpoint), otlp_ca_file: Some(ca_file), ..Telemetry::default() };
    let plane = Plane::start_with(&telemetry).await;
    plane.site("edge", Arc::new(|_, element| Some(vec![Value::Integer(i64::from(element))]))).await;
    plane.run(FANS_OUT).await;
    let mut found = 0;
    while found < 4 {
        spans.recv().await.unwrap();
        found += 1;
    }
}

fn tls(chain: Vec<CertificateDer<'static>>, key: &KeyPair) -> Arc<rustls::ServerConfig> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = rustls::ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let key = PrivateKeyDer::Pkcs8(key.serialize_der().into());
    let mut config = builder.with_no_client_auth().with_single_cert(chain, key).unwrap();
    config.alpn_protocols = vec![b"h2".to_vec()];
    Arc::new(config)
}

/// A log in memory.
#[derive(Clone, Default)]
struct Written(Arc<Mutex<Vec<u8>>>);

impl io::Write for Written {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn no_token_ever_stands_in_the_log() {
    let written = Written::default();
    let log = written.clone();
    let layer = tracing_subscriber::fmt::layer().with_writer(move || log.clone()).with_ansi(false);
    let everything = tracing_subscriber::registry().with(tracing::level_filters::LevelFilter::TRACE).with(layer);
    let _installed = tracing::subscriber::set_default(everything);

    let plane = Plane::start().await;
    let (status, site) = plane.post("/sites/lab/tokens", json!({})).await;
    assert_eq!(status, 201);
    let join_token = site["token"].as_str().unwrap().to_owned();
    let stranger = format!("atoll.{}.pin", "S3cr3t".repeat(7));
    assert_eq!(plane.json(plane.ask_as(Some(&stranger), "GET", "/api/v1/sites")).await.0, 401);
    assert_eq!(plane.post("/runs", json!({ "source": "" })).await.0, 422);

    let text = String::from_utf8(written.0.lock().unwrap().clone()).unwrap();
    assert!(text.contains("create token") && text.contains("made an admin token"), "{text}");
    let secret = plane.token.split('.').nth(1).unwrap();
    let join_secret: atoll_proto::JoinToken = join_token.parse().unwrap();
    let join_secret = format!("{:?}", &join_secret.secret[..]);
    for kept in [plane.token.as_str(), secret, &join_token, &join_secret, "S3cr3tS3cr3t"] {
        assert!(!text.contains(kept), "a token stands in the log");
    }
}
