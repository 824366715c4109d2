//! Nothing damaged is handed over: what changed since it was hashed is hashed again first.

use std::collections::HashSet;
use std::fs::{self, File};
use std::os::unix::fs::{FileExt as _, PermissionsExt as _};
use std::sync::atomic::Ordering;

use atoll_model::id::ObjectId;
use atoll_model::value::{ListedFile, ObjectKind, ObjectRef};

use super::commit::stamp;
use super::error::{Doing as _, StoreError};
use super::layout::{Key, Variant};
use super::stamp::Stamp;
use super::{Inner, SiteStore, locked};
use crate::manifest::{Manifest, Node, manifest_id};

/// How sure one wants to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Trust {
    /// That nobody has touched the file since it was hashed.
    Identity,
    /// That the disk still gives the bytes that were written.
    Nothing,
}

impl SiteStore {
    /// Hashes the object again if anything about its files changed since that was last done here.
    ///
    /// # Errors
    /// [`StoreError::Damaged`] when the copy is not what its name says: what is damaged of it is in quarantine then, and
    /// the object is not in the store any more.
    pub fn verify(&self, object: ObjectRef) -> Result<(), StoreError> {
        self.inner.check_object(object, Trust::Identity)
    }

    /// Hashes the object again in any case.
    ///
    /// # Errors
    /// Those of [`Self::verify`].
    pub fn scrub(&self, object: ObjectRef) -> Result<(), StoreError> {
        self.inner.check_object(object, Trust::Nothing)
    }

    /// Puts an object out of use that somebody else found damaged. Whether it was there.
    pub fn quarantine(&self, object: ObjectRef, reason: &str) -> Result<bool, StoreError> {
        let mut found = false;
        while let Some(key) = self.inner.key_present(object.id, object.kind) {
            let _shard = self.inner.shard(object.id);
            self.inner.quarantine(&key, reason)?;
            found = true;
        }
        Ok(found)
    }

    /// The files of a tree in order of their paths, at most `max` of them.
    pub fn listing(&self, tree: ObjectId, max: usize) -> Result<Vec<ListedFile>, StoreError> {
        let mut files = Vec::new();
        self.inner.list_tree(tree, &mut Vec::new(), &mut files)?;
        // Within one directory the order of names is that of paths; across them a name that goes on with a byte below
        // `/` comes before the files of a directory.
        files.sort_by(|a, b| a.path.cmp(&b.path));
        files.truncate(max);
        Ok(files)
    }

    /// Every object that a tree is made of, with the trees of its folders and without itself.
    ///
    /// # Errors
    /// When a manifest of it is not there, or damaged.
    pub fn parts(&self, tree: ObjectId) -> Result<Vec<ObjectId>, StoreError> {
        let (mut parts, mut folders) = (Vec::new(), vec![tree]);
        while let Some(folder) = folders.pop() {
            for entry in self.inner.manifest(folder)?.entries {
                match entry.node {
                    Node::File { id, .. } => parts.push(id),
                    Node::Directory { id, .. } => {
                        parts.push(id);
                        folders.push(id);
                    }
                    Node::Symlink { .. } => {}
                }
            }
        }
        Ok(parts)
    }

    /// Bytes of a file from `offset`, at most `length`; fewer at its end.
    pub fn read(&self, file: ObjectId, offset: u64, length: usize) -> Result<Vec<u8>, StoreError> {
        let inner = &self.inner;
        let key = inner.key_present(file, ObjectKind::File).ok_or(StoreError::NotFound(file))?;
        inner.check(&key)?;
        let path = inner.layout.of(&key);
        let opened = File::open(&path).doing("open", &path)?;
        let size = opened.metadata().doing("look at", &path)?.len();
        let mut bytes = vec![0; usize::try_from(size.saturating_sub(offset)).unwrap_or(length).min(length)];
        opened.read_exact_at(&mut bytes, offset).doing("read", &path)?;
        Ok(bytes)
    }
}

impl Inner {
    pub(super) fn check(&self, key: &Key) -> Result<Stamp, StoreError> {
        let _shard = self.shard(key.id);
        self.check_locked(key)
    }

    /// Makes sure that a file of the store is what its name says. The shard of the digest must be locked.
    pub(super) fn check_locked(&self, key: &Key) -> Result<Stamp, StoreError> {
        let path = self.layout.of(key);
        let now = match rustix::fs::lstat(&path) {
            Ok(stat) => Stamp::of(&stat),
            Err(rustix::io::Errno::NOENT) => return Err(StoreError::NotFound(key.id)),
            Err(error) => return Err(StoreError::io("look at", &path, error)),
        };
        if locked(&self.verified).get(key) == Some(now) {
            return Ok(now);
        }
        self.rehash_locked(key, now)
    }

    fn rehash_locked(&self, key: &Key, now: Stamp) -> Result<Stamp, StoreError> {
        let path = self.layout.of(key);
        let found = match key.variant {
            Variant::Tree => manifest_id(&fs::read(&path).doing("read", &path)?),
            Variant::Plain | Variant::Executable => {
                let file = File::open(&path).doing("open", &path)?;
                match self.hashing.file(&file, now.size) {
                    Ok(digest) => ObjectId::from_digest(digest),
                    // A disk that cannot read what it was given has lost it.
                    Err(error) => return Err(self.quarantine(key, &format!("it cannot be read ({error})"))?),
                }
            }
        };
        if found != key.id {
            return Err(self.quarantine(key, &format!("its bytes are those of {found}"))?);
        }
        if stamp(&path)? != now {
            return Err(self.quarantine(key, "it is being written to")?);
        }
        // Somebody may have made it writable; what it holds is right.
        let mut now = now;
        if fs::symlink_metadata(&path).doing("look at", &path)?.permissions().mode() & 0o7777 != key.variant.mode() {
            fs::set_permissions(&path, fs::Permissions::from_mode(key.variant.mode())).doing("protect", &path)?;
            now = stamp(&path)?;
        }
        locked(&self.verified).put(*key, now);
        Ok(now)
    }

    /// Takes a file out of use. Gives the error that says so.
    pub(super) fn quarantine(&self, key: &Key, message: &str) -> Result<StoreError, StoreError> {
        let path = self.layout.of(key);
        let name = format!("{}-{}-{}", key.flat_name(), std::process::id(), self.next());
        let target = self.layout.folder("quarantine").join(name);
        let bytes = path.symlink_metadata().map_or(0, |metadata| metadata.len());
        locked(&self.verified).remove(key);
        fs::rename(&path, &target).doing("quarantine", &path)?;
        self.uncount(bytes);
        self.quarantined.fetch_add(1, Ordering::Relaxed);
        tracing::warn!(object = %key.id, copy = %target.display(), message, "a damaged copy was taken out of use");
        let object = ObjectRef { id: key.id, kind: key.variant.kind(), bytes };
        Ok(StoreError::Damaged { object, message: message.to_owned() })
    }

    /// The manifest of a directory, verified.
    pub(super) fn manifest(&self, id: ObjectId) -> Result<Manifest, StoreError> {
        let key = Key::new(id, Variant::Tree);
        let _shard = self.shard(id);
        let path = self.layout.of(&key);
        let bytes = match fs::read(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Err(StoreError::NotFound(id)),
            bytes => bytes.doing("read", &path)?,
        };
        if manifest_id(&bytes) != id {
            return Err(self.quarantine(&key, "its bytes are not those of the manifest")?);
        }
        match Manifest::decode(&bytes) {
            Ok(manifest) => Ok(manifest),
            Err(error) => Err(self.quarantine(&key, &error.to_string())?),
        }
    }

    fn check_object(&self, object: ObjectRef, trust: Trust) -> Result<(), StoreError> {
        match object.kind {
            ObjectKind::File => {
                let key = self.key_present(object.id, ObjectKind::File).ok_or(StoreError::NotFound(object.id))?;
                self.check_with(&key, trust)?;
                let other = Key::new(object.id, key.variant.other());
                match self.check_with(&other, trust) {
                    Ok(()) | Err(StoreError::NotFound(_)) => Ok(()),
                    Err(error) => Err(error),
                }
            }
            ObjectKind::Tree => {
                let result = self.check_tree(object.id, trust, &mut HashSet::new());
                result.map_err(|error| self.give_up_tree(object, error))
            }
        }
    }

    fn check_with(&self, key: &Key, trust: Trust) -> Result<(), StoreError> {
        match trust {
            Trust::Identity => self.check(key).map(|_| ()),
            Trust::Nothing => self.scrub_key(key),
        }
    }

    fn check_tree(&self, id: ObjectId, trust: Trust, seen: &mut HashSet<Key>) -> Result<(), StoreError> {
        if !seen.insert(Key::new(id, Variant::Tree)) {
            return Ok(());
        }
        for entry in self.manifest(id)?.entries {
            match entry.node {
                Node::File { id, executable, .. } => {
                    let key = self.present_variant(id, executable)?;
                    if seen.insert(key) {
                        self.check_with(&key, trust)?;
                    }
                }
                Node::Directory { id, .. } => self.check_tree(id, trust, seen)?,
                Node::Symlink { .. } => {}
            }
        }
        Ok(())
    }

    /// The wanted variant of a file, or the other if only that is there.
    pub(super) fn present_variant(&self, id: ObjectId, executable: bool) -> Result<Key, StoreError> {
        let wanted = Key::new(id, Variant::file(executable));
        if self.layout.of(&wanted).symlink_metadata().is_ok() {
            return Ok(wanted);
        }
        self.key_present(id, ObjectKind::File).ok_or(StoreError::NotFound(id))
    }

    /// A tree that misses something is not in the store: without its root's manifest it is fetched again, and only what
    /// is missing of it comes over the wire.
    pub(super) fn give_up_tree(&self, tree: ObjectRef, error: StoreError) -> StoreError {
        let message = match &error {
            StoreError::NotFound(id) if *id == tree.id => return error,
            StoreError::NotFound(id) => format!("{id} of it is missing"),
            StoreError::Damaged { object, message } => format!("{} of it: {message}", object.id),
            StoreError::NoSpace { .. } | StoreError::UnknownSeal(_) | StoreError::InUse(_) | StoreError::Io { .. } => {
                return error;
            }
        };
        match self.remove_key(&Key::new(tree.id, Variant::Tree)) {
            Ok(_) => StoreError::Damaged { object: tree, message },
            Err(error) => error,
        }
    }

    fn list_tree(&self, id: ObjectId, path: &mut Vec<u8>, files: &mut Vec<ListedFile>) -> Result<(), StoreError> {
        for entry in self.manifest(id)?.entries {
            let length = path.len();
            path.extend_from_slice(if length == 0 { b"" } else { b"/" });
            path.extend_from_slice(entry.name.as_bytes());
            match entry.node {
                Node::File { id, bytes, executable } => {
                    files.push(ListedFile { path: path.clone(), object: id, bytes, executable });
                }
                Node::Directory { id, .. } => self.list_tree(id, path, files)?,
                Node::Symlink { .. } => {}
            }
            path.truncate(length);
        }
        Ok(())
    }
}
