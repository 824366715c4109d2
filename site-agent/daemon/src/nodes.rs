//! Further machines of a site: each has a worker, `atoll worker`, that connects to the agent and hosts slots there. The
//! executor has a socket for each of their shims as for those of its own machine; what stands in between only carries what both
//! say. Slots and store are in a file system that all machines share. See `docs/workers.md`.

mod credentials;
mod frame;
mod hub;
mod roster;
mod serve;
mod shims;
mod worker;

use std::path::Path;

pub use self::credentials::CredentialError;
pub(crate) use self::hub::{HubError, Known, Nodes, NodesOptions, Reached, Tidings};
pub use self::worker::{WorkerOptions, work};

/// The token with which workers join the agent of this data directory.
///
/// # Errors
/// When no agent has listened for workers there.
pub fn worker_token(data_dir: &Path) -> Result<String, CredentialError> {
    credentials::Token::in_data_dir(data_dir)
}
