//! Runs that have ended, for as long as anybody wants to look at them: longer than they stay in the engine's memory.
//!
//! The core asks for each run to be kept, and forgets it only after the history has said that it holds it: so a run is
//! always in one of the two. What is asked about runs is asked of both.

mod encoding;
mod file;
mod keeping;
mod postgres;
mod retention;
#[cfg(test)]
mod tests;

use std::fmt;

use atoll_model::id::RunId;
use atoll_model::time::Timestamp;
use control_plane_core::FinishedRun;
use control_plane_core::view::{RunFilter, RunView};

pub(crate) use file::FileHistory;
pub(crate) use keeping::{Keep, blocking, keep_runs};
pub(crate) use postgres::PostgresHistory;
pub use retention::{Retention, RetentionRule};

/// Where runs are kept. A seam because an installation on PostgreSQL keeps them in tables that people query with SQL, all
/// others in a file. Its methods block; they are called on threads that may.
pub trait History: fmt::Debug + Send + Sync {
    /// Whether runs are to be handed over as soon as they have ended. Each comes once more, with all that happened to it
    /// since, when it leaves the engine's memory.
    fn wants_ended_runs(&self) -> bool {
        false
    }

    /// Keeps runs, durably when this returns; one that is there already is replaced.
    ///
    /// # Errors
    /// When they cannot be kept now. It is tried again.
    fn keep(&self, runs: &[FinishedRun]) -> Result<(), HistoryError>;

    /// The runs that the filter admits, newest first.
    ///
    /// # Errors
    /// When they cannot be read.
    fn runs(&self, filter: &RunFilter) -> Result<Vec<RunView>, HistoryError>;

    /// # Errors
    /// When it cannot be read.
    fn run(&self, run: RunId) -> Result<Option<FinishedRun>, HistoryError>;

    /// Removes what is kept long enough; how many runs that were.
    ///
    /// # Errors
    /// When they cannot be removed now.
    fn expire(&self, retention: &Retention, now: Timestamp) -> Result<u64, HistoryError>;
}

/// Why the history does not do what it was asked for.
#[derive(Debug, thiserror::Error)]
pub enum HistoryError {
    #[error("the history of runs cannot be read or written")]
    Store(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// Written by a newer version of the program.
    #[error(
        "the history holds {what} in format {found}, and this program reads up to {supported}: run the newer program"
    )]
    Newer { what: String, found: u16, supported: u16 },
    #[error("{what} in the history cannot be read")]
    Decode {
        what: String,
        #[source]
        source: postcard::Error,
    },
}
