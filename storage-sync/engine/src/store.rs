//! The site store: immutable objects named by their digests, on one file system.
//!
//! | folder | holds |
//! |---|---|
//! | `objects/<2 hex>/<62 hex>` | files, mode 0444; with `.x` at the end those that are executable somewhere, mode 0555 |
//! | `trees/<2 hex>/<62 hex>` | manifests of directories; where a root's is, the whole tree is |
//! | `sealed/<n>` | outputs that may be handed over, and have no digest yet; `sealed/log` says whose they are |
//! | `partial/` | what is being written, and what transfers remember; never handed over |
//! | `quarantine/` | damaged copies, for people to look at |
//! | `verified` | what was hashed on this machine, and its identity then |
//!
//! A file gets its name in `objects` or `trees` after its bytes are on disk, and is reported only after the name is.

mod barrier;
mod check;
mod commit;
pub(crate) mod copy;
pub(crate) mod error;
mod evict;
mod folders;
pub(crate) mod layout;
mod lend;
mod open;
mod scrub;
mod seal;
mod seal_log;
mod stamp;
pub(crate) mod take_in;
mod verified;

use std::collections::HashMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use atoll_model::id::ObjectId;
use atoll_model::value::{FileName, ObjectKind, ObjectRef, Value};

pub use error::{IngestError, StoreError};
pub(crate) use evict::Held;
pub use evict::{Evictable, Eviction};
pub use lend::{Entry, Lent, Source};
pub use scrub::{ScrubPlace, Scrubbed};

use crate::hash::Hashing;
pub use crate::walk::WalkLimits;
use barrier::Barrier;
use copy::Copier;
use evict::Guards;
use folders::Folders;
use layout::{Key, Layout, Variant};
use seal::Sealed;
use seal_log::SealLog;
use verified::Verified;

/// Blocks; cheap to clone; shared by all threads of a process. One process at a time has a store open.
#[derive(Debug, Clone)]
pub struct SiteStore {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    layout: Layout,
    limits: WalkLimits,
    folders: Folders,
    hashing: Hashing,
    copier: Copier,
    /// Whether it was said that outputs come from another file system.
    told_of_copies: AtomicBool,
    barrier: Barrier,
    verified: Mutex<Verified>,
    /// One for each first byte of a digest: held while a file of the store is checked, linked or moved, so that the
    /// changes which that makes to its identity are told from changes by others.
    shards: Vec<Mutex<()>>,
    seals: Mutex<HashMap<SealId, Arc<Mutex<Sealed>>>>,
    claims: Mutex<HashMap<String, SealId>>,
    seal_log: Mutex<SealLog>,
    guards: Mutex<Guards>,
    /// Whether anything was proposed to be let go.
    watching: AtomicBool,
    next: AtomicU64,
    objects: AtomicU64,
    bytes: AtomicU64,
    quarantined: AtomicU64,
    /// Keeps other processes out while it is open.
    _lock: File,
}

/// Names a sealed file or tree until its digest is known; never used twice by one store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SealId(pub u64);

/// An output that is out of reach of whoever made it, and may be handed over before its digest is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SealedOutput {
    pub seal: SealId,
    /// The name it had where it was made.
    pub name: FileName,
    pub directory: bool,
    /// Of a file alone; those of a directory have it in their manifests.
    pub executable: bool,
    /// Bytes of content.
    pub bytes: u64,
    pub files: u64,
    /// Bytes that had to be copied: those on another file system, and those of files that also have a name elsewhere.
    pub bytes_copied: u64,
}

/// An output that is in the store, durable and verified.
#[derive(Debug, Clone, PartialEq)]
pub struct Stored {
    pub object: ObjectRef,
    /// [`Value::File`] or [`Value::Directory`], without a listing.
    pub value: Value,
    /// Bytes that the store did not have before.
    pub bytes_new: u64,
    /// Bytes that had to be copied: 0 on the store's own file system.
    pub bytes_copied: u64,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct StoreStats {
    /// Files and manifests.
    pub objects: u64,
    pub bytes: u64,
    pub sealed: u64,
    /// Damaged copies found since the store was opened.
    pub quarantined: u64,
    /// Bytes copied since then because no rename, link or clone was possible.
    pub bytes_copied: u64,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl SiteStore {
    /// Opens the store in `root`, making it if there is none. Takes up what was sealed before a crash.
    ///
    /// # Errors
    /// When the directory cannot be made or read, or another process has it open.
    pub fn open(root: &Path) -> Result<Self, StoreError> {
        Self::open_with(root, WalkLimits::default())
    }

    /// [`Self::open`] with other limits for one output.
    pub fn open_with(root: &Path, limits: WalkLimits) -> Result<Self, StoreError> {
        Ok(Self { inner: Arc::new(open::open(root, limits)?) })
    }

    pub fn root(&self) -> &Path {
        &self.inner.layout.root
    }

    /// Whether the object is there: for a tree, whole. Says nothing about damage.
    pub fn contains(&self, object: ObjectRef) -> bool {
        self.inner.key_present(object.id, object.kind).is_some()
    }

    /// The kind and size of an object of which only the name is known.
    pub fn find(&self, id: ObjectId) -> Result<Option<ObjectRef>, StoreError> {
        if self.inner.key_present(id, ObjectKind::Tree).is_some() {
            let bytes = self.inner.manifest(id)?.totals().bytes;
            return Ok(Some(ObjectRef { id, kind: ObjectKind::Tree, bytes }));
        }
        let Some(key) = self.inner.key_present(id, ObjectKind::File) else { return Ok(None) };
        let path = self.inner.layout.of(&key);
        let bytes = std::fs::metadata(&path).map_err(|error| StoreError::io("look at", &path, error))?.len();
        Ok(Some(ObjectRef { id, kind: ObjectKind::File, bytes }))
    }

    /// Costs nothing: the numbers are kept.
    pub fn stats(&self) -> StoreStats {
        StoreStats {
            objects: self.inner.objects.load(Ordering::Relaxed),
            bytes: self.inner.bytes.load(Ordering::Relaxed),
            sealed: locked(&self.inner.seals).len() as u64,
            quarantined: self.inner.quarantined.load(Ordering::Relaxed),
            bytes_copied: self.inner.copier.copied(),
        }
    }

    /// Every file and every tree's manifest; the bytes of a tree are those of its manifest.
    pub fn list(&self) -> Result<Vec<ObjectRef>, StoreError> {
        let mut objects = Vec::new();
        open::scan(&self.inner.layout, &mut |key, metadata| {
            objects.push(ObjectRef { id: key.id, kind: key.variant.kind(), bytes: metadata.len() });
        })?;
        objects.sort_unstable();
        objects.dedup();
        Ok(objects)
    }

    /// Drops an object; of a tree only its root's manifest. Whether it was there.
    pub fn remove(&self, object: ObjectRef) -> Result<bool, StoreError> {
        let mut found = false;
        for variant in match object.kind {
            ObjectKind::File => &[Variant::Plain, Variant::Executable][..],
            ObjectKind::Tree => &[Variant::Tree],
        } {
            found |= self.inner.remove_key(&Key::new(object.id, *variant))?;
        }
        Ok(found)
    }

    /// Writes down what was verified, so that it need not be hashed again after the next start. Called now and then; done
    /// when the last handle is dropped, too.
    pub fn checkpoint(&self) -> Result<(), StoreError> {
        self.inner.checkpoint()
    }
}

impl Inner {
    fn shard(&self, id: ObjectId) -> MutexGuard<'_, ()> {
        locked(&self.shards[usize::from(id.digest()[0])])
    }

    fn next(&self) -> u64 {
        self.next.fetch_add(1, Ordering::Relaxed)
    }

    /// A path in `partial/` that nothing else uses.
    fn temporary(&self) -> PathBuf {
        self.layout.folder("partial").join(format!("tmp-{}", self.next()))
    }

    fn key_present(&self, id: ObjectId, kind: ObjectKind) -> Option<Key> {
        let variants = match kind {
            ObjectKind::File => &[Variant::Plain, Variant::Executable][..],
            ObjectKind::Tree => &[Variant::Tree],
        };
        let mut keys = variants.iter().map(|variant| Key::new(id, *variant));
        keys.find(|key| self.layout.of(key).symlink_metadata().is_ok())
    }

    fn remove_key(&self, key: &Key) -> Result<bool, StoreError> {
        let _shard = self.shard(key.id);
        self.remove_key_locked(key).map(|freed| freed.is_some())
    }

    /// The bytes that it had, if it was there. The shard must be locked.
    fn remove_key_locked(&self, key: &Key) -> Result<Option<u64>, StoreError> {
        let path = self.layout.of(key);
        let bytes = path.symlink_metadata().map_or(0, |metadata| metadata.len());
        locked(&self.verified).remove(key);
        match std::fs::remove_file(&path) {
            Ok(()) => {
                self.uncount(bytes);
                Ok(Some(bytes))
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(StoreError::io("remove", &path, error)),
        }
    }

    fn count(&self, bytes: u64) {
        self.objects.fetch_add(1, Ordering::Relaxed);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    fn uncount(&self, bytes: u64) {
        self.objects.fetch_sub(1, Ordering::Relaxed);
        self.bytes.fetch_sub(bytes, Ordering::Relaxed);
    }

    fn checkpoint(&self) -> Result<(), StoreError> {
        let Some(bytes) = locked(&self.verified).take_changes() else { return Ok(()) };
        let path = self.layout.folder("verified");
        let temporary = self.temporary();
        let written = std::fs::write(&temporary, bytes).and_then(|()| std::fs::rename(&temporary, &path));
        if written.is_err() {
            // The next start hashes again what it hands over; better than a half-written file in the way.
            let _ = std::fs::remove_file(&temporary);
            locked(&self.verified).put_back_changes();
        }
        written.map_err(|error| StoreError::io("write", &path, error))
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        if let Err(error) = self.checkpoint() {
            tracing::warn!(%error, "what was verified could not be written down; it will be hashed again");
        }
    }
}
