//! Reports of an agent.

use atoll_model::id::ReportSeq;
use atoll_model::session::{AgentBody, DirectShare, FaultLocation, PushFailure, Report, StartedElement};
use atoll_model::time::Timestamp;

use crate::bindings::read_run;
use crate::columns::{ElementsReader, distances, elements, read_distances, read_runs, runs};
use crate::delegation::{read_ended, write_ended};
use crate::error::{WireError, required};
use crate::finished::{read_finished, write_finished};
use crate::types::{
    digest, enumeration, number, object_kind, object_list, read_attempt, read_digest, read_object_kind,
    read_object_list, read_step, step,
};
use crate::v1 as wire;
use crate::v1::report::Kind;

enumeration!(
    push_failure,
    read_push_failure,
    PushFailure,
    wire::PushFailure,
    [Unavailable, Refused, Cancelled, Forbidden]
);
enumeration!(fault_location, read_fault_location, FaultLocation, wire::FaultLocation, [SiteStore, Bucket]);

pub(crate) fn write_reports(first: ReportSeq, reports: Vec<Report>) -> wire::Reports {
    wire::Reports { first: first.0, reports: reports.into_iter().map(Into::into).collect() }
}

/// Reads the reports of a frame. One that an agent of another version may have meant keeps its number.
pub(crate) fn read_reports(message: wire::Reports, refused: &mut Vec<WireError>) -> Result<AgentBody, WireError> {
    let mut reports = Vec::with_capacity(message.reports.len());
    for report in message.reports {
        reports.push(match read_report(report, refused) {
            Ok(report) => report,
            Err(error) if error.refuses_item_only() => {
                let reason = error.to_string();
                refused.push(error);
                Report::Unknown { reason }
            }
            Err(error) => return Err(error),
        });
    }
    Ok(AgentBody::Reports { first: ReportSeq(message.first), reports })
}

impl From<Report> for wire::Report {
    fn from(report: Report) -> Self {
        let kind = match report {
            Report::Started { run, step: index, elements: started } => Kind::Started(wire::StartedElements {
                run: Some(run.into()),
                step: step(index),
                elements: Some(elements(started.iter().map(|element| element.element))),
                attempts: Some(runs(started.iter().map(|element| u64::from(element.attempt.0)))),
                at: distances(started.iter().map(|element| element.at)),
            }),
            Report::Finished { run, step: index, elements } => Kind::Finished(write_finished(run, index, elements)),
            Report::Fetched { object, wire_bytes, direct, execution, at } => Kind::Fetched(wire::Fetched {
                object: Some(object.into()),
                wire_bytes,
                execution: Some(execution.into()),
                at: at.micros(),
                direct: direct
                    .map(|share| wire::DirectShare { holder: Some(share.holder.into()), wire_bytes: share.wire_bytes }),
            }),
            Report::Pushed { transfer, object, wire_bytes, at } => Kind::Pushed(wire::Pushed {
                transfer: Some(transfer.into()),
                object: Some(object.into()),
                wire_bytes,
                at: at.micros(),
            }),
            Report::PushFailed { transfer, object, reason, message } => Kind::PushFailed(wire::PushFailed {
                transfer: Some(transfer.into()),
                object: Some(object.into()),
                reason: push_failure(reason).into(),
                message,
            }),
            Report::Fault { object, kind, location, message } => Kind::Fault(wire::Fault {
                digest: digest(object),
                kind: object_kind(kind).into(),
                location: fault_location(location).into(),
                message,
            }),
            Report::Evictable { proposal, objects } => {
                Kind::Evictable(wire::Evictable { proposal, objects: object_list(objects) })
            }
            Report::Evicted { gone, kept } => {
                Kind::Evicted(wire::Evicted { gone: object_list(gone), kept: object_list(kept) })
            }
            Report::Verified { files, bytes, damaged } => Kind::Verified(wire::Verified { files, bytes, damaged }),
            Report::Unknown { reason } => Kind::Unknown(reason),
            Report::Retried { run, step: index, elements } => Kind::Retried(write_finished(run, index, elements)),
            Report::DelegationEnded { run, step: index, kept, reason } => {
                Kind::DelegationEnded(write_ended(run, index, kept, reason))
            }
            Report::ReplicaEnded { object, failure } => {
                Kind::ReplicaEnded(wire::ReplicaEnded { object: Some(object.into()), failure })
            }
        };
        Self { kind: Some(kind) }
    }
}

fn read_report(message: wire::Report, refused: &mut Vec<WireError>) -> Result<Report, WireError> {
    Ok(match message.kind.ok_or(WireError::UnknownKind { field: "report" })? {
        Kind::Started(started) => read_started(started)?,
        Kind::Finished(finished) => read_finished(finished, refused)?,
        Kind::Fetched(fetched) => Report::Fetched {
            object: required(fetched.object, "fetched.object")?.try_into()?,
            wire_bytes: fetched.wire_bytes,
            direct: fetched.direct.map(read_share).transpose()?,
            execution: required(fetched.execution, "fetched.execution")?.try_into()?,
            at: Timestamp::from_micros(fetched.at),
        },
        Kind::Pushed(pushed) => Report::Pushed {
            transfer: required(pushed.transfer, "pushed.transfer")?.into(),
            object: required(pushed.object, "pushed.object")?.try_into()?,
            wire_bytes: pushed.wire_bytes,
            at: Timestamp::from_micros(pushed.at),
        },
        Kind::PushFailed(failed) => Report::PushFailed {
            transfer: required(failed.transfer, "push_failed.transfer")?.into(),
            object: required(failed.object, "push_failed.object")?.try_into()?,
            reason: read_push_failure(number(failed.reason), "push_failed.reason")?,
            message: failed.message,
        },
        Kind::Fault(fault) => Report::Fault {
            object: read_digest(&fault.digest, "fault.digest")?,
            kind: read_object_kind(number(fault.kind), "fault.kind")?,
            location: read_fault_location(number(fault.location), "fault.location")?,
            message: fault.message,
        },
        Kind::Evictable(wire::Evictable { proposal, objects }) => {
            Report::Evictable { proposal, objects: read_object_list(objects)? }
        }
        Kind::Evicted(wire::Evicted { gone, kept }) => {
            Report::Evicted { gone: read_object_list(gone)?, kept: read_object_list(kept)? }
        }
        Kind::Verified(wire::Verified { files, bytes, damaged }) => Report::Verified { files, bytes, damaged },
        Kind::Unknown(reason) => Report::Unknown { reason },
        Kind::Retried(retried) => {
            let Report::Finished { run, step, elements } = read_finished(retried, refused)? else {
                return Err(WireError::UnknownKind { field: "report.retried" });
            };
            Report::Retried { run, step, elements }
        }
        Kind::DelegationEnded(ended) => read_ended(ended)?,
        Kind::ReplicaEnded(wire::ReplicaEnded { object, failure }) => {
            Report::ReplicaEnded { object: required(object, "replica_ended.object")?.try_into()?, failure }
        }
    })
}

fn read_started(message: wire::StartedElements) -> Result<Report, WireError> {
    let elements = ElementsReader::new(message.elements, "started.elements")?;
    let attempts = read_runs(message.attempts, elements.count(), "started.attempts")?;
    let times = read_distances(message.at, elements.count(), "started.at")?;
    let mut started = Vec::with_capacity(elements.count());
    for ((element, attempt), at) in elements.into_iter().zip(attempts).zip(times) {
        started.push(StartedElement { element, attempt: read_attempt(attempt)?, at });
    }
    Ok(Report::Started { run: read_run(message.run)?, step: read_step(message.step)?, elements: started })
}

fn read_share(message: wire::DirectShare) -> Result<DirectShare, WireError> {
    let holder = required(message.holder, "fetched.direct.holder")?.into();
    Ok(DirectShare { holder, wire_bytes: message.wire_bytes })
}
