//! Committing: what was sealed is hashed, and gets its name.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use atoll_model::id::ObjectId;
use atoll_model::value::{DirectoryRef, FileName, FileRef, ObjectKind, ObjectRef, Value};

use super::error::{Doing as _, IngestError, StoreError};
use super::layout::{Key, Variant, shown_path};
use super::open::remove_any;
use super::seal::{Phase, Sealed, SealedFile};
use super::seal_log::Line;
use super::stamp::Stamp;
use super::{Inner, SealId, SiteStore, Stored, locked};
use crate::hash::Digest;
use crate::manifest::{Manifest, ManifestEntry, Node, Totals, manifest_id};
use crate::walk::Tree;

/// A sealed output whose digests are known, and whose bytes are not named by them yet.
struct Hashed {
    object: ObjectRef,
    tree: Tree<ObjectId>,
    /// Manifests that the store does not have, written to `partial/`, each after those that it refers to.
    manifests: Vec<(ObjectId, PathBuf)>,
    /// Files that the store may not have, where they are.
    files: BTreeSet<PathBuf>,
    /// All that it is made of: from before it is looked whether that is there, to when it is whole, nothing of it goes.
    held: Vec<ObjectId>,
}

impl SiteStore {
    /// Hashes what was sealed and gives it its name. Repeating it gives the same answer. [`IngestError::Changed`] means
    /// that somebody still wrote to it: nothing that was made from it may be used.
    pub fn commit(&self, seal: SealId) -> Result<Stored, IngestError> {
        self.commit_all(&[seal]).pop().expect("there is an answer for each seal")
    }

    /// [`Self::commit`] for several seals, which are made durable together. The answers are in the order of the seals.
    pub fn commit_all(&self, seals: &[SealId]) -> Vec<Result<Stored, IngestError>> {
        self.inner.commit_all(seals)
    }

    /// [`Self::seal`] and [`Self::commit`], for what no one waits for.
    pub fn ingest(&self, path: &Path) -> Result<Stored, IngestError> {
        let claim = format!("ingest {}", self.inner.next());
        let seal = self.seal(&claim, path)?.seal;
        let stored = self.commit(seal);
        self.drop_seal(seal)?;
        stored
    }
}

enum Step {
    Done(Result<Stored, IngestError>),
    Hashed(Hashed),
}

impl Inner {
    fn commit_all(&self, seals: &[SealId]) -> Vec<Result<Stored, IngestError>> {
        let steps: Vec<Step> = seals.iter().map(|seal| self.hash_seal(*seal)).collect();
        let held = |step: &Step| match step {
            Step::Hashed(hashed) => hashed.held.clone(),
            Step::Done(_) => Vec::new(),
        };
        let held: Vec<ObjectId> = steps.iter().flat_map(held).collect();
        let stored = self.commit_hashed(seals, steps);
        self.release(&held);
        stored
    }

    fn commit_hashed(&self, seals: &[SealId], mut steps: Vec<Step>) -> Vec<Result<Stored, IngestError>> {
        let mut unsynced = BTreeSet::new();
        for (step, seal) in steps.iter_mut().zip(seals) {
            if let Step::Hashed(hashed) = step {
                unsynced.extend(hashed.files.iter().cloned());
                unsynced.extend(hashed.manifests.iter().map(|(_, path)| path.clone()));
                if let Err(error) = self.log_commit(*seal, hashed) {
                    *step = Step::Done(Err(error.into()));
                }
            }
        }
        if let Err(error) = self.barrier.sync(&unsynced).doing("sync", &self.layout.root) {
            return self.fail_all(steps, error);
        }
        let mut folders = BTreeSet::new();
        for (step, seal) in steps.iter_mut().zip(seals) {
            if let Step::Hashed(hashed) = step {
                let placed = self.place(*seal, hashed, &mut folders);
                *step = Step::Done(placed);
            }
        }
        match self.folders.sync(&self.barrier, folders, &self.layout.root) {
            Err(error) => self.fail_all(steps, error),
            Ok(()) => steps
                .into_iter()
                .map(|step| match step {
                    Step::Done(result) => result,
                    Step::Hashed(_) => unreachable!("every hashed output was placed, or failed"),
                })
                .collect(),
        }
    }

    /// Nothing counts as stored that could not be made durable.
    fn fail_all(&self, steps: Vec<Step>, error: StoreError) -> Vec<Result<Stored, IngestError>> {
        let message = error.to_string();
        let mut first = Some(error);
        let mut again = || {
            first
                .take()
                .unwrap_or_else(|| StoreError::io("sync", &self.layout.root, std::io::Error::other(message.clone())))
        };
        let failed = |step| match step {
            Step::Done(Err(error)) => Err(error),
            Step::Done(Ok(_)) | Step::Hashed(_) => Err(again().into()),
        };
        steps.into_iter().map(failed).collect()
    }

    fn hash_seal(&self, seal: SealId) -> Step {
        let sealed = match self.sealed(seal) {
            Ok(sealed) => sealed,
            Err(error) => return Step::Done(Err(error.into())),
        };
        let (tree, output) = {
            let sealed = locked(&sealed);
            match &sealed.phase {
                Phase::Committed(object) => return Step::Done(Ok(stored(&sealed, *object, 0))),
                Phase::Waiting(tree) => (tree.clone(), sealed.output.clone()),
            }
        };
        // The seal is not locked meanwhile: it may be handed over. That it did not change is checked when it is placed.
        let mut hashed = Hashed {
            object: ObjectRef { id: ObjectId::from_digest([0; 32]), kind: ObjectKind::File, bytes: output.bytes },
            tree: Tree::Symlink(Vec::new()),
            manifests: Vec::new(),
            files: BTreeSet::new(),
            held: Vec::new(),
        };
        let path = self.layout.sealed(seal.0);
        let result = match &tree {
            Tree::Directory(children) => {
                self.hash_directory(children, &path, &mut hashed).map(|(id, _, tree)| (id, tree))
            }
            Tree::File(file) => self.hash_file(file, &path, &mut hashed).map(|id| (id, Tree::File(id))),
            Tree::Symlink(_) => unreachable!("no output is a symbolic link"),
        };
        match result {
            Ok((id, tree)) => {
                let kind = if output.directory { ObjectKind::Tree } else { ObjectKind::File };
                hashed.object = ObjectRef { id, kind, bytes: output.bytes };
                hashed.tree = tree;
                Step::Hashed(hashed)
            }
            Err(error) => {
                self.release(&hashed.held);
                for (_, path) in hashed.manifests {
                    // Left over, it is dropped at the next start.
                    let _ = fs::remove_file(path);
                }
                Step::Done(Err(error))
            }
        }
    }

    fn hash_file(&self, file: &SealedFile, path: &Path, hashed: &mut Hashed) -> Result<ObjectId, IngestError> {
        let id = ObjectId::from_digest(match file.digest {
            Some(digest) => digest,
            None => self.digest_of(file, path)?,
        });
        self.keep(id, hashed);
        if !self.layout.of(&Key::new(id, Variant::file(file.executable))).exists() {
            hashed.files.insert(path.to_owned());
        }
        Ok(id)
    }

    fn digest_of(&self, file: &SealedFile, path: &Path) -> Result<Digest, IngestError> {
        let opened = File::open(path).doing("open", path)?;
        match self.hashing.file(&opened, file.stamp.size) {
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => {
                Err(IngestError::Changed(shown_path(path)))
            }
            digest => Ok(digest.doing("read", path)?),
        }
    }

    /// The manifest of a directory, its totals, and the objects of all files below it.
    fn hash_directory(
        &self,
        children: &[(FileName, Tree<SealedFile>)],
        path: &Path,
        hashed: &mut Hashed,
    ) -> Result<(ObjectId, Totals, Tree<ObjectId>), IngestError> {
        let mut manifest = Manifest::default();
        let mut ids = Vec::with_capacity(children.len());
        for (name, child) in children {
            let path = path.join(OsStr::from_bytes(name.as_bytes()));
            let (node, tree) = match child {
                Tree::File(file) => {
                    let id = self.hash_file(file, &path, hashed)?;
                    (Node::File { id, bytes: file.stamp.size, executable: file.executable }, Tree::File(id))
                }
                Tree::Directory(children) => {
                    let (id, totals, tree) = self.hash_directory(children, &path, hashed)?;
                    (Node::Directory { id, totals }, tree)
                }
                Tree::Symlink(target) => (Node::Symlink { target: target.clone() }, Tree::Symlink(target.clone())),
            };
            manifest.entries.push(ManifestEntry { name: name.clone(), node });
            ids.push((name.clone(), tree));
        }
        let bytes = manifest.encode();
        let id = manifest_id(&bytes);
        self.keep(id, hashed);
        if !self.layout.of(&Key::new(id, Variant::Tree)).exists() {
            let temporary = self.temporary();
            hashed.manifests.push((id, temporary.clone()));
            write_new(&temporary, &bytes)?;
        }
        Ok((id, manifest.totals(), Tree::Directory(ids)))
    }

    fn keep(&self, id: ObjectId, hashed: &mut Hashed) {
        self.hold(&[id]);
        hashed.held.push(id);
    }

    fn log_commit(&self, seal: SealId, hashed: &Hashed) -> Result<(), StoreError> {
        let (files, executable) = {
            let sealed = self.sealed(seal)?;
            let sealed = locked(&sealed);
            (sealed.output.files, sealed.output.executable)
        };
        locked(&self.seal_log).append(Line::Committed { seal: seal.0, object: hashed.object, files, executable })
    }

    fn place(&self, seal: SealId, hashed: &Hashed, folders: &mut BTreeSet<PathBuf>) -> Result<Stored, IngestError> {
        let sealed = self.sealed(seal)?;
        let mut sealed = locked(&sealed);
        let path = self.layout.sealed(seal.0);
        let mut bytes_new = 0;
        match &mut sealed.phase {
            // Somebody else committed it at the same time.
            Phase::Committed(object) => {
                let object = *object;
                return Ok(stored(&sealed, object, 0));
            }
            Phase::Waiting(tree) => {
                check_unchanged(tree, &path)?;
                self.place_files(tree, &hashed.tree, &path, true, &mut |key, bytes| {
                    bytes_new += bytes;
                    folders.extend(self.layout.of(key).parent().map(Path::to_owned));
                })?;
            }
        }
        for (id, written) in &hashed.manifests {
            let key = Key::new(*id, Variant::Tree);
            if self.put_new(&key, written)? {
                folders.extend(self.layout.of(&key).parent().map(Path::to_owned));
            }
        }
        sealed.phase = Phase::Committed(hashed.object);
        if sealed.output.directory {
            self.take_back(&path)?;
        }
        Ok(stored(&sealed, hashed.object, bytes_new))
    }

    /// Gives every file its name. A file that is an output by itself is moved; those of a tree get a second name, so that
    /// the tree stays whole until its manifests are in place.
    fn place_files(
        &self,
        tree: &mut Tree<SealedFile>,
        ids: &Tree<ObjectId>,
        path: &Path,
        alone: bool,
        placed: &mut dyn FnMut(&Key, u64),
    ) -> Result<(), IngestError> {
        match (tree, ids) {
            (Tree::File(file), Tree::File(id)) => {
                let key = Key::new(*id, Variant::file(file.executable));
                if self.name_file(&key, path, alone)? {
                    placed(&key, file.stamp.size);
                }
                if !alone {
                    file.stamp = stamp(path)?;
                }
                Ok(())
            }
            (Tree::Directory(children), Tree::Directory(ids)) => {
                for ((name, child), (_, id)) in children.iter_mut().zip(ids) {
                    self.place_files(child, id, &path.join(OsStr::from_bytes(name.as_bytes())), false, placed)?;
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// Whether the store had no sound copy before.
    fn name_file(&self, key: &Key, path: &Path, alone: bool) -> Result<bool, StoreError> {
        let _shard = self.shard(key.id);
        self.touch(key.id);
        let target = self.layout.of(key);
        self.folders.make_for(&target)?;
        let had = match self.check_locked(key) {
            Ok(_) => true,
            Err(StoreError::NotFound(_) | StoreError::Damaged { .. }) => false,
            Err(error) => return Err(error),
        };
        match (had, alone) {
            (true, true) => fs::remove_file(path).doing("remove", path)?,
            (true, false) => {}
            (false, true) => fs::rename(path, &target).doing("move to", &target)?,
            (false, false) => fs::hard_link(path, &target).doing("link to", &target)?,
        }
        let stamp = stamp(&target)?;
        locked(&self.verified).put(*key, stamp);
        if !had {
            self.count(stamp.size);
        }
        Ok(!had)
    }

    /// Moves a file that was written to `partial/` to its place, unless there is a sound one. Whether it was moved.
    pub(super) fn put_new(&self, key: &Key, written: &Path) -> Result<bool, StoreError> {
        let _shard = self.shard(key.id);
        self.touch(key.id);
        match self.check_locked(key) {
            Ok(_) => {
                remove_any(written)?;
                return Ok(false);
            }
            Err(StoreError::NotFound(_) | StoreError::Damaged { .. }) => {}
            Err(error) => return Err(error),
        }
        let target = self.layout.of(key);
        self.folders.make_for(&target)?;
        fs::rename(written, &target).doing("move to", &target)?;
        let stamp = stamp(&target)?;
        locked(&self.verified).put(*key, stamp);
        self.count(stamp.size);
        Ok(true)
    }
}

pub(super) fn stamp(path: &Path) -> Result<Stamp, StoreError> {
    rustix::fs::lstat(path).map(|stat| Stamp::of(&stat)).doing("look at", path)
}

/// Writes a file with mode 0444 that did not exist.
pub(super) fn write_new(path: &Path, bytes: &[u8]) -> Result<(), StoreError> {
    use std::io::Write as _;
    use std::os::unix::fs::OpenOptionsExt as _;
    let mut file = File::options().write(true).create_new(true).mode(0o444).open(path).doing("make", path)?;
    file.write_all(bytes).doing("write", path)
}

fn check_unchanged(tree: &Tree<SealedFile>, path: &Path) -> Result<(), IngestError> {
    match tree {
        Tree::File(file) => match rustix::fs::lstat(path) {
            Ok(stat) if Stamp::of(&stat) == file.stamp => Ok(()),
            _ => Err(IngestError::Changed(shown_path(path))),
        },
        Tree::Symlink(_) => Ok(()),
        Tree::Directory(children) => children
            .iter()
            .try_for_each(|(name, child)| check_unchanged(child, &path.join(OsStr::from_bytes(name.as_bytes())))),
    }
}

fn stored(sealed: &Sealed, object: ObjectRef, bytes_new: u64) -> Stored {
    let output = &sealed.output;
    let (name, bytes) = (output.name.clone(), output.bytes);
    let value = match object.kind {
        ObjectKind::File => Value::File(FileRef { object: object.id, bytes, name, executable: output.executable }),
        ObjectKind::Tree => {
            Value::Directory(DirectoryRef { object: object.id, bytes, files: output.files, name, listing: None })
        }
    };
    Stored { object, value, bytes_new, bytes_copied: output.bytes_copied }
}
