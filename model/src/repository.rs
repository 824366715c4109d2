//! Where the folders of actions come from: a git repository, a branch of it, and a folder in that.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::reading::is_name;

/// Longest address, branch and folder: what a person types, and shown in every list.
const PART_BYTES_MAX: usize = 1_024;

/// How git reaches a repository.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reach {
    /// A folder of the server's own machine.
    Local,
    Http,
    Https,
    Ssh,
}

/// The address of a git repository: an absolute path, or `file://`, `https://`, `http://` or `ssh://`. No password is in it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct GitUrl(String);

/// Why something cannot say where actions come from.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RepositoryError {
    #[error("{0:?} is no address of a git repository: write an absolute path, or a URL with file, https, http or ssh")]
    Url(String),
    #[error("{0:?} is an address of ssh in short: write it as ssh://USER@HOST/PATH")]
    ShortSsh(String),
    #[error(
        "an address holds no user and password, for everybody sees it: the server's configuration names files with them"
    )]
    Password,
    #[error("{0:?} leads upwards: an address has no `..` in its path")]
    Upwards(String),
    #[error("{0:?} cannot be the name of a branch or a tag")]
    Branch(String),
    #[error("{0:?} is no folder within the repository: write it without `/` in front, and without `..`")]
    Subdir(String),
    #[error(
        "{0:?} cannot be the name of a repository: a to z, A to Z, 0 to 9, `_` and `-`, at most 63, a letter in front"
    )]
    Name(String),
    #[error("it is longer than {PART_BYTES_MAX} bytes")]
    TooLong,
}

impl GitUrl {
    pub fn as_str(&self) -> &str {
        &self.0
    }

    pub fn reach(&self) -> Reach {
        match self.0.split_once("://") {
            Some(("https", _)) => Reach::Https,
            Some(("http", _)) => Reach::Http,
            Some(("ssh", _)) => Reach::Ssh,
            Some(_) | None => Reach::Local,
        }
    }

    /// What people would call it: the last part of its path.
    pub fn suggested_name(&self) -> String {
        let path = self.0.trim_end_matches('/');
        let last = path.rsplit('/').next().unwrap_or_default();
        let last = last.strip_suffix(".git").unwrap_or(last);
        let fits = |letter: char| if letter.is_ascii_alphanumeric() { letter } else { '-' };
        last.chars().map(fits).collect::<String>().trim_matches('-').to_owned()
    }
}

impl fmt::Display for GitUrl {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl FromStr for GitUrl {
    type Err = RepositoryError;

    fn from_str(text: &str) -> Result<Self, RepositoryError> {
        let refused = || RepositoryError::Url(text.to_owned());
        if text.len() > PART_BYTES_MAX {
            return Err(RepositoryError::TooLong);
        }
        if text.chars().any(|letter| letter.is_control() || letter.is_whitespace() || letter == '\\') {
            return Err(refused());
        }
        let path = match text.split_once("://") {
            Some(("file", path)) if path.starts_with('/') => path,
            Some((scheme @ ("https" | "http" | "ssh"), rest)) => {
                let (authority, path) = rest.split_once('/').ok_or_else(refused)?;
                let (user, host) =
                    authority.rsplit_once('@').map_or((None, authority), |(user, host)| (Some(user), host));
                if user.is_some_and(|user| scheme != "ssh" || user.contains(':')) {
                    return Err(RepositoryError::Password);
                }
                if host.is_empty()
                    || host.starts_with('-')
                    || user.is_some_and(|user| user.is_empty() || user.starts_with('-'))
                    || path.is_empty()
                {
                    return Err(refused());
                }
                path
            }
            Some(_) => return Err(refused()),
            None if text.starts_with('/') => text,
            None if text.contains('@') && text.contains(':') => return Err(RepositoryError::ShortSsh(text.to_owned())),
            None => return Err(refused()),
        };
        // Credentials belong to addresses that begin in some way: nothing may lead out of there.
        let lower = path.to_ascii_lowercase();
        if lower.contains("%2e") || lower.contains("%2f") || path.split(['/', '?', '#']).any(|part| part == "..") {
            return Err(RepositoryError::Upwards(text.to_owned()));
        }
        Ok(Self(text.to_owned()))
    }
}

/// What of which repository is looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RepositorySource {
    pub url: GitUrl,
    branch: Option<String>,
    subdir: Option<String>,
}

impl RepositorySource {
    /// A branch or a tag, the repository's own choice unless given; a folder, the whole repository unless given.
    ///
    /// # Errors
    /// When git could not take it as what it is meant for.
    pub fn new(url: GitUrl, branch: Option<&str>, subdir: Option<&str>) -> Result<Self, RepositoryError> {
        if let Some(branch) = branch.filter(|branch| !is_branch(branch)) {
            return Err(RepositoryError::Branch(branch.to_owned()));
        }
        let subdir = subdir.map(|subdir| subdir.trim_start_matches("./").trim_end_matches('/'));
        let subdir = subdir.filter(|subdir| !subdir.is_empty() && *subdir != ".");
        if let Some(subdir) = subdir.filter(|subdir| !is_subdir(subdir)) {
            return Err(RepositoryError::Subdir(subdir.to_owned()));
        }
        Ok(Self { url, branch: branch.map(str::to_owned), subdir: subdir.map(str::to_owned) })
    }

    pub fn branch(&self) -> Option<&str> {
        self.branch.as_deref()
    }

    /// Without `/` at either end.
    pub fn subdir(&self) -> Option<&str> {
        self.subdir.as_deref()
    }
}

/// A repository of a project.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct RepositoryName {
    pub project: String,
    pub name: String,
}

impl RepositoryName {
    /// # Errors
    /// When people may not choose the name.
    pub fn new(project: &str, name: &str) -> Result<Self, RepositoryError> {
        if !is_name(name, true) {
            return Err(RepositoryError::Name(name.to_owned()));
        }
        Ok(Self { project: project.to_owned(), name: name.to_owned() })
    }
}

/// As `git check-ref-format` says, and nothing that could be taken for an option or a pattern.
fn is_branch(text: &str) -> bool {
    let forbidden = |letter: char| letter.is_control() || " ~^:?*[\\".contains(letter);
    !text.is_empty()
        && text.len() <= PART_BYTES_MAX
        && !text.starts_with(['-', '/', '+'])
        && !text.ends_with(['/', '.'])
        && !text.contains(forbidden)
        && !text.contains("..")
        && !text.contains("@{")
        && text != "@"
        && text.split('/').all(|part| !part.is_empty() && !part.starts_with('.') && !part.ends_with(".lock"))
}

fn is_subdir(text: &str) -> bool {
    text.len() <= PART_BYTES_MAX
        && !text.starts_with('-')
        && !text.chars().any(char::is_control)
        && text.split('/').all(|part| !matches!(part, "" | "." | ".." | ".git"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn url(text: &str) -> Result<GitUrl, RepositoryError> {
        text.parse()
    }

    #[test]
    fn an_address_says_how_it_is_reached_and_what_it_may_be_called() {
        for (text, reach, name) in [
            ("/srv/git/tools.git", Reach::Local, "tools"),
            ("file:///srv/git/river tools/".replace(' ', "_").as_str(), Reach::Local, "river-tools"),
            ("https://git.example.org/team/tools.git", Reach::Https, "tools"),
            ("http://127.0.0.1:8000/tools", Reach::Http, "tools"),
            ("ssh://git@git.example.org:2222/team/tools.git", Reach::Ssh, "tools"),
        ] {
            let parsed = url(text).expect(text);
            assert_eq!((parsed.reach(), parsed.suggested_name().as_str()), (reach, name), "{text}");
        }
    }

    #[test]
    fn what_could_mean_something_else_to_git_is_no_address() {
        for text in
            ["", "tools", "./tools", "ext::sh -c id", "git://host/tools", "https://", "https:///x", "ssh://-oX/x"]
        {
            assert!(matches!(url(text), Err(RepositoryError::Url(_))), "{text}: {:?}", url(text));
        }
        assert!(matches!(url("git@host:team/tools"), Err(RepositoryError::ShortSsh(_))));
        for text in ["https://me:secret@host/x", "https://me@host/x", "ssh://me:secret@host/x"] {
            assert_eq!(url(text), Err(RepositoryError::Password), "{text}");
        }
        for text in
            ["https://host/team/../other", "https://host/team/%2E%2e/other", "/srv/../etc", "https://host/a/..?x"]
        {
            assert!(matches!(url(text), Err(RepositoryError::Upwards(_))), "{text}: {:?}", url(text));
        }
    }

    #[test]
    fn a_branch_and_a_folder_are_what_git_takes_them_for() {
        let source = |branch, subdir| RepositorySource::new(url("/srv/x").expect("an address"), branch, subdir);
        let given = source(Some("release/1.x"), Some("./lib/actions/")).expect("both are right");
        assert_eq!((given.branch(), given.subdir()), (Some("release/1.x"), Some("lib/actions")));
        assert_eq!(source(None, Some(".")).expect("the whole").subdir(), None);
        for branch in ["", "-x", "a..b", "a b", "a:b", "+a", "a@{1}", "a/.b", "a.lock", "*"] {
            assert!(source(Some(branch), None).is_err(), "{branch}");
        }
        for subdir in ["/etc", "a/../b", "..", "a//b", ".git/x", "-x"] {
            assert!(source(None, Some(subdir)).is_err(), "{subdir}");
        }
    }
}
