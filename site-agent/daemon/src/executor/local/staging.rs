//! Inputs and actions, made ready for an execution. Everything here blocks.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use atoll_model::session::{FailureReason, StepTemplate, TemplateWork};
use atoll_model::value::{ObjectRef, Value};
use storage_sync_engine::store::{Entry, IngestError, Lent, SiteStore, Source, StoreError, Stored};

use crate::shim::{make_private, remove_whatever};

/// Why something cannot be started.
#[derive(Debug)]
pub(crate) struct StagingFailure {
    pub reason: FailureReason,
    pub message: String,
    /// The copy that was found damaged on the way, if that is what happened.
    pub damaged: Option<ObjectRef>,
}

impl StagingFailure {
    fn new(reason: FailureReason, message: String) -> Self {
        Self { reason, message, damaged: None }
    }

    pub(super) fn of_store(error: &StoreError) -> Self {
        let message = full_message(error);
        match error {
            StoreError::NoSpace { .. } => Self::new(FailureReason::NoSpace, message),
            StoreError::Damaged { object, .. } => {
                Self { damaged: Some(*object), ..Self::new(FailureReason::Agent, message) }
            }
            StoreError::NotFound(_) | StoreError::UnknownSeal(_) | StoreError::InUse(_) | StoreError::Io { .. } => {
                Self::new(FailureReason::Agent, message)
            }
        }
    }
}

/// An error with everything that caused it, in one line.
pub(super) fn full_message(error: &dyn std::error::Error) -> String {
    let mut message = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        message = format!("{message}: {error}");
        cause = error.source();
    }
    message
}

/// The folders in which inputs and actions are made ready.
#[derive(Debug)]
pub(super) struct Stage {
    store: SiteStore,
    staged: PathBuf,
    actions: PathBuf,
    imports: Vec<PathBuf>,
    /// One action at a time is made, each once.
    making_action: Mutex<()>,
}

impl Stage {
    pub(super) fn new(store: SiteStore, data_dir: &Path, imports: Vec<PathBuf>) -> io::Result<Self> {
        let [staged, actions] = ["staged", "actions"].map(|name| data_dir.join(name));
        make_private(&staged)?;
        make_private(&actions)?;
        Ok(Self { store, staged, actions, imports, making_action: Mutex::new(()) })
    }

    /// Where the inputs of an attempt stand, whose folder has this name.
    pub(super) fn staged(&self, folder: &str) -> PathBuf {
        self.staged.join(folder)
    }

    /// Names of the folders that earlier processes left.
    pub(super) fn leftovers(&self) -> io::Result<Vec<String>> {
        let entries = fs::read_dir(&self.staged)?;
        Ok(entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect())
    }

    pub(super) fn materialise(&self, folder: &str, entries: &[Entry]) -> Result<Lent, StagingFailure> {
        let place = self.staged(folder);
        // An earlier process may have begun.
        remove_whatever(&place)
            .map_err(|error| StagingFailure::new(FailureReason::Agent, format!("{}: {error}", place.display())))?;
        self.store.materialise(&place, entries).map_err(|error| StagingFailure::of_store(&error))
    }

    /// The action's folder, made of its bundle once for all executions.
    pub(super) fn action(&self, bundle: ObjectRef) -> Result<PathBuf, StagingFailure> {
        let _alone = self.making_action.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let home = self.actions.join(bundle.id.hex());
        let action = home.join("action");
        if action.exists() {
            return Ok(action);
        }
        let in_work = self.actions.join(format!("{}.in-work", bundle.id.hex()));
        let failed = |error: io::Error| {
            let full = error.kind() == io::ErrorKind::StorageFull;
            let reason = if full { FailureReason::NoSpace } else { FailureReason::Agent };
            StagingFailure::new(reason, format!("the action cannot be made ready in {}: {error}", home.display()))
        };
        remove_whatever(&in_work).map_err(failed)?;
        remove_whatever(&home).map_err(failed)?;
        let entry = Entry { path: PathBuf::from("action"), source: Source::Tree(bundle.id) };
        self.store.materialise(&in_work, &[entry]).map_err(|error| StagingFailure::of_store(&error))?;
        fs::rename(&in_work, &home).map_err(failed)?;
        Ok(action)
    }

    /// Takes a file or directory of this machine into the store.
    pub(super) fn import(&self, path: &str, directory: bool) -> Result<Stored, StagingFailure> {
        let refuse = |message: String| StagingFailure::new(FailureReason::ImportFailed, message);
        let wanted = Path::new(path);
        if !wanted.is_absolute() {
            return Err(refuse(format!("{path} is not an absolute path")));
        }
        let real = fs::canonicalize(wanted).map_err(|error| refuse(format!("{path} cannot be read: {error}")))?;
        let allowed = |root: &PathBuf| fs::canonicalize(root).is_ok_and(|root| real.starts_with(root));
        if !self.imports.iter().any(allowed) {
            return Err(refuse(format!(
                "the site does not give {path} away: its administrator lists what it gives under imports"
            )));
        }
        if real.is_dir() != directory {
            let (is, wanted) = if directory { ("a file", "a directory") } else { ("a directory", "a file") };
            return Err(refuse(format!("{path} is {is}, and {wanted} is asked for")));
        }
        let mut stored = self.store.import(&real).map_err(|error| match error {
            IngestError::Store(error @ StoreError::NoSpace { .. }) => StagingFailure::of_store(&error),
            error @ (IngestError::Missing(_)
            | IngestError::Refused { .. }
            | IngestError::Changed(_)
            | IngestError::Store(_)) => refuse(full_message(&error)),
        })?;
        // It keeps the name by which it was asked for, not the one that a link led to.
        if let Some(name) = wanted
            .file_name()
            .and_then(|name| atoll_model::value::FileName::new(std::os::unix::ffi::OsStrExt::as_bytes(name)).ok())
        {
            match &mut stored.value {
                Value::File(file) => file.name = name,
                Value::Directory(tree) => tree.name = name,
                Value::Null
                | Value::Boolean(_)
                | Value::Integer(_)
                | Value::Number(_)
                | Value::String(_)
                | Value::List(_)
                | Value::Object(_) => {}
            }
        }
        Ok(stored)
    }

    /// Gives back what was lent to an attempt.
    pub(super) fn take_back(&self, folder: &str) {
        if let Err(error) = self.store.take_back(&self.staged(folder)) {
            tracing::warn!(folder, error = full_message(&error), "inputs could not be given back to the store");
        }
    }

    /// The objects among those lent that were changed by what they were lent to.
    pub(super) fn touched(&self, lent: &Lent) -> Vec<ObjectRef> {
        self.store.touched(lent).unwrap_or_else(|error| {
            tracing::error!(error = full_message(&error), "lent files could not be checked");
            Vec::new()
        })
    }
}

/// The bundle of a step's action.
pub(super) fn bundle(template: &StepTemplate) -> Option<ObjectRef> {
    match &template.work {
        TemplateWork::Command { bundle, .. } => *bundle,
        TemplateWork::Script(_) | TemplateWork::Import { .. } | TemplateWork::Null => None,
    }
}
