//! Workflows that are deployed.

use std::sync::Arc;

use atoll_model::id::{ExecutionId, RunId, SiteName};
use atoll_model::time::Timestamp;

use crate::deployments::DeploymentName;

/// A workflow that is deployed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeploymentView {
    pub name: DeploymentName,
    pub state: DeploymentState,
    /// Why it is in this state, where that is not plain.
    pub reason: Option<String>,
    /// How often something was deployed by this name, until it was gone.
    pub generation: u32,
    pub deployed_by: String,
    pub deployed_at: Timestamp,
    /// The text of the file.
    pub text: Arc<str>,
    pub source: Option<SourceView>,
    /// In the order of the file.
    pub services: Vec<ServiceView>,
    /// Records that have started a run.
    pub emitted: u64,
    pub emitted_at: Option<Timestamp>,
    /// How far the source has come, as JSON, as it says.
    pub offset: Option<Arc<str>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeploymentState {
    /// Its source or a service is on its way to run.
    Deploying,
    /// Its source runs and its services are well, as far as it has any.
    Ready,
    /// What stays of it is being ended, and then it is gone.
    Draining,
    /// Its source has ended by itself, or somebody has cancelled what stays of it.
    Ended,
    /// Its source or a service cannot run, or the source fails again and again.
    Failed,
}

impl DeploymentState {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Deploying => "deploying",
            Self::Ready => "ready",
            Self::Draining => "draining",
            Self::Ended => "ended",
            Self::Failed => "failed",
        }
    }
}

/// What emits the records of a deployed workflow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceView {
    pub action: String,
    /// In which it lives: its logs are those of this run.
    pub run: RunId,
    /// Where it is.
    pub site: Option<SiteName>,
    pub is_running: bool,
    pub restarts: u32,
    pub last_error: Option<Arc<str>>,
}

/// A service of a deployed workflow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceView {
    pub name: String,
    pub action: String,
    /// Which it is in the run that it lives in.
    pub execution: ExecutionId,
    /// Where it is.
    pub site: Option<SiteName>,
    /// Whether it has been well since it began at the site.
    pub is_ready: bool,
    /// How often it has begun anew at a site; not how often it was begun again there.
    pub restarts: u32,
    pub last_error: Option<Arc<str>>,
}
