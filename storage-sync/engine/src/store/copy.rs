//! Copies, for where neither a link nor a rename will do. Clones where the file system can; holes stay holes.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::io::Errno;

use super::error::{Doing as _, IngestError, StoreError};
use crate::hash::data_extents;
use crate::walk::{Tree, open_beneath};

/// Copies the content of `from` into the empty file `to`; how many bytes were copied rather than shared.
pub(crate) fn copy_content(from: &File, to: &File) -> io::Result<u64> {
    if rustix::fs::ioctl_ficlone(to, from).is_ok() {
        return Ok(0);
    }
    let length = from.metadata()?.len();
    let mut copied = 0;
    for (start, end) in data_extents(from, length)? {
        copy_range(from, to, start, end)?;
        copied += end - start;
    }
    to.set_len(length)?;
    Ok(copied)
}

pub(crate) fn copy_range(from: &File, to: &File, start: u64, end: u64) -> io::Result<()> {
    let (mut read_at, mut write_at) = (start, start);
    while read_at < end {
        let wanted = usize::try_from(end - read_at).unwrap_or(usize::MAX).min(1 << 30);
        match rustix::fs::copy_file_range(from, Some(&mut read_at), to, Some(&mut write_at), wanted) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(_) => {}
            Err(Errno::XDEV | Errno::INVAL | Errno::OPNOTSUPP | Errno::NOSYS | Errno::PERM) => {
                return copy_through_memory(from, to, read_at, end);
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

fn copy_through_memory(from: &File, to: &File, mut at: u64, end: u64) -> io::Result<()> {
    let mut buffer = vec![0; 256 << 10];
    while at < end {
        let part = &mut buffer[..(256 << 10).min((end - at) as usize)];
        from.read_exact_at(part, at)?;
        to.write_all_at(part, at)?;
        at += part.len() as u64;
    }
    Ok(())
}

/// Makes the new file `to` a copy of `from`, with this mode.
pub(crate) fn copy_file(from: &File, to: &Path, mode: u32) -> Result<u64, StoreError> {
    let target = File::options().write(true).create_new(true).open(to).doing("make", to)?;
    let copied = copy_content(from, &target).and_then(|copied| {
        rustix::fs::fchmod(&target, Mode::from_raw_mode(mode))?;
        Ok(copied)
    });
    if copied.is_err() {
        // Whoever is told of the error has no use for a part, and a full disk none for its bytes.
        let _ = std::fs::remove_file(to);
    }
    copied.doing("copy to", to)
}

/// Copies a tree that was walked before to a path that does not exist. Files get mode 0444, or 0555 if they were
/// executable.
pub(crate) fn copy_tree(
    source: &Path,
    directory: BorrowedFd<'_>,
    name: &[u8],
    tree: &Tree<bool>,
    to: &Path,
) -> Result<u64, IngestError> {
    match tree {
        Tree::File(executable) => {
            let from = open_beneath(directory, name, OFlags::RDONLY).doing("open", source)?;
            let mode = if *executable { 0o555 } else { 0o444 };
            Ok(copy_file(&File::from(from), to, mode)?)
        }
        Tree::Symlink(target) => {
            rustix::fs::symlink(target.as_slice(), to).doing("make", to)?;
            Ok(0)
        }
        Tree::Directory(children) => {
            let fd = open_beneath(directory, name, OFlags::RDONLY | OFlags::DIRECTORY).doing("open", source)?;
            std::fs::create_dir(to).doing("make", to)?;
            let mut copied = 0;
            for (name, child) in children {
                let name = OsStr::from_bytes(name.as_bytes());
                copied += copy_tree(&source.join(name), fd.as_fd(), name.as_bytes(), child, &to.join(name))?;
            }
            Ok(copied)
        }
    }
}

/// Removes a tree below an open directory.
pub(crate) fn unlink(directory: BorrowedFd<'_>, name: &[u8]) -> Result<(), Errno> {
    rustix::fs::unlinkat(directory, name, AtFlags::empty())
}
