//! What the tests of this crate share.
#![allow(dead_code, reason = "each test file uses another part of it")]

pub(crate) mod azurite;
pub(crate) mod disk;
pub(crate) mod google;
pub(crate) mod s3;
pub(crate) mod server;
pub(crate) mod world;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

use storage_sync_engine::store::{SiteStore, StoreError};

/// A store in a folder of its own, with a folder beside it for everything else.
pub(crate) struct Site {
    pub(crate) folder: tempfile::TempDir,
    pub(crate) store: SiteStore,
}

impl Site {
    pub(crate) fn new() -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let store = SiteStore::open(&folder.path().join("store"))?;
        Ok(Self { folder, store })
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Writes a file beside the store.
    pub(crate) fn write(&self, name: &str, bytes: &[u8]) -> Result<PathBuf> {
        let path = self.path(name);
        fs::create_dir_all(path.parent().context("it has a parent")?)?;
        fs::write(&path, bytes)?;
        Ok(path)
    }

    /// Ends the process, as far as the store can tell, and starts it again. Whatever threads still write there are waited
    /// for.
    pub(crate) fn reopen(self) -> Result<Self> {
        let Self { folder, store } = self;
        drop(store);
        let path = folder.path().join("store");
        let until = Instant::now() + Duration::from_secs(10);
        let store = loop {
            match SiteStore::open(&path) {
                Err(StoreError::InUse(_)) if Instant::now() < until => std::thread::yield_now(),
                opened => break opened?,
            }
        };
        Ok(Self { folder, store })
    }
}

/// What one sees of a tree: for each path its kind, executable bit and content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Seen {
    File { bytes: Vec<u8>, executable: bool },
    Directory,
    Symlink(Vec<u8>),
}

pub(crate) fn look(root: &Path) -> Result<BTreeMap<Vec<u8>, Seen>> {
    let mut seen = BTreeMap::new();
    look_below(root, root, &mut seen)?;
    Ok(seen)
}

fn look_below(root: &Path, path: &Path, seen: &mut BTreeMap<Vec<u8>, Seen>) -> Result<()> {
    let metadata = path.symlink_metadata()?;
    let name = path.strip_prefix(root)?.as_os_str().as_bytes().to_vec();
    if metadata.is_symlink() {
        seen.insert(name, Seen::Symlink(fs::read_link(path)?.as_os_str().as_bytes().to_vec()));
    } else if metadata.is_dir() {
        seen.insert(name, Seen::Directory);
        for entry in fs::read_dir(path)? {
            look_below(root, &entry?.path(), seen)?;
        }
    } else {
        let executable = metadata.permissions().mode() & 0o111 != 0;
        seen.insert(name, Seen::File { bytes: fs::read(path)?, executable });
    }
    Ok(())
}

pub(crate) fn inode(path: &Path) -> Result<u64> {
    Ok(path.symlink_metadata()?.ino())
}

/// Overwrites a file in place although it is protected, as a broken disk or a rude program would.
pub(crate) fn damage(path: &Path) -> Result<()> {
    use std::os::unix::fs::FileExt as _;
    fs::set_permissions(path, fs::Permissions::from_mode(0o644))?;
    let file = fs::File::options().read(true).write(true).open(path)?;
    let mut byte = [0];
    file.read_exact_at(&mut byte, 0)?;
    file.write_all_at(&[byte[0] ^ 1], 0)?;
    Ok(())
}

/// Where a store keeps an object.
pub(crate) fn object_path(store: &SiteStore, folder: &str, id: atoll_model::id::ObjectId) -> PathBuf {
    let hex = id.hex();
    store.root().join(folder).join(&hex[..2]).join(&hex[2..])
}

/// Bytes that look random and are the same each time.
pub(crate) fn noise(length: usize, seed: u8) -> Vec<u8> {
    let mut bytes = vec![0; length];
    blake3::Hasher::new().update(&[seed]).finalize_xof().fill(&mut bytes);
    bytes
}
