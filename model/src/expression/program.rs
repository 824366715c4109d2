//! CEL expressions as they travel, with the steps they name already resolved.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::id::StepIndex;

/// A CEL expression that was checked.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Program {
    source: String,
    /// The steps that it names; for an input that a site holds, the step that takes it in, as `inputs.NAME`.
    steps: BTreeMap<String, StepIndex>,
}

impl Program {
    pub fn source(&self) -> &str {
        &self.source
    }
}
