//! From the text of a workflow file to a checked [`Workflow`].

use serde::{Deserialize, Serialize};

use crate::diagnostic::Diagnostic;
use crate::id::SiteName;
use crate::workflow::{Action, Workflow};

/// What a workflow file refers to and does not hold itself.
pub trait Surroundings {
    /// Resolves what stands after `action:`.
    ///
    /// # Errors
    /// Why there is no such action, in a sentence without a full stop.
    fn action(&self, reference: &str) -> Result<Action, String>;

    /// What was given for an input when the workflow was submitted.
    fn given(&self, input: &str) -> Given {
        let _ = input;
        Given::Nothing
    }
}

/// What was given for an input beside the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Given {
    /// Nothing; its default stands.
    Nothing,
    /// A value, which the run brings along: a default that is held at a site is not taken in.
    Value,
    /// A file or directory that a site holds.
    Held(HeldAt),
}

/// A file or directory where a site holds it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeldAt {
    pub site: SiteName,
    /// Absolute at the site, or relative to where the site's administrator lets such paths begin.
    pub path: String,
}

/// Parses and checks a workflow file.
///
/// # Errors
/// Everything that is wrong with it, in the order of the file.
pub fn parse(file_name: &str, source: &str, surroundings: &dyn Surroundings) -> Result<Workflow, Vec<Diagnostic>> {
    let _ = (file_name, source, surroundings);
    unimplemented!("being written")
}
