//! Which server a command speaks to: flags, then the environment, then the profile that `atoll login` wrote.

use std::path::PathBuf;

use anyhow::Context as _;
use clap::Args;
use serde::{Deserialize, Serialize};

use crate::client::Client;
use crate::failure::Failure;

#[derive(Debug, Clone, Default, Args)]
pub(crate) struct Connection {
    /// The server's URL.
    #[arg(long, global = true, env = "ATOLL_URL", hide_env_values = true)]
    url: Option<String>,
    /// An API token.
    #[arg(long, global = true, env = "ATOLL_TOKEN", hide_env_values = true)]
    token: Option<String>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Profile {
    url: String,
    token: String,
}

impl Connection {
    /// # Errors
    /// When nothing says which server.
    pub(crate) fn client(&self) -> anyhow::Result<Client> {
        let profile = match (&self.url, &self.token) {
            (Some(url), Some(token)) => Profile { url: url.clone(), token: token.clone() },
            (url, token) => {
                let stored = read_profile()?.ok_or_else(|| {
                    Failure::Usage("no server is known: set ATOLL_URL and ATOLL_TOKEN, or use `atoll login`".to_owned())
                })?;
                Profile { url: url.clone().unwrap_or(stored.url), token: token.clone().unwrap_or(stored.token) }
            }
        };
        Client::new(&profile.url, &profile.token)
    }

    /// Tries the server and keeps it as the profile.
    ///
    /// # Errors
    /// When the server cannot be reached or refuses the token.
    pub(crate) async fn log_in(&self) -> anyhow::Result<()> {
        let client = self.client()?;
        client.get("/sites").await?;
        let path = profile_path()?;
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder).with_context(|| format!("cannot make the folder {}", folder.display()))?;
        }
        let profile = Profile { url: client.url().to_owned(), token: client.token().to_owned() };
        crate::files::write_private(&path, toml::to_string(&profile)?.as_bytes())?;
        eprintln!("logged in to {}; kept in {}", profile.url, path.display());
        Ok(())
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
