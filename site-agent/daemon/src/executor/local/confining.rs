//! What executions are kept from, by what their step asks for and the site's administrator says.

use std::path::PathBuf;
use std::process::Command;

use atoll_model::resources::IsolationProfile;
use atoll_model::session::StepTemplate;

use super::orders::OrderError;
use crate::config::{IsolationSettings, ShimProgram};
use crate::shim::STRICT;
use crate::shim::protocol::{Common, Enclosed, Terms};

/// How this site keeps executions apart.
#[derive(Debug, Clone)]
pub(crate) struct Confining {
    pub(crate) settings: IsolationSettings,
    /// Why the profile `strict` cannot be given here, if it cannot.
    pub(crate) strict: Result<(), String>,
}

/// The agent's folders, by what they mean to an execution that is kept from everything else.
#[derive(Debug, Clone)]
pub(super) struct Surroundings {
    /// Of which it sees nothing but its own.
    pub(super) hidden: Vec<PathBuf>,
    /// Where its inputs are, by its key.
    pub(super) staged: PathBuf,
}

impl Confining {
    /// Has a shim try whether the strictest profile can be given, since a process that has threads may not.
    pub(crate) fn try_out(settings: IsolationSettings, program: &ShimProgram) -> Self {
        let asked = Command::new(&program.program).args(&program.arguments).arg(STRICT).output();
        let strict = match asked {
            Ok(said) if said.status.success() => Ok(()),
            Ok(said) => Err(String::from_utf8_lossy(&said.stderr).trim().to_owned()),
            Err(error) => Err(error.to_string()),
        };
        Self { settings, strict }
    }

    /// As it is where executions are jobs: what their nodes allow is not known here.
    pub(crate) fn of_jobs(settings: IsolationSettings) -> Self {
        Self { settings, strict: Err("its executions are jobs of a cluster".to_owned()) }
    }

    /// Why the site cannot give what its own administrator demands.
    pub(crate) fn refuses_all(&self) -> Option<String> {
        let why = self.strict.as_ref().err().filter(|_| self.settings.minimum == IsolationProfile::Strict)?;
        Some(format!(
            "its administrator demands `minimum = \"strict\"` of isolation, which cannot be given here: {why}"
        ))
    }

    /// Adds to what executions have in common what they are kept from. `shown` is what they need of what is hidden.
    pub(super) fn confine(
        &self,
        common: Common,
        template: &StepTemplate,
        surroundings: &Surroundings,
        shown: Vec<PathBuf>,
    ) -> Result<Common, OrderError> {
        let asked = &template.resources.confinement;
        let profile = self.settings.profile(asked.isolation);
        let scratch_bytes = self.settings.scratch_bytes(profile, asked.scratch_bytes);
        if common.container.is_some() {
            // That is what it is enclosed in, and engines need rights of their own.
            return Ok(Common { terms: Terms { enclosed: None, scratch_bytes }, ..common });
        }
        let is_strict = profile == IsolationProfile::Strict;
        if let Some(why) = self.strict.as_ref().err().filter(|_| is_strict) {
            return Err(OrderError::NoStrict { why: why.clone() });
        }
        let enclosed = is_strict.then(|| Enclosed {
            network: asked.network,
            hidden: surroundings.hidden.iter().chain(&self.settings.hide).cloned().collect(),
            shown,
            staged: surroundings.staged.clone(),
            devices: Vec::new(),
        });
        let confined = profile >= IsolationProfile::Standard;
        Ok(Common { terms: Terms { enclosed, scratch_bytes }, confined, ..common })
    }
}
