//! What the cluster's accounting has of jobs that its controller does not know any more: what `sacct` says, where there is
//! any.
//!
//! As JSON where this version writes it, else as text in columns of our own. A job is known by its number, its name, and its
//! submission after the intention was written: numbers come again. The comment, by which `squeue` is read, is kept only where
//! `AccountingStoreFlags` says so.

mod records;

use std::collections::BTreeSet;
use std::io;
use std::process::Output;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use self::records::{COLUMNS, Record, read_json, read_text};
use crate::executor::batch::calls::complaint;
use crate::executor::batch::system::{Row, Sought, Standing};

/// Where there is no accounting, it is asked again after so long: somebody may have set it up.
const NONE_FOR: Duration = Duration::from_secs(3_600);
/// One that cannot be reached may take long to say so, and submissions wait meanwhile.
const AWAY_FOR: Duration = Duration::from_secs(20);
/// What is asked for in either form: whole jobs, and all that have had the number.
const WHICH: [&str; 2] = ["--allocations", "--duplicates"];

/// What is known of the cluster's accounting.
#[derive(Debug, Default)]
pub(super) struct Accounting(Mutex<Known>);

#[derive(Debug, Default)]
struct Known {
    /// This version writes no JSON.
    is_text: bool,
    silence: Option<Silence>,
}

/// It is not asked for the time being.
#[derive(Debug)]
struct Silence {
    until: Instant,
    why: Unanswered,
}

/// Why nothing is heard of it.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Unanswered {
    /// The cluster has none.
    None,
    /// It does not answer now.
    Away(String),
}

impl Accounting {
    /// A row for each job that the controller has forgotten and accounting knows, or may know: `ask` calls `sacct`.
    pub(super) fn rows(
        &self,
        forgotten: &[Sought],
        now: Instant,
        ask: impl Fn(&[&str]) -> io::Result<Output>,
    ) -> Vec<Row> {
        // What a thread that panicked had found out is found out again.
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let numbers: BTreeSet<&str> = forgotten.iter().filter_map(|sought| sought.job.as_deref()).collect();
        if numbers.is_empty() {
            return Vec::new();
        }
        let jobs = format!("--jobs={}", numbers.into_iter().collect::<Vec<_>>().join(","));
        let answer = match &known.silence {
            Some(silence) if now < silence.until => Err(silence.why.clone()),
            Some(_) | None => known.asked(&jobs, now, ask),
        };
        forgotten.iter().flat_map(|sought| rows_of(sought, &answer)).collect()
    }
}

fn rows_of(sought: &Sought, answer: &Result<Vec<Record>, Unanswered>) -> Vec<Row> {
    let (Some(job), Some((_, token))) = (&sought.job, sought.name.rsplit_once('.')) else { return Vec::new() };
    let standing = |index: u32| match answer {
        Ok(records) => records::of(records, sought, index).map(Record::standing),
        Err(Unanswered::None) => None,
        Err(Unanswered::Away(why)) => {
            let words = format!("unknown to the controller, and accounting cannot be asked: {why}");
            Some((Standing::Forgotten(None), words))
        }
    };
    let row = |index: &u32| {
        let (standing, words) = standing(*index)?;
        Some(Row { job: job.clone(), index: *index, standing, words, token: token.to_owned() })
    };
    sought.elements.iter().filter_map(row).collect()
}

impl Known {
    fn asked(
        &mut self,
        jobs: &str,
        now: Instant,
        ask: impl Fn(&[&str]) -> io::Result<Output>,
    ) -> Result<Vec<Record>, Unanswered> {
        let in_json = || said(ask(&["--json", WHICH[0], WHICH[1], jobs])).and_then(|text| read_json(&text));
        let in_text = || {
            let text = said(ask(&["--noheader", "--parsable2", WHICH[0], WHICH[1], jobs, COLUMNS]));
            text.map(|text| read_text(&text))
        };
        let answer = match if self.is_text { in_text() } else { in_json() } {
            // A version that writes no JSON complains of that, and answers in text.
            Err(Unanswered::Away(_)) if !self.is_text => in_text().inspect(|_| self.is_text = true),
            answer => answer,
        };
        self.note(answer.as_ref().err(), now);
        answer
    }

    fn note(&mut self, unanswered: Option<&Unanswered>, now: Instant) {
        let former = self.silence.take().map(|silence| silence.why);
        match (unanswered, &former) {
            (None, Some(_)) => tracing::info!("Slurm's accounting answers"),
            (None, None) | (Some(Unanswered::None), Some(Unanswered::None)) => {}
            (Some(Unanswered::None), Some(Unanswered::Away(_)) | None) => {
                tracing::info!(
                    "Slurm has no accounting here: of jobs that the controller has forgotten nothing more is known"
                );
            }
            (Some(Unanswered::Away(_)), Some(Unanswered::Away(_))) => {}
            (Some(Unanswered::Away(why)), Some(Unanswered::None) | None) => {
                tracing::warn!(
                    why,
                    "Slurm's accounting cannot be asked: jobs that the controller has forgotten are waited for"
                );
            }
        }
        self.silence = unanswered.map(|why| {
            let pause = if *why == Unanswered::None { NONE_FOR } else { AWAY_FOR };
            Silence { until: now + pause, why: why.clone() }
        });
    }
}

/// What `sacct` says that succeeds.
fn said(result: io::Result<Output>) -> Result<String, Unanswered> {
    match result {
        Ok(output) if output.status.success() => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
        Ok(output) => {
            let complaint = complaint(&output);
            let is_none = complaint.contains("accounting storage is disabled");
            Err(if is_none { Unanswered::None } else { Unanswered::Away(complaint) })
        }
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied) => {
            Err(Unanswered::None)
        }
        Err(error) => Err(Unanswered::Away(error.to_string())),
    }
}

#[cfg(test)]
mod tests;
