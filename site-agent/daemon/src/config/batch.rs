//! How a site's executions become jobs of a batch system that a template describes.

use std::path::PathBuf;
use std::sync::Arc;

use serde::Deserialize;

use super::{ConfigError, ExecutorKind, PilotSettings};
use crate::executor::batch::template::Template;

/// What the file says of jobs under `[batch]`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct BatchSection {
    /// The file of a template, if not the one that comes with the agent.
    pub template: Option<PathBuf>,
    /// Where jobs go; where the system sends them if nothing.
    pub queue: Option<String>,
    pub account: Option<String>,
    /// Further options of each job, as they stand where the template has `{option}`.
    pub options: Vec<String>,
    /// The folder of the system's programs; looked for in `PATH` if nothing.
    pub commands: Option<PathBuf>,
    /// How often the system is asked for the agent's jobs.
    pub poll_seconds: u64,
    /// Most jobs of the agent in its queue, running and waiting.
    pub jobs_max: u32,
    /// How long a job that neither the system knows nor anything was heard of counts as one that may still come.
    pub forgotten_seconds: u64,
    /// Workers that take short work, each a job.
    pub pilots: Option<PilotSettings>,
}

/// What the administrator of such a site says of its jobs, and how the system is spoken to.
#[derive(Debug, Clone, PartialEq)]
pub struct BatchSettings {
    pub template: Arc<Template>,
    pub queue: Option<String>,
    pub account: Option<String>,
    pub options: Vec<String>,
    pub commands: Option<PathBuf>,
    pub poll_seconds: u64,
    pub jobs_max: u32,
    pub forgotten_seconds: u64,
    pub pilots: Option<PilotSettings>,
}

impl Default for BatchSection {
    fn default() -> Self {
        Self {
            template: None,
            queue: None,
            account: None,
            options: Vec::new(),
            commands: None,
            poll_seconds: 10,
            jobs_max: 200,
            forgotten_seconds: 600,
            pilots: None,
        }
    }
}

impl BatchSection {
    /// Nothing where executions are no jobs, or jobs of a system that needs no template.
    pub(super) fn of(self, kind: ExecutorKind) -> Result<Option<BatchSettings>, ConfigError> {
        let shipped = match kind {
            ExecutorKind::Local | ExecutorKind::Slurm | ExecutorKind::Kubernetes => return Ok(None),
            ExecutorKind::Pbs => Some("pbs"),
            ExecutorKind::Lsf => Some("lsf"),
            ExecutorKind::Flux => Some("flux"),
            ExecutorKind::Htcondor => Some("htcondor"),
            ExecutorKind::Template => None,
        };
        self.checked(shipped).map(Some)
    }

    fn checked(self, shipped: Option<&str>) -> Result<BatchSettings, ConfigError> {
        let wrong = |message: &str| Err(ConfigError::Batch(message.to_owned()));
        if self.poll_seconds == 0 || self.jobs_max == 0 {
            return wrong("poll_seconds and jobs_max are at least 1");
        }
        if let Some(why) = self.pilots.as_ref().and_then(PilotSettings::objection) {
            return wrong(&why);
        }
        let is_line = |text: &String| !text.is_empty() && !text.contains('\n');
        let named = [&self.queue, &self.account];
        if !(named.into_iter().flatten().all(is_line) && self.options.iter().all(is_line)) {
            return wrong("queue, account and each of options are one line, and not an empty one");
        }
        let paths = [&self.commands, &self.template];
        if let Some(path) = paths.into_iter().flatten().find(|path| !path.is_absolute()) {
            return Err(ConfigError::RelativePath(path.clone()));
        }
        let template = match (&self.template, shipped.and_then(Template::shipped)) {
            (Some(path), _) => Template::read(path),
            (None, Some(shipped)) => shipped,
            (None, None) => return wrong("template: name the file of the template, or a system that has one"),
        };
        Ok(BatchSettings {
            template: Arc::new(template?),
            queue: self.queue,
            account: self.account,
            options: self.options,
            commands: self.commands,
            poll_seconds: self.poll_seconds,
            jobs_max: self.jobs_max,
            forgotten_seconds: self.forgotten_seconds,
            pilots: self.pilots,
        })
    }
}

impl BatchSettings {
    /// What people are told of where jobs go.
    pub(crate) fn place(&self) -> String {
        self.queue.as_ref().map_or_else(|| "the default queue".to_owned(), |name| format!("queue {name}"))
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test that fails here has failed")]

    use super::super::{Config, Overrides};
    use super::*;

    fn load(text: &str) -> Result<Config, ConfigError> {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("agent.toml");
        let text = text.replace("FOLDER", &folder.path().display().to_string());
        std::fs::write(folder.path().join("own.toml"), "title = 'Own'\n[submit]\ncommand = []\n").unwrap();
        std::fs::write(&file, format!("data_dir = '/data'\n{text}")).unwrap();
        Config::load(Some(&file), &|_| None, Overrides::default())
    }

    #[test]
    fn each_system_has_a_template_that_comes_with_the_agent() {
        for (kind, title) in [("pbs", "PBS"), ("lsf", "LSF"), ("flux", "Flux"), ("htcondor", "HTCondor")] {
            let config = load(&format!("executor = '{kind}'\n[batch]\nqueue = 'long'\n")).unwrap();
            let batch = config.batch.as_ref().unwrap();
            assert_eq!((batch.template.title(), batch.queue.as_deref()), (title, Some("long")));
            assert_eq!((config.slurm.is_none(), config.jobs_max()), (true, Some(200)));
        }
        assert_eq!(load("[batch]\nqueue = 'long'\n").unwrap().batch, None);
    }

    #[test]
    fn a_template_that_is_none_is_named_with_what_is_wrong() {
        let error = |text: &str| format!("{:#}", anyhow::Error::new(load(text).unwrap_err()));
        assert!(error("executor = 'template'\n").contains("template: name the file"));
        assert!(error("executor = 'template'\n[batch]\ntemplate = 'own.toml'\n").contains("own.toml"));
        let missing = error("executor = 'template'\n[batch]\ntemplate = 'FOLDER/no.toml'\n");
        assert!(missing.contains("no.toml cannot be read"), "{missing}");
        let wrong = error("executor = 'pbs'\n[batch]\ntemplate = 'FOLDER/own.toml'\n");
        assert!(wrong.contains("own.toml") && wrong.contains("missing field"), "{wrong}");
    }

    #[test]
    fn what_would_be_no_line_of_a_job_is_refused() {
        for wrong in ["poll_seconds = 0", "jobs_max = 0", "queue = ''", "options = [\"-a\\n\"]", "commands = 'x'"] {
            assert!(load(&format!("executor = 'lsf'\n[batch]\n{wrong}\n")).is_err(), "{wrong}");
        }
        assert!(load("executor = 'lsf'\n[batch]\narray_max = 3\n").is_err());
    }
}
