//! Which server a command speaks to: flags, then the environment, then the profile that `atoll login` wrote.

use std::path::PathBuf;

use anyhow::Context as _;
use clap::Args;
use serde::{Deserialize, Serialize};

use crate::client::{Client, Trust};
use crate::failure::Failure;

#[derive(Debug, Clone, Default, Args)]
pub(crate) struct Connection {
    /// The server's URL.
    #[arg(long, global = true, env = "ATOLL_URL", hide_env_values = true)]
    url: Option<String>,
    /// An API token.
    #[arg(long, global = true, env = "ATOLL_TOKEN", hide_env_values = true)]
    token: Option<String>,
    /// A PEM file with the CA of the server, if it is not the one that the token names.
    #[arg(long, global = true, env = "ATOLL_CA", value_name = "FILE")]
    ca: Option<PathBuf>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Profile {
    url: String,
    token: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    ca: Option<PathBuf>,
}

impl Connection {
    /// # Errors
    /// When nothing says which server.
    pub(crate) fn client(&self) -> anyhow::Result<Client> {
        self.profile()?.client()
    }

    fn profile(&self) -> anyhow::Result<Profile> {
        if let (Some(url), Some(token)) = (&self.url, &self.token) {
            return Ok(Profile { url: url.clone(), token: token.clone(), ca: self.ca.clone() });
        }
        let Some(stored) = read_profile()? else {
            let missing = match (&self.url, &self.token) {
                (Some(_), _) => "ATOLL_URL is set, and ATOLL_TOKEN is not",
                (None, Some(_)) => "ATOLL_TOKEN is set, and ATOLL_URL is not",
                (None, None) => "no server is known: set ATOLL_URL and ATOLL_TOKEN, or use `atoll login`",
            };
            return Err(Failure::Usage(missing.to_owned()).into());
        };
        // A token that was kept belongs to the server that it was kept for, and is shown to no other.
        if let Some(url) = &self.url
            && url.trim_end_matches('/') != stored.url
        {
            let message = format!("the token that is kept is for {}: give one for {url} with --token", stored.url);
            return Err(Failure::Usage(message).into());
        }
        let token = self.token.clone().unwrap_or(stored.token);
        Ok(Profile { url: stored.url, token, ca: self.ca.clone().or(stored.ca) })
    }

    /// Tries the server and keeps it as the profile.
    ///
    /// # Errors
    /// When the server cannot be reached or refuses the token.
    pub(crate) async fn log_in(&self) -> anyhow::Result<()> {
        let mut profile = self.profile()?;
        let client = profile.client()?;
        client.get("/sites").await?;
        let path = profile_path()?;
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder).with_context(|| format!("cannot make the folder {}", folder.display()))?;
        }
        profile.url = client.url();
        // The profile is used from other folders too.
        profile.ca = profile.ca.map(std::path::absolute).transpose().context("the path of the CA")?;
        crate::files::write_private(&path, toml::to_string(&profile)?.as_bytes())?;
        eprintln!("logged in to {}; kept in {}", profile.url, path.display());
        Ok(())
    }
}

impl Profile {
    fn client(&self) -> anyhow::Result<Client> {
        match &self.ca {
            Some(ca) => Client::trusting(Trust::File(ca), &self.url, &self.token),
            None => Client::new(&self.url, &self.token),
        }
    }
}

fn read_profile() -> anyhow::Result<Option<Profile>> {
    let path = profile_path()?;
    match std::fs::read_to_string(&path) {
        Ok(text) => {
            let profile = toml::from_str(&text)
                .with_context(|| format!("{} is damaged; use `atoll login` again", path.display()))?;
            Ok(Some(profile))
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
    }
}

fn profile_path() -> anyhow::Result<PathBuf> {
    let configuration = match std::env::var_os("XDG_CONFIG_HOME") {
        Some(folder) if !folder.is_empty() => PathBuf::from(folder),
        Some(_) | None => {
            PathBuf::from(std::env::var_os("HOME").context("there is no HOME to keep a profile in")?).join(".config")
        }
    };
    Ok(configuration.join("atoll").join("profile.toml"))
}
