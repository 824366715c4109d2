//! Where the database is, and as whom to speak with it: `postgres://USER@HOST:PORT/DATABASE?…`, without secrets.

use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use tokio_postgres::Config;
use tokio_postgres::config::{Host, SslMode};

/// A server that does not answer within so long is tried again, rather than waited for.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// Bytes that nobody acknowledges for so long mean that the network is cut.
const SILENCE_MAX: Duration = Duration::from_secs(3);

/// An address that was checked. Holds no secret: the password is in a file.
#[derive(Clone, PartialEq, Eq)]
pub struct Address {
    text: String,
    /// The address without the parameters that only Atoll knows.
    plain: String,
    schema: String,
    authority: Option<PathBuf>,
    password_file: Option<PathBuf>,
    is_encrypted: bool,
}

/// Why a text is no address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct InvalidAddress(String);

impl Address {
    /// The same database with another schema.
    ///
    /// # Errors
    /// When it is no name of one.
    pub fn with_schema(&self, schema: &str) -> Result<Self, InvalidAddress> {
        check_schema(schema)?;
        let (base, query) = self.text.split_once('?').unwrap_or((&self.text, ""));
        let kept = query.split('&').filter(|parameter| !parameter.is_empty() && !parameter.starts_with("schema="));
        let query: Vec<&str> = kept.collect();
        let text = format!("{base}?{}{}schema={schema}", query.join("&"), if query.is_empty() { "" } else { "&" });
        Ok(Self { text, schema: schema.to_owned(), ..self.clone() })
    }

    /// The schema in which everything is kept.
    pub fn schema(&self) -> &str {
        &self.schema
    }

    pub(crate) fn authority(&self) -> Option<&PathBuf> {
        self.authority.as_ref()
    }

    pub(crate) fn password_file(&self) -> Option<&PathBuf> {
        self.password_file.as_ref()
    }

    pub(crate) fn is_encrypted(&self) -> bool {
        self.is_encrypted
    }

    /// Everything but the password.
    pub(crate) fn config(&self) -> Config {
        let mut config = self.plain.parse::<Config>().expect("it was parsed before");
        config.application_name(format!("atoll {}", env!("CARGO_PKG_VERSION")));
        config.ssl_mode(if self.is_encrypted { SslMode::Require } else { SslMode::Disable });
        config.connect_timeout(CONNECT_TIMEOUT).tcp_user_timeout(SILENCE_MAX);
        config
            .keepalives_idle(Duration::from_secs(1))
            .keepalives_interval(Duration::from_secs(1))
            .keepalives_retries(2);
        config
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Address({})", self.text)
    }
}

impl FromStr for Address {
    type Err = InvalidAddress;

    fn from_str(text: &str) -> Result<Self, InvalidAddress> {
        if !text.starts_with("postgres://") && !text.starts_with("postgresql://") {
            return Err(InvalidAddress("it does not begin with postgres://".to_owned()));
        }
        let (base, query) = text.split_once('?').unwrap_or((text, ""));
        let mut address = Self {
            text: text.to_owned(),
            plain: String::new(),
            schema: "atoll".to_owned(),
            authority: None,
            password_file: None,
            is_encrypted: false,
        };
        let mut rest = Vec::new();
        let mut mode = None;
        for parameter in query.split('&').filter(|parameter| !parameter.is_empty()) {
            let (name, value) = parameter.split_once('=').unwrap_or((parameter, ""));
            match name {
                "schema" => value.clone_into(&mut address.schema),
                "sslrootcert" => address.authority = Some(PathBuf::from(value)),
                "password_file" => address.password_file = Some(PathBuf::from(value)),
                "sslmode" => mode = Some(value),
                _ => rest.push(parameter),
            }
        }
        check_schema(&address.schema)?;
        address.plain = if rest.is_empty() { base.to_owned() } else { format!("{base}?{}", rest.join("&")) };
        let config = address.plain.parse::<Config>().map_err(|error| InvalidAddress(with_cause(&error)))?;
        if config.get_password().is_some() {
            return Err(InvalidAddress(
                "a password does not belong here: name its file with password_file=PATH".to_owned(),
            ));
        }
        if config.get_hosts().is_empty() {
            return Err(InvalidAddress("it names no host; for a socket add ?host=/DIRECTORY".to_owned()));
        }
        address.is_encrypted = match mode {
            Some("disable") => false,
            Some("require" | "verify-ca" | "verify-full") => true,
            None => !config.get_hosts().iter().all(is_this_machine),
            Some(other) => {
                return Err(InvalidAddress(format!("sslmode is disable or verify-full, not {other:?}")));
            }
        };
        if address.is_encrypted && address.authority.is_none() {
            let problem = "a connection to another machine is encrypted: name the file of the CA that its certificate is of with sslrootcert=PATH, or say sslmode=disable";
            return Err(InvalidAddress(problem.to_owned()));
        }
        Ok(address)
    }
}

fn with_cause(error: &tokio_postgres::Error) -> String {
    let cause = std::error::Error::source(error).map(|cause| format!(": {cause}")).unwrap_or_default();
    format!("{error}{cause}")
}

fn is_this_machine(host: &Host) -> bool {
    match host {
        Host::Unix(_) => true,
        Host::Tcp(name) => name == "localhost" || name.parse::<IpAddr>().is_ok_and(|address| address.is_loopback()),
    }
}

/// It stands in statements as it is.
fn check_schema(schema: &str) -> Result<(), InvalidAddress> {
    let first = schema.bytes().next().is_some_and(|byte| byte.is_ascii_lowercase() || byte == b'_');
    let rest = schema.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_');
    if first && rest && schema.len() <= 63 && !schema.starts_with("pg_") {
        Ok(())
    } else {
        Err(InvalidAddress(format!("{schema:?} is no name of a schema: up to 63 of a-z, 0-9 and _")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Address, String> {
        text.parse::<Address>().map_err(|error| error.to_string())
    }

    #[test]
    fn what_is_far_away_is_encrypted_and_what_is_here_need_not_be() {
        let near = [
            "postgres://atoll@localhost/atoll",
            "postgres://atoll@127.0.0.1:5433/a",
            "postgres:///a?host=/run/p&user=atoll",
        ];
        for text in near {
            assert!(!parse(text).expect(text).is_encrypted(), "{text}");
        }
        let message = parse("postgres://atoll@db.example.org/atoll").expect_err("no CA is named");
        assert!(message.contains("sslrootcert"), "{message}");
        assert!(parse("postgres://atoll@db/atoll?sslrootcert=/ca.pem").expect("a CA is named").is_encrypted());
        assert!(!parse("postgres://atoll@db/atoll?sslmode=disable").expect("it is asked for").is_encrypted());
        assert!(parse("postgres://atoll@db/atoll?sslmode=prefer").is_err());
    }

    #[test]
    fn secrets_and_wrong_schemas_are_refused() {
        assert!(parse("postgres://atoll:secret@localhost/atoll").expect_err("a secret").contains("password_file"));
        for schema in ["", "Atoll", "a-b", "1a", "pg_temp", "a\"b"] {
            assert!(parse(&format!("postgres://a@localhost/a?schema={schema}")).is_err(), "{schema}");
        }
        let other = parse("postgres://a@localhost/a?schema=one&port=5433").expect("valid").with_schema("two");
        let other = other.expect("valid");
        assert_eq!(
            (other.schema(), other.to_string().as_str()),
            ("two", "postgres://a@localhost/a?port=5433&schema=two")
        );
        assert_eq!(parse(&other.to_string()), Ok(other));
        assert!(parse("mysql://a@localhost/a").is_err());
        assert!(parse("postgres://a@localhost/a?colour=red").expect_err("unknown").contains("colour"));
    }
}
