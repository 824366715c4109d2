//! What server and agents share to make one trace of a run: the W3C trace context, spans whose ids follow from those of
//! runs and executions, and an exporter over OTLP. It decides nothing about what is traced.
//!
//! Since ids are derived, neither side asks the other for them, and a restart in the middle of a run changes none.

mod export;
mod span;
mod trace_context;

pub use export::{EXPORT_PAUSE, Exporter, ExporterError};
pub use span::{Work, attempt_span_id, run_span_id, span, system_time, work_span_id};
pub use trace_context::{InvalidTraceparent, TraceContext};
