//! What an agent does: it keeps the link to the control plane, runs executions in slots that shims own, stages their
//! inputs and takes in their outputs, and journals what its core (`site-agent-core`) decides. It decides nothing itself.
//!
//! - Nothing is sent or started before the facts that it follows from are durable.
//! - Stopping, killing or upgrading the agent stops nothing that runs.
//! - Two agents never work in one data directory.

mod accounts;
mod agent;
mod calls;
mod clock;
mod config;
mod direct;
mod doctor;
mod driver;
mod emitted;
mod executor;
pub mod link;
mod lock;
mod logs;
mod measure;
mod nodes;
mod programs;
mod scrub;
mod shim;
pub mod simulated;
mod telemetry;
mod withheld;

use std::ffi::OsString;
use std::process::ExitCode;

use atoll_model::id::{AgentId, SiteName};
use tokio_util::sync::CancellationToken;

pub use telemetry::start_log;

pub use calls::{CallFigures, measure_calls};
pub use doctor::{Check, CheckState, Diagnosis};

pub use accounts::{AccountError, AccountTrial, GroupOfAccount, try_account};

pub use config::{
    AccountSection, AccountSettings, BatchSection, BatchSettings, Config, ConfigError, ContainerSettings, EngineChoice,
    ExecutorKind, Exports, Imports, IsolationSettings, JournalBackend, KubernetesSettings, Overrides, PilotSettings,
    PythonSettings, ShimProgram, SlurmSettings, TolerationSettings, WorkerSettings,
};
pub use executor::batch::template::{Template, TemplateError};
pub use nodes::{CredentialError, WorkerOptions, work, worker_token};
pub use scrub::ScrubSettings;
pub use shim::COMPONENT;

/// The folder of keys and certificates in the data directory.
const IDENTITY: &str = "identity";

/// Who this agent is, once its site's join token was redeemed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Joined {
    pub site: SiteName,
    pub agent: AgentId,
}

/// Redeems a join token: makes the agent's keys in the data directory and has its first certificate issued. Harmless to
/// repeat with the same token and data directory when the answer was lost.
///
/// # Errors
/// When the token is not one, used or expired, when the server cannot be reached or is not the one that the token pins,
/// or when the data directory already belongs to another agent.
pub async fn join(config: &Config, token: &str) -> Result<Joined, link::EnrolError> {
    let directory = config.data_dir.join(IDENTITY);
    std::fs::create_dir_all(&config.data_dir)
        .and_then(|()| shim::make_private(&directory))
        .map_err(|source| link::IdentityError::File { path: directory.clone(), source })?;
    let identity = link::enrol(&directory, token).await?;
    Ok(Joined { site: identity.site, agent: identity.agent })
}

/// Whether an agent has joined with this data directory.
pub fn is_joined(data_dir: &std::path::Path) -> bool {
    link::Identity::load(&data_dir.join(IDENTITY)).is_ok()
}

/// Looks at everything that an agent with this configuration needs, before it joins and ever after. With a `token`, at the
/// server that it names, as `join` would. Nothing is joined, kept or left behind.
///
/// # Errors
/// When the token is not one.
pub async fn diagnose(config: &Config, token: Option<&str>) -> Result<Diagnosis, atoll_proto::InvalidJoinToken> {
    doctor::diagnose(config, token).await
}

/// Runs the agent until `shutdown`; what its slots run goes on without it.
///
/// # Errors
/// When the data directory is in use by another agent or was never joined, when the journal can neither be opened nor
/// begun anew, or when something that must be durable could not be made so.
pub async fn run(config: Config, shutdown: CancellationToken) -> anyhow::Result<()> {
    agent::run(config, shutdown).await
}

/// Ends everything that a stopped agent has left running in its slots.
///
/// # Errors
/// When an agent runs in the data directory, or a slot cannot be reached.
pub fn stop_work(config: &Config) -> anyhow::Result<()> {
    if !config.data_dir.exists() {
        return Ok(());
    }
    let _lock = lock::lock(&config.data_dir)?;
    executor::local::stop_work(&config.data_dir, &config.slots_dir())
}

/// The runtime that [`join`] and [`run`] want: small, since an idle agent is to cost next to nothing.
///
/// # Errors
/// When the system gives no threads or no epoll.
pub fn runtime() -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().max_blocking_threads(8).thread_name("atoll-io").build()
}

/// What the hidden command `atoll shim …` does; `arguments` are those after the word `shim`. To be called first thing in
/// `main`, before there is any thread: a shim has only one.
pub fn shim_main(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    shim::main(arguments.into_iter().collect())
}
