//! Checks of a workflow against the sites that there are.

use crate::diagnostic::Diagnostic;
use crate::id::SiteName;
use crate::placement::Labels;
use crate::resources::Capacity;
use crate::workflow::Workflow;

/// What is known of a site when a workflow is submitted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SiteFacts {
    pub name: SiteName,
    pub labels: Labels,
    /// Nothing until the site's agent has been connected once.
    pub capacity: Option<Capacity>,
}

/// Finds what no site can satisfy: unknown names and labels, more memory or CPUs than any admissible site has, data
/// confined away from the step that reads it.
pub fn check_sites(workflow: &Workflow, file: &str, sites: &[SiteFacts]) -> Vec<Diagnostic> {
    let _ = (workflow, file, sites);
    unimplemented!("being written")
}
