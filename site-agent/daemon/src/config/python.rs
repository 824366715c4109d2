//! What actions with the runtime `python` run in at a site.

use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::ConfigError;

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

    pub(crate) fn program(&self) -> &Path {
        self.program.as_deref().unwrap_or(Path::new("python3"))
    }
}
