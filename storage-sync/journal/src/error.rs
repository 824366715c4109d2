//! What can go wrong, each with its place.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

/// Something that was durable is damaged or missing.
#[derive(Debug, thiserror::Error)]
pub enum IntegrityFault {
    /// A record whose checksum, header or place does not fit.
    #[error("record {place} is damaged: {reason}")]
    BadFrame { place: String, reason: &'static str },
    /// A record that must be there is not.
    #[error("record {missing} is missing (found {found} instead)")]
    Gap { missing: String, found: String },
    /// The journal ends before the last batch that was acknowledged.
    #[error("the journal ends with batch {last}, but batch {acknowledged} was acknowledged")]
    AcknowledgedMissing { last: u64, acknowledged: u64 },
    /// The pointer to the current generation or the record that describes it is damaged.
    #[error("the description of the journal is damaged: {0}")]
    Description(String),
    /// The store itself could not be read.
    #[error("the store could not be read: {0}")]
    Store(String),
    /// Reading the store did not end.
    #[error("reading the store did not end within {0:?}")]
    TimedOut(Duration),
}

impl IntegrityFault {
    /// Where in the journal it is.
    pub fn place(&self) -> String {
        match self {
            Self::BadFrame { place, .. } | Self::Gap { missing: place, .. } => place.clone(),
            Self::AcknowledgedMissing { last, .. } => format!("the end, after batch {last}"),
            Self::Description(_) => "the description".to_owned(),
            Self::Store(_) | Self::TimedOut(_) => "the store".to_owned(),
        }
    }
}

/// Why a journal was not opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process has it open.
    #[error("the journal in {directory} is in use by {holder}; stop that process first")]
    Locked { directory: PathBuf, holder: String },
    /// A network file system does not keep what a barrier promises.
    #[error(
        "{directory} is on {kind}, where an fsync does not promise enough for a journal; choose a local directory, or allow it in the configuration"
    )]
    NetworkFileSystem { directory: PathBuf, kind: &'static str },
    /// Written by a newer version of the program.
    #[error(
        "the journal was written in format {found}, and this program reads up to {supported}: run the newer program"
    )]
    Newer { found: u16, supported: u16 },
    /// Damaged. Everything is still where it was; [`crate::set_aside`] moves it out of the way.
    #[error("the journal in {directory} is damaged")]
    Damaged {
        directory: PathBuf,
        #[source]
        fault: IntegrityFault,
    },
    /// The disk is full.
    #[error("no space left for the journal in {directory}")]
    NoSpace { directory: PathBuf },
    /// A file operation failed.
    #[error("could not {action} {path}")]
    Io {
        action: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

/// Why a journal did not take something in. After anything but [`JournalError::NoSpace`] and [`JournalError::TooLarge`]
/// the journal answers every call with [`JournalError::Failed`]: exit, and recover from what is on disk.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// The disk is full, also without the ballast. Nothing of what was given counts; try again when there is space.
    #[error("no space left for the journal")]
    NoSpace,
    /// Larger than [`crate::BATCH_BYTES_MAX`].
    #[error("a batch of {0} bytes is larger than the journal takes")]
    TooLarge(usize),
    /// The store failed. What the last barrier covered is safe; later batches may be there or not.
    #[error("the journal's store failed: {0}")]
    Store(String),
    /// A file operation failed.
    #[error("could not {action} {path}")]
    Io {
        action: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// An earlier call failed.
    #[error("the journal failed before and must be opened again")]
    Failed,
}
