//! Git repositories that a project gets actions from: which there are, what is being looked at, what the last look found,
//! and which commit each version came from.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use atoll_model::action::ActionReference;
use atoll_model::diagnostic::Diagnostic;
use atoll_model::id::ObjectId;
use atoll_model::limits::{IMPORT_FAULTS_MAX, IMPORT_LOG_BYTES_MAX, IMPORT_MESSAGE_BYTES_MAX, REPOSITORY_ACTIONS_MAX};
use atoll_model::repository::{RepositoryName, RepositorySource};
use atoll_model::time::Timestamp;
use serde::{Deserialize, Serialize};

use crate::registry::ActionName;

/// A repository that somebody added.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Repository {
    pub source: RepositorySource,
    /// From one import to the next, if the clock asks for them.
    pub every: Option<Duration>,
    pub added_by: String,
    pub added_at: Timestamp,
    /// When an import was asked for last.
    pub imported_at: Option<Timestamp>,
    /// What goes on.
    pub under_way: Option<Import>,
    pub last: Option<Arc<EndedImport>>,
}

/// One look at a repository.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Import {
    /// Never used twice, whatever is removed and added again.
    pub number: u64,
    pub mode: ImportMode,
    /// Who asked; nobody if the clock did.
    pub by: Option<String>,
    pub at: Timestamp,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ImportMode {
    /// Says what is there.
    Scan,
    /// And pushes what is new.
    Import,
}

impl ImportMode {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Scan => "scan",
            Self::Import => "import",
        }
    }
}

/// How it ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndedImport {
    pub import: Import,
    pub ended_at: Timestamp,
    pub report: ImportReport,
}

/// What a shell says of a look at a repository.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImportReport {
    /// What was looked at, in hexadecimal digits; nothing if it did not come so far.
    pub commit: Option<String>,
    pub outcome: ImportOutcome,
    /// By path.
    pub actions: Vec<FoundAction>,
    /// What was done and said, for people; the end of it, if it was long.
    pub log: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ImportOutcome {
    /// Each folder was looked at, whatever was found.
    Done,
    /// It could not be looked at as a whole.
    Failed(String),
    Cancelled {
        by: String,
    },
}

/// A folder with an `action.yaml`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FoundAction {
    /// Of the folder, within the repository; `.` for the repository itself.
    pub path: String,
    /// As its `action.yaml` says, if that could be read.
    pub action: Option<ActionReference>,
    pub digest: Option<ObjectId>,
    pub finding: Finding,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Finding {
    /// It is in the registry since this look.
    Imported,
    /// It was there before, and is the same.
    Known,
    /// It was there, and somebody removed it: no import brings it back.
    Removed,
    /// An import would push it.
    New,
    Invalid(Vec<Diagnostic>),
    /// It cannot be had, or the version is something else already.
    Failed(String),
}

/// Which commit a version came from first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Origin {
    pub repository: String,
    pub url: String,
    pub commit: String,
    /// Of its folder, within the repository.
    pub path: String,
}

impl ImportReport {
    /// With no more of anything than is kept.
    #[must_use]
    pub fn bounded(mut self) -> Self {
        self.actions.truncate(REPOSITORY_ACTIONS_MAX);
        for action in &mut self.actions {
            match &mut action.finding {
                Finding::Invalid(faults) => {
                    faults.truncate(IMPORT_FAULTS_MAX);
                    faults.iter_mut().for_each(|fault| shorten(&mut fault.message, IMPORT_MESSAGE_BYTES_MAX));
                }
                Finding::Failed(message) => shorten(message, IMPORT_MESSAGE_BYTES_MAX),
                Finding::Imported | Finding::Known | Finding::Removed | Finding::New => {}
            }
        }
        if let ImportOutcome::Failed(message) = &mut self.outcome {
            shorten(message, IMPORT_MESSAGE_BYTES_MAX);
        }
        if self.log.len() > IMPORT_LOG_BYTES_MAX {
            let mut from = self.log.len() - IMPORT_LOG_BYTES_MAX;
            while !self.log.is_char_boundary(from) {
                from += 1;
            }
            self.log.drain(..from);
            self.log.insert(0, '…');
        }
        self
    }

    /// Of what could not be looked at at all.
    pub fn failed(reason: &str) -> Self {
        let outcome = ImportOutcome::Failed(reason.to_owned());
        Self { commit: None, outcome, actions: Vec::new(), log: String::new() }
    }

    /// Whether each folder is in the registry, or was removed from it.
    pub fn is_complete(&self) -> bool {
        let is_there =
            |found: &FoundAction| matches!(found.finding, Finding::Imported | Finding::Known | Finding::Removed);
        self.outcome == ImportOutcome::Done && self.actions.iter().all(is_there)
    }
}

fn shorten(text: &mut String, bytes_max: usize) {
    if text.len() > bytes_max {
        let mut end = bytes_max;
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        text.truncate(end);
        text.push('…');
    }
}

/// What is to be looked at now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImportOrder {
    pub repository: RepositoryName,
    pub source: RepositorySource,
    pub import: Import,
    /// The last import, if nothing was missing at the end of it.
    pub imported: Option<Arc<EndedImport>>,
}

/// All repositories of all projects.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Repositories {
    known: BTreeMap<RepositoryName, Repository>,
    /// Also of versions that were removed, which never come to mean something else.
    origins: BTreeMap<ActionName, Origin>,
    /// The number of the last import.
    last_number: u64,
}

impl Repositories {
    pub fn get(&self, name: &RepositoryName) -> Option<&Repository> {
        self.known.get(name)
    }

    pub fn of_project<'a>(&'a self, project: &'a str) -> impl Iterator<Item = (&'a RepositoryName, &'a Repository)> {
        self.known.iter().filter(move |(name, _)| name.project == project)
    }

    /// Where a version came from, if it was imported.
    pub fn origin(&self, action: &ActionName) -> Option<&Origin> {
        self.origins.get(action)
    }

    /// Why there is no such repository, and what there is.
    pub fn why_missing(&self, name: &RepositoryName) -> String {
        let known: Vec<&str> = self.of_project(&name.project).map(|(known, _)| known.name.as_str()).collect();
        let there = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
        format!("there is no repository {} in project {} (it has {there})", name.name, name.project)
    }

    /// What is to be looked at, in the order in which it was asked for.
    pub fn orders(&self) -> Vec<ImportOrder> {
        let order = |(name, repository): (&RepositoryName, &Repository)| {
            let whole = |last: &&Arc<EndedImport>| last.import.mode == ImportMode::Import && last.report.is_complete();
            Some(ImportOrder {
                repository: name.clone(),
                source: repository.source.clone(),
                import: repository.under_way.clone()?,
                imported: repository.last.as_ref().filter(whole).cloned(),
            })
        };
        let mut orders: Vec<ImportOrder> = self.known.iter().filter_map(order).collect();
        orders.sort_by_key(|order| order.import.number);
        orders
    }

    pub(crate) fn len(&self) -> usize {
        self.known.len()
    }

    pub(crate) fn next_number(&self) -> u64 {
        self.last_number + 1
    }

    /// When the clock asks for the next import, and of which repository: nothing while one goes on.
    pub(crate) fn next_due(&self) -> Option<(Timestamp, RepositoryName)> {
        let due = |(name, repository): (&RepositoryName, &Repository)| {
            let every = repository.every.filter(|_| repository.under_way.is_none())?;
            Some((repository.imported_at.map_or(repository.added_at, |last| last + every), name.clone()))
        };
        self.known.iter().filter_map(due).min()
    }

    pub(crate) fn add(&mut self, name: RepositoryName, repository: Repository) {
        let former = self.known.insert(name, repository);
        assert!(former.is_none(), "a repository is added once");
    }

    pub(crate) fn ask(&mut self, name: &RepositoryName, import: Import) {
        self.last_number = import.number;
        let repository = self.known.get_mut(name).expect("facts name repositories that exist");
        if import.mode == ImportMode::Import {
            repository.imported_at = Some(import.at);
        }
        repository.under_way = Some(import);
    }

    pub(crate) fn end(&mut self, name: &RepositoryName, ended_at: Timestamp, report: ImportReport) {
        let repository = self.known.get_mut(name).expect("facts name repositories that exist");
        let import = repository.under_way.take().expect("facts end what goes on");
        repository.last = Some(Arc::new(EndedImport { import, ended_at, report }));
    }

    pub(crate) fn remove(&mut self, name: &RepositoryName) {
        self.known.remove(name).expect("facts name repositories that exist");
    }

    pub(crate) fn note_origin(&mut self, action: ActionName, origin: Origin) {
        self.origins.insert(action, origin);
    }

    /// # Panics
    /// When an import has a number that was not given out.
    pub(crate) fn check(&self) {
        let numbers = self.known.values().filter_map(|repository| repository.under_way.as_ref());
        assert!(numbers.map(|import| import.number).all(|number| number <= self.last_number), "imports are numbered");
    }
}
