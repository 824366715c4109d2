//! Walks a tree that nobody vouches for: one name at a time below an open directory, no symbolic link followed, nothing
//! but regular files, directories and harmless links let through.

use std::ffi::{CString, OsStr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use atoll_model::limits::{OUTPUT_BYTES_MAX, TREE_DEPTH_MAX, TREE_ENTRIES_MAX, TREE_PATH_BYTES_MAX};
use atoll_model::value::FileName;
use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, ResolveFlags, Stat};
use rustix::io::Errno;

use crate::manifest::symlink_fault;
use crate::store::error::{IngestError, StoreError};
use crate::store::layout::{shown, shown_path};

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Tree<T> {
    File(T),
    /// In bytewise order of the names.
    Directory(Vec<(FileName, Tree<T>)>),
    Symlink(Vec<u8>),
}

/// A regular file that the walk came to.
#[derive(Debug)]
pub(crate) struct FileAt<'a> {
    pub(crate) directory: BorrowedFd<'a>,
    pub(crate) name: &'a [u8],
    /// From the root of the walk, which is empty.
    pub(crate) path: &'a [u8],
    pub(crate) stat: Stat,
}

/// How much one walk may find. The defaults are the product's limits.
#[derive(Debug, Clone, Copy)]
pub struct WalkLimits {
    pub entries: u64,
    pub depth: usize,
    pub bytes: u64,
    /// Names that are passed over, in every directory, as if they were not there.
    pub passed_over: &'static [&'static str],
}

impl Default for WalkLimits {
    fn default() -> Self {
        Self { entries: TREE_ENTRIES_MAX, depth: TREE_DEPTH_MAX, bytes: OUTPUT_BYTES_MAX, passed_over: &[] }
    }
}

#[derive(Debug)]
pub(crate) struct Walked<T> {
    pub(crate) tree: Tree<T>,
    pub(crate) bytes: u64,
    pub(crate) files: u64,
}

/// Walks what stands at `path`, whose parent is trusted. `own` says that the tree is ours, so that directories that
/// forbid it may be opened up.
pub(crate) fn walk<T>(
    path: &Path,
    limits: WalkLimits,
    own: bool,
    on_file: &mut dyn FnMut(&FileAt<'_>) -> Result<T, IngestError>,
) -> Result<Walked<T>, IngestError> {
    let (parent, name) = open_parent(path)?;
    let mut walk = Walk { root: path, limits, own, on_file, path: Vec::new(), entries: 0, bytes: 0, files: 0 };
    let stat = match rustix::fs::statat(&parent, name.as_bytes(), AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => stat,
        Err(Errno::NOENT) => return Err(IngestError::Missing(shown_path(path))),
        Err(error) => return Err(StoreError::io("look at", path, error).into()),
    };
    if FileType::from_raw_mode(stat.st_mode) == FileType::Symlink {
        return Err(walk.refuse("is a symbolic link, not a file or directory of its own"));
    }
    let tree = walk.node(parent.as_fd(), name.as_bytes(), stat, 0)?;
    Ok(Walked { tree, bytes: walk.bytes, files: walk.files })
}

/// The parent of `path`, open, and the last name of it.
pub(crate) fn open_parent(path: &Path) -> Result<(OwnedFd, FileName), IngestError> {
    let name = path.file_name().map(OsStr::as_bytes).and_then(|name| FileName::new(name).ok()).ok_or_else(|| {
        IngestError::Refused { path: shown_path(path), why: "is not the path of a file or directory".to_owned() }
    })?;
    let parent = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let directory = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
    match rustix::fs::openat(CWD, parent, directory, Mode::empty()) {
        Ok(fd) => Ok((fd, name)),
        Err(Errno::NOENT | Errno::NOTDIR) => Err(IngestError::Missing(shown_path(path))),
        Err(error) => Err(StoreError::io("open", parent, error).into()),
    }
}

/// Opens one name in a directory, or a path of several below it, without following a symbolic link.
pub(crate) fn open_beneath(directory: BorrowedFd<'_>, path: &[u8], flags: OFlags) -> Result<OwnedFd, Errno> {
    let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    match rustix::fs::openat2(directory, path, flags, Mode::empty(), resolve) {
        // Kernels before 5.6, and sandboxes that do not know the call: one name at a time comes to the same.
        Err(Errno::NOSYS | Errno::PERM) => {
            let mut opened: Option<OwnedFd> = None;
            let mut names = path.split(|byte| *byte == b'/').peekable();
            while let Some(name) = names.next() {
                let flags = if names.peek().is_some() { flags | OFlags::DIRECTORY } else { flags };
                let from = opened.as_ref().map_or(directory, AsFd::as_fd);
                opened = Some(rustix::fs::openat(from, name, flags, Mode::empty())?);
            }
            opened.ok_or(Errno::NOENT)
        }
        result => result,
    }
}

struct Walk<'a, T> {
    root: &'a Path,
    limits: WalkLimits,
    own: bool,
    on_file: &'a mut dyn FnMut(&FileAt<'_>) -> Result<T, IngestError>,
    path: Vec<u8>,
    entries: u64,
    bytes: u64,
    files: u64,
}

impl<T> Walk<'_, T> {
    fn refuse(&self, why: impl Into<String>) -> IngestError {
        let root = shown_path(self.root);
        let path = if self.path.is_empty() { root } else { format!("{root}/{}", shown(&self.path)) };
        IngestError::Refused { path, why: why.into() }
    }

    fn error(&self, what: &'static str, error: Errno) -> IngestError {
        if matches!(error, Errno::NOENT | Errno::LOOP) {
            return IngestError::Changed(shown_path(&self.full_path()));
        }
        StoreError::io(what, &self.full_path(), error).into()
    }

    fn full_path(&self) -> std::path::PathBuf {
        if self.path.is_empty() { self.root.to_owned() } else { self.root.join(OsStr::from_bytes(&self.path)) }
    }

    fn node(
        &mut self,
        directory: BorrowedFd<'_>,
        name: &[u8],
        stat: Stat,
        depth: usize,
    ) -> Result<Tree<T>, IngestError> {
        let special = match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => {
                self.files += 1;
                self.bytes = self.bytes.saturating_add(stat.st_size as u64);
                if self.bytes > self.limits.bytes {
                    return Err(self.refuse(format!("brings the whole above {} bytes", self.limits.bytes)));
                }
                return (self.on_file)(&FileAt { directory, name, path: &self.path, stat }).map(Tree::File);
            }
            FileType::Directory => return self.directory(directory, name, depth),
            FileType::Symlink => return self.symlink(directory, name, depth),
            FileType::Fifo => "a FIFO",
            FileType::Socket => "a socket",
            FileType::CharacterDevice => "a character device",
            FileType::BlockDevice => "a block device",
            FileType::Unknown => "of no known kind",
        };
        Err(self.refuse(format!("is {special}: only regular files, directories and symbolic links are taken")))
    }

    fn symlink(&mut self, directory: BorrowedFd<'_>, name: &[u8], depth: usize) -> Result<Tree<T>, IngestError> {
        let target = rustix::fs::readlinkat(directory, name, Vec::new()).map_err(|error| self.error("read", error))?;
        // A link stands in a directory, so its depth counts from there.
        let mut is_directory =
            |names: &[&[u8]]| open_beneath(directory, &names.join(&b'/'), OFlags::RDONLY | OFlags::DIRECTORY).is_ok();
        match symlink_fault(target.as_bytes(), depth - 1, &mut is_directory) {
            None => Ok(Tree::Symlink(target.into_bytes())),
            Some(why) => {
                let target = shown(target.as_bytes());
                Err(self.refuse(format!("is a symbolic link to {target}, {why}")))
            }
        }
    }

    fn directory(&mut self, parent: BorrowedFd<'_>, name: &[u8], depth: usize) -> Result<Tree<T>, IngestError> {
        if depth > self.limits.depth {
            return Err(self.refuse(format!("is more than {} directories deep", self.limits.depth)));
        }
        let fd = self.open_directory(parent, name)?;
        let mut names = Vec::new();
        for entry in Dir::read_from(&fd).map_err(|error| self.error("read", error))? {
            let entry: CString = entry.map_err(|error| self.error("read", error))?.file_name().to_owned();
            let passed_over = |name: &&str| name.as_bytes() == entry.as_bytes();
            if matches!(entry.as_bytes(), b"." | b"..") || self.limits.passed_over.iter().any(passed_over) {
                continue;
            }
            self.entries += 1;
            if self.entries > self.limits.entries {
                return Err(self.refuse(format!("has more than {} entries", self.limits.entries)));
            }
            let name = FileName::new(entry.as_bytes()).map_err(|error| self.refuse(error.to_string()))?;
            names.push(name);
        }
        names.sort_unstable();
        let mut children = Vec::with_capacity(names.len());
        for name in names {
            let length = self.path.len();
            if length > 0 {
                self.path.push(b'/');
            }
            self.path.extend_from_slice(name.as_bytes());
            if self.path.len() > TREE_PATH_BYTES_MAX {
                return Err(self.refuse(format!("is a path of more than {TREE_PATH_BYTES_MAX} bytes")));
            }
            let stat = rustix::fs::statat(&fd, name.as_bytes(), AtFlags::SYMLINK_NOFOLLOW)
                .map_err(|error| self.error("look at", error))?;
            let node = self.node(fd.as_fd(), name.as_bytes(), stat, depth + 1)?;
            self.path.truncate(length);
            children.push((name, node));
        }
        Ok(Tree::Directory(children))
    }

    fn open_directory(&self, parent: BorrowedFd<'_>, name: &[u8]) -> Result<OwnedFd, IngestError> {
        let flags = OFlags::DIRECTORY | OFlags::RDONLY;
        let opened = match open_beneath(parent, name, flags) {
            Err(Errno::ACCESS) if self.own => {
                rustix::fs::chmodat(parent, name, Mode::RWXU, AtFlags::empty())
                    .map_err(|error| self.error("open up", error))?;
                open_beneath(parent, name, flags)
            }
            result => result,
        };
        let fd = opened.map_err(|error| self.error("open", error))?;
        if self.own {
            let mode =
                Mode::from_raw_mode(rustix::fs::fstat(&fd).map_err(|error| self.error("look at", error))?.st_mode);
            // Its entries are going to be moved, so it must allow that; setgid and sticky bits mean nothing here.
            if mode.contains(Mode::SUID) || mode.contains(Mode::SGID) || !mode.contains(Mode::RWXU) {
                rustix::fs::fchmod(&fd, Mode::from_raw_mode(0o755)).map_err(|error| self.error("open up", error))?;
            }
        }
        Ok(fd)
    }
}
