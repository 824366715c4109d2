//! Spans on their way to a collector.

use std::path::Path;
use std::time::Duration;

use opentelemetry::KeyValue;
use opentelemetry_otlp::{WithExportConfig as _, WithTonicConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{SpanData, SpanExporter as _};

/// Spans in one export, as OpenTelemetry's own processors send them.
const EXPORT_SPANS_MAX: usize = 512;
/// Longest that a span waits for others to go with it.
pub const EXPORT_PAUSE: Duration = Duration::from_secs(1);

/// Why no exporter was made.
#[derive(Debug, thiserror::Error)]
pub enum ExporterError {
    #[error("the CA certificates of the OTLP endpoint cannot be read")]
    CaFile(#[source] std::io::Error),
    #[error("the OTLP endpoint cannot be used")]
    Build(#[from] opentelemetry_otlp::ExporterBuildError),
}

/// Gathers spans and sends them over gRPC.
#[derive(Debug)]
pub struct Exporter {
    exporter: opentelemetry_otlp::SpanExporter,
    waiting: Vec<SpanData>,
}

impl Exporter {
    /// An exporter for the process that `attributes` tell from others. To be made within a runtime; it connects when
    /// there is something to send.
    ///
    /// # Errors
    /// When the endpoint is no URL, or the file of CA certificates (PEM) cannot be read.
    pub fn new(endpoint: &str, ca_file: Option<&Path>, attributes: Vec<KeyValue>) -> Result<Self, ExporterError> {
        let mut builder = opentelemetry_otlp::SpanExporter::builder().with_tonic().with_endpoint(endpoint);
        if let Some(file) = ca_file {
            let pem = std::fs::read(file).map_err(ExporterError::CaFile)?;
            let authority = tonic::transport::Certificate::from_pem(pem);
            builder = builder.with_tls_config(tonic::transport::ClientTlsConfig::new().ca_certificate(authority));
        }
        let mut exporter = builder.build()?;
        let version = KeyValue::new("service.version", env!("CARGO_PKG_VERSION"));
        let resource = Resource::builder().with_attribute(version).with_attributes(attributes).build();
        exporter.set_resource(&resource);
        Ok(Self { exporter, waiting: Vec::new() })
    }

    pub fn add(&mut self, span: SpanData) {
        self.waiting.push(span);
    }

    /// Whether as much waits as goes in one export.
    pub const fn is_full(&self) -> bool {
        self.waiting.len() >= EXPORT_SPANS_MAX
    }

    /// Sends what waits. What cannot be sent is lost, and said so in the log.
    pub async fn export(&mut self) {
        if self.waiting.is_empty() {
            return;
        }
        let spans = std::mem::take(&mut self.waiting);
        let count = spans.len();
        if let Err(error) = self.exporter.export(spans).await {
            tracing::warn!(error = &error as &dyn std::error::Error, spans = count, "traces could not be exported");
        }
    }
}
