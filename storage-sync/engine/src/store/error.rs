use std::io;
use std::path::{Path, PathBuf};

use atoll_model::id::ObjectId;
use atoll_model::value::ObjectRef;

use super::SealId;

#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("{0} is not in the store")]
    NotFound(ObjectId),
    /// The copy is in quarantine now.
    #[error("the copy of {} in the store is damaged: {message}", .object.id)]
    Damaged { object: ObjectRef, message: String },
    #[error("no space left on the store's file system ({})", .path.display())]
    NoSpace { path: PathBuf },
    #[error("the seal {} is not known", .0.0)]
    UnknownSeal(SealId),
    #[error("another agent uses the store {}: a store belongs to one agent alone, so stop that one, or give each a data directory of its own", .0.display())]
    InUse(PathBuf),
    #[error("cannot {what} {}", .path.display())]
    Io {
        /// A verb.
        what: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

/// Why an output cannot be taken in.
#[derive(Debug, thiserror::Error)]
pub enum IngestError {
    #[error("{0} is missing")]
    Missing(String),
    /// Something that outputs may not hold, or more of it than they may.
    #[error("{path} {why}")]
    Refused { path: String, why: String },
    #[error("{0} was changed while it was taken in")]
    Changed(String),
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl StoreError {
    pub(crate) fn io(what: &'static str, path: &Path, source: impl Into<io::Error>) -> Self {
        let source = source.into();
        if is_full(&source) {
            Self::NoSpace { path: path.to_owned() }
        } else {
            Self::Io { what, path: path.to_owned(), source }
        }
    }

    pub fn is_no_space(&self) -> bool {
        matches!(self, Self::NoSpace { .. })
    }
}

impl IngestError {
    pub fn is_no_space(&self) -> bool {
        matches!(self, Self::Store(error) if error.is_no_space())
    }
}

/// Whether an error means that a disk or a quota is full.
pub(crate) fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// Turns a result into one of this module, with what was being done to which path.
pub(crate) trait Doing<T> {
    fn doing(self, what: &'static str, path: &Path) -> Result<T, StoreError>;
}

impl<T, E: Into<io::Error>> Doing<T> for Result<T, E> {
    fn doing(self, what: &'static str, path: &Path) -> Result<T, StoreError> {
        self.map_err(|error| StoreError::io(what, path, error))
    }
}
