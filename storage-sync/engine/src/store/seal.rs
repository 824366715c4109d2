//! Sealing: an output leaves the reach of whoever made it, unread.

use std::collections::HashMap;
use std::fs::{self, File};
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};

use atoll_model::value::{FileName, ObjectKind, ObjectRef};
use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags};
use rustix::io::Errno;

use super::copy::Copied;
use super::error::{Doing as _, IngestError, StoreError};
use super::layout::{Variant, shown_path};
use super::open::remove_any;
use super::seal_log::{Committed, Found, Line};
use super::stamp::Stamp;
use super::{Inner, SealId, SealedOutput, SiteStore, locked};
use crate::hash::Digest;
use crate::walk::{FileAt, Tree, Walked, open_beneath, open_parent, walk};

/// What stands under one seal.
#[derive(Debug)]
pub(super) struct Sealed {
    pub(super) claim: String,
    pub(super) output: SealedOutput,
    pub(super) phase: Phase,
}

#[derive(Debug)]
pub(super) enum Phase {
    /// At `sealed/<n>`; the identities are those that the files must still have when they get their names.
    Waiting(Tree<SealedFile>),
    Committed(ObjectRef),
}

#[derive(Debug, Clone)]
pub(super) struct SealedFile {
    pub(super) stamp: Stamp,
    pub(super) executable: bool,
    /// Of a file that was copied: it was read then.
    pub(super) digest: Option<Digest>,
}

impl SiteStore {
    /// Puts the file or directory at `path` out of reach of whoever made it, without reading it. Every process that could
    /// write to it must have ended. `claim` says whose it is, and is never used for another output: repeating the call
    /// with it, in another life of the process as well, gives the same seal.
    pub fn seal(&self, claim: &str, path: &Path) -> Result<SealedOutput, IngestError> {
        let known = locked(&self.inner.claims).get(claim).copied();
        if let Some(seal) = known {
            let sealed = self.inner.sealed(seal)?;
            let output = locked(&sealed).output.clone();
            return Ok(output);
        }
        self.inner.seal(claim, path)
    }

    /// Takes in a file or directory that belongs to somebody else: it is cloned where the file system can, else copied.
    /// `path` may be a symbolic link.
    pub fn import(&self, path: &Path) -> Result<super::Stored, IngestError> {
        let real = match path.canonicalize() {
            Ok(real) => real,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Err(IngestError::Missing(shown_path(path)));
            }
            Err(error) => return Err(StoreError::io("find", path, error).into()),
        };
        let name = path.file_name().or(real.file_name()).unwrap_or_default();
        let name = FileName::new(name.as_encoded_bytes())
            .map_err(|error| IngestError::Refused { path: shown_path(path), why: error.to_string() })?;
        let seal = SealId(self.inner.next());
        let claim = format!("import {}", seal.0);
        let copied = self.inner.copy_in(&real, seal)?;
        self.inner.admit(&claim, seal, name, Taken::Copied(copied))?;
        let stored = self.commit(seal);
        self.drop_seal(seal)?;
        stored
    }

    /// Every seal that was not dropped, of earlier processes too, with whose it is.
    pub fn seals(&self) -> Vec<(SealId, String)> {
        locked(&self.inner.claims).iter().map(|(claim, seal)| (*seal, claim.clone())).collect()
    }

    /// Forgets a seal, and drops what is sealed under it if it was not committed.
    pub fn drop_seal(&self, seal: SealId) -> Result<(), StoreError> {
        let inner = &self.inner;
        let Some(sealed) = locked(&inner.seals).remove(&seal) else { return Ok(()) };
        // Whoever commits it or hands it over at this moment comes first.
        let sealed = locked(&sealed);
        locked(&inner.claims).remove(&sealed.claim);
        locked(&inner.seal_log).append(Line::Dropped { seal: seal.0 })?;
        remove_any(&inner.layout.sealed(seal.0))
    }
}

impl Inner {
    pub(super) fn sealed(&self, seal: SealId) -> Result<Arc<Mutex<Sealed>>, StoreError> {
        locked(&self.seals).get(&seal).cloned().ok_or(StoreError::UnknownSeal(seal))
    }

    fn seal(&self, claim: &str, path: &Path) -> Result<SealedOutput, IngestError> {
        let (_, name) = open_parent(path)?;
        // What is refused stays where it is.
        let mut foreign = Foreign::default();
        walk(path, self.limits, true, &mut |file| foreign.prepare(self, file))?;
        let seal = SealId(self.next());
        let target = self.layout.sealed(seal.0);
        let line = Line::Sealed { seal: seal.0, claim: claim.to_owned(), name: name.as_bytes().to_vec() };
        locked(&self.seal_log).append(line)?;
        let taken = match rustix::fs::renameat(CWD, path, CWD, &target) {
            Ok(()) => Taken::Moved { bytes_copied: foreign.replace(self, path, &target)? },
            Err(error @ (Errno::XDEV | Errno::PERM | Errno::ACCESS)) => {
                self.tell_of_copies(path, error);
                let copied = self.copy_in(path, seal)?;
                remove_any(path)?;
                Taken::Copied(copied)
            }
            Err(error) => return Err(StoreError::io("move", path, error).into()),
        };
        self.admit(claim, seal, name, taken)
    }

    /// Said once: it is the same for every output that comes from there.
    fn tell_of_copies(&self, path: &Path, error: Errno) {
        if !self.told_of_copies.swap(true, Ordering::Relaxed) {
            let (output, store) = (shown_path(path), shown_path(&self.layout.root));
            tracing::warn!(output, store, %error, "outputs cannot be moved into the store: they are copied and compared");
        }
    }

    /// Takes up what stands at `sealed/<seal>`.
    fn admit(&self, claim: &str, seal: SealId, name: FileName, taken: Taken) -> Result<SealedOutput, IngestError> {
        let mut walked = walk(&self.layout.sealed(seal.0), self.limits, true, &mut stamp_sealed)?;
        let bytes_copied = match &taken {
            Taken::Moved { bytes_copied } => *bytes_copied,
            Taken::Copied(copied) => note_digests(&mut walked.tree, copied),
        };
        let output = waiting_output(seal, name, &walked, bytes_copied);
        let sealed = Sealed { claim: claim.to_owned(), output: output.clone(), phase: Phase::Waiting(walked.tree) };
        locked(&self.seals).insert(seal, Arc::new(Mutex::new(sealed)));
        locked(&self.claims).insert(claim.to_owned(), seal);
        Ok(output)
    }

    /// Copies what stands at `path` to `sealed/<seal>`, where it is seen when all of it is there: a process that dies
    /// in the middle leaves nothing that could be taken for the whole.
    fn copy_in(&self, path: &Path, seal: SealId) -> Result<Tree<Copied>, IngestError> {
        let mut executable = |file: &FileAt<'_>| Ok(is_executable(file));
        let walked = walk(path, self.limits, false, &mut executable)?;
        let (parent, name) = open_parent(path)?;
        let (temporary, target) = (self.temporary(), self.layout.sealed(seal.0));
        let copied = self.copier.tree(path, parent.as_fd(), name.as_bytes(), &walked.tree, &temporary);
        let copied = copied.and_then(|copied| {
            fs::rename(&temporary, &target).doing("move to", &target)?;
            Ok(copied)
        });
        if copied.is_err() {
            remove_any(&temporary)?;
        }
        copied
    }
}

/// How an output came to stand under its seal.
enum Taken {
    Moved { bytes_copied: u64 },
    Copied(Tree<Copied>),
}

/// Keeps the digests of files that were read as they were copied; how many bytes that took.
fn note_digests(tree: &mut Tree<SealedFile>, copied: &Tree<Copied>) -> u64 {
    match (tree, copied) {
        (Tree::File(file), Tree::File(copied)) => {
            file.digest = copied.digest;
            copied.bytes
        }
        (Tree::Directory(children), Tree::Directory(copied)) => {
            children.iter_mut().zip(copied).map(|((_, child), (_, copied))| note_digests(child, copied)).sum()
        }
        _ => 0,
    }
}

fn is_executable(file: &FileAt<'_>) -> bool {
    file.stat.st_mode & 0o111 != 0
}

fn stamp_sealed(file: &FileAt<'_>) -> Result<SealedFile, IngestError> {
    Ok(SealedFile { stamp: Stamp::of(&file.stat), executable: is_executable(file), digest: None })
}

fn waiting_output(seal: SealId, name: FileName, walked: &Walked<SealedFile>, bytes_copied: u64) -> SealedOutput {
    let executable = matches!(&walked.tree, Tree::File(file) if file.executable);
    let directory = matches!(walked.tree, Tree::Directory(_));
    SealedOutput { seal, name, directory, executable, bytes: walked.bytes, files: walked.files, bytes_copied }
}

/// Files of an output that somebody else could still change: they have names elsewhere, or another owner.
#[derive(Debug, Default)]
struct Foreign {
    links: HashMap<(u64, u64), (u64, Vec<PathBuf>)>,
    owned_by_others: Vec<PathBuf>,
}

impl Foreign {
    fn prepare(&mut self, inner: &Inner, file: &FileAt<'_>) -> Result<(), IngestError> {
        use std::os::unix::ffi::OsStrExt as _;
        let path = PathBuf::from(std::ffi::OsStr::from_bytes(file.path));
        let stat = &file.stat;
        let inode = (stat.st_dev, stat.st_ino);
        if stat.st_nlink > 1 {
            // A file of the store that an execution passes on is immutable already.
            if locked(&inner.verified).by_inode(inode.0, inode.1).is_some() {
                return Ok(());
            }
            let (links, paths) = self.links.entry(inode).or_insert((stat.st_nlink, Vec::new()));
            *links = stat.st_nlink;
            paths.push(path.clone());
        }
        let mode = Variant::file(is_executable(file)).mode();
        if stat.st_mode & 0o7777 == mode {
            return Ok(());
        }
        let failed = |error: Errno| StoreError::io("protect", Path::new(&shown_path(&path)), error);
        let opened = match open_beneath(file.directory, file.name, OFlags::RDONLY) {
            Err(Errno::ACCESS) => {
                rustix::fs::chmodat(file.directory, file.name, Mode::RUSR, AtFlags::empty()).map_err(failed)?;
                open_beneath(file.directory, file.name, OFlags::RDONLY)
            }
            opened => opened,
        };
        let opened = opened.map_err(failed)?;
        let now = rustix::fs::fstat(&opened).map_err(failed)?;
        if (now.st_dev, now.st_ino) != inode || FileType::from_raw_mode(now.st_mode) != FileType::RegularFile {
            return Err(IngestError::Changed(shown_path(&path)));
        }
        match rustix::fs::fchmod(&opened, Mode::from_raw_mode(mode)) {
            Ok(()) => Ok(()),
            Err(Errno::PERM) => {
                self.owned_by_others.push(path);
                Ok(())
            }
            Err(error) => Err(failed(error).into()),
        }
    }

    /// Puts copies in their place; how many bytes that took.
    fn replace(self, inner: &Inner, source: &Path, target: &Path) -> Result<u64, IngestError> {
        let linked = self.links.into_values().filter(|(links, paths)| *links > paths.len() as u64);
        // The names of one file stay one file.
        let mut groups: Vec<Vec<PathBuf>> = linked.map(|(_, paths)| paths).collect();
        groups.extend(self.owned_by_others.into_iter().map(|path| vec![path]));
        let mut copied = 0;
        for group in groups {
            let full = |path: &Path| if path.as_os_str().is_empty() { target.to_owned() } else { target.join(path) };
            let Some(first) = group.first().map(|path| full(path)) else { continue };
            let from = File::open(&first).doing("open", &first)?;
            let mode = rustix::fs::fstat(&from).doing("look at", &first)?.st_mode;
            let executable = mode & 0o111 != 0;
            let temporary = inner.temporary();
            copied += inner.copier.file(&from, &temporary, Variant::file(executable).mode())?.bytes;
            for path in &group[1..] {
                let path = full(path);
                remove_any(&path)?;
                fs::hard_link(&temporary, &path).doing("link", &path)?;
            }
            fs::rename(&temporary, &first).doing("move", &first)?;
        }
        if copied > 0 {
            tracing::debug!(source = %shown_path(source), copied, "files with other names or owners were copied");
        }
        Ok(copied)
    }
}

/// Takes up a seal of an earlier process, if what it names is still there.
pub(super) fn recover(inner: &Inner, found: Found) -> Result<Option<(SealId, Sealed)>, StoreError> {
    let Found { seal, claim, name, committed } = found;
    let Ok(name) = FileName::new(&name) else { return Ok(None) };
    if let Some(Committed { object, files, executable }) = committed
        && inner.key_present(object.id, object.kind).is_some()
    {
        remove_any(&inner.layout.sealed(seal.0))?;
        let directory = object.kind == ObjectKind::Tree;
        let bytes = object.bytes;
        let output = SealedOutput { seal, name, directory, executable, bytes, files, bytes_copied: 0 };
        return Ok(Some((seal, Sealed { claim, output, phase: Phase::Committed(object) })));
    }
    match walk(&inner.layout.sealed(seal.0), inner.limits, true, &mut stamp_sealed) {
        Ok(walked) => {
            let output = waiting_output(seal, name, &walked, 0);
            Ok(Some((seal, Sealed { claim, output, phase: Phase::Waiting(walked.tree) })))
        }
        // It was claimed, and not moved yet: it is where it was made, and is sealed anew.
        Err(IngestError::Missing(_)) => Ok(None),
        Err(IngestError::Store(error)) => Err(error),
        Err(error) => {
            tracing::warn!(%error, seal = seal.0, "a sealed output cannot be taken up again");
            Ok(None)
        }
    }
}
