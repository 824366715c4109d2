//! Files and directories that are given as inputs without being sent: a site holds them, or fetches them.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::id::SiteName;

/// What was given for an input beside the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Given {
    /// Nothing; its default stands.
    Nothing,
    /// A value, which the run brings along: a default that is taken in at a site is not.
    Value,
    /// A file or directory that a site takes in.
    TakenIn(TakenIn),
}

/// A file or directory that a site takes in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum TakenIn {
    Held(HeldAt),
    Fetched(FetchedFrom),
}

/// A file or directory where a site holds it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HeldAt {
    pub site: SiteName,
    /// Absolute at the site, or relative to where the site's administrator lets such paths begin.
    pub path: String,
}

/// A file or directory that a site fetches from where everybody can, or from a bucket that it has the keys of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FetchedFrom {
    pub url: ImportUrl,
    /// The site that fetches it; one that the control plane chooses if nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub site: Option<SiteName>,
}

impl TakenIn {
    /// The site that takes it in, if it is named.
    pub fn site(&self) -> Option<&SiteName> {
        match self {
            Self::Held(held) => Some(&held.site),
            Self::Fetched(fetched) => fetched.site.as_ref(),
        }
    }

    pub(super) fn source(&self) -> ImportSource {
        match self {
            Self::Held(held) => ImportSource::Path(held.path.clone()),
            Self::Fetched(fetched) => ImportSource::Url(fetched.url.clone()),
        }
    }
}

/// Where a step [`super::Work::Import`] finds what it takes in. Written as its text, which tells a URL from a path.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "String", into = "String")]
pub enum ImportSource {
    Path(String),
    Url(ImportUrl),
}

impl From<String> for ImportSource {
    fn from(text: String) -> Self {
        match text.parse() {
            Ok(url) => Self::Url(url),
            Err(_) => Self::Path(text),
        }
    }
}

impl From<ImportSource> for String {
    fn from(source: ImportSource) -> Self {
        match source {
            ImportSource::Path(path) => path,
            ImportSource::Url(url) => url.0,
        }
    }
}

impl fmt::Display for ImportSource {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Path(path) => path,
            Self::Url(url) => &url.0,
        })
    }
}

/// `https://HOST/PATH`, `http://HOST/PATH`, or in a bucket: `s3://BUCKET/KEY`, `gs://BUCKET/KEY`, `az://CONTAINER/KEY`. A
/// directory is what a bucket has below a key.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ImportUrl(String);

/// Why a text is no [`ImportUrl`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ImportUrlError {
    #[error("it begins with https://, http://, s3://, gs:// or az://")]
    Scheme,
    #[error("it has a host or a bucket after ://")]
    Host,
    #[error(
        "no user name or password stands in it: the workflow is shown to others; make a URL that needs none, or use a bucket"
    )]
    Credentials,
    #[error("no spaces or control characters stand in it; write them as %20")]
    Characters,
}

/// What a URL begins with that can be fetched.
const WEB_SCHEMES: [&str; 2] = ["https", "http"];
const BUCKET_SCHEMES: [&str; 3] = ["s3", "gs", "az"];

/// What follows the scheme, if it is one of these.
fn after_scheme<'a>(text: &'a str, schemes: &[&str]) -> Option<&'a str> {
    let (scheme, rest) = text.split_once("://")?;
    schemes.contains(&scheme).then_some(rest)
}

impl ImportUrl {
    /// Whether such URLs may begin with this text.
    pub fn may_begin_with(text: &str) -> bool {
        after_scheme(text, &WEB_SCHEMES).or(after_scheme(text, &BUCKET_SCHEMES)).is_some()
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    pub fn scheme(&self) -> &str {
        self.0.split_once("://").map_or("", |(scheme, _)| scheme)
    }

    /// Bucket and key, if it is of a bucket.
    pub fn in_bucket(&self) -> Option<(&str, &str)> {
        let rest = after_scheme(&self.0, &BUCKET_SCHEMES)?;
        Some(rest.split_once('/').unwrap_or((rest, "")))
    }

    /// The last part of its path, if it has one.
    pub fn file_name(&self) -> Option<&str> {
        let (_, rest) = self.0.split_once("://")?;
        let path = rest.split(['?', '#']).next().unwrap_or_default();
        let (_, path) = path.split_once('/')?;
        path.trim_end_matches('/').rsplit('/').next().filter(|name| !name.is_empty())
    }

    /// Whether it is below `prefix`, which ends where a part of a URL may.
    pub fn is_below(&self, prefix: &str) -> bool {
        let ends_there = |rest: &str| rest.is_empty() || prefix.ends_with('/') || rest.starts_with(['/', '?', '#']);
        self.is_plain() && self.0.strip_prefix(prefix).is_some_and(ends_there)
    }

    /// Whether it is written in no roundabout way, so that it leads to where it seems to.
    pub fn is_plain(&self) -> bool {
        let decoded = self.0.replace("%2e", ".").replace("%2E", ".").replace("%2f", "/").replace("%2F", "/");
        !decoded.split(['/', '\\', '?', '#']).any(|part| matches!(part, "." | ".."))
    }
}

impl FromStr for ImportUrl {
    type Err = ImportUrlError;

    fn from_str(text: &str) -> Result<Self, ImportUrlError> {
        let rest = after_scheme(text, &WEB_SCHEMES).or(after_scheme(text, &BUCKET_SCHEMES));
        let rest = rest.ok_or(ImportUrlError::Scheme)?;
        let host = rest.split(['/', '?', '#']).next().unwrap_or_default();
        if host.is_empty() {
            return Err(ImportUrlError::Host);
        }
        if host.contains('@') {
            return Err(ImportUrlError::Credentials);
        }
        if text.chars().any(|character| character.is_control() || character.is_whitespace()) {
            return Err(ImportUrlError::Characters);
        }
        Ok(Self(text.to_owned()))
    }
}

impl TryFrom<String> for ImportUrl {
    type Error = ImportUrlError;

    fn try_from(text: String) -> Result<Self, ImportUrlError> {
        text.parse()
    }
}

impl From<ImportUrl> for String {
    fn from(url: ImportUrl) -> Self {
        url.0
    }
}

impl fmt::Display for ImportUrl {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_a_url_is_told_from_a_path_and_stays_as_it_was_written() {
        for (text, is_url) in [
            ("https://example.org/a.csv", true),
            ("s3://bucket/a/b", true),
            ("gs://bucket/a/b", true),
            ("az://container/a/b", true),
            ("S3://bucket/a", false),
            ("/data/a.csv", false),
            ("data/https:/x", false),
            ("ftp://example.org/a", false),
        ] {
            let source = ImportSource::from(text.to_owned());
            assert_eq!(matches!(source, ImportSource::Url(_)), is_url, "{text}");
            assert_eq!(String::from(source), text);
        }
    }

    #[test]
    fn what_cannot_be_fetched_is_refused_with_its_reason() {
        for (text, error) in [
            ("ftp://example.org/a", ImportUrlError::Scheme),
            ("https:///a", ImportUrlError::Host),
            ("https://user:secret@example.org/a", ImportUrlError::Credentials),
            ("az://container@account/a", ImportUrlError::Credentials),
            ("gs:///a", ImportUrlError::Host),
            ("https://example.org/a b", ImportUrlError::Characters),
        ] {
            assert_eq!(text.parse::<ImportUrl>(), Err(error), "{text}");
        }
    }

    #[test]
    fn a_url_is_below_a_prefix_only_where_a_part_ends() {
        let url: ImportUrl = "https://example.org/data/a.csv?x=1".parse().expect("a URL");
        for (prefix, is_below) in [
            ("https://", true),
            ("https://example.org", true),
            ("https://example.org/data", true),
            ("https://example.org/data/", true),
            ("https://example.org/dat", false),
            ("https://example.or", false),
            ("http://", false),
        ] {
            assert_eq!(url.is_below(prefix), is_below, "{prefix}");
        }
        let tiles: ImportUrl = "az://tiles/a".parse().expect("a URL");
        for (prefix, is_below) in [("az://", true), ("az://tiles", true), ("az://tile", false), ("s3://tiles", false)] {
            assert_eq!(tiles.is_below(prefix), is_below, "{prefix}");
        }
        let roundabout: ImportUrl = "https://example.org/data/../private/a".parse().expect("a URL");
        assert!(!roundabout.is_below("https://example.org/data/"));
        let hidden: ImportUrl = "https://example.org/data/%2E%2e/private/a".parse().expect("a URL");
        assert!(!hidden.is_below("https://example.org/data/"));
    }

    #[test]
    fn a_file_is_named_after_the_last_part_of_its_path() {
        for (text, name) in [
            ("https://example.org/data/a.csv?x=/1", Some("a.csv")),
            ("s3://bucket/a/b/", Some("b")),
            ("az://container/a", Some("a")),
            ("https://example.org", None),
            ("https://example.org/", None),
        ] {
            assert_eq!(text.parse::<ImportUrl>().expect("a URL").file_name(), name, "{text}");
        }
    }
}
