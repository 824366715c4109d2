//! How the executions of a site are kept apart.

use std::path::PathBuf;

use atoll_model::resources::IsolationProfile;
use serde::Deserialize;

use super::{ConfigError, deserialize_bytes};

/// What an execution that is kept from everything else may write where nobody says how much: as much as most need, and a small
/// part of a disk.
const SCRATCH_BYTES: u64 = 32 << 30;

/// The table `[isolation]`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct IsolationSettings {
    /// The least that every execution has, whatever it asks for.
    pub minimum: IsolationProfile,
    /// What one has that asks for none.
    pub default: IsolationProfile,
    /// Bytes that one with the profile `strict` may write if it does not say.
    #[serde(deserialize_with = "deserialize_bytes")]
    pub scratch: Option<u64>,
    /// Folders of which executions with the profile `strict` see nothing.
    pub hide: Vec<PathBuf>,
    /// Processes and threads that one execution may have at a time.
    pub processes: Option<u32>,
}

impl Default for IsolationSettings {
    fn default() -> Self {
        Self {
            minimum: IsolationProfile::None,
            default: IsolationProfile::Standard,
            scratch: None,
            hide: Vec::new(),
            processes: None,
        }
    }
}

impl IsolationSettings {
    pub(super) fn checked(self) -> Result<Self, ConfigError> {
        match self.hide.iter().find(|path| !path.is_absolute() || path.parent().is_none()) {
            Some(path) => Err(ConfigError::RelativePath(path.clone())),
            None => Ok(self),
        }
    }

    /// What an execution has that asks for this: the stricter of both counts.
    pub(crate) fn profile(&self, asked: Option<IsolationProfile>) -> IsolationProfile {
        asked.unwrap_or(self.default).max(self.minimum)
    }

    /// What one with this profile may write that asks for so much.
    pub(crate) fn scratch_bytes(&self, profile: IsolationProfile, asked: Option<u64>) -> Option<u64> {
        let usual = (profile == IsolationProfile::Strict).then(|| self.scratch.unwrap_or(SCRATCH_BYTES));
        asked.or(usual)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_stricter_of_site_and_step_counts() {
        use IsolationProfile::{None as Open, Standard, Strict};
        let settings = |minimum, default| IsolationSettings { minimum, default, ..IsolationSettings::default() };
        for (site, asked, expected) in [
            (settings(Open, Standard), None, Standard),
            (settings(Open, Standard), Some(Open), Open),
            (settings(Open, Standard), Some(Strict), Strict),
            (settings(Standard, Open), None, Standard),
            (settings(Strict, Standard), Some(Open), Strict),
            (settings(Open, Strict), Some(Standard), Standard),
        ] {
            assert_eq!(site.profile(asked), expected, "{site:?} {asked:?}");
        }
    }

    #[test]
    fn only_what_is_strict_has_a_limit_that_nobody_asked_for() {
        let settings = IsolationSettings { scratch: Some(5), ..IsolationSettings::default() };
        assert_eq!(settings.scratch_bytes(IsolationProfile::Standard, None), None);
        assert_eq!(settings.scratch_bytes(IsolationProfile::Standard, Some(7)), Some(7));
        assert_eq!(settings.scratch_bytes(IsolationProfile::Strict, None), Some(5));
        assert_eq!(settings.scratch_bytes(IsolationProfile::Strict, Some(7)), Some(7));
    }
}
