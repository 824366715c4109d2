//! How further machines of the site join the agent.

use std::net::SocketAddr;
use std::time::Duration;

use serde::Deserialize;

use super::ConfigError;

/// What the administrator says of workers.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WorkerSettings {
    /// Where workers reach the agent: TCP.
    pub listen: SocketAddr,
    /// Where they are told to connect (`host:port`), if not at `listen` itself.
    #[serde(default)]
    pub addresses: Vec<String>,
    /// How long a worker may be unheard before what it ran is interrupted, and tried again elsewhere.
    #[serde(default = "usual_lost_seconds")]
    pub lost_seconds: u64,
}

const LOST_SECONDS_MIN: u64 = 4;

const fn usual_lost_seconds() -> u64 {
    120
}

impl WorkerSettings {
    pub(super) fn checked(self) -> Result<Self, ConfigError> {
        if self.lost_seconds < LOST_SECONDS_MIN {
            return Err(ConfigError::Workers(format!("lost_seconds is at least {LOST_SECONDS_MIN}")));
        }
        if let Some(wrong) = self.addresses.iter().find(|address| !address.contains(':')) {
            return Err(ConfigError::Workers(format!("addresses: {wrong:?} is no host:port")));
        }
        Ok(self)
    }

    pub(crate) fn lost_after(&self) -> Duration {
        Duration::from_secs(self.lost_seconds)
    }

    /// How long what runs on a worker's machine may go on without the agent having been heard: it has ended before somebody
    /// starts it elsewhere.
    pub(crate) fn leash(&self) -> Duration {
        self.lost_after() / 2
    }

    /// After so long without a word a connection counts as broken.
    pub(crate) fn silence_max(&self) -> Duration {
        (self.lost_after() / 8).min(Duration::from_secs(15))
    }

    /// Where workers connect to, if the agent listens at `bound`.
    pub(crate) fn addresses(&self, bound: SocketAddr) -> Vec<String> {
        if !self.addresses.is_empty() {
            return self.addresses.clone();
        }
        let host = nix::unistd::gethostname().map(|name| name.to_string_lossy().into_owned());
        match host {
            Ok(host) if bound.ip().is_unspecified() => vec![format!("{host}:{}", bound.port())],
            Ok(_) | Err(_) => vec![bound.to_string()],
        }
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test that fails here has failed")]

    use super::*;

    fn settings(text: &str) -> Result<WorkerSettings, String> {
        let settings: WorkerSettings = toml::from_str(text).map_err(|error| error.to_string())?;
        settings.checked().map_err(|error| error.to_string())
    }

    #[test]
    fn what_runs_ends_long_before_it_is_started_elsewhere() {
        for text in ["listen = '10.0.0.1:7434'", "listen = '10.0.0.1:7434'\nlost_seconds = 4"] {
            let settings = settings(text).unwrap();
            assert!(settings.leash() + settings.silence_max() < settings.lost_after() * 3 / 4);
        }
    }

    #[test]
    fn workers_connect_to_where_the_agent_listens_unless_it_is_said_otherwise() {
        let bound = "10.0.0.1:7434".parse().unwrap();
        assert_eq!(settings("listen = '10.0.0.1:0'").unwrap().addresses(bound), ["10.0.0.1:7434"]);
        let named = settings("listen = '0.0.0.0:0'\naddresses = ['login:7434']").unwrap();
        assert_eq!(named.addresses(bound), ["login:7434"]);
    }

    #[test]
    fn what_cannot_be_is_refused_with_its_name() {
        for (text, named) in [
            ("lost_seconds = 9", "listen"),
            ("listen = '10.0.0.1:7434'\nlost_seconds = 1", "lost_seconds"),
            ("listen = '10.0.0.1:7434'\naddresses = ['login']", "addresses"),
        ] {
            assert!(settings(text).unwrap_err().contains(named), "{text}");
        }
    }
}
