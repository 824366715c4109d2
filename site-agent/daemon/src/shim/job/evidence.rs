//! The folder that an agent shares with the jobs of a batch system: what it has them run, and what they say of it.
//!
//! ```text
//! batches/TOKEN     what was submitted together: the attempt of each element, the name, the cluster's number
//! news/KEY.started  a job has begun; touched while it lives
//! news/KEY.ended    how it ended; written last
//! said/TOKEN.N      what the job said before it was a shim; in said/TOKEN.script what was submitted, if that was a file
//! KEY/              the slot of an attempt, with `order`, `claim` and, if it is to end, `cancel`
//! ```
//!
//! Every file is whole or not there: it is written under another name, synced, and renamed.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use atoll_model::resources::Spread;
use atoll_model::time::Timestamp;
use rustix::fs::{Mode, OFlags, openat, renameat};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::shim::protocol::{Common, End, Key, Order, Setup, Terms, Worker};

/// Of every file here; a job may be older than the agent, never newer.
pub(crate) const VERSION: u8 = 1;
pub(crate) const STARTED: &str = "started";
pub(crate) const ENDED: &str = "ended";
pub(crate) const ORDER: &str = "order";
pub(crate) const CLAIM: &str = "claim";
pub(crate) const CANCEL: &str = "cancel";
/// The variable by which a pod knows of which Job it is.
pub(crate) const KUBERNETES_JOB: &str = "ATOLL_KUBERNETES_JOB";

/// What was submitted together.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Batch {
    pub version: u8,
    /// The job's name.
    pub name: String,
    /// The attempt of each element of the array.
    pub keys: Vec<Key>,
    /// When its submission was intended.
    pub at: Timestamp,
    /// The cluster's number for it, once that is known. It may come again.
    pub job: Option<String>,
    /// What each is submitted with; what was written before this was noted asks for nothing.
    #[serde(default)]
    pub asked: Asked,
    /// What was written before this was noted is of Slurm.
    #[serde(default)]
    pub of_job: OfJob,
}

/// The variables by which a batch system tells a job of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct OfJob {
    /// The one that has the system's number for the job.
    pub number: String,
    /// What those begin with that are passed on: steps and programs for parallel work want them.
    pub passed: Vec<String>,
}

impl Default for OfJob {
    fn default() -> Self {
        Self { number: "SLURM_JOB_ID".to_owned(), passed: vec!["SLURM".to_owned()] }
    }
}

/// What is asked of a cluster beside CPUs, memory and time.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Asked {
    pub gpus: u32,
    pub gpu_kind: Option<String>,
    /// How many of each named resource, rounded up: clusters count whole ones.
    pub named: BTreeMap<String, u32>,
    /// What was written before there were several says nothing of it, nor of what follows.
    #[serde(default)]
    pub spread: Option<Spread>,
    /// Further options of Slurm's.
    #[serde(default)]
    pub sbatch: Vec<String>,
}

/// What a job is to run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct JobOrder {
    pub version: u8,
    pub setup: Setup,
    pub common: Common,
    pub order: Order,
    /// The worker that is called for it, if one is, and what it is called with.
    pub call: Option<(Worker, String)>,
    /// Stands after everything else; what was written before there were any says none.
    #[serde(skip)]
    pub terms: Terms,
}

/// Which job runs an attempt.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Claim {
    pub token: String,
    /// The cluster's number for it, and how often the cluster has begun it again.
    pub job: String,
    pub restarts: u32,
    pub node: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct StartedNews {
    pub at: Timestamp,
    pub claim: Claim,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct EndedNews {
    pub end: End,
    /// The cluster had it end: why is known there.
    pub told: bool,
}

/// Where everything is.
#[derive(Debug, Clone)]
pub(crate) struct JobsFolder {
    path: PathBuf,
}

impl JobsFolder {
    pub(crate) fn new(path: PathBuf) -> Self {
        Self { path }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn batches(&self) -> PathBuf {
        self.path.join("batches")
    }

    pub(crate) fn news(&self) -> PathBuf {
        self.path.join("news")
    }

    pub(crate) fn said(&self) -> PathBuf {
        self.path.join("said")
    }

    /// What was submitted, where a system wants a file of it.
    pub(crate) fn script(&self, token: &str) -> PathBuf {
        self.said().join(format!("{token}.script"))
    }

    pub(crate) fn slot(&self, key: Key) -> PathBuf {
        self.path.join(key.folder())
    }
}

/// Writes a file that is whole or not there, whoever is killed and whatever goes down.
pub(crate) fn write_durably(folder: &File, name: &str, bytes: &[u8]) -> io::Result<()> {
    let next = format!(".{name}.next");
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::CLOEXEC;
    let mut file = File::from(openat(folder, &next, flags, Mode::from_raw_mode(0o600))?);
    file.write_all(bytes)?;
    file.sync_all()?;
    renameat(folder, &next, folder, name)?;
    folder.sync_all()
}

pub(crate) fn to_json(value: &impl Serialize) -> io::Result<Vec<u8>> {
    serde_json::to_vec(value).map_err(io::Error::from)
}

/// Reads a file of this folder; nothing if it is not there.
pub(crate) fn read_json<T: DeserializeOwned>(path: &Path) -> io::Result<Option<T>> {
    match fs::read(path) {
        Ok(bytes) => serde_json::from_slice(&bytes).map(Some).map_err(io::Error::from),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

impl JobOrder {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let order = postcard::to_extend(self, Vec::new());
        let whole = order.and_then(|order| postcard::to_extend(&self.terms, order));
        whole.expect("an order holds nothing that postcard cannot encode")
    }

    fn decode(bytes: &[u8]) -> Result<Self, postcard::Error> {
        let (order, rest): (Self, _) = postcard::take_from_bytes(bytes)?;
        let terms = if rest.is_empty() { Terms::default() } else { postcard::from_bytes(rest)? };
        Ok(Self { terms, ..order })
    }

    /// Reads the order in a slot; nothing if there is none.
    pub(crate) fn read(slot: &Path) -> io::Result<Option<Self>> {
        let bytes = match fs::read(slot.join(ORDER)) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        match bytes.first() {
            Some(&VERSION) => Self::decode(&bytes).map(Some).map_err(io::Error::other),
            Some(_) | None => Err(io::Error::other("the order was written by another version of Atoll")),
        }
    }
}
