//! Looks into the journal of a control plane that does not run: whether it is sound, what it holds, how much of it there
//! is.

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use control_plane_core::{Config, ControlPlane, Fact, Snapshot};
use control_plane_postgres::Address;
use serde::Serialize;
use storage_sync_journal::{Backend, BatchSeq, IntegrityFault, JournalId, OpenError, Options, inspect};

use crate::driver::{JOURNAL_FORMAT, wall_clock};

/// A journal, read up to the first damage.
#[derive(Debug)]
pub struct StoredJournal {
    /// Its directory, or the address of its database.
    location: String,
    store: String,
    inspection: Inspection,
}

/// What is looked at of a journal, whichever store it is in.
#[derive(Debug)]
struct Inspection {
    generation: u64,
    identity: Option<JournalId>,
    format: u16,
    checkpoint: Option<(BatchSeq, Option<Vec<u8>>)>,
    batches: Vec<(BatchSeq, Vec<u8>)>,
    acknowledged: Option<BatchSeq>,
    torn: Option<BatchSeq>,
    live_bytes: u64,
    disk_bytes: u64,
    fault: Option<IntegrityFault>,
}

impl From<storage_sync_journal::Inspection> for Inspection {
    fn from(found: storage_sync_journal::Inspection) -> Self {
        Self {
            generation: found.generation,
            identity: found.identity,
            format: found.format,
            checkpoint: found.checkpoint,
            batches: found.batches,
            acknowledged: found.acknowledged,
            torn: found.torn,
            live_bytes: found.live_bytes,
            disk_bytes: found.disk_bytes,
            fault: found.fault,
        }
    }
}

impl From<control_plane_postgres::Inspection> for Inspection {
    fn from(found: control_plane_postgres::Inspection) -> Self {
        // Whatever is in the database was committed, and may have been told.
        let acknowledged = found.batches.last().map(|(batch, _)| *batch);
        let acknowledged = acknowledged.or_else(|| found.checkpoint.as_ref().map(|(batch, _)| *batch));
        Self {
            generation: found.generation,
            identity: Some(found.identity),
            format: found.format,
            checkpoint: found.checkpoint,
            batches: found.batches,
            acknowledged,
            torn: None,
            live_bytes: found.live_bytes,
            disk_bytes: found.disk_bytes,
            fault: found.fault,
        }
    }
}

/// Why a journal cannot be looked into.
#[derive(Debug, thiserror::Error)]
pub enum LookError {
    #[error("there is no journal in {}: name the data directory of a server", .0.display())]
    Absent(PathBuf),
    #[error("there is no journal at {0}")]
    NotAt(Box<Address>),
    #[error(transparent)]
    Open(#[from] OpenError),
    #[error(transparent)]
    OpenShared(#[from] control_plane_postgres::OpenError),
}

/// A fact, and where it stands.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct NumberedFact {
    pub batch: u64,
    /// Among those of its batch, from 1.
    pub number: u64,
    pub fact: Fact,
}

/// Something that is wrong with a journal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, thiserror::Error)]
#[error("{place}: {message}")]
pub struct Problem {
    pub place: String,
    pub message: String,
}

/// What was found when everything was read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Verification {
    pub sound: bool,
    /// Its directory, or the address of its database.
    #[serde(rename = "directory")]
    pub location: String,
    pub format: u16,
    /// The last batch that the checkpoint stands for.
    pub checkpoint_batch: Option<u64>,
    /// Batches and facts after the checkpoint that are sound.
    pub batches: u64,
    pub facts: u64,
    pub last_batch: u64,
    /// The last batch that somebody is known to have been told of.
    pub acknowledged_batch: Option<u64>,
    /// A batch that a crash cut short and nobody was told of: the next start drops it.
    pub torn_batch: Option<u64>,
    /// The first thing that is wrong.
    pub problem: Option<Problem>,
}

/// Figures of a journal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Figures {
    /// Its directory, or the address of its database.
    #[serde(rename = "directory")]
    pub location: String,
    pub store: String,
    pub journal: Option<String>,
    pub generation: u64,
    pub format: u16,
    pub checkpoint_batch: Option<u64>,
    pub checkpoint_bytes: u64,
    pub batches: u64,
    pub last_batch: u64,
    pub batch_bytes: u64,
    pub live_bytes: u64,
    pub disk_bytes: u64,
    pub facts: u64,
    pub facts_by_kind: BTreeMap<String, u64>,
    pub problem: Option<Problem>,
}

impl StoredJournal {
    /// Reads the journal in a server's data directory, which no server may be using.
    ///
    /// # Errors
    /// When there is none, a server uses it, or a newer version wrote it.
    pub fn read(data_dir: &Path) -> Result<Self, LookError> {
        let directory = data_dir.join("journal");
        // Which store it is in is read from the journal itself.
        let options = Options::new(&directory, Backend::Sled, JOURNAL_FORMAT);
        let inspection = inspect(&options)?.ok_or_else(|| LookError::Absent(data_dir.to_owned()))?;
        let (location, store) = (directory.display().to_string(), inspection.backend.to_string());
        Ok(Self { location, store, inspection: inspection.into() })
    }

    /// Reads the journal in a database, as it stands at one moment; servers may be using it.
    ///
    /// # Errors
    /// When there is none, the database cannot be reached, or a newer version wrote it.
    pub fn read_shared(address: &Address) -> Result<Self, LookError> {
        let inspection = control_plane_postgres::inspect(address, JOURNAL_FORMAT)?;
        let inspection = inspection.ok_or_else(|| LookError::NotAt(Box::new(address.clone())))?;
        Ok(Self { location: address.to_string(), store: "postgres".to_owned(), inspection: inspection.into() })
    }

    /// The facts after the checkpoint, up to the first thing that cannot be read.
    pub fn facts(&self) -> impl Iterator<Item = Result<NumberedFact, Problem>> {
        let mut failed = false;
        let facts = self.inspection.batches.iter().flat_map(|(batch, bytes)| Batch::new(batch.0, bytes));
        facts.take_while(move |fact| {
            let go_on = !failed;
            failed |= fact.is_err();
            go_on
        })
    }

    /// What the store could not read, if there is anything.
    pub fn damage(&self) -> Option<Problem> {
        let fault = self.inspection.fault.as_ref()?;
        Some(Problem { place: fault.place(), message: fault.to_string() })
    }

    /// Reads everything as a start would: records, facts, and the state that follows from them with its invariants.
    pub fn verify(&self) -> Verification {
        let inspection = &self.inspection;
        let mut facts = Vec::new();
        let mut undecodable = None;
        for fact in self.facts() {
            match fact {
                Ok(fact) => facts.push(fact.fact),
                Err(problem) => undecodable = Some(problem),
            }
        }
        let count = facts.len() as u64;
        // What stands first is told first.
        let problem = undecodable.or_else(|| self.damage()).or_else(|| self.problem_of_state(facts));
        Verification {
            sound: problem.is_none(),
            location: self.location.clone(),
            format: inspection.format,
            checkpoint_batch: self.checkpoint_batch(),
            batches: inspection.batches.len() as u64,
            facts: count,
            last_batch: self.last_batch(),
            acknowledged_batch: inspection.acknowledged.map(|batch| batch.0),
            torn_batch: inspection.torn.map(|batch| batch.0),
            problem,
        }
    }

    fn problem_of_state(&self, facts: Vec<Fact>) -> Option<Problem> {
        let mut snapshot = None;
        if let Some((batch, Some(bytes))) = &self.inspection.checkpoint {
            let mut bytes = bytes.clone();
            Snapshot::upgrade(self.inspection.format, &mut bytes);
            match postcard::from_bytes::<Snapshot>(&bytes) {
                Ok(read) => snapshot = Some(read),
                Err(error) => {
                    let place = format!("the checkpoint after {batch}");
                    return Some(Problem { place, message: format!("it cannot be read: {error}") });
                }
            }
        }
        // The invariants are assertions.
        let recovered = catch_unwind(AssertUnwindSafe(|| {
            ControlPlane::recover(Config::default(), snapshot, facts, wall_clock()).check();
        }));
        let panic = recovered.err()?;
        let message = panic.downcast_ref::<String>().map(String::as_str);
        let message = message.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no message");
        Some(Problem { place: "the state".to_owned(), message: format!("the facts contradict each other: {message}") })
    }

    pub fn figures(&self) -> Figures {
        let inspection = &self.inspection;
        let mut facts_by_kind: BTreeMap<String, u64> = BTreeMap::new();
        let mut undecodable = None;
        for fact in self.facts() {
            match fact {
                Ok(fact) => *facts_by_kind.entry(kind(&fact.fact)).or_default() += 1,
                Err(problem) => undecodable = Some(problem),
            }
        }
        let checkpoint = inspection.checkpoint.as_ref().and_then(|(_, bytes)| bytes.as_ref());
        Figures {
            location: self.location.clone(),
            store: self.store.clone(),
            journal: inspection.identity.map(|identity| identity.to_string()),
            generation: inspection.generation,
            format: inspection.format,
            checkpoint_batch: self.checkpoint_batch(),
            checkpoint_bytes: checkpoint.map_or(0, |bytes| bytes.len() as u64),
            batches: inspection.batches.len() as u64,
            last_batch: self.last_batch(),
            batch_bytes: inspection.batches.iter().map(|(_, bytes)| bytes.len() as u64).sum(),
            live_bytes: inspection.live_bytes,
            disk_bytes: inspection.disk_bytes,
            facts: facts_by_kind.values().sum(),
            facts_by_kind,
            problem: undecodable.or_else(|| self.damage()),
        }
    }

    /// The last batch that the checkpoint stands for.
    pub fn checkpoint_batch(&self) -> Option<u64> {
        self.inspection.checkpoint.as_ref().map(|(batch, _)| batch.0)
    }

    fn last_batch(&self) -> u64 {
        let last = self.inspection.batches.last().map(|(batch, _)| batch.0);
        last.or_else(|| self.checkpoint_batch()).unwrap_or(0)
    }
}

/// The facts of a batch, which stand one after the other.
struct Batch<'a> {
    batch: u64,
    number: u64,
    length: usize,
    rest: &'a [u8],
}

impl<'a> Batch<'a> {
    fn new(batch: u64, bytes: &'a [u8]) -> Self {
        Self { batch, number: 0, length: bytes.len(), rest: bytes }
    }
}

impl Iterator for Batch<'_> {
    type Item = Result<NumberedFact, Problem>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let (batch, place) = (self.batch, self.length - self.rest.len());
        self.number += 1;
        let number = self.number;
        Some(match postcard::take_from_bytes::<Fact>(self.rest) {
            Ok((fact, rest)) => {
                self.rest = rest;
                Ok(NumberedFact { batch, number, fact })
            }
            Err(error) => {
                self.rest = &[];
                let place = format!("batch {batch}, fact {number}, byte {place}");
                Err(Problem { place, message: format!("the fact cannot be read: {error}") })
            }
        })
    }
}

/// The name of a fact's variant.
fn kind(fact: &Fact) -> String {
    let text = format!("{fact:?}");
    text.split(|letter: char| !letter.is_alphanumeric()).next().unwrap_or_default().to_owned()
}
