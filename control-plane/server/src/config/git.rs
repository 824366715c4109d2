//! How the server reaches git repositories.

use std::path::PathBuf;

use atoll_model::repository::{GitUrl, Reach};
use serde::Deserialize;

/// Repositories that actions are imported from.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Git {
    /// Whether a repository may be a folder of the server's machine. Unless it is said: if the API listens on loopback, and
    /// has no public URL.
    pub local: Option<bool>,
    /// Who the server says that it is, for addresses that begin in some way.
    pub credentials: Vec<GitCredentials>,
}

/// With what the server shows itself to a machine with repositories.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct GitCredentials {
    /// For this address and those below it: `https://…`, `ssh://…`, or `http://…` on loopback.
    pub url: String,
    /// For https one line, `USER:PASSWORD` (a token stands for the password); for ssh a private key.
    pub file: PathBuf,
    /// The keys of the machine, for ssh.
    pub known_hosts: Option<PathBuf>,
    /// The projects that may use it; all unless given.
    pub projects: Option<Vec<String>>,
}

impl Git {
    pub(crate) fn check(&self) -> Result<(), String> {
        self.credentials.iter().try_for_each(GitCredentials::check)
    }

    /// The credentials for an address, those that say most of it.
    pub(crate) fn credentials_for(&self, url: &GitUrl, project: &str) -> Option<&GitCredentials> {
        let fits = |known: &&GitCredentials| {
            let within = known.url.trim_end_matches('/');
            let rest = url.as_str().strip_prefix(within);
            let may = known.projects.as_ref().is_none_or(|projects| projects.iter().any(|name| name == project));
            may && rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        };
        self.credentials.iter().filter(fits).max_by_key(|known| known.url.trim_end_matches('/').len())
    }
}

impl GitCredentials {
    fn check(&self) -> Result<(), String> {
        let Self { url, file, known_hosts, .. } = self;
        let parsed: GitUrl = format!("{}/", url.trim_end_matches('/'))
            .parse::<GitUrl>()
            .or_else(|_| format!("{}/x", url.trim_end_matches('/')).parse())
            .map_err(|error| format!("credentials.url: {error}"))?;
        match parsed.reach() {
            Reach::Https => {}
            Reach::Http if is_on_loopback(parsed.as_str()) => {}
            Reach::Http => return Err(format!("credentials.url: {url}: a password would cross the network in clear")),
            Reach::Ssh if known_hosts.is_some() => {}
            Reach::Ssh => return Err(format!("credentials.known_hosts: the keys of {url} are missing")),
            Reach::Local => return Err(format!("credentials.url: {url:?} needs none")),
        }
        for file in std::iter::once(file).chain(known_hosts) {
            if !file.is_file() {
                return Err(format!("credentials: {} is not a file", file.display()));
            }
        }
        Ok(())
    }
}

fn is_on_loopback(url: &str) -> bool {
    let host = url.trim_start_matches("http://").split('/').next().unwrap_or_default();
    let host = host.rsplit_once(':').map_or(host, |(host, _)| host);
    matches!(host, "localhost" | "127.0.0.1" | "[::1]")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn credentials(url: &str) -> GitCredentials {
        GitCredentials { url: url.to_owned(), file: file!().into(), ..GitCredentials::default() }
    }

    #[test]
    fn credentials_are_for_what_is_below_their_address_and_for_their_projects_alone() {
        let of_team = GitCredentials { projects: Some(vec!["rivers".to_owned()]), ..credentials("https://host/team/") };
        let git = Git { local: None, credentials: vec![credentials("https://host"), of_team] };
        let found = |url: &str, project: &str| {
            git.credentials_for(&url.parse().expect("an address"), project).map(|known| known.url.as_str())
        };
        assert_eq!(found("https://host/team/tools", "rivers"), Some("https://host/team/"));
        assert_eq!(found("https://host/team/tools", "lakes"), Some("https://host"));
        assert_eq!(found("https://host/teams/tools", "rivers"), Some("https://host"));
        for elsewhere in ["https://host.example.org/x", "https://other/x", "http://host/x", "ssh://host/x"] {
            assert_eq!(found(elsewhere, "rivers"), None, "{elsewhere}");
        }
    }

    #[test]
    fn a_password_never_crosses_the_network_in_clear() {
        let check = |url: &str| GitCredentials { file: "/dev/null".into(), ..credentials(url) }.check();
        assert!(check("http://host/").is_err_and(|problem| problem.contains("in clear")));
        assert!(check("http://localhost.example.org/").is_err_and(|problem| problem.contains("in clear")));
        assert!(check("http://127.0.0.1:80/").is_err_and(|problem| problem.contains("is not a file")));
        assert!(check("ssh://git@host/").is_err_and(|problem| problem.contains("known_hosts")));
        assert!(check("git://host/").is_err_and(|problem| problem.contains("credentials.url")));
        assert!(check("/srv/git").is_err_and(|problem| problem.contains("needs none")));
        let file = tempfile::NamedTempFile::new().expect("a file can be made");
        let of_file = GitCredentials { file: file.path().to_owned(), ..credentials("https://host") };
        assert_eq!(of_file.check(), Ok(()));
    }
}
