//! Spans, and their ids.

use std::time::{SystemTime, UNIX_EPOCH};

use atoll_model::id::{Attempt, ExecutionId, RunId};
use atoll_model::time::Timestamp;
use opentelemetry::InstrumentationScope;
use opentelemetry::trace::{SpanContext, SpanId, SpanKind, Status, TraceState};
use opentelemetry_sdk::trace::{SpanData, SpanEvents, SpanLinks};

/// What an agent does for an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Work {
    /// It makes the inputs ready.
    Inputs,
    /// The process runs.
    Process,
    /// It takes in what the process left.
    Outputs,
}

/// A span of a trace, with nothing in it yet.
pub fn span(context: crate::TraceContext, id: SpanId, name: &'static str) -> SpanData {
    SpanData {
        span_context: SpanContext::new(context.trace, id, context.flags, false, TraceState::NONE),
        parent_span_id: SpanId::INVALID,
        parent_span_is_remote: false,
        span_kind: SpanKind::Internal,
        name: name.into(),
        start_time: UNIX_EPOCH,
        end_time: UNIX_EPOCH,
        attributes: Vec::new(),
        dropped_attributes_count: 0,
        events: SpanEvents::default(),
        links: SpanLinks::default(),
        status: Status::Unset,
        instrumentation_scope: InstrumentationScope::builder("atoll").with_version(env!("CARGO_PKG_VERSION")).build(),
    }
}

pub fn run_span_id(run: RunId) -> SpanId {
    derived(run, 0, 0, 0, &[])
}

pub fn attempt_span_id(execution: ExecutionId, attempt: Attempt) -> SpanId {
    derived(execution.run, 1 + u32::from(execution.step.0), execution.element, attempt.0, &[])
}

/// Of what an agent does for an attempt, below the attempt's own span.
pub fn work_span_id(execution: ExecutionId, attempt: Attempt, work: Work) -> SpanId {
    let work = match work {
        Work::Inputs => b"inputs".as_slice(),
        Work::Process => b"process",
        Work::Outputs => b"outputs",
    };
    derived(execution.run, 1 + u32::from(execution.step.0), execution.element, attempt.0, work)
}

fn derived(run: RunId, step: u32, element: u32, attempt: u32, work: &[u8]) -> SpanId {
    let mut hasher = blake3::Hasher::new_derive_key("atoll span id 1");
    hasher.update(&run.bits().to_be_bytes()).update(&step.to_be_bytes()).update(&element.to_be_bytes());
    hasher.update(&attempt.to_be_bytes()).update(work);
    let mut bytes = [0; 8];
    hasher.finalize_xof().fill(&mut bytes);
    SpanId::from_bytes(bytes)
}

pub fn system_time(at: Timestamp) -> SystemTime {
    UNIX_EPOCH + at.saturating_since(Timestamp::ZERO)
}
