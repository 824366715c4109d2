//! Lending: the tree of inputs of an execution, made of hard links to the store's files.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use atoll_model::id::ObjectId;
use atoll_model::value::{FileName, ObjectKind, ObjectRef, Value};
use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags};
use rustix::io::Errno;

use super::commit::stamp;
use super::copy::Copied;
use super::error::{Doing as _, StoreError};
use super::layout::{Key, Variant};
use super::seal::{Phase, SealedFile};
use super::stamp::Stamp;
use super::{Inner, SealId, SiteStore, copy, locked};
use crate::manifest::Node;
use crate::walk::Tree;

/// One file or directory of an input tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Where it is to stand, below the directory of inputs.
    pub path: PathBuf,
    pub source: Source,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Source {
    File { id: ObjectId, executable: bool },
    Tree(ObjectId),
    Sealed(SealId),
}

/// What was lent to an execution.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Lent {
    /// Bytes that the execution can read of it.
    pub bytes: u64,
    pub files: u64,
    /// Bytes that were copied, because neither a link nor a clone was possible.
    pub bytes_copied: u64,
    sources: BTreeSet<Source>,
}

impl Entry {
    /// The entries that the input `name` needs: `name/<file name>` for a file or a directory, `name/<index>/…` for the
    /// elements of a list, `name/<field>/…` for those of an object; nothing for other values.
    pub fn for_value(name: &str, value: &Value) -> Vec<Self> {
        let mut entries = Vec::new();
        collect(Path::new(name), value, &mut entries);
        entries
    }

    /// The entry of an input that is a sealed output.
    pub fn for_sealed(name: &str, file_name: &FileName, seal: SealId) -> Self {
        Self { path: below(Path::new(name), file_name), source: Source::Sealed(seal) }
    }
}

fn below(folder: &Path, name: &FileName) -> PathBuf {
    folder.join(OsStr::from_bytes(name.as_bytes()))
}

fn collect(folder: &Path, value: &Value, entries: &mut Vec<Entry>) {
    match value {
        Value::File(file) => {
            let source = Source::File { id: file.object, executable: file.executable };
            entries.push(Entry { path: below(folder, &file.name), source });
        }
        Value::Directory(tree) => {
            entries.push(Entry { path: below(folder, &tree.name), source: Source::Tree(tree.object) });
        }
        Value::List(values) => {
            values
                .iter()
                .enumerate()
                .for_each(|(index, value)| collect(&folder.join(index.to_string()), value, entries));
        }
        Value::Object(fields) => fields.iter().for_each(|(name, value)| {
            // A field may be called anything; what cannot be the name of a folder is told by its place.
            let safe = FileName::new(name.as_bytes()).is_ok();
            let place = fields.get_index_of(name).unwrap_or_default();
            let folder = if safe { folder.join(name) } else { folder.join(format!("field {place}")) };
            collect(&folder, value, entries);
        }),
        Value::Null | Value::Boolean(_) | Value::Integer(_) | Value::Number(_) | Value::String(_) => {}
    }
}

impl SiteStore {
    /// Builds the tree of inputs in `dir` (which is made if it is not there) out of hard links; each object is verified
    /// before. Only where a link is not possible (another file system, more links than one file can have) the bytes are
    /// cloned or copied.
    ///
    /// # Errors
    /// [`StoreError::Damaged`] or [`StoreError::NotFound`] when an object cannot be handed over. What was built by then
    /// stays, for [`Self::take_back`].
    pub fn materialise(&self, dir: &Path, entries: &[Entry]) -> Result<Lent, StoreError> {
        fs::create_dir_all(dir).doing("make", dir)?;
        let mut lent = Lent::default();
        let mut last: Option<(PathBuf, OwnedFd)> = None;
        for entry in entries {
            let path = dir.join(&entry.path);
            let folder = path.parent().unwrap_or(dir).to_owned();
            let name = entry.path.file_name().map(OsStr::as_bytes).unwrap_or_default().to_vec();
            if last.as_ref().is_none_or(|(open, _)| *open != folder) {
                fs::create_dir_all(&folder).doing("make", &folder)?;
                last = Some((folder.clone(), open_folder(&folder)?));
            }
            let (_, fd) = last.as_ref().expect("the folder was opened above");
            let place = Place { folder: fd.as_fd(), path: &path, name: &name };
            self.inner.lend(entry.source, &place, &mut lent)?;
            lent.sources.insert(entry.source);
        }
        Ok(lent)
    }

    /// The objects among those lent that were tampered with since; their copies are in quarantine now. Needed only where
    /// the borrower could write to the store's files.
    pub fn touched(&self, lent: &Lent) -> Result<Vec<ObjectRef>, StoreError> {
        let mut touched = Vec::new();
        for source in &lent.sources {
            let object = match source {
                Source::File { id, .. } => ObjectRef { id: *id, kind: ObjectKind::File, bytes: 0 },
                Source::Tree(id) => ObjectRef { id: *id, kind: ObjectKind::Tree, bytes: 0 },
                Source::Sealed(seal) => match self.inner.sealed(*seal) {
                    Ok(sealed) => match locked(&sealed).phase {
                        Phase::Committed(object) => object,
                        // Its own commit finds it out.
                        Phase::Waiting(_) => continue,
                    },
                    Err(_) => continue,
                },
            };
            match self.verify(object) {
                // What left the store in the meantime was found damaged by somebody else, or is not needed any more.
                Ok(()) | Err(StoreError::NotFound(_)) => {}
                Err(StoreError::Damaged { .. }) => touched.push(object),
                Err(error) => return Err(error),
            }
        }
        Ok(touched)
    }

    /// Removes a tree that [`Self::materialise`] made, with all that was put there since. Removed by other means, each of
    /// its objects would have to be hashed again before its next use.
    pub fn take_back(&self, dir: &Path) -> Result<(), StoreError> {
        self.inner.take_back(dir)
    }
}

struct Place<'a> {
    folder: BorrowedFd<'a>,
    /// The whole path, for messages and copies.
    path: &'a Path,
    name: &'a [u8],
}

fn open_folder(path: &Path) -> Result<OwnedFd, StoreError> {
    rustix::fs::openat(CWD, path, OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
        .doing("open", path)
}

impl Inner {
    fn lend(&self, source: Source, place: &Place<'_>, lent: &mut Lent) -> Result<(), StoreError> {
        match source {
            Source::File { id, executable } => self.lend_file(id, executable, place, lent),
            Source::Tree(id) => self
                .lend_tree(id, place, lent)
                .map_err(|error| self.give_up_tree(ObjectRef { id, kind: ObjectKind::Tree, bytes: 0 }, error)),
            Source::Sealed(seal) => {
                let sealed = self.sealed(seal)?;
                let mut sealed = locked(&sealed);
                match &mut sealed.phase {
                    Phase::Waiting(tree) => self.lend_sealed(tree, &self.layout.sealed(seal.0), place, lent),
                    Phase::Committed(object) => {
                        let source = match object.kind {
                            ObjectKind::File => Source::File { id: object.id, executable: sealed.output.executable },
                            ObjectKind::Tree => Source::Tree(object.id),
                        };
                        drop(sealed);
                        self.lend(source, place, lent)
                    }
                }
            }
        }
    }

    fn lend_file(&self, id: ObjectId, executable: bool, place: &Place<'_>, lent: &mut Lent) -> Result<(), StoreError> {
        let _shard = self.shard(id);
        self.touch(id);
        let key = self.wanted_variant(id, executable)?;
        let before = self.check_locked(&key)?;
        let path = self.layout.of(&key);
        let copied = self.link_or_copy(&path, place, key.variant.mode())?;
        lent.bytes += before.size;
        lent.files += 1;
        match copied {
            Some(Copied { digest: Some(digest), .. }) if digest != *id.digest() => {
                return Err(self.quarantine(&key, "it was not what it is called when it was copied")?);
            }
            Some(Copied { bytes, .. }) => lent.bytes_copied += bytes,
            None => {
                let now = stamp(&path)?;
                locked(&self.verified).put(key, now);
            }
        }
        Ok(())
    }

    /// The variant of a file, made out of the other if only that is there. The shard must be locked.
    fn wanted_variant(&self, id: ObjectId, executable: bool) -> Result<Key, StoreError> {
        let key = self.present_variant(id, executable)?;
        let wanted = Variant::file(executable);
        if key.variant == wanted {
            return Ok(key);
        }
        self.check_locked(&key)?;
        let made = Key::new(id, wanted);
        let from = self.layout.of(&key);
        let temporary = self.temporary();
        self.copier.file(&File::open(&from).doing("open", &from)?, &temporary, wanted.mode())?;
        // It is only worth a name if it outlives a power cut: a name for bytes that were lost would be damage.
        super::barrier::sync_path(&temporary).doing("sync", &temporary)?;
        let target = self.layout.of(&made);
        fs::rename(&temporary, &target).doing("move to", &target)?;
        self.count(stamp(&target)?.size);
        self.check_locked(&made)?;
        Ok(made)
    }

    fn lend_tree(&self, id: ObjectId, place: &Place<'_>, lent: &mut Lent) -> Result<(), StoreError> {
        self.touch(id);
        let manifest = self.manifest(id)?;
        rustix::fs::mkdirat(place.folder, place.name, Mode::from_raw_mode(0o755)).doing("make", place.path)?;
        let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
        let folder = rustix::fs::openat(place.folder, place.name, flags, Mode::empty()).doing("open", place.path)?;
        for entry in &manifest.entries {
            let name = entry.name.as_bytes();
            let path = place.path.join(OsStr::from_bytes(name));
            let place = Place { folder: folder.as_fd(), path: &path, name };
            match &entry.node {
                Node::File { id, executable, .. } => self.lend_file(*id, *executable, &place, lent)?,
                Node::Directory { id, .. } => self.lend_tree(*id, &place, lent)?,
                Node::Symlink { target } => {
                    rustix::fs::symlinkat(target.as_slice(), place.folder, name).doing("make", &path)?;
                }
            }
        }
        Ok(())
    }

    /// Removes a tree, keeping track of the store's files that lose a link by it.
    pub(super) fn take_back(&self, dir: &Path) -> Result<(), StoreError> {
        let metadata = match dir.symlink_metadata() {
            Ok(metadata) => metadata,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(StoreError::io("look at", dir, error)),
        };
        if metadata.is_dir() {
            let fd = open_folder(dir)?;
            self.empty(fd.as_fd(), dir)?;
            fs::remove_dir(dir).doing("remove", dir)
        } else {
            fs::remove_file(dir).doing("remove", dir)
        }
    }

    fn empty(&self, folder: BorrowedFd<'_>, path: &Path) -> Result<(), StoreError> {
        // Read whole before anything is removed, which could upset the reading.
        let mut names = Vec::new();
        for entry in Dir::read_from(folder).doing("read", path)? {
            let name = entry.doing("read", path)?.file_name().to_owned();
            if !matches!(name.as_bytes(), b"." | b"..") {
                names.push(name);
            }
        }
        for name in names {
            let path = path.join(OsStr::from_bytes(name.as_bytes()));
            let stat = match rustix::fs::statat(folder, &name, AtFlags::SYMLINK_NOFOLLOW) {
                Err(Errno::NOENT) => continue,
                stat => stat.doing("look at", &path)?,
            };
            if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
                let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
                rustix::fs::chmodat(folder, &name, Mode::RWXU, AtFlags::empty()).doing("open up", &path)?;
                let child = rustix::fs::openat(folder, &name, flags, Mode::empty()).doing("open", &path)?;
                self.empty(child.as_fd(), &path)?;
                rustix::fs::unlinkat(folder, &name, AtFlags::REMOVEDIR).doing("remove", &path)?;
            } else {
                self.unlink(folder, name.as_bytes(), &Stamp::of(&stat)).doing("remove", &path)?;
            }
        }
        Ok(())
    }

    /// Nothing if it was linked, or what was copied.
    fn link_or_copy(&self, from: &Path, place: &Place<'_>, mode: u32) -> Result<Option<Copied>, StoreError> {
        match rustix::fs::linkat(CWD, from, place.folder, place.name, AtFlags::empty()) {
            Ok(()) => Ok(None),
            Err(Errno::XDEV | Errno::MLINK | Errno::PERM | Errno::OPNOTSUPP) => {
                let file = File::open(from).doing("open", from)?;
                self.copier.file(&file, place.path, mode).map(Some)
            }
            Err(error) => Err(StoreError::io("link to", place.path, error)),
        }
    }

    fn unlink(&self, folder: BorrowedFd<'_>, name: &[u8], before: &Stamp) -> Result<(), Errno> {
        let known = locked(&self.verified).by_inode(before.device, before.inode);
        let Some(key) = known else { return copy::unlink(folder, name) };
        let _shard = self.shard(key.id);
        let path = self.layout.of(&key);
        let expected = locked(&self.verified).get(&key);
        let untouched = rustix::fs::lstat(&path).is_ok_and(|stat| Some(Stamp::of(&stat)) == expected);
        copy::unlink(folder, name)?;
        if untouched && let Ok(stat) = rustix::fs::lstat(&path) {
            locked(&self.verified).put(key, Stamp::of(&stat));
        }
        Ok(())
    }

    fn lend_sealed(
        &self,
        tree: &mut Tree<SealedFile>,
        path: &Path,
        place: &Place<'_>,
        lent: &mut Lent,
    ) -> Result<(), StoreError> {
        match tree {
            Tree::Symlink(target) => {
                rustix::fs::symlinkat(target.as_slice(), place.folder, place.name).doing("make", place.path)
            }
            Tree::File(file) => {
                // If somebody changed it, its stamp stays wrong, and its commit fails, and with it whatever used it.
                let untouched = stamp(path)? == file.stamp;
                let mode = Variant::file(file.executable).mode();
                lent.bytes_copied += self.link_or_copy(path, place, mode)?.map_or(0, |copied| copied.bytes);
                lent.bytes += file.stamp.size;
                lent.files += 1;
                if untouched {
                    file.stamp = stamp(path)?;
                }
                Ok(())
            }
            Tree::Directory(children) => {
                rustix::fs::mkdirat(place.folder, place.name, Mode::from_raw_mode(0o755)).doing("make", place.path)?;
                let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
                let folder =
                    rustix::fs::openat(place.folder, place.name, flags, Mode::empty()).doing("open", place.path)?;
                for (name, child) in children {
                    let name = name.as_bytes();
                    let (from, to) = (path.join(OsStr::from_bytes(name)), place.path.join(OsStr::from_bytes(name)));
                    self.lend_sealed(child, &from, &Place { folder: folder.as_fd(), path: &to, name }, lent)?;
                }
                Ok(())
            }
        }
    }
}
