//! Repositories that a project gets actions from.

use atoll_model::repository::RepositoryName;
use control_plane_core::{EndedImport, Finding, FoundAction, Import, ImportOutcome, Repository};
use serde::Serialize;
use utoipa::ToSchema;

use super::time;
use crate::api::error::DiagnosticBody;

#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct RepositoriesBody {
    /// By name.
    pub(crate) repositories: Vec<RepositoryBody>,
}

/// A repository of a project.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct RepositoryBody {
    repository: String,
    project: String,
    url: String,
    branch: Option<String>,
    subdir: Option<String>,
    /// From one import to the next, if the clock asks for them.
    every_seconds: Option<u64>,
    added_by: String,
    added_at: String,
    under_way: Option<ImportBody>,
    last: Option<EndedImportBody>,
}

/// A look at a repository.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ImportBody {
    number: u64,
    /// `scan` or `import`.
    what: &'static str,
    /// Nobody where the clock has asked.
    by: Option<String>,
    asked_at: String,
}

#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct EndedImportBody {
    #[serde(flatten)]
    import: ImportBody,
    ended_at: String,
    /// `done`, `failed` or `cancelled`.
    outcome: &'static str,
    /// Why it failed, or who has cancelled it.
    message: Option<String>,
    commit: Option<String>,
    actions: Vec<FoundActionBody>,
}

/// A folder with an `action.yaml`.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct FoundActionBody {
    /// Within the repository.
    path: String,
    action: Option<String>,
    version: Option<String>,
    digest: Option<String>,
    /// `imported`, `known`, `removed`, `new`, `invalid` or `failed`.
    finding: &'static str,
    /// Why it failed.
    message: Option<String>,
    /// What is wrong with it, each with its place.
    errors: Vec<DiagnosticBody>,
}

/// What was said while it was looked at.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct RepositoryLogBody {
    pub(crate) goes_on: bool,
    pub(crate) log: String,
}

impl RepositoryBody {
    pub(crate) fn new(name: &RepositoryName, repository: &Repository) -> Self {
        let Repository { source, every, added_by, added_at, imported_at: _, under_way, last } = repository;
        Self {
            repository: name.name.clone(),
            project: name.project.clone(),
            url: source.url.to_string(),
            branch: source.branch().map(str::to_owned),
            subdir: source.subdir().map(str::to_owned),
            every_seconds: every.map(|every| every.as_secs()),
            added_by: added_by.clone(),
            added_at: time(*added_at),
            under_way: under_way.as_ref().map(ImportBody::new),
            last: last.as_deref().map(EndedImportBody::new),
        }
    }
}

impl ImportBody {
    fn new(import: &Import) -> Self {
        Self { number: import.number, what: import.mode.as_str(), by: import.by.clone(), asked_at: time(import.at) }
    }
}

impl EndedImportBody {
    fn new(ended: &EndedImport) -> Self {
        let (outcome, message) = match &ended.report.outcome {
            ImportOutcome::Done => ("done", None),
            ImportOutcome::Failed(message) => ("failed", Some(message.clone())),
            ImportOutcome::Cancelled { by } => ("cancelled", Some(format!("cancelled by {by}"))),
        };
        Self {
            import: ImportBody::new(&ended.import),
            ended_at: time(ended.ended_at),
            outcome,
            message,
            commit: ended.report.commit.clone(),
            actions: ended.report.actions.iter().map(FoundActionBody::new).collect(),
        }
    }
}

impl FoundActionBody {
    fn new(found: &FoundAction) -> Self {
        let (finding, message, errors) = match &found.finding {
            Finding::Imported => ("imported", None, [].as_slice()),
            Finding::Known => ("known", None, [].as_slice()),
            Finding::Removed => ("removed", None, [].as_slice()),
            Finding::New => ("new", None, [].as_slice()),
            Finding::Invalid(errors) => ("invalid", None, errors.as_slice()),
            Finding::Failed(message) => ("failed", Some(message.clone()), [].as_slice()),
        };
        Self {
            path: found.path.clone(),
            action: found.action.as_ref().map(|action| action.name.clone()),
            version: found.action.as_ref().map(|action| action.version.clone()),
            digest: found.digest.map(|digest| digest.to_string()),
            finding,
            message,
            errors: errors.iter().map(DiagnosticBody::new).collect(),
        }
    }
}
