//! The report of ended attempts: columns over its elements.

use atoll_model::id::{RunId, StepIndex};
use atoll_model::session::{FailureReason, FinishedElement, Logs, NotStartedReason, Outcome, Report, Usage};
use atoll_model::time::Timestamp;
use atoll_model::value::{ObjectRef, Value};

use crate::bindings::read_run;
use crate::columns::{
    ElementsReader, distances, elements, mask, read_distances, read_mask, read_runs, runs, same_length,
};
use crate::error::WireError;
use crate::types::{enumeration, objects, read_attempt, read_objects, read_step, step};
use crate::v1 as wire;
use crate::v1::OutcomeKind;

enumeration!(
    failure_reason,
    read_failure_reason,
    FailureReason,
    wire::FailureReason,
    [
        ExitCode,
        Signal,
        TimedOut,
        OutOfMemory,
        MissingOutput,
        InvalidOutput,
        NoSpace,
        NotExecutable,
        ImportFailed,
        Agent,
        ExportFailed,
        ActionFailed
    ]
);
enumeration!(
    not_started_reason,
    read_not_started_reason,
    NotStartedReason,
    wire::NotStartedReason,
    [Expired, Cancelled, InputUnavailable, PredecessorFailed, Closed, Impossible, AttemptKnown, Refused]
);

pub(crate) fn write_finished(run: RunId, index: StepIndex, ended: Vec<FinishedElement>) -> wire::FinishedElements {
    let started = ended
        .iter()
        .filter_map(|element| Some(element.finished_at.micros().wrapping_sub(element.started_at?.micros())));
    let uses_disks =
        ended.iter().any(|element| (element.usage.disk_read_bytes, element.usage.disk_written_bytes) != (0, 0));
    let used = || ended.iter().map(|element| &element.usage).filter(|usage| **usage != Usage::default());
    let of_disks = |of: &dyn Fn(&Usage) -> u64| -> Vec<u64> { used().filter(|_| uses_disks).map(of).collect() };
    let mut message = wire::FinishedElements {
        run: Some(run.into()),
        step: step(index),
        elements: Some(elements(ended.iter().map(|element| element.element))),
        attempts: Some(runs(ended.iter().map(|element| u64::from(element.attempt.0)))),
        finished_at: distances(ended.iter().map(|element| element.finished_at)),
        started: mask(ended.iter().map(|element| element.started_at.is_some())),
        run_micros: started.collect(),
        outcomes: Some(runs(ended.iter().map(|element| outcome_kind(&element.outcome) as u64))),
        details: Vec::new(),
        output_counts: Some(runs(ended.iter().map(|element| element.outputs.len() as u64))),
        outputs: Vec::new(),
        used: mask(ended.iter().map(|element| element.usage != Usage::default())),
        usage: used().next().is_some().then(|| wire::Usage {
            cpu_micros: used().map(|usage| usage.cpu_micros).collect(),
            max_rss_bytes: used().map(|usage| usage.max_rss_bytes).collect(),
            bytes_in: used().map(|usage| usage.bytes_in).collect(),
            bytes_out: used().map(|usage| usage.bytes_out).collect(),
            disk_read_bytes: of_disks(&|usage| usage.disk_read_bytes),
            disk_written_bytes: of_disks(&|usage| usage.disk_written_bytes),
        }),
        has_stdout: mask(ended.iter().map(|element| element.logs.stdout.is_some())),
        stdout: objects(ended.iter().filter_map(|element| element.logs.stdout)),
        has_stderr: mask(ended.iter().map(|element| element.logs.stderr.is_some())),
        stderr: objects(ended.iter().filter_map(|element| element.logs.stderr)),
    };
    for element in ended {
        message.details.extend(outcome_detail(element.outcome));
        message.outputs.extend(element.outputs.into_iter().map(wire::Value::from));
    }
    message
}

const fn outcome_kind(outcome: &Outcome) -> OutcomeKind {
    match outcome {
        Outcome::Succeeded => OutcomeKind::Succeeded,
        Outcome::Failed { .. } => OutcomeKind::Failed,
        Outcome::Cancelled => OutcomeKind::Cancelled,
        Outcome::Interrupted { .. } => OutcomeKind::Interrupted,
        Outcome::NotStarted { .. } => OutcomeKind::NotStarted,
    }
}

fn outcome_detail(outcome: Outcome) -> Option<wire::OutcomeDetail> {
    match outcome {
        Outcome::Succeeded | Outcome::Cancelled => None,
        Outcome::Failed { reason, exit_code, message } => {
            Some(wire::OutcomeDetail { reason: failure_reason(reason) as u32, exit_code, message })
        }
        Outcome::Interrupted { message } => Some(wire::OutcomeDetail { reason: 0, exit_code: None, message }),
        Outcome::NotStarted { reason, message } => {
            Some(wire::OutcomeDetail { reason: not_started_reason(reason) as u32, exit_code: None, message })
        }
    }
}

/// A column that has entries for some of the elements only.
#[derive(Debug)]
struct Sparse<P, E> {
    present: P,
    entries: E,
    field: &'static str,
}

impl<P: Iterator<Item = bool>, E: Iterator> Sparse<P, E> {
    /// The entry of the next element.
    fn next(&mut self) -> Result<Option<E::Item>, WireError> {
        if self.present.next() != Some(true) {
            return Ok(None);
        }
        self.entries.next().map(Some).ok_or(WireError::Missing { field: self.field })
    }
}

/// Reads ended attempts. One whose outcome or output is not known here has failed for all that can be said, and says why.
pub(crate) fn read_finished(
    message: wire::FinishedElements,
    refused: &mut Vec<WireError>,
) -> Result<Report, WireError> {
    let elements = ElementsReader::new(message.elements, "finished.elements")?;
    let count = elements.count();
    let mut times = read_distances(message.finished_at, count, "finished.finished_at")?;
    let mut attempts = read_runs(message.attempts, count, "finished.attempts")?;
    let mut starts = sparse(message.started, message.run_micros, count, "finished.started")?;
    let mut outcomes = OutcomeReader {
        kinds: read_runs(message.outcomes, count, "finished.outcomes")?,
        details: message.details.into_iter(),
    };
    let mut output_counts = read_runs(message.output_counts, count, "finished.output_counts")?;
    let mut outputs = message.outputs.into_iter();
    let mut usages = sparse(message.used, read_usage(message.usage)?, count, "finished.usage")?;
    let mut stdout = logs(message.has_stdout, message.stdout, count, "finished.stdout")?;
    let mut stderr = logs(message.has_stderr, message.stderr, count, "finished.stderr")?;

    let mut ended = Vec::with_capacity(count);
    for element in elements.into_iter() {
        let (Some(attempt), Some(finished_at), Some(output_count)) =
            (attempts.next(), times.next(), output_counts.next())
        else {
            return Err(WireError::Missing { field: "finished" });
        };
        let run_micros = starts.next()?;
        let read = (outcomes.next()?, read_outputs(&mut outputs, output_count)?);
        let logs = (stdout.next()?.transpose(), stderr.next()?.transpose());
        let mut finished = FinishedElement {
            element,
            attempt: read_attempt(attempt)?,
            started_at: run_micros.map(|run| Timestamp::from_micros(finished_at.micros().wrapping_sub(run))),
            finished_at,
            outcome: Outcome::Succeeded,
            outputs: Vec::new(),
            usage: usages.next()?.unwrap_or_default(),
            logs: Logs::default(),
        };
        match (read, logs) {
            ((Ok(outcome), Ok(outputs)), (Ok(stdout), Ok(stderr))) => {
                finished.outcome = outcome;
                finished.outputs = outputs;
                finished.logs = Logs { stdout, stderr };
            }
            ((Err(error), _) | (_, Err(error)), _) | (_, (Err(error), _) | (_, Err(error))) => {
                let message = format!("the agent's report of its end could not be read: {error}");
                finished.outcome = Outcome::Failed { reason: FailureReason::Agent, exit_code: None, message };
                refused.push(error);
            }
        }
        ended.push(finished);
    }
    same_length("finished.outputs", 0, outputs.len())?;
    same_length("finished.details", 0, outcomes.details.len())?;
    Ok(Report::Finished { run: read_run(message.run)?, step: read_step(message.step)?, elements: ended })
}

fn sparse<T>(
    present: Option<wire::Mask>,
    entries: Vec<T>,
    count: usize,
    field: &'static str,
) -> Result<Sparse<impl Iterator<Item = bool>, impl Iterator<Item = T>>, WireError> {
    let (present, expected) = read_mask(present, count, field)?;
    same_length(field, expected, entries.len())?;
    Ok(Sparse { present, entries: entries.into_iter(), field })
}

fn logs(
    present: Option<wire::Mask>,
    entries: Option<wire::Objects>,
    count: usize,
    field: &'static str,
) -> Result<Sparse<impl Iterator<Item = bool>, impl Iterator<Item = Result<ObjectRef, WireError>>>, WireError> {
    let (present, expected) = read_mask(present, count, field)?;
    Ok(Sparse { present, entries: read_objects(entries, expected, field)?, field })
}

#[derive(Debug)]
struct OutcomeReader<K> {
    kinds: K,
    details: std::vec::IntoIter<wire::OutcomeDetail>,
}

impl<K: Iterator<Item = u64>> OutcomeReader<K> {
    /// The next outcome; the inner error if only it cannot be read.
    fn next(&mut self) -> Result<Result<Outcome, WireError>, WireError> {
        let field = "finished.outcomes";
        let value = self.kinds.next().ok_or(WireError::Missing { field })?;
        let kind = i32::try_from(value).ok().and_then(|value| OutcomeKind::try_from(value).ok());
        match kind {
            Some(OutcomeKind::Succeeded) => return Ok(Ok(Outcome::Succeeded)),
            Some(OutcomeKind::Cancelled) => return Ok(Ok(Outcome::Cancelled)),
            Some(
                OutcomeKind::Failed | OutcomeKind::Interrupted | OutcomeKind::NotStarted | OutcomeKind::Unspecified,
            )
            | None => {}
        }
        let detail = self.details.next().ok_or(WireError::Missing { field: "finished.details" })?;
        let wire::OutcomeDetail { reason, exit_code, message } = detail;
        let reason = u64::from(reason);
        Ok(match kind {
            Some(OutcomeKind::Failed) => read_failure_reason(reason, "finished.details.reason")
                .map(|reason| Outcome::Failed { reason, exit_code, message }),
            Some(OutcomeKind::NotStarted) => read_not_started_reason(reason, "finished.details.reason")
                .map(|reason| Outcome::NotStarted { reason, message }),
            Some(OutcomeKind::Interrupted) => Ok(Outcome::Interrupted { message }),
            Some(OutcomeKind::Unspecified | OutcomeKind::Succeeded | OutcomeKind::Cancelled) | None => {
                Err(WireError::UnknownNumber { field, value })
            }
        })
    }
}

/// The outputs of one element; the inner error if only they cannot be read.
fn read_outputs(
    outputs: &mut std::vec::IntoIter<wire::Value>,
    count: u64,
) -> Result<Result<Vec<Value>, WireError>, WireError> {
    if count == 0 {
        return Ok(Ok(Vec::new()));
    }
    let field = "finished.outputs";
    let left = outputs.len();
    let count = usize::try_from(count).ok().filter(|count| *count <= left);
    let count = count.ok_or(WireError::Count { field, expected: left as u64, found: left as u64 + 1 })?;
    let mut read = Ok(Vec::with_capacity(count));
    for output in outputs.take(count) {
        match (Value::try_from(output), &mut read) {
            (Ok(value), Ok(values)) => values.push(value),
            (Ok(_), Err(_)) => {}
            (Err(error), _) if error.refuses_item_only() => read = Err(error),
            (Err(error), _) => return Err(error),
        }
    }
    Ok(read)
}

fn read_usage(message: Option<wire::Usage>) -> Result<Vec<Usage>, WireError> {
    let wire::Usage { cpu_micros, max_rss_bytes, bytes_in, bytes_out, disk_read_bytes, disk_written_bytes } =
        message.unwrap_or_default();
    let count = cpu_micros.len();
    for column in [&max_rss_bytes, &bytes_in, &bytes_out] {
        same_length("finished.usage", count, column.len())?;
    }
    for column in [&disk_read_bytes, &disk_written_bytes] {
        if !column.is_empty() {
            same_length("finished.usage", count, column.len())?;
        }
    }
    let at = |column: &[u64], place: usize| column.get(place).copied().unwrap_or(0);
    let usage = |place: usize| Usage {
        cpu_micros: cpu_micros[place],
        max_rss_bytes: max_rss_bytes[place],
        bytes_in: bytes_in[place],
        bytes_out: bytes_out[place],
        disk_read_bytes: at(&disk_read_bytes, place),
        disk_written_bytes: at(&disk_written_bytes, place),
    };
    Ok((0..count).map(usage).collect())
}
