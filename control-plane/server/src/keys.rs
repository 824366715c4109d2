//! Keys of projects: made here, and kept in the journal wrapped by the installation's own, the master key, which is in a
//! file that only this server reads. Without that file nothing that is encrypted in the bucket can be read again.

use std::collections::BTreeMap;
use std::fmt;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use control_plane_core::{BucketCopy, Encryption, KeyId, Rejection, Request, Response, WrappedKey};
use storage_sync_engine::bucket::{self, Stored};
use storage_sync_engine::encryption::ProjectKey;
use zeroize::Zeroizing;

use crate::config::Config;
use crate::driver::Handle;
use crate::identity::{key_file, sha256};

const KEY_BYTES: usize = 32;
/// Tells master keys apart, and nothing of what they are.
const ID_BYTES: usize = 8;
const FORMAT: u8 = 1;

/// Why the keys of an installation cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum KeyError {
    #[error("{} is not 32 bytes long; a master key is made with: head -c 32 /dev/urandom", .0.display())]
    Length(PathBuf),
    #[error("{} can be read by everybody on this machine: chmod 600 it, and change the key", .0.display())]
    Open(PathBuf),
    #[error("the master key {} cannot be read or written", path.display())]
    File {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error(
        "{key} is wrapped by the master key {wrapped_by}, and {} is {ours}: put the right file there, or name it in \
         retired_master_key_file", path.display()
    )]
    OtherMaster { key: KeyId, wrapped_by: String, ours: String, path: PathBuf },
    #[error("{0} is damaged in the journal")]
    Damaged(KeyId),
    #[error("a new key cannot be kept")]
    Kept(#[source] Rejection),
}

/// Wraps the keys of projects. Shows nothing of itself.
struct MasterKey {
    path: PathBuf,
    id: [u8; ID_BYTES],
    key: LessSafeKey,
}

/// Cheap to clone.
#[derive(Clone)]
pub(crate) struct Keys(Arc<Parts>);

struct Parts {
    master: MasterKey,
    /// What was wrapped by it is wrapped anew.
    retired: Option<MasterKey>,
    opened: Mutex<BTreeMap<KeyId, ProjectKey>>,
}

impl fmt::Debug for Keys {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Keys").field("master", &self.0.master.path).finish_non_exhaustive()
    }
}

impl MasterKey {
    /// Reads the key that an operator has put somewhere.
    fn read(path: &Path) -> Result<Self, KeyError> {
        let failed = |source| KeyError::File { path: path.to_owned(), source };
        let mode = std::fs::metadata(path).map_err(failed)?.permissions().mode();
        if mode & 0o007 != 0 {
            return Err(KeyError::Open(path.to_owned()));
        }
        let bytes = Zeroizing::new(std::fs::read(path).map_err(failed)?);
        let secret = <&[u8; KEY_BYTES]>::try_from(&bytes[..]).map_err(|_| KeyError::Length(path.to_owned()))?;
        let named: Vec<u8> = b"atoll master key".iter().chain(secret).copied().collect();
        let digest = sha256(&Zeroizing::new(named));
        let id = *digest.first_chunk().expect("a digest is longer than an id");
        let key = UnboundKey::new(&AES_256_GCM, secret).expect("the key has the length of one");
        Ok(Self { path: path.to_owned(), id, key: LessSafeKey::new(key) })
    }

    /// Reads the one in the data directory; makes it at the first start.
    fn open(path: &Path) -> Result<Self, KeyError> {
        if !path.exists() {
            let mut secret = Zeroizing::new([0; KEY_BYTES]);
            let failed = |source| KeyError::File { path: path.to_owned(), source };
            aws_lc_rs::rand::fill(&mut *secret)
                .map_err(|_| failed(std::io::Error::other("the system has no randomness")))?;
            key_file::write(path, &*secret, 0o600).map_err(failed)?;
        }
        Self::read(path)
    }

    fn wrap(&self, id: &KeyId, key: &ProjectKey) -> WrappedKey {
        let mut nonce = [0; NONCE_LEN];
        aws_lc_rs::rand::fill(&mut nonce).expect("the system gives random bytes");
        let mut wrapped = Zeroizing::new(key.secret().to_vec());
        let sealed = self.key.seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), about(id), &mut *wrapped);
        sealed.expect("a key can be sealed");
        let whole: Vec<u8> = [&[FORMAT], &self.id[..], &nonce, &wrapped].concat();
        WrappedKey::new(&whole)
    }

    /// Nothing if it was wrapped by another key.
    fn unwrap(&self, id: &KeyId, wrapped: &WrappedKey) -> Result<Option<ProjectKey>, KeyError> {
        let damaged = || KeyError::Damaged(id.clone());
        let (wrapped_by, rest) = split(wrapped).ok_or_else(damaged)?;
        if *wrapped_by != self.id {
            return Ok(None);
        }
        let (nonce, sealed) = rest.split_first_chunk::<NONCE_LEN>().ok_or_else(damaged)?;
        let mut sealed = Zeroizing::new(sealed.to_vec());
        let nonce = Nonce::assume_unique_for_key(*nonce);
        let opened = self.key.open_in_place(nonce, about(id), &mut sealed).map_err(|_| damaged())?;
        ProjectKey::try_from(&*opened).map(Some).map_err(|_| damaged())
    }
}

/// What a wrapped key is bound to: in another's place it does not open.
fn about(id: &KeyId) -> Aad<Vec<u8>> {
    Aad::from([id.project.as_bytes(), &[0], &id.number.to_le_bytes()].concat())
}

/// By which master key it was wrapped, and the rest.
fn split(wrapped: &WrappedKey) -> Option<(&[u8; ID_BYTES], &[u8])> {
    let (format, rest) = wrapped.bytes().split_first()?;
    rest.split_first_chunk().filter(|_| *format == FORMAT)
}

fn hex(id: [u8; ID_BYTES]) -> String {
    id.iter().map(|byte| format!("{byte:02x}")).collect()
}

impl Keys {
    /// Reads the master key that the configuration names, or the one in the data directory, which it makes if there is
    /// none.
    pub(crate) fn open(config: &Config) -> Result<Self, KeyError> {
        let master = match &config.master_key_file {
            Some(path) => MasterKey::read(path)?,
            None => MasterKey::open(&config.data_dir.join("master.key"))?,
        };
        let retired = config.retired_master_key_file.as_deref().map(MasterKey::read).transpose()?;
        Ok(Self(Arc::new(Parts { master, retired, opened: Mutex::default() })))
    }

    /// Whether every key in the journal can be opened.
    ///
    /// # Errors
    /// The first that cannot.
    pub(crate) async fn check(&self, handle: &Handle) -> anyhow::Result<()> {
        for (key, wrapped) in handle.query(control_plane_core::ControlPlane::project_keys).await? {
            self.project_key(&key, &wrapped)?;
        }
        Ok(())
    }

    /// Of a server that leads from now on: wraps anew what was wrapped by the retired master key.
    pub(crate) async fn wrap_anew(self, handle: Handle) {
        if let Err(error) = self.check(&handle).await {
            // The keys may have been made by another server since this one has started.
            tracing::error!(error = %format!("{error:#}"), "not every key of a project can be used");
        }
        let Ok(keys) = handle.query(control_plane_core::ControlPlane::project_keys).await else { return };
        for (key, wrapped) in keys {
            let retired = self.0.retired.as_ref().map(|retired| retired.unwrap(&key, &wrapped));
            let Some(Ok(Some(opened))) = retired else { continue };
            let anew = self.0.master.wrap(&key, &opened);
            let request = Request::KeepProjectKey { key: key.clone(), wrapped: anew, instead_of: Some(wrapped) };
            match handle.request(request).await {
                Ok(_) => tracing::info!(%key, "wrapped anew, by the new master key"),
                Err(rejection) => tracing::warn!(%key, %rejection, "could not be wrapped anew"),
            }
        }
    }

    /// An object as it stands in the bucket, or is to: a key that nobody has made yet is made.
    pub(crate) async fn stored(&self, handle: &Handle, copy: &BucketCopy) -> Result<Stored, KeyError> {
        let Some(Encryption { key, wrapped }) = &copy.encryption else { return Ok(copy.object.into()) };
        let wrapped = match wrapped {
            Some(wrapped) => wrapped.clone(),
            None => self.make(handle, key).await?,
        };
        self.with_key(copy, key, &wrapped)
    }

    /// Like [`Self::stored`]; nothing where nobody has made the key yet, so that nothing stands there.
    pub(crate) fn stored_before(&self, copy: &BucketCopy) -> Result<Option<Stored>, KeyError> {
        match &copy.encryption {
            None => Ok(Some(copy.object.into())),
            Some(Encryption { wrapped: None, .. }) => Ok(None),
            Some(Encryption { key, wrapped: Some(wrapped) }) => self.with_key(copy, key, wrapped).map(Some),
        }
    }

    fn with_key(&self, copy: &BucketCopy, key: &KeyId, wrapped: &WrappedKey) -> Result<Stored, KeyError> {
        let encryption = bucket::Encryption::new(&self.project_key(key, wrapped)?, copy.object);
        Ok(Stored { object: copy.object, encryption: Some(encryption) })
    }

    /// Whoever was faster has made it.
    async fn make(&self, handle: &Handle, key: &KeyId) -> Result<WrappedKey, KeyError> {
        let wrapped = self.0.master.wrap(key, &ProjectKey::random());
        let request = Request::KeepProjectKey { key: key.clone(), wrapped, instead_of: None };
        match handle.request(request).await.map_err(KeyError::Kept)? {
            Response::ProjectKey { wrapped } => Ok(wrapped),
            Response::Submitted { .. }
            | Response::Enrolled { .. }
            | Response::Certify { .. }
            | Response::Authorised { .. }
            | Response::Offered { .. }
            | Response::Staged { .. }
            | Response::Emitted { .. }
            | Response::Done => unreachable!("a key is what was asked for"),
        }
    }

    fn project_key(&self, key: &KeyId, wrapped: &WrappedKey) -> Result<ProjectKey, KeyError> {
        let opened = || self.0.opened.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = opened().get(key) {
            return Ok(known.clone());
        }
        for master in std::iter::once(&self.0.master).chain(&self.0.retired) {
            if let Some(project_key) = master.unwrap(key, wrapped)? {
                opened().insert(key.clone(), project_key.clone());
                return Ok(project_key);
            }
        }
        let (wrapped_by, _) = split(wrapped).ok_or_else(|| KeyError::Damaged(key.clone()))?;
        let (wrapped_by, ours) = (hex(*wrapped_by), hex(self.0.master.id));
        Err(KeyError::OtherMaster { key: key.clone(), wrapped_by, ours, path: self.0.master.path.clone() })
    }
}

#[cfg(test)]
mod tests;
