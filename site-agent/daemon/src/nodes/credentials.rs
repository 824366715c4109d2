//! What the agent and its workers know each other by: a CA of the site's own, made when it is first wanted, a certificate for
//! the agent, and one for all workers, which with its key is what a worker's token holds.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::version::TLS13;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use serde::{Deserialize, Serialize};

use crate::shim::make_private;

/// The name in the certificate of the agent.
pub(super) const AGENT_NAME: &str = "agent.atoll";
/// The name in the certificate of the workers.
const WORKER_NAME: &str = "worker.atoll";
/// What every token of a worker begins with.
const TOKEN_PREFIX: &str = "atollw1.";
/// In the folder of the workers: what the agent has for itself, and the token for workers.
const OWN: &str = "agent.json";
const TOKEN: &str = "token";
const SITE: &str = "site";

/// A certificate of the site's CA, its key, and that CA.
#[derive(Clone, Serialize, Deserialize)]
struct Pass {
    authority: Vec<u8>,
    certificate: Vec<u8>,
    key: Vec<u8>,
}

/// What a worker needs to know to join.
#[derive(Serialize, Deserialize)]
pub(crate) struct Token {
    /// Where the agent listens: `host:port`.
    pub(super) addresses: Vec<String>,
    /// What a file in the agent's data directory says.
    site: String,
    /// The data directory and the folder of the slots, which a worker has to see at the same paths.
    folders: [PathBuf; 2],
    pass: Pass,
}

/// What the agent keeps.
#[derive(Serialize, Deserialize)]
struct Own {
    site: String,
    agent: Pass,
    workers: Pass,
}

/// A token or the agent's own part of it is of no use.
#[derive(Debug, thiserror::Error)]
pub enum CredentialError {
    #[error("cannot read or write {path}", path = .path.display())]
    File { path: PathBuf, source: io::Error },
    #[error("{path} is damaged: remove it, start the agent anew, and the workers with it", path = .path.display())]
    Damaged { path: PathBuf, source: serde_json::Error },
    #[error("this is no token of a worker: it begins with {TOKEN_PREFIX}, and `atoll site worker-token` prints it")]
    NoToken,
    #[error("{path} is not there: it comes with the first start of an agent that says where workers reach it, `[workers] listen`", path = .path.display())]
    NeverListened { path: PathBuf },
    #[error("{folder} on this machine is not that of the agent: it must be in a file system that all machines of the site share, at the same path", folder = .folder.display())]
    NotShared { folder: PathBuf },
    #[error("no certificate can be made")]
    Make(#[from] rcgen::Error),
    #[error("a certificate cannot be used")]
    Unusable(#[from] rustls::Error),
}

/// The folder of everything that has to do with workers.
pub(super) fn folder(data_dir: &Path) -> PathBuf {
    data_dir.join("workers")
}

/// The agent's half: what it shows, and what it believes.
pub(super) struct AgentCredentials {
    own: Own,
    folder: PathBuf,
}

impl AgentCredentials {
    /// Reads what there is, or makes it.
    pub(super) fn open(data_dir: &Path) -> Result<Self, CredentialError> {
        let folder = folder(data_dir);
        let file = |path: &Path| {
            let path = path.to_owned();
            move |source| CredentialError::File { path, source }
        };
        make_private(&folder).map_err(file(&folder))?;
        let path = folder.join(OWN);
        let own = match fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes).map_err(|source| CredentialError::Damaged { path, source })?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let own = make()?;
                write(&path, &encoded(&own)).map_err(file(&path))?;
                own
            }
            Err(source) => return Err(CredentialError::File { path, source }),
        };
        Ok(Self { own, folder })
    }

    /// Says to workers where the agent is to be reached.
    pub(super) fn write_token(&self, addresses: Vec<String>, folders: [PathBuf; 2]) -> Result<(), CredentialError> {
        let token = Token { addresses, site: self.own.site.clone(), folders, pass: self.own.workers.clone() };
        let path = self.folder.join(SITE);
        write(&path, self.own.site.as_bytes()).map_err(|source| CredentialError::File { path, source })?;
        let path = self.folder.join(TOKEN);
        let text = format!("{TOKEN_PREFIX}{}\n", URL_SAFE_NO_PAD.encode(encoded(&token)));
        write(&path, text.as_bytes()).map_err(|source| CredentialError::File { path, source })
    }

    pub(super) fn tls(&self) -> Result<Arc<ServerConfig>, CredentialError> {
        let provider = provider();
        let roots = Arc::new(roots(&self.own.agent)?);
        let verifier = WebPkiClientVerifier::builder_with_provider(roots, Arc::clone(&provider))
            .build()
            .map_err(|error| rustls::Error::General(error.to_string()))?;
        let (chain, key) = shown(&self.own.agent);
        let config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&TLS13])?
            .with_client_cert_verifier(verifier)
            .with_single_cert(chain, key)?;
        Ok(Arc::new(config))
    }
}

impl Token {
    /// Reads the token that the agent leaves in its data directory.
    ///
    /// # Errors
    /// When there is none.
    pub(crate) fn in_data_dir(data_dir: &Path) -> Result<String, CredentialError> {
        let path = folder(data_dir).join(TOKEN);
        match fs::read_to_string(&path) {
            Ok(text) => Ok(text.trim().to_owned()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Err(CredentialError::NeverListened { path }),
            Err(source) => Err(CredentialError::File { path, source }),
        }
    }

    /// # Errors
    /// When the text is no token.
    pub(crate) fn parse(text: &str) -> Result<Self, CredentialError> {
        let encoded = text.trim().strip_prefix(TOKEN_PREFIX).ok_or(CredentialError::NoToken)?;
        let bytes = URL_SAFE_NO_PAD.decode(encoded).map_err(|_| CredentialError::NoToken)?;
        serde_json::from_slice(&bytes).map_err(|_| CredentialError::NoToken)
    }

    /// The data directory of the site.
    pub(super) fn data_dir(&self) -> &Path {
        &self.folders[0]
    }

    /// Whether this machine has the folders of the site.
    ///
    /// # Errors
    /// When it has not.
    pub(super) fn check_folders(&self) -> Result<(), CredentialError> {
        let site = fs::read_to_string(folder(self.data_dir()).join(SITE));
        let is_same = site.is_ok_and(|site| site == self.site);
        match self.folders.iter().find(|folder| !is_same || !folder.is_dir()) {
            Some(folder) => Err(CredentialError::NotShared { folder: folder.clone() }),
            None => Ok(()),
        }
    }

    pub(super) fn tls(&self) -> Result<Arc<ClientConfig>, CredentialError> {
        let (chain, key) = shown(&self.pass);
        let config = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&TLS13])?
            .with_root_certificates(Arc::new(roots(&self.pass)?))
            .with_client_auth_cert(chain, key)?;
        Ok(Arc::new(config))
    }
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

fn roots(pass: &Pass) -> Result<RootCertStore, rustls::Error> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from(pass.authority.clone()))?;
    Ok(roots)
}

fn shown(pass: &Pass) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(pass.key.clone()));
    (vec![CertificateDer::from(pass.certificate.clone())], key)
}

/// The key of the CA is kept by nobody: it signs twice.
fn make() -> Result<Own, CredentialError> {
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::new(Vec::new())?;
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let authority = params.self_signed(&key)?.der().to_vec();
    let issuer = Issuer::new(params, key);
    let pass = |name: &str, usage| {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::new(vec![name.to_owned()])?;
        params.extended_key_usages = vec![usage];
        let certificate = params.signed_by(&key, &issuer)?.der().to_vec();
        Ok::<_, rcgen::Error>(Pass { authority: authority.clone(), certificate, key: key.serialize_der() })
    };
    Ok(Own {
        site: uuid::Uuid::new_v4().to_string(),
        agent: pass(AGENT_NAME, ExtendedKeyUsagePurpose::ServerAuth)?,
        workers: pass(WORKER_NAME, ExtendedKeyUsagePurpose::ClientAuth)?,
    })
}

fn encoded(what: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(what).expect("it holds nothing that JSON has not")
}

/// For this user only, and whole.
fn write(path: &Path, content: &[u8]) -> io::Result<()> {
    use std::io::Write as _;
    use std::os::unix::fs::OpenOptionsExt as _;
    let next = path.with_extension("next");
    let mut file = fs::OpenOptions::new().create(true).write(true).truncate(true).mode(0o600).open(&next)?;
    file.write_all(content)?;
    file.sync_all()?;
    fs::rename(&next, path)
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test that fails here has failed")]

    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_token_is_for_its_user_alone_and_stays_good_when_the_agent_starts_again() {
        let folder = tempfile::tempdir().unwrap();
        assert!(matches!(Token::in_data_dir(folder.path()), Err(CredentialError::NeverListened { .. })));
        let first = AgentCredentials::open(folder.path()).unwrap();
        let folders = || [folder.path().to_owned(), folder.path().join("slots")];
        first.write_token(vec!["login:7434".to_owned()], folders()).unwrap();
        let text = Token::in_data_dir(folder.path()).unwrap();
        let again = AgentCredentials::open(folder.path()).unwrap();
        let token = Token::parse(&text).unwrap();
        assert_eq!((&token.site, token.addresses.as_slice()), (&again.own.site, &["login:7434".to_owned()][..]));
        assert_eq!(token.pass.authority, again.own.agent.authority);
        assert!(again.tls().is_ok() && token.tls().is_ok());
        for name in [OWN, TOKEN] {
            let mode = fs::metadata(folder.path().join("workers").join(name)).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600);
        }
    }

    #[test]
    fn a_machine_that_does_not_share_the_folders_is_told_which() {
        let (own, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let agent = AgentCredentials::open(own.path()).unwrap();
        let token = |folders: [&Path; 2]| {
            agent.write_token(Vec::new(), folders.map(Path::to_owned)).unwrap();
            Token::parse(&Token::in_data_dir(own.path()).unwrap()).unwrap()
        };
        assert!(token([own.path(), own.path()]).check_folders().is_ok());
        for folders in [[other.path(), own.path()], [own.path(), Path::new("/nowhere")]] {
            let error = token(folders).check_folders().unwrap_err().to_string();
            assert!(error.contains("share"), "{error}");
        }
    }

    #[test]
    fn what_is_no_token_is_told_what_one_is() {
        for text in ["", "atoll1.abc", "atollw1.%", "atollw1.e30"] {
            let error = Token::parse(text).err().unwrap();
            assert!(error.to_string().contains("atoll site worker-token"), "{error}");
        }
    }
}
