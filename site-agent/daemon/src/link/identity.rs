//! Who this agent is, as its data directory holds it: the identity key, which never leaves and never changes, and beside it
//! one file with everything that changes together at a renewal.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use atoll_model::id::{AgentId, SiteName, TokenId};
use atoll_model::limits::CERTIFICATE_BACKDATE;
use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair as _};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

/// An agent that has joined.
#[derive(Clone)]
pub struct Identity {
    pub agent: AgentId,
    pub site: SiteName,
    /// Where the control plane is: `https://host:port`.
    pub url: String,
    /// The join token that this identity came of.
    pub token: TokenId,
    pub join_counter: u64,
    /// PKCS#8.
    pub(super) tls_key: Zeroizing<Vec<u8>>,
    pub(super) chain: Vec<CertificateDer<'static>>,
    pub(super) ca_bundle: Vec<CertificateDer<'static>>,
    /// When the certificate came, by the clock of this machine.
    pub(super) issued_at: SystemTime,
    pub(super) lifetime: Duration,
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut debug = formatter.debug_struct("Identity");
        debug.field("agent", &self.agent).field("site", &self.site).field("url", &self.url).finish_non_exhaustive()
    }
}

#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    #[error("cannot read or write {}", path.display())]
    File {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{} is damaged: {problem}; revoke the site and let it join again", path.display())]
    Damaged { path: PathBuf, problem: String },
    #[error("a key cannot be made")]
    Key,
    #[error("no agent has joined with {}: run `atoll agent join` first", .0.display())]
    NotJoined(PathBuf),
}

#[derive(Serialize, Deserialize)]
struct Stored {
    agent: String,
    site: String,
    url: String,
    token: String,
    join_counter: u64,
    tls_key: Zeroizing<String>,
    chain: Vec<String>,
    ca_bundle: Vec<String>,
    issued_at_micros: u64,
    lifetime_micros: u64,
}

impl Identity {
    /// Certificate chain, key, and the certificates by which others are known.
    pub(crate) fn tls_parts(
        &self,
    ) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>, Vec<CertificateDer<'static>>) {
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(self.tls_key.to_vec()));
        (self.chain.clone(), key, self.ca_bundle.clone())
    }

    /// # Errors
    /// When no agent has joined with this directory, or what it holds is damaged.
    pub fn load(directory: &Path) -> Result<Self, IdentityError> {
        let path = directory.join("identity.json");
        let content = match std::fs::read(&path) {
            Ok(content) => Zeroizing::new(content),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(IdentityError::NotJoined(directory.to_owned()));
            }
            Err(source) => return Err(IdentityError::File { path, source }),
        };
        let damaged = |problem: String| IdentityError::Damaged { path: path.clone(), problem };
        let stored: Stored = serde_json::from_slice(&content).map_err(|error| damaged(error.to_string()))?;
        stored.read().map_err(damaged)
    }

    /// Replaces what the directory holds, as a whole, and durably.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn store(&self, directory: &Path) -> Result<(), IdentityError> {
        let path = directory.join("identity.json");
        let file_error = |source| IdentityError::File { path: path.clone(), source };
        let encode =
            |certificates: &[CertificateDer<'_>]| certificates.iter().map(|der| STANDARD.encode(der)).collect();
        let stored = Stored {
            agent: self.agent.to_string(),
            site: self.site.to_string(),
            url: self.url.clone(),
            token: self.token.to_string(),
            join_counter: self.join_counter,
            tls_key: Zeroizing::new(STANDARD.encode(&*self.tls_key)),
            chain: encode(&self.chain),
            ca_bundle: encode(&self.ca_bundle),
            issued_at_micros: micros(self.issued_at.duration_since(UNIX_EPOCH).unwrap_or_default()),
            lifetime_micros: micros(self.lifetime),
        };
        let content = serde_json::to_vec_pretty(&stored).map(Zeroizing::new).map_err(io::Error::other);
        content.and_then(|content| write_whole(&path, &content)).map_err(file_error)
    }

    /// What the life of a certificate is here does not depend on whether this machine's clock agrees with the server's.
    pub(super) fn lifetime_of(not_before: i64, not_after: i64) -> Duration {
        let whole = Duration::from_micros(u64::try_from(not_after.saturating_sub(not_before)).unwrap_or(0));
        whole.saturating_sub(CERTIFICATE_BACKDATE)
    }

    /// When to renew, at half of the certificate's life, give or take a tenth; `random` is anywhere in 0..1.
    pub(super) fn renew_at(&self, random: f64) -> SystemTime {
        self.issued_at + self.lifetime.mul_f64(0.4 + random / 5.0)
    }

    /// By the clock of this machine.
    pub(crate) fn expires_at(&self) -> SystemTime {
        self.issued_at + self.lifetime
    }

    pub(crate) fn is_expired(&self, now: SystemTime) -> bool {
        now >= self.expires_at()
    }
}

impl Stored {
    fn read(self) -> Result<Identity, String> {
        let decode = |text: &str| STANDARD.decode(text).map_err(|error| error.to_string());
        let certificates = |texts: &[String]| {
            texts.iter().map(|text| decode(text).map(CertificateDer::from)).collect::<Result<Vec<_>, _>>()
        };
        Ok(Identity {
            agent: self.agent.parse().map_err(|error| format!("{error}"))?,
            site: self.site.parse().map_err(|error| format!("{error}"))?,
            url: self.url,
            token: self.token.parse().map_err(|error| format!("{error}"))?,
            join_counter: self.join_counter,
            tls_key: Zeroizing::new(decode(&self.tls_key)?),
            chain: certificates(&self.chain)?,
            ca_bundle: certificates(&self.ca_bundle)?,
            issued_at: UNIX_EPOCH + Duration::from_micros(self.issued_at_micros),
            lifetime: Duration::from_micros(self.lifetime_micros),
        })
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

/// The bound key of an agent. It is made once, before anything is sent, and only ever signs.
pub(crate) struct IdentityKey(Ed25519KeyPair);

impl std::fmt::Debug for IdentityKey {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("IdentityKey").finish_non_exhaustive()
    }
}

impl IdentityKey {
    /// A key that is kept nowhere.
    ///
    /// # Errors
    /// When it cannot be made.
    pub(super) fn make() -> Result<Self, IdentityError> {
        Ed25519KeyPair::generate().map(Self).map_err(|_| IdentityError::Key)
    }

    /// # Errors
    /// When it cannot be read or is damaged.
    pub(super) fn load(directory: &Path) -> Result<Self, IdentityError> {
        let path = directory.join("identity.key");
        let content = std::fs::read(&path)
            .map(Zeroizing::new)
            .map_err(|source| IdentityError::File { path: path.clone(), source })?;
        let key = Ed25519KeyPair::from_pkcs8(&content);
        key.map(Self).map_err(|error| IdentityError::Damaged { path, problem: error.to_string() })
    }

    /// Finds the key of this directory, or makes one.
    ///
    /// # Errors
    /// When it cannot be read or written.
    pub(super) fn find_or_make(directory: &Path) -> Result<Self, IdentityError> {
        let path = directory.join("identity.key");
        if path.exists() {
            return Self::load(directory);
        }
        let key = Ed25519KeyPair::generate_pkcs8(&aws_lc_rs::rand::SystemRandom::new());
        let key = key.map_err(|_| IdentityError::Key)?;
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(directory)
            .and_then(|()| write_whole(&path, key.as_ref()))
            .map_err(|source| IdentityError::File { path, source })?;
        Self::load(directory)
    }

    pub(super) fn public_key(&self) -> &[u8] {
        self.0.public_key().as_ref()
    }

    pub(super) fn sign(&self, statement: &[u8]) -> Vec<u8> {
        self.0.sign(statement).as_ref().to_vec()
    }
}

/// Writes a file that only its owner may read: none or a whole one, durable with its name.
fn write_whole(path: &Path, content: &[u8]) -> io::Result<()> {
    let parent = path.parent().ok_or(io::ErrorKind::InvalidInput)?;
    let unfinished = path.with_extension("new");
    match std::fs::remove_file(&unfinished) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&unfinished)?;
    file.write_all(content)?;
    file.sync_all()?;
    std::fs::rename(&unfinished, path)?;
    File::open(parent)?.sync_all()
}
