//! Files and directories that a site holds, given as inputs without being sent.

use serde::{Deserialize, Serialize};

use crate::id::SiteName;

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
#[serde(deny_unknown_fields)]
pub struct HeldAt {
    pub site: SiteName,
    /// Absolute at the site, or relative to where the site's administrator lets such paths begin.
    pub path: String,
}
