//! How a step names an action that was pushed.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::{is_version, ryax};
use crate::reading::is_name;

/// `name@version`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ActionReference {
    pub name: String,
    pub version: String,
}

impl ActionReference {
    /// Whether a text is meant as one. What has a `/` in it, or no `@`, is the path of a folder.
    pub fn is_meant_by(text: &str) -> bool {
        text.contains('@') && !text.contains('/')
    }
}

impl fmt::Display for ActionReference {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}@{}", self.name, self.version)
    }
}

/// A text names no version of an action.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} names no version of an action: write its name and its version, as in clean@1.2")]
pub struct ParseReferenceError(String);

impl FromStr for ActionReference {
    type Err = ParseReferenceError;

    fn from_str(text: &str) -> Result<Self, ParseReferenceError> {
        let is_right = |name: &str| is_name(name, true) || ryax::is_id(name);
        let parts = text.split_once('@').filter(|(name, version)| is_right(name) && is_version(version));
        let (name, version) = parts.ok_or_else(|| ParseReferenceError(text.to_owned()))?;
        Ok(Self { name: name.to_owned(), version: version.to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reference_is_a_name_and_a_version() {
        let reference: ActionReference = "line-count@1.2+b".parse().expect("a reference");
        assert_eq!((reference.name.as_str(), reference.version.as_str()), ("line-count", "1.2+b"));
        assert_eq!(reference.to_string(), "line-count@1.2+b");
        for text in ["", "clean", "@1", "clean@", "1Lean@1", "clean@1@2", "clean@a b"] {
            assert!(text.parse::<ActionReference>().is_err(), "{text}");
        }
    }

    #[test]
    fn what_has_a_slash_in_it_is_a_folder() {
        assert!(ActionReference::is_meant_by("clean@1.2"));
        assert!(ActionReference::is_meant_by("clean@"), "so that it is said what is wrong with it");
        for folder in ["clean", "./clean@1.2", "actions/clean@1.2"] {
            assert!(!ActionReference::is_meant_by(folder), "{folder}");
        }
    }
}
