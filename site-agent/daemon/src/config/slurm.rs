//! How a site's executions become jobs of its Slurm cluster.

use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;

use super::{ConfigError, PilotSettings};

/// What runs the executions of a site.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ExecutorKind {
    /// Processes of this machine.
    #[default]
    Local,
    /// Jobs of a Slurm cluster.
    Slurm,
    /// Jobs of PBS Professional or OpenPBS, by a template.
    Pbs,
    /// Jobs of IBM Spectrum LSF, by a template.
    Lsf,
    /// Jobs of Flux, by a template.
    Flux,
    /// Jobs of HTCondor, by a template.
    Htcondor,
    /// Jobs of a system that the site's own template describes.
    Template,
    /// Jobs of a Kubernetes cluster.
    Kubernetes,
}

/// What the administrator of a Slurm site says of its jobs.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SlurmSettings {
    /// Where jobs go; where the cluster sends them if nothing.
    pub partition: Option<String>,
    pub account: Option<String>,
    pub qos: Option<String>,
    /// Further options of each job, as they stand after `#SBATCH`.
    pub options: Vec<String>,
    /// The folder of `sbatch`, `squeue` and `scancel`; looked for in `PATH` if nothing.
    pub commands: Option<PathBuf>,
    /// The file that says which cluster it is, `SLURM_CONF`, if not the one of the machine.
    pub conf: Option<PathBuf>,
    /// How often the controller is asked for the agent's jobs.
    pub poll_seconds: u64,
    /// Most jobs of the agent in the cluster's queue, running and waiting.
    pub jobs_max: u32,
    /// Most elements of one array; 1 for a cluster without arrays.
    pub array_max: u32,
    /// How long a job that neither the controller knows nor anything was heard of counts as one that may still come.
    pub forgotten_seconds: u64,
    /// Workers that take short work, each a job.
    pub pilots: Option<PilotSettings>,
}

impl Default for SlurmSettings {
    fn default() -> Self {
        Self {
            partition: None,
            account: None,
            qos: None,
            options: Vec::new(),
            commands: None,
            conf: None,
            poll_seconds: 5,
            jobs_max: 200,
            array_max: 1_000,
            forgotten_seconds: 600,
            pilots: None,
        }
    }
}

impl SlurmSettings {
    /// Nothing where executions are no jobs of Slurm.
    pub(super) fn of(self, kind: ExecutorKind) -> Result<Option<Self>, ConfigError> {
        if kind == ExecutorKind::Slurm { self.checked().map(Some) } else { Ok(None) }
    }

    fn checked(self) -> Result<Self, ConfigError> {
        let wrong = |message: &str| Err(ConfigError::Slurm(message.to_owned()));
        if self.poll_seconds == 0 || self.jobs_max == 0 || self.array_max == 0 {
            return wrong("poll_seconds, jobs_max and array_max are at least 1");
        }
        let is_line = |text: &String| !text.is_empty() && !text.contains('\n');
        let named = [&self.partition, &self.account, &self.qos];
        if !(named.into_iter().flatten().all(is_line) && self.options.iter().all(is_line)) {
            return wrong("partition, account, qos and each of options are one line, and not an empty one");
        }
        if let Some(option) = self.options.iter().find(|option| !option.starts_with('-')) {
            return wrong(&format!("{option:?} is no option of sbatch: it begins with a dash"));
        }
        if let Some(why) = self.pilots.as_ref().and_then(PilotSettings::objection) {
            return wrong(&why);
        }
        let paths = [&self.commands, &self.conf];
        if let Some(path) = paths.into_iter().flatten().find(|path| !path.is_absolute()) {
            return Err(ConfigError::RelativePath(path.clone()));
        }
        Ok(self)
    }

    pub(crate) fn poll(&self) -> Duration {
        Duration::from_secs(self.poll_seconds)
    }

    pub(crate) fn forgotten_after(&self) -> Duration {
        Duration::from_secs(self.forgotten_seconds)
    }

    /// What people are told of where jobs go.
    pub(crate) fn place(&self) -> String {
        self.partition.as_ref().map_or_else(|| "the default partition".to_owned(), |name| format!("partition {name}"))
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test that fails here has failed")]

    use super::super::Config;
    use super::super::tests::load_text;
    use super::*;

    fn load(text: &str) -> Result<Config, ConfigError> {
        load_text(&format!("data_dir = '/data'\n{text}"))
    }

    #[test]
    fn a_site_is_a_slurm_site_only_if_it_says_so() {
        assert_eq!(load("[slurm]\npartition = 'cpu'\n").unwrap().slurm, None);
        let slurm = load("executor = 'slurm'\n").unwrap().slurm.unwrap();
        assert_eq!((slurm.poll_seconds, slurm.jobs_max, slurm.array_max), (5, 200, 1_000));
        let text = "executor = 'slurm'\n[slurm]\npartition = 'cpu'\nqos = 'low'\noptions = ['--constraint=avx2']\n";
        let slurm = load(text).unwrap().slurm.unwrap();
        assert_eq!(slurm.place(), "partition cpu");
        assert_eq!(slurm.options, ["--constraint=avx2"]);
    }

    #[test]
    fn what_would_be_no_line_of_a_job_is_refused() {
        for wrong in ["poll_seconds = 0", "partition = ''", "options = ['a']", "options = ['-a\\n']", "conf = 'x'"] {
            let wrong = wrong.replace("'-a\\n'", "\"-a\\n\"");
            assert!(load(&format!("executor = 'slurm'\n[slurm]\n{wrong}\n")).is_err(), "{wrong}");
        }
        assert!(load("executor = 'slurm'\n[slurm]\nqueue = 'x'\n").is_err());
        assert!(load("executor = 'nqs'\n").is_err());
    }
}
