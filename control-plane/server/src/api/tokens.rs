//! API tokens: `atoll.<secret>.<pin>`, where the pin is the SHA-256 of the CA's public key, so that a client trusts this
//! server and no other. Only hashes are kept beside the first token, which its file hands to whoever owns the machine.

use std::fmt;
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::rand;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};
use subtle::ConstantTimeEq as _;

use crate::driver::wall_clock;

const HASHES: &str = "api-tokens.json";
const FIRST: &str = "admin-token";
const ADMIN: &str = "admin";

/// The tokens that are accepted, and the first of them.
pub(crate) struct ApiTokens {
    known: Vec<KnownToken>,
    first: String,
}

#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct KnownToken {
    /// Whom the audit log names.
    name: String,
    /// SHA-256 of the secret, in base 64.
    hash: String,
    scopes: Vec<Scope>,
    created_at: String,
}

/// What a token allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Scope {
    /// Everything.
    Admin,
}

/// Whose token a request came with.
#[derive(Debug, Clone)]
pub(crate) struct Person {
    pub(crate) name: String,
    pub(crate) scopes: Vec<Scope>,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum TokensError {
    #[error("cannot read or write {}", path.display())]
    File {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{} is damaged; remove it to have a new admin token made", path.display())]
    Damaged { path: PathBuf },
    #[error("the system has no randomness")]
    Random,
}

impl ApiTokens {
    /// Reads the tokens; makes the admin's if its file is not there, which voids the one before. The pin is the SHA-256 of
    /// the public key of the CA that the API's certificate comes from.
    pub(crate) fn open(directory: &Path, ca_pin: &[u8; 32]) -> Result<Self, TokensError> {
        let hashes = directory.join(HASHES);
        let first = directory.join(FIRST);
        let mut known: Vec<KnownToken> = match read(&hashes)? {
            Some(text) => serde_json::from_str(&text).map_err(|_| TokensError::Damaged { path: hashes.clone() })?,
            None => Vec::new(),
        };
        let pin = URL_SAFE_NO_PAD.encode(ca_pin);
        if let Some(text) = read(&first)?
            && let Some(secret) = secret_of(text.trim())
            && find(&known, secret).is_some()
        {
            let token = format!("atoll.{}.{pin}", URL_SAFE_NO_PAD.encode(secret));
            if token != text.trim() {
                // The server's certificate has another issuer than before; the secret counts on.
                write_private(&first, format!("{token}\n").as_bytes())?;
            }
            return Ok(Self { known, first: token });
        }
        let mut secret = [0; 32];
        rand::fill(&mut secret).map_err(|_| TokensError::Random)?;
        let token = format!("atoll.{}.{pin}", URL_SAFE_NO_PAD.encode(secret));
        known.retain(|known| known.name != ADMIN);
        known.push(KnownToken {
            name: ADMIN.to_owned(),
            hash: hash(&secret),
            scopes: vec![Scope::Admin],
            created_at: wall_clock().to_string(),
        });
        let text = serde_json::to_vec_pretty(&known).expect("texts can be encoded");
        write_private(&hashes, &text)?;
        write_private(&first, format!("{token}\n").as_bytes())?;
        tracing::info!(path = %first.display(), "made an admin token");
        Ok(Self { known, first: token })
    }

    /// The admin's token, for the ready file.
    pub(crate) fn first(&self) -> &str {
        &self.first
    }

    /// Whose token this is.
    pub(crate) fn person(&self, token: &str) -> Option<Person> {
        let found = find(&self.known, secret_of(token)?)?;
        Some(Person { name: found.name.clone(), scopes: found.scopes.clone() })
    }
}

/// Compares with every token, in the same time wherever it stands.
fn find(known: &[KnownToken], secret: [u8; 32]) -> Option<&KnownToken> {
    let hash = hash(&secret);
    known.iter().fold(
        None,
        |found, token| {
            if bool::from(token.hash.as_bytes().ct_eq(hash.as_bytes())) { Some(token) } else { found }
        },
    )
}

fn secret_of(token: &str) -> Option<[u8; 32]> {
    let (secret, _) = token.strip_prefix("atoll.")?.split_once('.')?;
    URL_SAFE_NO_PAD.decode(secret).ok()?.try_into().ok()
}

fn hash(secret: &[u8; 32]) -> String {
    URL_SAFE_NO_PAD.encode(digest(&SHA256, secret))
}

fn read(path: &Path) -> Result<Option<String>, TokensError> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(TokensError::File { path: path.to_path_buf(), source }),
    }
}

fn write_private(path: &Path, content: &[u8]) -> Result<(), TokensError> {
    write_atomically(path, content).map_err(|source| TokensError::File { path: path.to_path_buf(), source })
}

/// Writes a file that only its owner may read, whole or not at all.
pub(crate) fn write_atomically(path: &Path, content: &[u8]) -> io::Result<()> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".part");
    let part = path.with_file_name(name);
    match std::fs::remove_file(&part) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&part)?;
    file.write_all(content)?;
    file.sync_all()?;
    std::fs::rename(&part, path)?;
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    std::fs::File::open(directory)?.sync_all()
}

/// Never shows a token.
impl fmt::Debug for ApiTokens {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<&str> = self.known.iter().map(|token| token.name.as_str()).collect();
        formatter.debug_struct("ApiTokens").field("names", &names).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    const PIN: [u8; 32] = [7; 32];

    #[test]
    fn the_first_token_is_kept_and_only_its_hash_is_compared() {
        let directory = tempfile::tempdir().expect("a temporary directory can be made");
        let tokens = ApiTokens::open(directory.path(), &PIN).expect("it can be made");
        let token = tokens.first().to_owned();
        assert!(token.starts_with("atoll.") && token.ends_with(&URL_SAFE_NO_PAD.encode(PIN)));
        assert_eq!(tokens.person(&token).expect("it is known").name, ADMIN);
        let again = ApiTokens::open(directory.path(), &PIN).expect("it is there");
        assert_eq!(again.first(), token);
        let hashes = std::fs::read_to_string(directory.path().join(HASHES)).expect("it is there");
        let secret = token.split('.').nth(1).expect("a secret");
        assert!(!hashes.contains(secret));
        for file in [HASHES, FIRST] {
            let mode = std::fs::metadata(directory.path().join(file)).expect("it is there").permissions().mode();
            assert_eq!(mode & 0o777, 0o600, "{file}");
        }
        assert!(!format!("{tokens:?}").contains(secret));
    }

    #[test]
    fn removing_the_file_of_the_first_token_voids_it() {
        let directory = tempfile::tempdir().expect("a temporary directory can be made");
        let old = ApiTokens::open(directory.path(), &PIN).expect("it can be made").first().to_owned();
        std::fs::remove_file(directory.path().join(FIRST)).expect("it is there");
        let tokens = ApiTokens::open(directory.path(), &PIN).expect("it can be made");
        assert_ne!(tokens.first(), old);
        assert!(tokens.person(&old).is_none());
        assert!(tokens.person(tokens.first()).is_some());
    }

    #[test]
    fn a_token_keeps_its_secret_when_the_server_has_another_ca() {
        let directory = tempfile::tempdir().expect("a temporary directory can be made");
        let old = ApiTokens::open(directory.path(), &PIN).expect("it can be made").first().to_owned();
        let tokens = ApiTokens::open(directory.path(), &[8; 32]).expect("it is there");
        assert_ne!(tokens.first(), old);
        assert_eq!(secret_of(tokens.first()), secret_of(&old));
        assert!(tokens.person(&old).is_some());
    }

    #[test]
    fn what_is_no_token_is_nobodys() {
        let directory = tempfile::tempdir().expect("a temporary directory can be made");
        let tokens = ApiTokens::open(directory.path(), &PIN).expect("it can be made");
        let secret = URL_SAFE_NO_PAD.encode([1; 32]);
        for text in [
            "",
            "atoll",
            "atoll..",
            &format!("atoll.{secret}.x"),
            &format!("other.{secret}.x"),
            tokens.first().trim_end_matches(|c| c != '.').trim_start_matches("atoll."),
        ] {
            assert!(tokens.person(text).is_none(), "{text}");
        }
    }
}
