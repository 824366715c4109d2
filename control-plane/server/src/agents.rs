//! What agents call: enrolment, sessions, URLs for objects, logs on demand. Handlers decide nothing; who calls is what the
//! certificate of the connection says, and what that may do is asked of the core at each call.

mod direct;
mod emitted;
mod enrolment;
mod listener;
mod logs;
mod peer;
mod presence;
mod probes;
mod rate;
mod service;
mod session;
mod status;
mod transfers;
mod trees;

use std::sync::Arc;
use std::time::Duration;

use atoll_model::limits;
use storage_sync_engine::bucket::Bucket;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use listener::{ServeError, serve};
pub use logs::{LogError, LogQuery, LogReader, Logs};

use crate::driver::Handle;
use crate::identity::Authority;
use crate::keys::Keys;
use presence::Presence;
use probes::Probed;
use rate::RateLimit;
use trees::Trees;

/// What an operator may set.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Life of an agent's certificate.
    pub certificate_lifetime: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self { certificate_lifetime: limits::CERTIFICATE_LIFETIME }
    }
}

/// The calls of agents. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Agents(Arc<Parts>);

#[derive(Debug)]
struct Parts {
    handle: Handle,
    authority: Arc<Authority>,
    bucket: Bucket,
    keys: Keys,
    settings: Settings,
    logs: Logs,
    presence: Presence,
    enrolments: RateLimit,
    trees: Trees,
    probed: Probed,
    tasks: TaskTracker,
    /// Ends every session when it is cancelled.
    closing: CancellationToken,
}

impl Agents {
    pub(crate) fn new(
        handle: Handle,
        authority: Arc<Authority>,
        (bucket, keys): (Bucket, Keys),
        settings: Settings,
    ) -> Self {
        Self(Arc::new(Parts {
            handle,
            authority,
            bucket,
            keys,
            settings,
            logs: Logs::default(),
            presence: Presence::default(),
            enrolments: RateLimit::default(),
            trees: Trees::default(),
            probed: Probed::default(),
            tasks: TaskTracker::new(),
            closing: CancellationToken::new(),
        }))
    }

    /// The way to the logs that sites hold.
    pub fn logs(&self) -> Logs {
        self.0.logs.clone()
    }
}
