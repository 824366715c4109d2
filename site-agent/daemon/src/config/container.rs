//! What actions with the runtime `container` are started by at a site.

use std::path::PathBuf;

use serde::Deserialize;

use super::ConfigError;

/// The table `[container]`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ContainerSettings {
    /// The first of them that is there and works, unless given.
    pub engine: Option<EngineChoice>,
    /// An absolute path, or a name that is looked up in `PATH`: that of the engine unless given.
    pub program: Option<PathBuf>,
    /// What is added to each command that starts a container.
    pub arguments: Vec<String>,
}

/// Which engine is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EngineChoice {
    Podman,
    Docker,
    /// Singularity too.
    Apptainer,
    /// No containers run at the site.
    None,
}

impl ContainerSettings {
    pub(super) fn checked(self) -> Result<Self, ConfigError> {
        let Some(program) = &self.program else { return Ok(self) };
        if program.components().count() > 1 && !program.is_absolute() {
            return Err(ConfigError::RelativePath(program.clone()));
        }
        if self.engine.is_none() {
            return Err(ConfigError::Container(format!(
                "program = {program:?}, and it is not said which engine that is: add engine = \"podman\", \"docker\" or \
                 \"apptainer\""
            )));
        }
        Ok(self)
    }
}
