//! Files and directories that are given as inputs without being sent, because a site holds or fetches them, and where
//! outputs are published.

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
    pub url: OutsideUrl,
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

    pub(super) fn source(&self) -> Outside {
        match self {
            Self::Held(held) => Outside::Path(held.path.clone()),
            Self::Fetched(fetched) => Outside::Url(fetched.url.clone()),
        }
    }
}

/// Where a file or directory is outside of Atoll: at a path of a site, or at a URL. Written as its text, which tells them
/// apart.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "String", into = "String")]
pub enum Outside {
    Path(String),
    Url(OutsideUrl),
}

impl From<String> for Outside {
    fn from(text: String) -> Self {
        match text.parse() {
            Ok(url) => Self::Url(url),
            Err(_) => Self::Path(text),
        }
    }
}

impl From<Outside> for String {
    fn from(source: Outside) -> Self {
        match source {
            Outside::Path(path) => path,
            Outside::Url(url) => url.0,
        }
    }
}

impl fmt::Display for Outside {
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
pub struct OutsideUrl(String);

/// Why a text is no [`OutsideUrl`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum OutsideUrlError {
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

/// What the address begins with that one file is read from.
pub const WEB_SCHEMES: [&str; 2] = ["https", "http"];
/// What an address in a bucket begins with.
pub const BUCKET_SCHEMES: [&str; 3] = ["s3", "gs", "az"];

/// What follows the scheme, if it is one of these.
fn after_scheme<'a>(text: &'a str, schemes: &[&str]) -> Option<&'a str> {
    let (scheme, rest) = text.split_once("://")?;
    schemes.contains(&scheme).then_some(rest)
}

impl OutsideUrl {
    /// Whether such URLs may begin with this text.
    pub fn may_begin_with(text: &str) -> bool {
        after_scheme(text, &WEB_SCHEMES).or(after_scheme(text, &BUCKET_SCHEMES)).is_some()
    }

    /// Whether URLs of buckets may begin with this text.
    pub fn may_begin_in_bucket(text: &str) -> bool {
        after_scheme(text, &BUCKET_SCHEMES).is_some()
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

impl FromStr for OutsideUrl {
    type Err = OutsideUrlError;

    fn from_str(text: &str) -> Result<Self, OutsideUrlError> {
        let rest = after_scheme(text, &WEB_SCHEMES).or(after_scheme(text, &BUCKET_SCHEMES));
        let rest = rest.ok_or(OutsideUrlError::Scheme)?;
        let host = rest.split(['/', '?', '#']).next().unwrap_or_default();
        if host.is_empty() {
            return Err(OutsideUrlError::Host);
        }
        if host.contains('@') {
            return Err(OutsideUrlError::Credentials);
        }
        if text.chars().any(|character| character.is_control() || character.is_whitespace()) {
            return Err(OutsideUrlError::Characters);
        }
        Ok(Self(text.to_owned()))
    }
}

impl TryFrom<String> for OutsideUrl {
    type Error = OutsideUrlError;

    fn try_from(text: String) -> Result<Self, OutsideUrlError> {
        text.parse()
    }
}

impl From<OutsideUrl> for String {
    fn from(url: OutsideUrl) -> Self {
        url.0
    }
}

impl fmt::Display for OutsideUrl {
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
            let source = Outside::from(text.to_owned());
            assert_eq!(matches!(source, Outside::Url(_)), is_url, "{text}");
            assert_eq!(String::from(source), text);
        }
    }

    #[test]
    fn what_cannot_be_fetched_is_refused_with_its_reason() {
        for (text, error) in [
            ("ftp://example.org/a", OutsideUrlError::Scheme),
            ("https:///a", OutsideUrlError::Host),
            ("https://user:secret@example.org/a", OutsideUrlError::Credentials),
            ("az://container@account/a", OutsideUrlError::Credentials),
            ("gs:///a", OutsideUrlError::Host),
            ("https://example.org/a b", OutsideUrlError::Characters),
        ] {
            assert_eq!(text.parse::<OutsideUrl>(), Err(error), "{text}");
        }
    }

    #[test]
    fn a_url_is_below_a_prefix_only_where_a_part_ends() {
        let url: OutsideUrl = "https://example.org/data/a.csv?x=1".parse().expect("a URL");
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
        let tiles: OutsideUrl = "az://tiles/a".parse().expect("a URL");
        for (prefix, is_below) in [("az://", true), ("az://tiles", true), ("az://tile", false), ("s3://tiles", false)] {
            assert_eq!(tiles.is_below(prefix), is_below, "{prefix}");
        }
        let roundabout: OutsideUrl = "https://example.org/data/../private/a".parse().expect("a URL");
        assert!(!roundabout.is_below("https://example.org/data/"));
        let hidden: OutsideUrl = "https://example.org/data/%2E%2e/private/a".parse().expect("a URL");
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
            assert_eq!(text.parse::<OutsideUrl>().expect("a URL").file_name(), name, "{text}");
        }
    }
}
