//! TOML file, then environment, then flags: merged as one table, and then parsed once.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use serde::Deserialize as _;
use toml::{Table, Value};

use super::Config;

/// Prefix of the environment variables that count: `ATOLL_SERVER_AGENT_LISTEN`, `ATOLL_SERVER_TELEMETRY__LOG`, …
const PREFIX: &str = "ATOLL_SERVER_";

/// What was given on the command line; wins over everything else.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Flags {
    pub data_dir: Option<PathBuf>,
    pub listen: Option<SocketAddr>,
    pub agent_listen: Option<SocketAddr>,
    pub store: Option<String>,
    pub bucket: Option<String>,
    pub ready_file: Option<PathBuf>,
    pub plain_http: bool,
    pub tls_certificate: Option<PathBuf>,
    pub tls_key: Option<PathBuf>,
}

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    #[error("cannot read {}", path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    /// The message names line and column.
    #[error("{} is not a configuration:\n{message}", path.display())]
    Parse { path: PathBuf, message: String },
    #[error("the environment or the flags: {0}")]
    Override(String),
}

impl Config {
    /// Reads the file, if there is one, and lays this process's environment variables (`ATOLL_SERVER_…`) and the flags
    /// over it.
    ///
    /// # Errors
    /// When the file cannot be read, or a field in any layer is unknown or of the wrong type.
    pub fn load(file: Option<&Path>, flags: Flags) -> Result<Self, LoadError> {
        let environment = std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.to_string_lossy().into_owned())));
        Self::load_with(file, environment, &flags)
    }

    fn load_with(
        file: Option<&Path>,
        environment: impl IntoIterator<Item = (String, String)>,
        flags: &Flags,
    ) -> Result<Self, LoadError> {
        let mut table = Table::new();
        if let Some(path) = file {
            let text =
                std::fs::read_to_string(path).map_err(|source| LoadError::Read { path: path.to_path_buf(), source })?;
            let parse =
                |error: toml::de::Error| LoadError::Parse { path: path.to_path_buf(), message: error.to_string() };
            // Parsed as a whole first: only here are line and column known.
            toml::from_str::<Self>(&text).map_err(parse)?;
            table = text.parse::<Table>().map_err(parse)?;
        }
        for (name, value) in environment {
            if let Some(field) = name.strip_prefix(PREFIX) {
                set(&mut table, &field.to_ascii_lowercase().replace("__", "."), guess(&value))
                    .map_err(|problem| LoadError::Override(format!("{name}: {problem}")))?;
            }
        }
        for (field, value) in flags.fields() {
            set(&mut table, field, value).map_err(|problem| LoadError::Override(format!("{field}: {problem}")))?;
        }
        Self::deserialize(table).map_err(|error| LoadError::Override(error.message().to_owned()))
    }
}

impl Flags {
    fn fields(&self) -> Vec<(&'static str, Value)> {
        let path = |path: &PathBuf| Value::String(path.display().to_string());
        let address = |address: &SocketAddr| Value::String(address.to_string());
        let fields = [
            ("data_dir", self.data_dir.as_ref().map(path)),
            ("listen", self.listen.as_ref().map(address)),
            ("agent_listen", self.agent_listen.as_ref().map(address)),
            ("store", self.store.clone().map(Value::String)),
            ("bucket", self.bucket.clone().map(Value::String)),
            ("ready_file", self.ready_file.as_ref().map(path)),
            ("tls.certificate", self.tls_certificate.as_ref().map(path)),
            ("tls.key", self.tls_key.as_ref().map(path)),
            ("plain_http", self.plain_http.then_some(Value::Boolean(true))),
        ];
        fields.into_iter().filter_map(|(name, value)| Some((name, value?))).collect()
    }
}

fn set(table: &mut Table, field: &str, value: Value) -> Result<(), String> {
    let Some((section, rest)) = field.split_once('.') else {
        table.insert(field.to_owned(), value);
        return Ok(());
    };
    let entry = table.entry(section).or_insert_with(|| Value::Table(Table::new()));
    let inner = entry.as_table_mut().ok_or_else(|| format!("{section} holds no further fields"))?;
    set(inner, rest, value)
}

/// An environment variable is a text, a number, a truth value, or a list with commas where the text begins with `[`.
fn guess(text: &str) -> Value {
    let literal = || format!("value = {text}").parse::<Table>().ok()?.remove("value");
    match literal() {
        Some(value @ (Value::Integer(_) | Value::Boolean(_) | Value::Array(_))) => value,
        Some(Value::String(_) | Value::Float(_) | Value::Datetime(_) | Value::Table(_)) | None => {
            Value::String(text.to_owned())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(file: &str, environment: &[(&str, &str)], flags: &Flags) -> Result<Config, LoadError> {
        let directory = tempfile::tempdir().expect("a temporary directory can be made");
        let path = directory.path().join("server.toml");
        std::fs::write(&path, file).expect("a file can be written there");
        let environment = environment.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        Config::load_with(Some(&path), environment, flags)
    }

    #[test]
    fn flags_win_over_the_environment_and_that_over_the_file() {
        let file = "listen = '127.0.0.1:1'\nagent_listen = '127.0.0.1:1'\nstore = 'redb'\n[leases]\nheartbeat_ms = 7\n";
        let environment =
            [("ATOLL_SERVER_LISTEN", "127.0.0.1:2"), ("ATOLL_SERVER_LEASES__SESSION_MS", "50"), ("PATH", "/bin")];
        let flags = Flags { listen: Some("127.0.0.1:3".parse().expect("an address")), ..Flags::default() };
        let config = load(file, &environment, &flags).expect("it is valid");
        assert_eq!(config.listen.port(), 3);
        assert_eq!(config.agent_listen.port(), 1);
        assert_eq!(config.store, super::super::Store::Redb);
        assert_eq!((config.leases.heartbeat_ms, config.leases.session_ms), (7, 50));
    }

    #[test]
    fn an_unknown_field_is_refused_in_every_layer() {
        let message = load("listne = 'x'\n", &[], &Flags::default()).expect_err("no such field").to_string();
        assert!(message.contains("line 1") && message.contains("listne"), "{message}");
        let message = load("", &[("ATOLL_SERVER_LEASES__HEARTBAET_MS", "7")], &Flags::default())
            .expect_err("no such field")
            .to_string();
        assert!(message.contains("heartbaet_ms"), "{message}");
        let flags = Flags { store: Some("oracle".to_owned()), ..Flags::default() };
        let message = load("", &[], &flags).expect_err("no such store").to_string();
        assert!(message.contains("oracle"), "{message}");
    }

    #[test]
    fn a_file_that_is_not_there_is_named() {
        let error = Config::load_with(Some(Path::new("/nonexistent/server.toml")), [], &Flags::default());
        assert!(error.expect_err("it is not there").to_string().contains("/nonexistent/server.toml"));
    }
}
