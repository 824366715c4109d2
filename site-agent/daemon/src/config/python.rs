//! What actions with the runtime `python` run in at a site.

use std::path::{Path, PathBuf};
use std::time::Duration;

use atoll_model::action::Warm;
use serde::Deserialize;

use super::ConfigError;

const IDLE: Duration = Duration::from_secs(60);

/// The table `[python]`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PythonSettings {
    /// An absolute path, or a name that is looked up in `PATH`: `python3` unless given.
    pub program: Option<PathBuf>,
    /// The index that packages come from; what the installer itself is set to unless given.
    pub index: Option<String>,
    /// A folder of wheels, beside the index or instead of it.
    pub wheels: Option<PathBuf>,
    /// Whether packages come from nowhere but the folder of wheels.
    pub offline: bool,
    /// How long a worker is kept that has nothing to do: a minute unless given.
    pub idle_seconds: Option<u64>,
    /// Whether actions may say otherwise (`warm`): they may, unless given.
    pub warm: Option<bool>,
}

impl PythonSettings {
    pub(super) fn of_program(program: PathBuf) -> Self {
        Self { program: Some(program), ..Self::default() }
    }

    pub(super) fn checked(self) -> Result<Self, ConfigError> {
        let program = self.program.as_ref().filter(|program| program.components().count() > 1);
        match program.into_iter().chain(&self.wheels).find(|path| !path.is_absolute()) {
            Some(relative) => Err(ConfigError::RelativePath(relative.clone())),
            None => Ok(self),
        }
    }

    /// How long a worker is kept that has nothing to do.
    pub(crate) fn idle(&self) -> Duration {
        self.idle_seconds.map_or(IDLE, Duration::from_secs)
    }

    /// What of an action's wish for processes that wait is heeded.
    pub(crate) fn heeded(&self, warm: Option<Warm>) -> Option<Warm> {
        warm.filter(|_| self.warm.unwrap_or(true))
    }

    pub(crate) fn program(&self) -> &Path {
        self.program.as_deref().unwrap_or(Path::new("python3"))
    }
}
