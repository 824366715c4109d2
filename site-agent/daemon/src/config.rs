//! The agent's configuration: a TOML file, then the environment, then flags; each wins over the one before it.

mod accounts;
mod batch;
mod container;
mod error;
mod isolation;
mod joined;
mod kubernetes;
mod offered;
mod outside;
mod pilots;
mod python;
mod sizes;
mod slurm;
mod workers;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use atoll_model::id::SiteName;
use atoll_model::limits::EVICTION_IDLE;
use atoll_model::policy::SitePolicy;
use serde::Deserialize;

pub use self::accounts::{AccountSection, AccountSettings};
pub use self::batch::{BatchSection, BatchSettings};
pub use self::container::{ContainerSettings, EngineChoice};
pub use self::error::ConfigError;
pub use self::isolation::IsolationSettings;
pub use self::kubernetes::{KubernetesSettings, TolerationSettings};
pub(crate) use self::offered::found_gpus;
pub use self::outside::{Exports, Imports};
pub use self::pilots::PilotSettings;
pub use self::python::PythonSettings;
use self::sizes::{deserialize_bytes, parse_bytes};
pub use self::slurm::{ExecutorKind, SlurmSettings};
pub use self::workers::WorkerSettings;
use crate::scrub::ScrubSettings;

/// What an agent is told by its administrator.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// Everything the agent keeps: identity, journal, store, slots.
    pub data_dir: PathBuf,
    /// Where executions work (their slots), if not in the data directory: another file system, say.
    pub work_dir: Option<PathBuf>,
    /// Where the control plane is to be reached (`host:port`), if not where it was when the agent joined.
    pub server: Option<String>,
    /// CPUs offered to work, in thousandths; those of the machine if nothing.
    pub cpu_millis: Option<u32>,
    /// Bytes of memory offered to work; nine tenths of the machine's if nothing.
    pub memory_bytes: Option<u64>,
    pub labels: BTreeMap<String, String>,
    /// What the site's administrator lets the control plane have; everything unless given.
    pub policy: SitePolicy,
    /// What a workflow may take into the store. Nothing unless given.
    pub imports: Imports,
    /// Where a workflow may publish. Nowhere unless given.
    pub exports: Exports,
    pub journal: JournalBackend,
    /// Where `/metrics` is served, if anywhere.
    pub metrics_listen: Option<SocketAddr>,
    /// Where agents of other sites may ask for objects, if anywhere: TCP and UDP.
    pub direct_listen: Option<SocketAddr>,
    /// Where they are told to ask, if not at `direct_listen` itself.
    pub direct_addresses: Vec<SocketAddr>,
    /// The sites that objects may go to in this way; all that the control plane names if nothing.
    pub direct_to: Option<Vec<SiteName>>,
    /// Bytes of a second that may leave in this way, all readers together.
    pub direct_rate: Option<u64>,
    /// What the store has not been used for so long may be let go when there is too little room.
    pub evict_idle: Duration,
    /// When and how fast the store is read again, for damage.
    pub scrub: ScrubSettings,
    /// An OTLP endpoint (gRPC) for traces.
    pub otlp: Option<String>,
    /// CA certificates (PEM) that an `https` endpoint is trusted by.
    pub otlp_ca_file: Option<PathBuf>,
    /// Why the site takes no new work, if its administrator has closed it.
    pub closed: Option<String>,
    /// Whether what runs is ended when the agent is asked to end, instead of going on without it.
    pub stop_work_on_exit: bool,
    /// What actions with the runtime `python` run in.
    pub python: PythonSettings,
    /// What actions with the runtime `container` are started by.
    pub container: ContainerSettings,
    /// The program that shims are started from: this one, unless a test says otherwise.
    pub shim_program: Option<ShimProgram>,
    /// How executions become jobs, where they do.
    pub slurm: Option<SlurmSettings>,
    /// The same where they are jobs of another system.
    pub batch: Option<BatchSettings>,
    /// How executions are kept apart.
    pub isolation: IsolationSettings,
    /// The kind of each GPU, by index; those that are found if nothing.
    pub gpus: Option<Vec<String>>,
    /// What else there is a number of, in thousandths.
    pub resources: BTreeMap<String, u32>,
    /// How further machines of the site join, if they may.
    pub workers: Option<WorkerSettings>,
    /// Which local accounts executions run as, if not as the agent's user.
    pub accounts: Option<AccountSettings>,
    /// How executions become Jobs of Kubernetes, where they do.
    pub kubernetes: Option<KubernetesSettings>,
}

/// How a shim is started: `program arguments… DIRECTORY`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShimProgram {
    pub program: PathBuf,
    pub arguments: Vec<String>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum JournalBackend {
    #[default]
    Sled,
    Redb,
}

impl ShimProgram {
    /// This program, by its hidden command.
    ///
    /// # Errors
    /// When the system does not say which program this is.
    pub(crate) fn own() -> std::io::Result<Self> {
        Ok(Self { program: std::env::current_exe()?, arguments: vec!["shim".to_owned()] })
    }
}

impl FromStr for JournalBackend {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "sled" => Ok(Self::Sled),
            "redb" => Ok(Self::Redb),
            other => Err(format!("{other:?} is not a journal: sled or redb")),
        }
    }
}

/// What flags say, or the environment, or the file: nothing where they say nothing.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Overrides {
    pub data_dir: Option<PathBuf>,
    pub work_dir: Option<PathBuf>,
    pub server: Option<String>,
    /// CPUs, in whole ones or parts: `1.5`.
    pub cpus: Option<f64>,
    #[serde(deserialize_with = "deserialize_bytes")]
    pub memory: Option<u64>,
    pub labels: BTreeMap<String, String>,
    /// The file of the site's policy.
    pub policy: Option<PathBuf>,
    pub imports: Option<Vec<PathBuf>>,
    pub import_urls: Option<Vec<String>>,
    /// Folders, and what URLs begin with.
    pub exports: Option<Vec<String>>,
    pub journal: Option<JournalBackend>,
    pub metrics_listen: Option<SocketAddr>,
    pub direct_listen: Option<SocketAddr>,
    pub direct_addresses: Option<Vec<SocketAddr>>,
    pub direct_to: Option<Vec<SiteName>>,
    #[serde(deserialize_with = "deserialize_bytes")]
    pub direct_rate: Option<u64>,
    pub evict_idle_seconds: Option<u64>,
    pub scrub_days: Option<u32>,
    #[serde(deserialize_with = "deserialize_bytes")]
    pub scrub_rate: Option<u64>,
    /// `22-6`: from that hour to this one of the day, UTC.
    pub scrub_hours: Option<String>,
    pub otlp: Option<String>,
    pub otlp_ca_file: Option<PathBuf>,
    pub closed: Option<String>,
    pub stop_work_on_exit: Option<bool>,
    pub python: Option<PythonSettings>,
    pub container: Option<ContainerSettings>,
    #[serde(skip)]
    pub shim_program: Option<ShimProgram>,
    pub executor: Option<ExecutorKind>,
    pub slurm: Option<SlurmSettings>,
    pub batch: Option<BatchSection>,
    pub isolation: Option<IsolationSettings>,
    pub gpus: Option<Vec<String>>,
    /// Amounts by name, whole ones or parts.
    pub resources: Option<BTreeMap<String, f64>>,
    pub workers: Option<WorkerSettings>,
    pub accounts: Option<AccountSection>,
    pub kubernetes: Option<KubernetesSettings>,
}

impl Config {
    /// The folder of the slots in which executions work.
    pub fn slots_dir(&self) -> PathBuf {
        self.work_dir.as_ref().unwrap_or(&self.data_dir).join("slots")
    }

    /// The folder that jobs of a batch system share with the agent.
    pub fn jobs_dir(&self) -> PathBuf {
        self.work_dir.as_ref().unwrap_or(&self.data_dir).join("jobs")
    }

    /// Most jobs in the queue of the batch system, if executions are jobs of one.
    pub fn jobs_max(&self) -> Option<u32> {
        let of_slurm = self.slurm.as_ref().map(|slurm| slurm.jobs_max);
        let of_kubernetes = self.kubernetes.as_ref().map(|kubernetes| kubernetes.jobs_max);
        of_slurm.or(self.batch.as_ref().map(|batch| batch.jobs_max)).or(of_kubernetes)
    }

    /// Workers that are jobs of the batch system, if the administrator allows any.
    pub fn pilots(&self) -> Option<&PilotSettings> {
        let of_slurm = self.slurm.as_ref().and_then(|slurm| slurm.pilots.as_ref());
        of_slurm.or(self.batch.as_ref().and_then(|batch| batch.pilots.as_ref()))
    }

    /// Bytes of a second that may go straight to other sites, the stricter of both who have a say in it.
    pub fn link_rate(&self) -> Option<u64> {
        let of_policy = self.policy.link.map(|(rate, _)| rate);
        [self.direct_rate, of_policy].into_iter().flatten().min()
    }

    /// Reads the file (if one is named), then the `ATOLL_AGENT_*` variables that `variable` answers, then `flags`.
    ///
    /// # Errors
    /// When the file cannot be read, or anything in it or the environment is not what it must be.
    pub fn load(
        file: Option<&Path>,
        variable: &dyn Fn(&str) -> Option<String>,
        flags: Overrides,
    ) -> Result<Self, ConfigError> {
        let from_file = file.map(Overrides::read).transpose()?.unwrap_or_default();
        let from_environment = Overrides::from_environment(variable)?;
        let said = from_file.with(from_environment).with(flags);
        let scrub = said.scrub()?;
        let data_dir = match said.data_dir {
            Some(directory) => std::path::absolute(&directory).map_err(|_| ConfigError::RelativePath(directory))?,
            None => default_data_dir(variable)?,
        };
        let work_dir = said.work_dir.map(|folder| work_dir(&folder, &data_dir)).transpose()?;
        let cpu_millis = match said.cpus {
            Some(cpus) if (0.01..=4_000_000.0).contains(&cpus) => Some((cpus * 1_000.0).round() as u32),
            Some(cpus) => return Err(ConfigError::Cpus(cpus)),
            None => None,
        };
        let kubernetes = said.kubernetes.unwrap_or_default();
        let executor = said.executor.unwrap_or_default();
        let policy = said.policy.as_deref().map(read_policy).transpose()?.unwrap_or_default();
        let has_jobs = executor != ExecutorKind::Local;
        let accounts = said.accounts.map(|section| section.checked(has_jobs)).transpose()?;
        let config = Self {
            kubernetes: kubernetes.of(executor, &data_dir, work_dir.as_deref())?,
            data_dir,
            work_dir,
            cpu_millis,
            memory_bytes: said.memory,
            labels: said.labels,
            policy: SitePolicy { accounts: accounts.as_ref().map(|accounts| accounts.rules.clone()), ..policy },
            imports: Imports::read(said.imports.unwrap_or_default(), said.import_urls.unwrap_or_default())?,
            exports: Exports::read(said.exports.unwrap_or_default())?,
            journal: said.journal.unwrap_or_default(),
            metrics_listen: said.metrics_listen,
            direct_listen: said.direct_listen,
            direct_addresses: said.direct_addresses.unwrap_or_default(),
            direct_to: said.direct_to,
            direct_rate: said.direct_rate,
            evict_idle: said.evict_idle_seconds.map_or(EVICTION_IDLE, Duration::from_secs),
            scrub,
            otlp: said.otlp,
            otlp_ca_file: said.otlp_ca_file,
            closed: said.closed,
            server: said.server,
            stop_work_on_exit: said.stop_work_on_exit.unwrap_or(false),
            python: said.python.unwrap_or_default().checked()?,
            container: said.container.unwrap_or_default().checked()?,
            shim_program: said.shim_program,
            slurm: said.slurm.unwrap_or_default().of(executor)?,
            batch: said.batch.unwrap_or_default().of(executor)?,
            isolation: said.isolation.unwrap_or_default().checked()?,
            gpus: said.gpus,
            resources: offered::amounts(said.resources.unwrap_or_default())?,
            workers: said.workers.map(WorkerSettings::checked).transpose()?,
            accounts,
        };
        match (config.pilots(), &config.workers) {
            (Some(_), None) => Err(ConfigError::Pilots),
            (Some(_) | None, _) => Ok(config),
        }
    }

    /// The configuration of an agent of which nothing is known but where it keeps everything.
    pub fn for_data_dir(data_dir: PathBuf) -> Self {
        Self {
            data_dir,
            work_dir: None,
            cpu_millis: None,
            memory_bytes: None,
            labels: BTreeMap::new(),
            policy: SitePolicy::default(),
            imports: Imports::default(),
            exports: Exports::default(),
            journal: JournalBackend::default(),
            metrics_listen: None,
            direct_listen: None,
            direct_addresses: Vec::new(),
            direct_to: None,
            direct_rate: None,
            evict_idle: EVICTION_IDLE,
            scrub: ScrubSettings::default(),
            otlp: None,
            otlp_ca_file: None,
            closed: None,
            server: None,
            stop_work_on_exit: false,
            python: PythonSettings::default(),
            container: ContainerSettings::default(),
            shim_program: None,
            slurm: None,
            batch: None,
            isolation: IsolationSettings::default(),
            gpus: None,
            resources: BTreeMap::new(),
            workers: None,
            accounts: None,
            kubernetes: None,
        }
    }
}

impl Overrides {
    fn scrub(&self) -> Result<ScrubSettings, ConfigError> {
        let usual = ScrubSettings::default();
        let hours = self.scrub_hours.as_deref().map(ScrubSettings::parse_hours).transpose();
        Ok(ScrubSettings {
            days: self.scrub_days.unwrap_or(usual.days),
            rate: self.scrub_rate.unwrap_or(usual.rate),
            hours: hours.map_err(ConfigError::Hours)?,
        })
    }

    fn read(path: &Path) -> Result<Self, ConfigError> {
        let text =
            std::fs::read_to_string(path).map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        toml::from_str(&text).map_err(|source| ConfigError::Parse { path: path.to_owned(), source })
    }

    fn from_environment(variable: &dyn Fn(&str) -> Option<String>) -> Result<Self, ConfigError> {
        fn parsed<T>(
            variable: &dyn Fn(&str) -> Option<String>,
            name: &str,
            parse: impl FnOnce(&str) -> Result<T, String>,
        ) -> Result<Option<T>, ConfigError> {
            let variable_name = format!("ATOLL_AGENT_{name}");
            let Some(value) = variable(&variable_name) else { return Ok(None) };
            match parse(&value) {
                Ok(parsed) => Ok(Some(parsed)),
                Err(message) => Err(ConfigError::Variable { variable: variable_name, value, message }),
            }
        }
        Ok(Self {
            data_dir: parsed(variable, "DATA_DIR", |text| Ok(PathBuf::from(text)))?,
            work_dir: parsed(variable, "WORK_DIR", |text| Ok(PathBuf::from(text)))?,
            cpus: parsed(variable, "CPUS", |text| text.parse().map_err(|_| "not a number".to_owned()))?,
            memory: parsed(variable, "MEMORY", parse_bytes)?,
            labels: parsed(variable, "LABELS", parse_labels)?.unwrap_or_default(),
            policy: parsed(variable, "POLICY", |text| Ok(PathBuf::from(text)))?,
            imports: parsed(variable, "IMPORTS", |text| Ok(std::env::split_paths(text).collect()))?,
            import_urls: parsed(variable, "IMPORT_URLS", parse_list)?,
            exports: parsed(variable, "EXPORTS", parse_list)?,
            journal: parsed(variable, "JOURNAL", str::parse)?,
            metrics_listen: parsed(variable, "METRICS_LISTEN", |text| {
                text.parse().map_err(|_| "not an address such as 127.0.0.1:9101".to_owned())
            })?,
            direct_listen: parsed(variable, "DIRECT_LISTEN", |text| {
                text.parse().map_err(|_| "not an address such as 0.0.0.0:7433".to_owned())
            })?,
            direct_addresses: parsed(variable, "DIRECT_ADDRESSES", parse_list)?,
            direct_to: parsed(variable, "DIRECT_TO", parse_list)?,
            direct_rate: parsed(variable, "DIRECT_RATE", parse_bytes)?,
            evict_idle_seconds: parsed(variable, "EVICT_IDLE_SECONDS", |text| {
                text.parse().map_err(|_| "not a number".to_owned())
            })?,
            scrub_days: parsed(variable, "SCRUB_DAYS", |text| text.parse().map_err(|_| "not a number".to_owned()))?,
            scrub_rate: parsed(variable, "SCRUB_RATE", parse_bytes)?,
            scrub_hours: parsed(variable, "SCRUB_HOURS", |text| Ok(text.to_owned()))?,
            otlp: parsed(variable, "OTLP", |text| Ok(text.to_owned()))?,
            otlp_ca_file: parsed(variable, "OTLP_CA_FILE", |text| Ok(PathBuf::from(text)))?,
            closed: parsed(variable, "CLOSED", |text| Ok(text.to_owned()))?,
            server: parsed(variable, "SERVER", |text| Ok(text.to_owned()))?,
            stop_work_on_exit: parsed(variable, "STOP_WORK_ON_EXIT", |text| {
                text.parse().map_err(|_| "neither true nor false".to_owned())
            })?,
            python: parsed(variable, "PYTHON", |text| Ok(PythonSettings::of_program(text.into())))?,
            container: None,
            shim_program: None,
            executor: None,
            slurm: None,
            batch: None,
            isolation: None,
            gpus: None,
            resources: None,
            workers: None,
            accounts: None,
            kubernetes: None,
        })
    }
}

fn work_dir(folder: &Path, data_dir: &Path) -> Result<PathBuf, ConfigError> {
    let work = std::path::absolute(folder).map_err(|_| ConfigError::RelativePath(folder.to_owned()))?;
    if data_dir.starts_with(&work) {
        // What is above the data directory cannot be shown read-only around it.
        return Err(ConfigError::WorkDir { work, data: data_dir.to_owned() });
    }
    Ok(work)
}

fn read_policy(path: &Path) -> Result<SitePolicy, ConfigError> {
    let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
    SitePolicy::parse(&path.display().to_string(), &text).map_err(ConfigError::Policy)
}

fn default_data_dir(variable: &dyn Fn(&str) -> Option<String>) -> Result<PathBuf, ConfigError> {
    if rustix::process::geteuid().is_root() {
        return Ok(PathBuf::from("/var/lib/atoll"));
    }
    let state = match variable("XDG_STATE_HOME").filter(|path| path.starts_with('/')) {
        Some(state) => PathBuf::from(state),
        None => PathBuf::from(variable("HOME").ok_or(ConfigError::NoHome)?).join(".local/state"),
    };
    Ok(state.join("atoll"))
}

/// Reads a list with commas.
fn parse_list<T: FromStr>(text: &str) -> Result<Vec<T>, String> {
    let parse = |part: &str| part.trim().parse().map_err(|_| format!("{part:?} is not what stands here"));
    text.split(',').filter(|part| !part.trim().is_empty()).map(parse).collect()
}

fn parse_labels(text: &str) -> Result<BTreeMap<String, String>, String> {
    text.split(',')
        .filter(|pair| !pair.is_empty())
        .map(|pair| match pair.split_once('=') {
            Some((label, value)) if !label.is_empty() => Ok((label.to_owned(), value.to_owned())),
            Some(_) | None => Err(format!("{pair:?} is not a label: NAME=VALUE")),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test that fails here has failed")]

    use super::*;

    fn nothing(_: &str) -> Option<String> {
        None
    }

    /// What a file with this text says.
    pub(super) fn load_text(text: &str) -> Result<Config, ConfigError> {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("agent.toml");
        std::fs::write(&file, text).unwrap();
        Config::load(Some(&file), &nothing, Overrides::default())
    }

    #[test]
    fn flags_win_over_the_environment_which_wins_over_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("agent.toml");
        std::fs::write(
            &file,
            "data_dir = '/a'\ncpus = 1.5\nmemory = '2GiB'\njournal = 'redb'\nlabels = { tier = 'edge' }\n",
        )
        .unwrap();
        let environment = |name: &str| match name {
            "ATOLL_AGENT_DATA_DIR" => Some("/b".to_owned()),
            "ATOLL_AGENT_MEMORY" => Some("64MiB".to_owned()),
            "ATOLL_AGENT_LABELS" => Some("region=eu".to_owned()),
            _ => None,
        };
        let flags = Overrides { data_dir: Some("/c".into()), ..Overrides::default() };
        let config = Config::load(Some(&file), &environment, flags).unwrap();
        assert_eq!(config.data_dir, Path::new("/c"));
        assert_eq!(config.cpu_millis, Some(1_500));
        assert_eq!(config.memory_bytes, Some(64 << 20));
        assert_eq!(config.journal, JournalBackend::Redb);
        assert_eq!(config.labels.len(), 2);
    }

    #[test]
    fn a_work_directory_is_elsewhere_and_never_above_the_data_directory() {
        let load = |work: &str| {
            let flags =
                Overrides { data_dir: Some("/a/data".into()), work_dir: Some(work.into()), ..Overrides::default() };
            Config::load(None, &nothing, flags)
        };
        assert_eq!(load("/scratch/atoll").unwrap().slots_dir(), Path::new("/scratch/atoll/slots"));
        assert_eq!(Config::for_data_dir("/a/data".into()).slots_dir(), Path::new("/a/data/slots"));
        for above in ["/a/data", "/a", "/"] {
            assert!(matches!(load(above), Err(ConfigError::WorkDir { .. })), "{above}");
        }
    }

    #[test]
    fn an_unknown_field_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("agent.toml");
        std::fs::write(&file, "cpu = 1").unwrap();
        let error = Config::load(Some(&file), &nothing, Overrides::default()).unwrap_err();
        assert!(std::error::Error::source(&error).unwrap().to_string().contains("unknown field"), "{error:?}");
    }

    #[test]
    fn a_folder_to_import_from_must_be_absolute() {
        let flags =
            Overrides { data_dir: Some("/c".into()), imports: Some(vec!["data".into()]), ..Overrides::default() };
        assert!(matches!(Config::load(None, &nothing, flags), Err(ConfigError::RelativePath(_))));
    }

    #[test]
    fn exports_are_folders_and_buckets() {
        let load = |exports: &str| {
            let environment = |name: &str| (name == "ATOLL_AGENT_EXPORTS").then(|| exports.to_owned());
            let flags = Overrides { data_dir: Some("/c".into()), ..Overrides::default() };
            Config::load(None, &environment, flags).map(|config| config.exports)
        };
        let urls = ["s3://survey", "gs://", "az://maps"].map(str::to_owned).to_vec();
        let expected = Exports { roots: vec!["/data/maps".into()], urls };
        assert_eq!(load("/data/maps, s3://survey, gs://, az://maps").unwrap(), expected);
        for wrong in ["data/maps", "https://example.org"] {
            assert!(matches!(load(wrong), Err(ConfigError::Export(_))), "{wrong}");
        }
    }

    #[test]
    fn a_policy_that_is_wrong_is_refused_with_file_and_line() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("policy.yaml");
        std::fs::write(&file, "leave:\n  - deny: {}\n").unwrap();
        let flags = Overrides { data_dir: Some("/c".into()), policy: Some(file), ..Overrides::default() };
        let error = Config::load(None, &nothing, flags).unwrap_err().to_string();
        assert!(error.contains("policy.yaml:2:5: a rule has no field `deny`"), "{error}");
    }
}
