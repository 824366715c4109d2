//! Workers that a batch system starts for short work, and when.

use std::time::Duration;

use atoll_model::units::parse_duration;
use serde::{Deserialize, Deserializer, de};

use super::sizes::parse_bytes;

/// What the administrator of a cluster allows of pilots.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PilotSettings {
    /// Most of them at a time, running and waiting.
    pub max: u32,
    /// What each asks the cluster for.
    pub cpus: u32,
    #[serde(deserialize_with = "bytes")]
    pub memory: u64,
    /// How long each may run.
    #[serde(deserialize_with = "duration")]
    pub time: Duration,
    /// One that has had nothing to do for so long leaves.
    #[serde(default = "usual_idle", deserialize_with = "duration")]
    pub idle: Duration,
    /// A step whose `time` is no longer is for pilots.
    #[serde(default = "usual_short", deserialize_with = "duration")]
    pub short: Duration,
}

/// How long before its end a pilot takes nothing new, beside what a short execution takes.
const DRAIN_MARGIN: Duration = Duration::from_secs(10);
/// The worker has ended so long before the cluster ends it.
const END_MARGIN: Duration = Duration::from_secs(60);
/// What the worker, and the shims of what it runs, take.
const WORKER_BYTES: u64 = 64 << 20;

const fn usual_idle() -> Duration {
    Duration::from_secs(120)
}

const fn usual_short() -> Duration {
    Duration::from_secs(60)
}

fn bytes<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    parse_bytes(&String::deserialize(deserializer)?).map_err(de::Error::custom)
}

fn duration<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    parse_duration(&String::deserialize(deserializer)?).map_err(de::Error::custom)
}

impl PilotSettings {
    /// What is wrong with it.
    pub(super) fn objection(&self) -> Option<String> {
        if self.max == 0 || self.cpus == 0 {
            return Some("pilots: max and cpus are at least 1".to_owned());
        }
        if self.memory < 2 * WORKER_BYTES {
            return Some("pilots: memory is at least 128MiB, of which the worker itself takes 64MiB".to_owned());
        }
        if self.time < END_MARGIN + 2 * self.drain() {
            let least = (END_MARGIN + 2 * self.drain()).as_secs();
            return Some(format!("pilots: time is at least {least}s: a minute, and twice as long as `short` and 10s"));
        }
        None
    }

    /// What of its memory is for executions.
    pub(crate) fn offered_memory(&self) -> u64 {
        self.memory - WORKER_BYTES
    }

    /// How long its worker may live.
    pub(crate) fn worker_time(&self) -> Duration {
        self.time - END_MARGIN
    }

    /// How long what runs may go on when a pilot's time is over.
    pub(crate) fn drain(&self) -> Duration {
        self.short + DRAIN_MARGIN
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test that fails here has failed")]

    use super::super::tests::load_text;
    use super::super::{Config, ConfigError};
    use super::*;

    fn load(text: &str) -> Result<Config, ConfigError> {
        load_text(&format!("data_dir = '/data'\n{text}"))
    }

    fn error(text: &str) -> String {
        format!("{:#}", anyhow::Error::new(load(text).unwrap_err()))
    }

    const USUAL: &str = "pilots = { max = 4, cpus = 2, memory = '4GiB', time = '1h' }";
    const WORKERS: &str = "[workers]\nlisten = '0.0.0.0:7434'";

    #[test]
    fn what_is_short_comes_to_its_end_before_a_pilot_does() {
        for (executor, section) in [("slurm", "slurm"), ("pbs", "batch")] {
            let config = load(&format!("executor = '{executor}'\n[{section}]\n{USUAL}\n{WORKERS}")).unwrap();
            let pilots = config.pilots().unwrap();
            assert_eq!((pilots.memory, pilots.offered_memory()), (4 << 30, (4 << 30) - (64 << 20)));
            let seconds = Duration::from_secs;
            assert_eq!((pilots.worker_time(), pilots.drain()), (seconds(3_540), seconds(70)));
        }
    }

    #[test]
    fn what_no_pilot_could_keep_is_refused_with_what_to_do() {
        for (wrong, words) in [
            ("max = 0, cpus = 2, memory = '4GiB', time = '1h'", "at least 1"),
            ("max = 1, cpus = 2, memory = '100MiB', time = '1h'", "at least 128MiB"),
            ("max = 1, cpus = 2, memory = '4GiB', time = '3m'", "at least 200s"),
        ] {
            let text = format!("executor = 'slurm'\n[slurm]\npilots = {{ {wrong} }}\n{WORKERS}");
            assert!(error(&text).contains(words), "{wrong}: {}", error(&text));
        }
        let nowhere = error(&format!("executor = 'slurm'\n[slurm]\n{USUAL}"));
        assert!(nowhere.contains("[workers] listen"), "{nowhere}");
        assert!(load(&format!("[slurm]\n{USUAL}")).unwrap().pilots().is_none(), "of no cluster");
    }
}
