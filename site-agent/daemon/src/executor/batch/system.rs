//! What the executor asks of a batch system, whichever it is, and what it hears.

use std::fmt::Debug;
use std::path::PathBuf;
use std::time::Duration;

use atoll_model::time::Timestamp;

use crate::config::ShimProgram;
use crate::shim::JOB;
use crate::shim::job::evidence::{Batch, JobsFolder, OfJob};
use crate::shim::protocol::Common;

/// What the shim takes beside what it runs.
pub(super) const SHIM_BYTES: u64 = 16 << 20;
/// The cluster's time limit is there for a job that its shim cannot end any more: the shim keeps the exact one.
pub(super) const TIME_MARGIN: Duration = Duration::from_secs(60);

/// A batch system. Slurm is one, and whatever a template describes is another.
pub(super) trait BatchSystem: Debug + Send + Sync {
    /// What people call it.
    fn title(&self) -> &str;

    /// What people are told of where jobs go.
    fn place(&self) -> String;

    fn limits(&self) -> Limits;

    /// How it tells a job of itself.
    fn of_job(&self) -> OfJob;

    /// The command of a job of its own, which is what is asked for unless the system starts that as several tasks.
    fn command(&self, common: &Common) -> Vec<Vec<u8>> {
        common.command.clone()
    }

    /// What is said to it to have these run.
    fn request(&self, job: &NewJob<'_>) -> Request;

    /// How it calls one of `count` that were submitted together under this number.
    fn number(&self, number: &str, index: usize, count: usize) -> String;

    /// Answers with the number that the system gives.
    fn submit(&self, request: &Request) -> Result<String, NotSubmitted>;

    /// Jobs that are gone need no end. The name is that of what was submitted together: a number that came again means
    /// another's job.
    fn cancel(&self, jobs: &[String], name: &str) -> Result<(), String>;

    /// What it says of the agent's jobs. Those that are sought may be all that it is asked for.
    fn list(&self, sought: &[Sought]) -> Result<Vec<Row>, String>;
}

/// How much at a time, and how patiently.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Limits {
    /// How often it is asked for the agent's jobs.
    pub poll: Duration,
    /// Most jobs of the agent in its queue.
    pub jobs_max: usize,
    /// Most of what is submitted together.
    pub together_max: usize,
    /// How long a job that it does not know counts as one that may still come.
    pub forgotten_after: Duration,
}

/// What is to be submitted.
#[derive(Debug, Clone, Copy)]
pub(super) struct NewJob<'a> {
    pub becomes: Becomes<'a>,
    pub folder: &'a JobsFolder,
    pub token: &'a str,
    pub batch: &'a Batch,
    pub common: &'a Common,
}

/// What a job is once it runs.
#[derive(Debug, Clone, Copy)]
pub(super) enum Becomes<'a> {
    /// The shim of the execution that is at its place in the batch.
    Shim(&'a ShimProgram),
    /// A worker, called with these words.
    Worker(&'a [String]),
}

/// The words of a command, and what it reads.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Request {
    pub words: Vec<String>,
    pub input: String,
    /// Where what it reads stands for the cluster, if it wants a file of it.
    pub file: Option<PathBuf>,
}

/// What was submitted together, or may have been.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Sought {
    pub name: String,
    /// The system's number for it, if that is known.
    pub job: Option<String>,
    /// Those of which no end is known.
    pub elements: Vec<u32>,
    /// When it was intended; it was submitted after that.
    pub at: Timestamp,
}

impl Sought {
    pub(super) fn of(batch: &Batch, elements: Vec<u32>) -> Self {
        Self { name: batch.name.clone(), job: batch.job.clone(), elements, at: batch.at }
    }
}

/// Why there is no number of a job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum NotSubmitted {
    /// The cluster does not take such a job.
    Refused(String),
    /// There is none, and it may be tried again.
    Later(String),
    /// There may be one.
    Unclear(String),
}

/// A job, or an element of an array.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Row {
    /// The cluster's number for it, or for its array.
    pub job: String,
    pub index: u32,
    pub standing: Standing,
    /// Its state and the reason of it, in the system's own words.
    pub words: String,
    pub token: String,
}

/// Where a job stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Standing {
    Waiting,
    /// It could not be started, and waits until somebody lets it go.
    Stuck,
    /// It cannot be started, and another like it could not either.
    Hopeless,
    Running,
    Over(Over),
    /// What rules the queue does not know it any more. How it is over stands in the system's accounting; nothing if it does
    /// not yet, or cannot be asked for now.
    Forgotten(Option<Over>),
}

/// How a job is over, as far as the cluster knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Over {
    TimedOut,
    OutOfMemory,
    /// Somebody cancelled it, whether it had begun or not.
    Cancelled,
    /// Its node was lost, or given to another.
    Lost,
    /// By itself.
    Ended,
}

/// The name of what is submitted together, for people who look at the queue, and for systems that know jobs by it.
pub(super) fn job_name(workflow_step: &str, token: &str) -> String {
    let plain = |letter: char| if letter.is_ascii_alphanumeric() || "-_.".contains(letter) { letter } else { '_' };
    format!("atoll.{}.{token}", workflow_step.chars().map(plain).take(64).collect::<String>())
}

/// As one word for a shell.
pub(super) fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', "'\\''"))
}

/// The command that a job becomes: that of a shim lacks its place in the batch.
pub(super) fn words(job: &NewJob<'_>) -> Vec<String> {
    let shim = match job.becomes {
        Becomes::Worker(words) => return words.to_vec(),
        Becomes::Shim(shim) => shim,
    };
    let own = [shim.program.display().to_string()].into_iter().chain(shim.arguments.iter().cloned());
    own.chain([JOB.to_owned(), job.folder.path().display().to_string(), job.token.to_owned()]).collect()
}
