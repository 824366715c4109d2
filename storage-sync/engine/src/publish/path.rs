//! Publishing at a path: everything is written beside it under a name that nobody looks for, made durable, and renamed.
//!
//! Others may write to the folder of the target too, and replace names in it by links meanwhile. So every folder is opened
//! below one that is open already, without following links, and what is written is reached from there.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{self, Read as _};
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, RenameFlags};
use rustix::io::Errno;
use tokio_util::sync::CancellationToken;

use super::{PublishError, open_file};
use crate::hash::data_extents;
use crate::store::copy::copy_range;

/// Bytes that are copied before it is looked whether they are still wanted.
const STRETCH: u64 = 64 << 20;
const COMPARED: usize = 256 << 10;

/// Where something is published.
#[derive(Debug, Clone, Copy)]
pub struct PathTarget<'a> {
    pub path: &'a Path,
    /// Folders below which it must be, wherever links lead.
    pub roots: &'a [PathBuf],
    /// Nothing is written below this one, although it may be below one of them.
    pub never: &'a Path,
    pub overwrite: bool,
    /// What names of unfinished ones begin with; those that an earlier attempt has left go.
    pub unfinished: &'a str,
    /// What this attempt's is called.
    pub attempt: &'a str,
}

/// Publishes what stands at `from`, which nobody changes meanwhile. Blocks.
///
/// # Errors
/// When it may not, need not, or cannot be written there; then nothing of it is left, but perhaps folders above it.
pub fn publish_at_path(from: &Path, to: PathTarget<'_>, given_up: &CancellationToken) -> Result<(), PublishError> {
    let folder = Folder::open(to)?;
    let watch = Watch { given_up };
    match folder.publish(from, to, &watch) {
        Ok(true) => Ok(()),
        Ok(false) => Err(PublishError::Exists(to.path.display().to_string())),
        Err(_) if given_up.is_cancelled() => Err(PublishError::GivenUp),
        Err(error) => Err(PublishError::Disk { path: folder.path.join(&folder.name), error }),
    }
}

/// The folder that something is published in.
struct Folder {
    open: OwnedFd,
    path: PathBuf,
    /// Of what is published.
    name: OsString,
}

impl Folder {
    /// Opens the folder of the target, and makes it if it is not there.
    fn open(to: PathTarget<'_>) -> Result<Self, PublishError> {
        let refused =
            |message: &str| PublishError::Refused { place: to.path.display().to_string(), message: message.to_owned() };
        let is_plain = to.path.components().all(|part| matches!(part, Component::RootDir | Component::Normal(_)));
        let (Some(parent), Some(name)) = (to.path.parent(), to.path.file_name()) else {
            return Err(refused("it is not the path of a file or directory"));
        };
        if !to.path.is_absolute() || !is_plain {
            return Err(refused("it is not an absolute path without `..`"));
        }
        let path = real_path(parent).map_err(PublishError::disk(parent))?;
        let roots = to.roots.iter().filter_map(|root| fs::canonicalize(root).ok());
        let mut roots = roots.filter(|root| path.starts_with(root));
        let kept_out = real_path(to.never).is_ok_and(|never| path.starts_with(never));
        let Some(root) = roots.next().filter(|_| !kept_out) else {
            return Err(PublishError::NotAllowed { path: to.path.to_owned(), real: path.join(name) });
        };
        let open = open_below(&root, path.strip_prefix(&root).unwrap_or(Path::new("")));
        let open = open.map_err(|error| PublishError::Disk { path: path.clone(), error: error.into() })?;
        Ok(Self { open, path, name: name.to_owned() })
    }

    /// Publishes it unless something else stands there; whether it is published.
    fn publish(&self, from: &Path, to: PathTarget<'_>, watch: &Watch<'_>) -> io::Result<bool> {
        let is_there = self.kind(&self.name)?.is_some();
        if is_there && self.has_already(from, watch)? {
            return Ok(true);
        }
        if is_there && !to.overwrite {
            return Ok(false);
        }
        self.clear(to.unfinished)?;
        let unfinished = OsString::from(format!("{}{}", to.unfinished, to.attempt));
        let copied = watch.copy(from, self.open.as_fd(), &unfinished).and_then(|()| watch.look());
        let published = copied.and_then(|()| self.put(&unfinished, to.overwrite));
        if published.is_err()
            && let Err(error) = self.clear(to.unfinished)
        {
            tracing::warn!(folder = %self.path.display(), %error, "what was not published cannot be cleared away");
        }
        match published {
            // Somebody else was faster.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => self.has_already(from, watch),
            result => result.map(|()| true),
        }
    }

    /// Whether the very same content stands there. What may not be read is something else.
    fn has_already(&self, from: &Path, watch: &Watch<'_>) -> io::Result<bool> {
        match watch.is_same(from, &self.reached(&self.name)) {
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Ok(false),
            result => result,
        }
    }

    /// A path to something in the folder, whatever has become of the folder's own name.
    fn reached(&self, name: &OsStr) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}", self.open.as_raw_fd())).join(name)
    }

    fn kind(&self, name: &OsStr) -> Result<Option<FileType>, Errno> {
        match rustix::fs::statat(&self.open, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some(FileType::from_raw_mode(stat.st_mode))),
            Err(Errno::NOENT) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Removes all whose names begin with this.
    fn clear(&self, unfinished: &str) -> io::Result<()> {
        for entry in fs::read_dir(self.reached(OsStr::new(".")))? {
            let name = entry?.file_name();
            if name.as_bytes().starts_with(unfinished.as_bytes()) {
                self.remove(&name)?;
            }
        }
        Ok(())
    }

    fn remove(&self, name: &OsStr) -> io::Result<()> {
        match self.kind(name)? {
            Some(FileType::Directory) => fs::remove_dir_all(self.reached(name)),
            Some(_) => Ok(rustix::fs::unlinkat(&self.open, name, AtFlags::empty())?),
            None => Ok(()),
        }
    }

    /// Gives what is finished its name, and makes that durable.
    fn put(&self, finished: &OsStr, overwrite: bool) -> io::Result<()> {
        let there = self.kind(&self.name)?.filter(|_| overwrite);
        let is_directory = self.kind(finished)? == Some(FileType::Directory);
        match there {
            None => self.put_new(finished, is_directory)?,
            Some(kind) if kind != FileType::Directory && !is_directory => {
                rustix::fs::renameat(&self.open, finished, &self.open, &self.name)?;
            }
            Some(_) => self.put_instead(finished)?,
        }
        Ok(rustix::fs::fsync(&self.open)?)
    }

    fn put_new(&self, finished: &OsStr, is_directory: bool) -> io::Result<()> {
        let (open, name) = (&self.open, &self.name);
        match rustix::fs::renameat_with(open, finished, open, name, RenameFlags::NOREPLACE) {
            // File systems that do not know how.
            Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) if is_directory => {
                // No directory takes the place of a file, or of another that has anything in it.
                rustix::fs::renameat(open, finished, open, name)?;
            }
            Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => {
                rustix::fs::linkat(open, finished, open, name, AtFlags::empty())?;
                rustix::fs::unlinkat(open, finished, AtFlags::empty())?;
            }
            result => result?,
        }
        Ok(())
    }

    /// Changes places with what stands there, and removes that.
    fn put_instead(&self, finished: &OsStr) -> io::Result<()> {
        let (open, name) = (&self.open, &self.name);
        match rustix::fs::renameat_with(open, finished, open, name, RenameFlags::EXCHANGE) {
            // File systems that do not know how: for a moment nothing stands there.
            Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => {
                let mut former = finished.to_owned();
                former.push(".former");
                rustix::fs::renameat(open, name, open, &former)?;
                if let Err(error) = rustix::fs::renameat(open, finished, open, name) {
                    rustix::fs::renameat(open, &former, open, name)?;
                    return Err(error.into());
                }
                self.remove(&former)
            }
            result => {
                result?;
                self.remove(finished)
            }
        }
    }
}

/// The path without links; of what does not exist yet, what it will be.
fn real_path(path: &Path) -> io::Result<PathBuf> {
    for there in path.ancestors() {
        match fs::canonicalize(there) {
            Ok(real) => return Ok(real.join(path.strip_prefix(there).unwrap_or(Path::new("")))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Err(io::ErrorKind::NotFound.into())
}

/// Opens a folder below another one by names that are no links, and makes those that are not there.
fn open_below(root: &Path, path: &Path) -> Result<OwnedFd, Errno> {
    let mut open = open_folder(CWD, root.as_os_str())?;
    for name in path {
        open = match open_folder(open.as_fd(), name) {
            Err(Errno::NOENT) => make_folder(open.as_fd(), name)?,
            result => result?,
        };
    }
    Ok(open)
}

fn open_folder(below: BorrowedFd<'_>, name: &OsStr) -> Result<OwnedFd, Errno> {
    let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::RDONLY | OFlags::CLOEXEC;
    rustix::fs::openat(below, name, flags, Mode::empty())
}

/// As everybody makes folders: what may be done with it is for the umask to say.
fn make_folder(below: BorrowedFd<'_>, name: &OsStr) -> Result<OwnedFd, Errno> {
    match rustix::fs::mkdirat(below, name, Mode::from_raw_mode(0o777)) {
        Ok(()) => rustix::fs::fsync(below)?,
        Err(Errno::EXIST) => {}
        Err(error) => return Err(error),
    }
    open_folder(below, name)
}

/// Ends what takes long when it is not asked for any more.
struct Watch<'a> {
    given_up: &'a CancellationToken,
}

impl Watch<'_> {
    fn look(&self) -> io::Result<()> {
        if self.given_up.is_cancelled() { Err(io::ErrorKind::Interrupted.into()) } else { Ok(()) }
    }

    /// Copies a file or a tree to a name that is free, and makes it durable.
    fn copy(&self, from: &Path, to: BorrowedFd<'_>, name: &OsStr) -> io::Result<()> {
        if fs::symlink_metadata(from)?.is_dir() {
            self.copy_tree(from, to, name)?;
            // One call for all files, of which there may be a million.
            return Ok(rustix::fs::syncfs(to)?);
        }
        self.copy_file(from, to, name)?.sync_all()
    }

    fn copy_tree(&self, from: &Path, to: BorrowedFd<'_>, name: &OsStr) -> io::Result<()> {
        rustix::fs::mkdirat(to, name, Mode::from_raw_mode(0o777))?;
        let folder = open_folder(to, name)?;
        for entry in fs::read_dir(from)? {
            let entry = entry?;
            let (kind, path, name) = (entry.file_type()?, entry.path(), entry.file_name());
            if kind.is_dir() {
                self.copy_tree(&path, folder.as_fd(), &name)?;
            } else if kind.is_symlink() {
                rustix::fs::symlinkat(fs::read_link(&path)?, &folder, &name)?;
            } else {
                self.copy_file(&path, folder.as_fd(), &name)?;
            }
        }
        Ok(())
    }

    fn copy_file(&self, from: &Path, to: BorrowedFd<'_>, name: &OsStr) -> io::Result<File> {
        self.look()?;
        let (from, metadata) = open_file(from)?;
        let executable = metadata.permissions().mode() & 0o111 != 0;
        let mode = Mode::from_raw_mode(if executable { 0o777 } else { 0o666 });
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::WRONLY | OFlags::CLOEXEC;
        let to = File::from(rustix::fs::openat(to, name, flags, mode)?);
        if rustix::fs::ioctl_ficlone(&to, &from).is_ok() {
            return Ok(to);
        }
        for (start, end) in data_extents(&from, metadata.len())? {
            let mut at = start;
            while at < end {
                self.look()?;
                let next = end.min(at + STRETCH);
                copy_range(&from, &to, at, next)?;
                at = next;
            }
        }
        to.set_len(metadata.len())?;
        Ok(to)
    }

    /// Whether two files, or trees, have the same content. Who may do what with them is not looked at.
    fn is_same(&self, one: &Path, other: &Path) -> io::Result<bool> {
        self.look()?;
        let kinds = [one, other].map(|path| fs::symlink_metadata(path).map(|found| found.file_type()));
        let [kind, other_kind] = kinds;
        let kind = kind?;
        if kind != other_kind? {
            return Ok(false);
        }
        if kind.is_symlink() {
            return Ok(fs::read_link(one)? == fs::read_link(other)?);
        }
        if !kind.is_dir() {
            return self.is_same_file(one, other);
        }
        let mut count = 0;
        for entry in fs::read_dir(one)? {
            let name = entry?.file_name();
            count += 1;
            let other = other.join(&name);
            if fs::symlink_metadata(&other).is_err() || !self.is_same(&one.join(&name), &other)? {
                return Ok(false);
            }
        }
        Ok(fs::read_dir(other)?.count() == count)
    }

    fn is_same_file(&self, one: &Path, other: &Path) -> io::Result<bool> {
        let ((one, metadata), (other, other_metadata)) = (open_file(one)?, open_file(other)?);
        if metadata.len() != other_metadata.len() {
            return Ok(false);
        }
        let (mut one, mut other) = (one, other);
        let mut parts = [vec![0; COMPARED], vec![0; COMPARED]];
        let mut left = metadata.len();
        while left > 0 {
            self.look()?;
            let length = usize::try_from(left).unwrap_or(usize::MAX).min(COMPARED);
            let [part, other_part] = &mut parts;
            one.read_exact(&mut part[..length])?;
            other.read_exact(&mut other_part[..length])?;
            if part[..length] != other_part[..length] {
                return Ok(false);
            }
            left -= length as u64;
        }
        Ok(true)
    }
}
