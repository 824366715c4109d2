//! Copies, for where neither a link nor a rename will do. Clones where the file system can; holes stay holes.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::io::Errno;

use super::error::{Doing as _, IngestError, StoreError};
use crate::hash::{BUFFER_BYTES, Digest, Hashing, data_extents, update_zeros};
use crate::walk::{Tree, open_beneath};

/// Makes copies for one store, each compared with what it was made of, and counts them.
#[derive(Debug)]
pub(crate) struct Copier {
    hashing: Hashing,
    copied: AtomicU64,
}

/// What became of one file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Copied {
    /// Bytes that were copied rather than shared.
    pub(crate) bytes: u64,
    /// Of the content, where it was read: what is shared was not.
    pub(crate) digest: Option<Digest>,
}

impl Copier {
    pub(crate) fn new(hashing: Hashing) -> Self {
        Self { hashing, copied: AtomicU64::new(0) }
    }

    /// Bytes that were copied since this was made.
    pub(crate) fn copied(&self) -> u64 {
        self.copied.load(Ordering::Relaxed)
    }

    /// Makes the new file `to` a copy of `from`, with this mode. What was written is read again and compared with what was
    /// read first.
    pub(crate) fn file(&self, from: &File, to: &Path, mode: u32) -> Result<Copied, StoreError> {
        let target = File::options().read(true).write(true).create_new(true).open(to).doing("make", to)?;
        let copied = self.content(from, &target).and_then(|copied| {
            rustix::fs::fchmod(&target, Mode::from_raw_mode(mode))?;
            Ok(copied)
        });
        match &copied {
            Ok(copied) => drop(self.copied.fetch_add(copied.bytes, Ordering::Relaxed)),
            // Whoever is told of the error has no use for a part, and a full disk none for its bytes.
            Err(_) => drop(std::fs::remove_file(to)),
        }
        copied.doing("copy to", to)
    }

    fn content(&self, from: &File, to: &File) -> io::Result<Copied> {
        if rustix::fs::ioctl_ficlone(to, from).is_ok() {
            return Ok(Copied { bytes: 0, digest: None });
        }
        let length = from.metadata()?.len();
        let (bytes, digest) = copy_and_hash(from, to, length)?;
        self.compare(to, length, digest)?;
        Ok(Copied { bytes, digest: Some(digest) })
    }

    fn compare(&self, written: &File, length: u64, expected: Digest) -> io::Result<()> {
        if written.metadata()?.len() == length && self.hashing.file(written, length)? == expected {
            return Ok(());
        }
        Err(io::Error::new(io::ErrorKind::InvalidData, "the copy is not what it was made of"))
    }

    /// Copies a tree that was walked before to a path that does not exist. Files get mode 0444, or 0555 if they were
    /// executable. Answers with what became of each.
    pub(crate) fn tree(
        &self,
        source: &Path,
        directory: BorrowedFd<'_>,
        name: &[u8],
        tree: &Tree<bool>,
        to: &Path,
    ) -> Result<Tree<Copied>, IngestError> {
        match tree {
            Tree::File(executable) => {
                let from = open_beneath(directory, name, OFlags::RDONLY).doing("open", source)?;
                let mode = if *executable { 0o555 } else { 0o444 };
                Ok(Tree::File(self.file(&File::from(from), to, mode)?))
            }
            Tree::Symlink(target) => {
                rustix::fs::symlink(target.as_slice(), to).doing("make", to)?;
                Ok(Tree::Symlink(target.clone()))
            }
            Tree::Directory(children) => {
                let fd = open_beneath(directory, name, OFlags::RDONLY | OFlags::DIRECTORY).doing("open", source)?;
                std::fs::create_dir(to).doing("make", to)?;
                let mut copied = Vec::with_capacity(children.len());
                for (name, child) in children {
                    let below = OsStr::from_bytes(name.as_bytes());
                    let child = self.tree(&source.join(below), fd.as_fd(), name.as_bytes(), child, &to.join(below))?;
                    copied.push((name.clone(), child));
                }
                Ok(Tree::Directory(copied))
            }
        }
    }
}

/// Copies the content of `from` into the empty file `to`; how many bytes that were, and the digest of all of them.
fn copy_and_hash(from: &File, to: &File, length: u64) -> io::Result<(u64, Digest)> {
    let mut hasher = blake3::Hasher::new();
    let mut buffer = vec![0; BUFFER_BYTES.min(length as usize)];
    let (mut at, mut copied) = (0, 0);
    for (start, end) in data_extents(from, length)? {
        update_zeros(&mut hasher, start - at);
        at = start;
        while at < end {
            let part = &mut buffer[..BUFFER_BYTES.min((end - at) as usize)];
            from.read_exact_at(part, at)?;
            hasher.update(part);
            to.write_all_at(part, at)?;
            at += part.len() as u64;
        }
        copied += end - start;
    }
    update_zeros(&mut hasher, length - at);
    to.set_len(length)?;
    Ok((copied, *hasher.finalize().as_bytes()))
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

/// Removes a tree below an open directory.
pub(crate) fn unlink(directory: BorrowedFd<'_>, name: &[u8]) -> Result<(), Errno> {
    rustix::fs::unlinkat(directory, name, AtFlags::empty())
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    fn file(content: &[(u64, &[u8])], length: u64) -> File {
        let file = tempfile::tempfile().unwrap();
        file.set_len(length).unwrap();
        content.iter().for_each(|(at, bytes)| file.write_all_at(bytes, *at).unwrap());
        file
    }

    #[test]
    fn a_copy_has_the_digest_of_what_it_was_made_of_and_its_holes() {
        let length = (3 << 20) + 5;
        let from = file(&[(7, b"start"), (2 << 20, &[5; 70_000]), (length - 3, b"end")], length);
        let to = tempfile::tempfile().unwrap();
        let (copied, digest) = copy_and_hash(&from, &to, length).unwrap();
        let mut whole = vec![0; length as usize];
        to.read_exact_at(&mut whole, 0).unwrap();
        assert_eq!(digest, *blake3::hash(&whole).as_bytes());
        assert!(copied < 1 << 20, "{copied}");
        assert!(Copier::new(Hashing::new()).compare(&to, length, digest).is_ok());
    }

    #[test]
    fn a_copy_that_is_another_is_found_out() {
        let copier = Copier::new(Hashing::new());
        let right = *blake3::hash(b"what was read").as_bytes();
        for wrong in [&b"what was reaD"[..], b"what was rea", b"what was read and more"] {
            let error = copier.compare(&file(&[(0, wrong)], wrong.len() as u64), 13, right).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{error}");
        }
    }
}
