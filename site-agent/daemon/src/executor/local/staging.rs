//! Inputs, made ready for an execution. Everything here blocks.

use std::fs;
use std::io;
use std::path::PathBuf;

use atoll_model::session::FailureReason;
use atoll_model::value::ObjectRef;
use atoll_model::workflow::Outside;
use storage_sync_engine::store::{Entry, Lent, SiteStore, StoreError, Stored};
use tokio_util::sync::CancellationToken;

use super::exports::{Export, ExportRules};
use super::imports::{self, Import};
use crate::config::Imports;
use crate::shim::account::{Account, lend};
use crate::shim::protocol::Key;
use crate::shim::{make_private, remove_whatever};

/// Why something cannot be started.
#[derive(Debug)]
pub(crate) struct StagingFailure {
    pub reason: FailureReason,
    pub message: String,
    /// The copy that was found damaged on the way, if that is what happened.
    pub damaged: Option<ObjectRef>,
}

/// The folder of all inputs, in the agent's data directory.
pub(super) const STAGED: &str = "staged";

impl StagingFailure {
    pub(super) fn new(reason: FailureReason, message: String) -> Self {
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

/// The folders in which inputs are made ready.
#[derive(Debug)]
pub(super) struct Stage {
    store: SiteStore,
    staged: PathBuf,
    imports: Imports,
    exports: ExportRules,
}

impl Stage {
    pub(super) fn new(store: SiteStore, imports: Imports, exports: ExportRules) -> io::Result<Self> {
        let data_dir = &exports.data_dir;
        let staged = data_dir.join(STAGED);
        make_private(&staged)?;
        Ok(Self { store, staged, imports, exports })
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

    /// Makes inputs ready for an attempt, which runs as this account if it runs as another: then it alone reads them.
    pub(super) fn materialise(
        &self,
        folder: &str,
        entries: &[Entry],
        account: Option<&Account>,
    ) -> Result<Lent, StagingFailure> {
        let place = self.staged(folder);
        // An earlier process may have begun.
        remove_whatever(&place)
            .map_err(|error| StagingFailure::new(FailureReason::Agent, format!("{}: {error}", place.display())))?;
        let lent = self.store.materialise(&place, entries).map_err(|error| StagingFailure::of_store(&error))?;
        let given = account.map_or(Ok(()), |account| lend(&place, account));
        given.map_err(|error| StagingFailure::new(FailureReason::Agent, format!("{}: {error}", place.display())))?;
        Ok(lent)
    }

    /// Takes a file or directory into the store: one of this machine, or one that is fetched, by way of the folder of this
    /// name.
    pub(super) fn import(
        &self,
        folder: &str,
        import: &Import,
        given_up: &CancellationToken,
    ) -> Result<Stored, StagingFailure> {
        match &import.source {
            Outside::Path(path) => imports::take_path(&self.store, &self.imports, path, import.directory),
            Outside::Url(url) => {
                let place = self.staged(folder);
                let fetched = imports::fetch(&self.store, &self.imports, url, import.directory, &place, given_up);
                if let Err(error) = remove_whatever(&place) {
                    tracing::warn!(folder, %error, "what was fetched could not be cleared away");
                }
                fetched
            }
        }
    }

    /// Publishes what was made ready for an attempt.
    pub(super) fn export(&self, key: Key, export: &Export, given_up: &CancellationToken) -> Result<(), StagingFailure> {
        export.publish(key, &self.staged(&key.folder()), &self.exports, given_up)
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
