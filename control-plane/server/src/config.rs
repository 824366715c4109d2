//! Everything that an operator sets, from a TOML file, then the environment, then flags. Secrets are given as paths.

mod git;
mod layers;
mod placement;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use control_plane_postgres::Address;
use serde::Deserialize;

pub use crate::admission::Limits;
pub use crate::history::{Retention, RetentionRule};
pub use git::{Git, GitCredentials};
pub use layers::{Flags, LoadError};
pub use placement::{Placement, PlacementAim};

/// Where people reach the API unless told otherwise: this machine only. Opening it to others is a decision, and needs a
/// name that they reach it by.
pub const LISTEN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 7380);
/// Where agents connect unless told otherwise: this machine only, for the same reason. Only mutual TLS is spoken there, but
/// a port that the whole network can reach should be opened on purpose.
pub const AGENT_LISTEN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 7381);

/// A certificate that was stolen is of use for at most so long.
const CERTIFICATE_SECONDS: std::ops::RangeInclusive<u64> = 1..=7 * 24 * 3_600;

/// The configuration of a control plane.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Holds the CA, the tokens' hashes, the journal, and the bucket unless that is elsewhere.
    pub data_dir: PathBuf,
    /// Of the HTTP API. Port 0 takes a free one.
    pub listen: SocketAddr,
    /// Of the listener for agents, which also serves a bucket that is a directory.
    pub agent_listen: SocketAddr,
    /// The URL by which people reach the API, if it is not the address that it listens on.
    pub public_url: Option<String>,
    /// `host:port` by which agents reach this machine, if it is not the address that is listened on. Join tokens carry it;
    /// with commas the other servers of the installation may follow.
    pub agent_address: Option<String>,
    /// Further names and addresses for the server's certificates.
    pub names: Vec<String>,
    /// Serve the API without TLS; on loopback only.
    pub plain_http: bool,
    pub store: Store,
    /// `s3://bucket/prefix`, `gs://bucket/prefix`, `az://container/prefix`, `file:///path`, or a directory; `bucket` in the data directory if it is not given.
    pub bucket: Option<String>,
    pub s3: S3,
    pub gcs: Gcs,
    pub azure: Azure,
    /// 32 bytes that wrap the keys of projects; `master.key` in the data directory, made at the first start, if it is not
    /// given. Without it, what is encrypted in the bucket cannot be read.
    pub master_key_file: Option<PathBuf>,
    /// The master key before this one: what it has wrapped is wrapped anew.
    pub retired_master_key_file: Option<PathBuf>,
    /// A certificate of one's own for the API, with its whole chain: API tokens pin the last one. Agents are always met
    /// with a certificate of Atoll's own CA.
    pub tls: Option<TlsFiles>,
    /// Written when everything accepts connections.
    pub ready_file: Option<PathBuf>,
    pub leases: Leases,
    /// Life of an agent's certificate. Short is safe: agents renew at half of it by themselves.
    pub certificate_seconds: u64,
    pub telemetry: Telemetry,
    /// How long runs are kept after they have left the memory.
    pub history: Retention,
    /// How much may be brought in before somebody is asked to come again.
    pub limits: Limits,
    pub placement: Placement,
    /// Repositories that actions are imported from.
    pub git: Git,
}

/// Which database holds the journal: `sled` or `redb`, embedded, for one server, or `postgres://…` for several.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Store {
    #[default]
    Sled,
    Redb,
    Postgres(Address),
}

impl FromStr for Store {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "sled" => Ok(Self::Sled),
            "redb" => Ok(Self::Redb),
            text if text.contains("://") => text
                .parse()
                .map(Self::Postgres)
                .map_err(|error| format!("{text:?} is no address of a database: {error}")),
            other => Err(format!("unknown store {other:?}: it is sled, redb or postgres://USER@HOST/DATABASE")),
        }
    }
}

impl<'de> Deserialize<'de> for Store {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// Access to an S3-compatible bucket.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct S3 {
    /// Of anything that is not AWS.
    pub endpoint: Option<String>,
    pub region: Option<String>,
    /// A file as the AWS tools write it; without it the usual `AWS_*` environment variables count.
    pub credentials_file: Option<PathBuf>,
}

/// Access to a bucket in Google Cloud Storage.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Gcs {
    /// Of an emulator.
    pub endpoint: Option<String>,
    /// The key file of a service account (JSON); without it `GOOGLE_APPLICATION_CREDENTIALS` counts, then the machine's own
    /// service account.
    pub credentials_file: Option<PathBuf>,
}

/// Access to a container in Azure Blob Storage.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Azure {
    /// Name of the storage account, if neither the credentials nor the environment say it.
    pub account: Option<String>,
    /// Of anything that is not `https://ACCOUNT.blob.core.windows.net`.
    pub endpoint: Option<String>,
    /// Lines of `key = value`: `connection_string`, or `account` and `key`, or `account`, `tenant_id`, `client_id` and
    /// `client_secret`; without it the usual `AZURE_*` environment variables count, then the machine's own identity.
    pub credentials_file: Option<PathBuf>,
}

/// A certificate chain and its key, both PEM.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TlsFiles {
    pub certificate: PathBuf,
    pub key: PathBuf,
}

/// How long agents are trusted unheard. Shortened by tests, lengthened where links are bad.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Leases {
    pub session_ms: u64,
    pub work_ms: u64,
    pub heartbeat_ms: u64,
    pub restart_grace_ms: u64,
    pub lost_after_ms: u64,
    pub dispatch_ahead: u32,
    pub dispatch_ahead_ms: u64,
    pub keep_finished_seconds: u64,
    /// Memory that finished runs may take before the oldest are in the history alone.
    pub keep_finished_bytes: u64,
}

impl Default for Leases {
    fn default() -> Self {
        let core = control_plane_core::Config::default();
        Self {
            session_ms: millis(core.session_lease),
            work_ms: millis(core.work_lease),
            heartbeat_ms: millis(core.heartbeat),
            restart_grace_ms: millis(core.restart_grace),
            lost_after_ms: millis(core.lost_after),
            dispatch_ahead: core.dispatch_ahead,
            dispatch_ahead_ms: millis(core.dispatch_ahead_time),
            keep_finished_seconds: core.keep_finished.as_secs(),
            keep_finished_bytes: core.keep_finished_bytes,
        }
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// Where what happens is told.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Telemetry {
    /// Filter of the log, as `RUST_LOG` writes it.
    pub log: String,
    pub format: LogFormat,
    /// Traces go to this OTLP endpoint over gRPC.
    pub otlp_endpoint: Option<String>,
    /// CA certificates (PEM) that an `https` endpoint is trusted by.
    pub otlp_ca_file: Option<PathBuf>,
}

impl Default for Telemetry {
    fn default() -> Self {
        Self { log: "info".to_owned(), format: LogFormat::Auto, otlp_endpoint: None, otlp_ca_file: None }
    }
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// Text on a terminal, JSON elsewhere.
    #[default]
    Auto,
    Text,
    Json,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            data_dir: PathBuf::from("atoll-server"),
            listen: LISTEN,
            agent_listen: AGENT_LISTEN,
            public_url: None,
            agent_address: None,
            names: Vec::new(),
            plain_http: false,
            store: Store::default(),
            bucket: None,
            s3: S3::default(),
            gcs: Gcs::default(),
            azure: Azure::default(),
            master_key_file: None,
            retired_master_key_file: None,
            tls: None,
            ready_file: None,
            leases: Leases::default(),
            certificate_seconds: atoll_model::limits::CERTIFICATE_LIFETIME.as_secs(),
            telemetry: Telemetry::default(),
            history: Retention::default(),
            limits: Limits::default(),
            placement: Placement::default(),
            git: Git::default(),
        }
    }
}

/// A configuration that cannot work.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {problem}")]
pub struct ConfigError {
    pub field: &'static str,
    pub problem: String,
}

impl Config {
    /// Says what can be seen to be wrong before anything starts.
    ///
    /// # Errors
    /// The first thing that cannot work.
    pub fn check(&self) -> Result<(), ConfigError> {
        let refuse = |field, problem: &str| Err(ConfigError { field, problem: problem.to_owned() });
        if self.data_dir.as_os_str().is_empty() {
            return refuse("data_dir", "must name a directory");
        }
        if self.plain_http && !self.listen.ip().is_loopback() {
            return refuse(
                "plain_http",
                "only a loopback address may be served without TLS: change listen, or drop it",
            );
        }
        if let Some(state) = self.history.unknown_state() {
            let problem = format!("{state:?} is no state in which a run ends: succeeded, failed or cancelled");
            return Err(ConfigError { field: "history.rules.state", problem });
        }
        if self.plain_http && self.tls.is_some() {
            return refuse("plain_http", "contradicts tls: drop one of them");
        }
        if let Some(url) = &self.public_url {
            let scheme = if self.plain_http { "http://" } else { "https://" };
            if !url.starts_with(scheme) || url.len() == scheme.len() {
                return Err(ConfigError {
                    field: "public_url",
                    problem: format!("{url:?} does not begin with {scheme}"),
                });
            }
        }
        for address in self.agent_address.iter().flat_map(|list| list.split(',')) {
            let port = address.rsplit_once(':').map(|(host, port)| (host.is_empty(), port.parse::<u16>()));
            if !matches!(port, Some((false, Ok(_)))) {
                return Err(ConfigError { field: "agent_address", problem: format!("{address:?} is not host:port") });
            }
        }
        if let Some(files) = &self.tls {
            for file in [&files.certificate, &files.key] {
                if !file.is_file() {
                    return Err(ConfigError { field: "tls", problem: format!("{} is not a file", file.display()) });
                }
            }
        }
        if let Some(bucket) = &self.bucket
            && let Some((scheme, rest)) = bucket.split_once("://")
            && (!matches!(scheme, "s3" | "gs" | "az" | "file") || rest.is_empty())
        {
            let problem = format!(
                "{bucket:?} is none of s3://bucket/prefix, gs://bucket/prefix, az://container/prefix, file:///path and a \
                 directory"
            );
            return Err(ConfigError { field: "bucket", problem });
        }
        if let Some(endpoint) = &self.telemetry.otlp_endpoint {
            let secure = endpoint.starts_with("https://");
            if !secure && !endpoint.starts_with("http://") {
                return Err(ConfigError { field: "telemetry", problem: format!("{endpoint:?} is no http(s) URL") });
            }
            if secure && self.telemetry.otlp_ca_file.is_none() {
                return refuse("telemetry", "an https otlp_endpoint needs otlp_ca_file: no public CA is trusted");
            }
        }
        if !CERTIFICATE_SECONDS.contains(&self.certificate_seconds) {
            let problem = format!("must be from {} to {}", CERTIFICATE_SECONDS.start(), CERTIFICATE_SECONDS.end());
            return Err(ConfigError { field: "certificate_seconds", problem });
        }
        self.check_leases()
    }

    fn check_leases(&self) -> Result<(), ConfigError> {
        let leases = &self.leases;
        let refuse = |problem: &str| Err(ConfigError { field: "leases", problem: problem.to_owned() });
        if leases.heartbeat_ms == 0 || leases.session_ms < 2 * leases.heartbeat_ms {
            return refuse("session_ms must be at least twice heartbeat_ms, and that at least 1");
        }
        if leases.work_ms < leases.session_ms {
            return refuse("work_ms must be at least session_ms");
        }
        if leases.lost_after_ms < leases.work_ms {
            return refuse("lost_after_ms must be at least work_ms: work is given away only when its lease is over");
        }
        if self.limits.live_runs == 0 || self.limits.submissions_at_once == 0 {
            return Err(ConfigError { field: "limits", problem: "no limit may be 0".to_owned() });
        }
        if !self.placement.is_possible() {
            let problem = "share_max_percent must be from 1 to 100".to_owned();
            return Err(ConfigError { field: "placement", problem });
        }
        self.git.check().map_err(|problem| ConfigError { field: "git", problem })?;
        if leases.dispatch_ahead == 0 {
            return refuse("dispatch_ahead must be at least 1");
        }
        Ok(())
    }

    /// What the core is told of itself.
    pub(crate) fn core(&self, now: atoll_model::time::Timestamp) -> control_plane_core::Config {
        let leases = &self.leases;
        control_plane_core::Config {
            session_lease: Duration::from_millis(leases.session_ms),
            work_lease: Duration::from_millis(leases.work_ms),
            heartbeat: Duration::from_millis(leases.heartbeat_ms),
            restart_grace: Duration::from_millis(leases.restart_grace_ms),
            lost_after: Duration::from_millis(leases.lost_after_ms),
            dispatch_ahead: leases.dispatch_ahead,
            dispatch_ahead_time: Duration::from_millis(leases.dispatch_ahead_ms),
            live_runs_max: self.limits.live_runs,
            keep_finished: Duration::from_secs(leases.keep_finished_seconds),
            goal: self.placement.goal(),
            keep_finished_bytes: leases.keep_finished_bytes,
            started_at: now,
        }
    }

    /// How repositories are reached: unless it is said otherwise, folders of this machine count where nobody else reaches the
    /// API.
    pub(crate) fn git(&self) -> Git {
        let alone = self.listen.ip().is_loopback() && self.public_url.is_none();
        Git { local: Some(self.git.local.unwrap_or(alone)), ..self.git.clone() }
    }

    /// Where the bucket is: as configured, or in the data directory.
    pub(crate) fn bucket_location(&self) -> String {
        self.bucket.clone().unwrap_or_else(|| self.data_dir.join("bucket").display().to_string())
    }
}

#[cfg(test)]
mod tests {
    use atoll_model::limits;

    use super::*;

    #[test]
    fn the_defaults_listen_on_loopback_only_and_pass_the_check() {
        let config = Config::default();
        assert!(config.listen.ip().is_loopback() && config.agent_listen.ip().is_loopback());
        assert_eq!(config.check(), Ok(()));
        assert_eq!(config.leases.session_ms, millis(limits::SESSION_LEASE));
    }

    #[test]
    fn what_cannot_work_is_named_with_its_field() {
        let refused = |change: fn(&mut Config)| {
            let mut config = Config::default();
            change(&mut config);
            config.check().expect_err("it cannot work").field
        };
        assert_eq!(refused(|config| config.data_dir = PathBuf::new()), "data_dir");
        assert_eq!(
            refused(|config| {
                config.plain_http = true;
                config.listen = SocketAddr::from(([0, 0, 0, 0], 80));
            }),
            "plain_http"
        );
        assert_eq!(refused(|config| config.public_url = Some("http://here".to_owned())), "public_url");
        assert_eq!(refused(|config| config.agent_address = Some("nowhere".to_owned())), "agent_address");
        assert_eq!(refused(|config| config.bucket = Some("gopher://hole".to_owned())), "bucket");
        assert_eq!(refused(|config| config.bucket = Some("az://".to_owned())), "bucket");
        assert_eq!(refused(|config| config.leases.heartbeat_ms = 0), "leases");
        assert_eq!(refused(|config| config.leases.lost_after_ms = 1), "leases");
        assert_eq!(refused(|config| config.limits.live_runs = 0), "limits");
        assert_eq!(refused(|config| config.placement.share_max_percent = 0), "placement");
        assert_eq!(
            refused(|config| {
                config.tls = Some(TlsFiles { certificate: "/nonexistent".into(), key: "/nonexistent".into() });
            }),
            "tls"
        );
    }
}
