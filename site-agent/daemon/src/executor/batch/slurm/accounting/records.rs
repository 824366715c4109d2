//! What stands in accounting, in either form in which `sacct` writes it.

use serde_json::Value;

use super::Unanswered;
use crate::executor::batch::slurm::listing;
use crate::executor::batch::system::{Over, Sought, Standing};

/// Job, submission, state, exit code and signal, partition, reason, name: others' names may have bars.
pub(super) const COLUMNS: &str = "--format=JobID,Submit,State,ExitCode,Partition,Reason,JobName";
/// How far the clocks of the agent and the controller may differ.
const SKEW_SECONDS: i64 = 900;
/// Beyond these are no signals: Slurm notes other ends so.
const SIGNALS: std::ops::RangeInclusive<u32> = 1..=64;

/// A job, an element of an array, or the rest of one.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Record {
    /// Its number, or its array's.
    job: String,
    /// Nothing of a job that is no array, and of those elements that are not on record by themselves.
    element: Option<u32>,
    name: String,
    submitted_seconds: i64,
    state: String,
    /// Who has cancelled it.
    by: String,
    code: u32,
    signal: u32,
    reason: String,
    partition: String,
}

/// What is on record of an element. Of one that was requeued, the last.
pub(super) fn of<'a>(records: &'a [Record], sought: &Sought, index: u32) -> Option<&'a Record> {
    let intended = sought.at.micros() / 1_000_000;
    let is_it = |record: &&Record| {
        Some(&record.job) == sought.job.as_ref()
            && record.name == sought.name
            && record.submitted_seconds + SKEW_SECONDS >= intended
    };
    let last = |element: Option<u32>| {
        let its = records.iter().filter(is_it).filter(|record| record.element == element);
        its.max_by_key(|record| record.submitted_seconds)
    };
    last(Some(index)).or_else(|| last(None))
}

impl Record {
    /// Where it stands, in the words of the controller's listing.
    pub(super) fn standing(&self) -> (Standing, String) {
        let by = if self.by.is_empty() { String::new() } else { format!(" by {}", self.by) };
        let words = format!("{}{by}{} in partition {}", self.state, self.why(), self.partition);
        match listing::standing(&self.state, &self.reason) {
            // So a controller that starts without its state notes all that it does not know, whether it runs or waits.
            Standing::Over(Over::Cancelled) if self.by.is_empty() => {
                let words = format!("{}, and by nobody: the controller has lost it", self.state);
                (Standing::Forgotten(Some(Over::Lost)), words)
            }
            Standing::Over(over) => (Standing::Forgotten(Some(over)), words),
            Standing::Waiting | Standing::Stuck | Standing::Hopeless | Standing::Running | Standing::Forgotten(_) => {
                (Standing::Forgotten(None), format!("unknown to the controller, and for accounting {words}"))
            }
        }
    }

    fn why(&self) -> String {
        if self.code != 0 {
            format!(" (exit code {})", self.code)
        } else if SIGNALS.contains(&self.signal) {
            format!(" (signal {})", self.signal)
        } else if !["", "None"].contains(&self.reason.as_str()) {
            format!(" ({})", self.reason)
        } else {
            String::new()
        }
    }
}

/// Lines that are not what was asked for are of no job.
pub(super) fn read_text(text: &str) -> Vec<Record> {
    text.lines().filter_map(read_line).collect()
}

fn read_line(line: &str) -> Option<Record> {
    let mut fields = line.trim().splitn(7, '|');
    let [job, submitted, state, exit, partition, reason, name] = std::array::from_fn(|_| fields.next());
    // `12`, `12_7`, and of elements that have not begun `12_[8-20%4]`.
    let (job, element) = job?.split_once('_').map_or((job?, None), |(job, element)| (job, element.parse().ok()));
    let (code, signal) = exit?.split_once(':')?;
    let (state, by) = state?.split_once(" by ").unwrap_or((state?, ""));
    Some(Record {
        job: job.to_owned(),
        element,
        name: name?.to_owned(),
        submitted_seconds: submitted?.parse().ok()?,
        state: state.to_owned(),
        by: by.to_owned(),
        code: code.parse().ok()?,
        signal: signal.parse().ok()?,
        reason: reason?.to_owned(),
        partition: partition?.to_owned(),
    })
}

pub(super) fn read_json(text: &str) -> Result<Vec<Record>, Unanswered> {
    let unclear = |why: String| Unanswered::Away(format!("what sacct says is not understood: {why}"));
    let whole: Value = serde_json::from_str(text).map_err(|error| unclear(error.to_string()))?;
    let errors = whole["errors"].as_array().filter(|errors| !errors.is_empty());
    if let Some(errors) = errors {
        return Err(unclear(errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")));
    }
    let jobs = whole["jobs"].as_array().ok_or_else(|| unclear("it names no jobs".to_owned()))?;
    let record = |job: &Value| read_job(job).ok_or_else(|| unclear(format!("job {}", job["job_id"])));
    jobs.iter().map(record).collect()
}

/// Of Slurm 21.08 and later: what was a word or a number became a list, or a number that may not be set.
fn read_job(job: &Value) -> Option<Record> {
    let (array, exit) = (&job["array"], &job["exit_code"]);
    let of_array = number(&array["job_id"]).filter(|number| *number != 0);
    let signal = &exit["signal"];
    let signal = number(&signal["signal_id"]).or_else(|| number(&signal["id"])).unwrap_or(0);
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    Some(Record {
        job: of_array.or_else(|| number(&job["job_id"]))?.to_string(),
        element: of_array.and_then(|_| number(&array["task_id"])).map(u32::try_from).transpose().ok()?,
        name: text(&job["name"]),
        submitted_seconds: i64::try_from(number(&job["time"]["submission"])?).ok()?,
        state: word(&job["state"]["current"])?,
        by: text(&job["kill_request_user"]),
        code: u32::try_from(number(&exit["return_code"]).unwrap_or(0)).ok()?,
        signal: u32::try_from(signal).ok()?,
        reason: text(&job["state"]["reason"]),
        partition: text(&job["partition"]),
    })
}

fn number(value: &Value) -> Option<u64> {
    if value["set"] == Value::Bool(false) {
        return None;
    }
    value.as_u64().or_else(|| value["number"].as_u64())
}

fn word(value: &Value) -> Option<String> {
    value.as_str().or_else(|| value[0].as_str()).map(str::to_owned)
}
