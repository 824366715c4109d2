//! What workflows may read and write at a site besides its store: nothing but what its administrator lists.

use std::path::PathBuf;

use atoll_model::workflow::OutsideUrl;

use super::ConfigError;

/// What workflows may take into the store of a site.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Imports {
    /// Folders of this machine; what is below them may be taken in.
    pub roots: Vec<PathBuf>,
    /// What URLs begin with that may be fetched: `https://`, `https://example.org/data/`, `s3://bucket`.
    pub urls: Vec<String>,
}

impl Imports {
    pub(super) fn read(roots: Vec<PathBuf>, urls: Vec<String>) -> Result<Self, ConfigError> {
        if let Some(wrong) = urls.iter().find(|url| !OutsideUrl::may_begin_with(url)) {
            return Err(ConfigError::ImportUrl(wrong.clone()));
        }
        match roots.iter().find(|root| !root.is_absolute()) {
            Some(wrong) => Err(ConfigError::RelativePath(wrong.clone())),
            None => Ok(Self { roots, urls }),
        }
    }

    pub(crate) fn allows(&self, url: &OutsideUrl) -> bool {
        self.urls.iter().any(|prefix| url.is_below(prefix))
    }
}

/// Where workflows may publish what a site has.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Exports {
    /// Folders of this machine; below them may be written.
    pub roots: Vec<PathBuf>,
    /// What URLs begin with that may be written to: `s3://`, `s3://survey/tiles`, `az://maps`.
    pub urls: Vec<String>,
}

impl Exports {
    /// Each is a folder, or what URLs begin with.
    pub(super) fn read(listed: Vec<String>) -> Result<Self, ConfigError> {
        let (urls, roots): (Vec<_>, Vec<_>) =
            listed.into_iter().partition(|place| OutsideUrl::may_begin_in_bucket(place));
        match roots.iter().find(|root| !root.starts_with('/')) {
            Some(wrong) => Err(ConfigError::Export(wrong.clone())),
            None => Ok(Self { roots: roots.into_iter().map(PathBuf::from).collect(), urls }),
        }
    }

    pub(crate) fn allows(&self, url: &OutsideUrl) -> bool {
        self.urls.iter().any(|prefix| url.is_below(prefix))
    }
}
