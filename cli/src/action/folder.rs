//! The folder of an action on this machine.

use std::path::PathBuf;

use anyhow::Context as _;
use storage_sync_engine::action_folder::{ActionFolderError, PackedAction, pack_action};

use crate::failure::Failure;

/// A folder, which may hold an action.
#[derive(Debug)]
pub(super) struct Folder {
    path: PathBuf,
}

impl Folder {
    pub(super) fn at(path: PathBuf) -> Self {
        Self { path }
    }

    /// Reads, checks and hashes it.
    ///
    /// # Errors
    /// When there is no manifest, it is wrong, or the folder holds what cannot be sent.
    pub(super) fn pack(&self) -> anyhow::Result<PackedAction> {
        match pack_action(&self.path, &self.path) {
            Ok(packed) => Ok(packed),
            Err(ActionFolderError::Invalid(diagnostics)) => {
                Err(Failure::Invalid { diagnostics, source_text: None }.into())
            }
            Err(ActionFolderError::Unpackable(error)) => {
                Err(error).with_context(|| format!("{} cannot be packed", self.path.display()))
            }
        }
    }
}
