//! What a process has written to its outputs folder, where that is little enough to be told.

use std::fs::File;
use std::io::{self, Read as _};
use std::mem::MaybeUninit;
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Mode, OFlags, RawDir, openat, unlinkat};
use rustix::io::Errno;

use super::protocol::SmallOutput;

/// So many files, all together not larger than this, are told with the end of the attempt; so is what a worker answers.
const FILES_MAX: usize = 16;
pub(super) const BYTES_MAX: usize = 16 << 10;

const FOLDER: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);
const FILE: OFlags = OFlags::RDONLY.union(OFlags::NOFOLLOW).union(OFlags::NONBLOCK).union(OFlags::CLOEXEC);

/// Everything in the folder, if that is nothing but a few small files.
pub(super) fn read_small(folder: &Path) -> Option<Vec<SmallOutput>> {
    let folder = openat(CWD, folder, FOLDER, Mode::empty()).ok()?;
    let mut buffer = [MaybeUninit::<u8>::uninit(); 2 << 10];
    let mut entries = RawDir::new(&folder, &mut buffer);
    let (mut found, mut room) = (Vec::new(), BYTES_MAX);
    while let Some(entry) = entries.next() {
        let entry = entry.ok()?;
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        let file = File::from(openat(&folder, name, FILE, Mode::empty()).ok()?);
        if found.len() == FILES_MAX || !file.metadata().ok()?.is_file() {
            return None;
        }
        let mut content = Vec::new();
        file.take(room as u64 + 1).read_to_end(&mut content).ok()?;
        room = room.checked_sub(content.len())?;
        found.push(SmallOutput { name: name.to_bytes().to_vec(), content });
    }
    Some(found)
}

/// Removes from the folder what was told of it.
pub(super) fn remove_small(folder: &Path, names: &[Vec<u8>]) -> io::Result<()> {
    let folder = openat(CWD, folder, FOLDER, Mode::empty())?;
    for name in names {
        match unlinkat(&folder, name.as_slice(), AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test that fails here has failed")]

    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    fn small(fill: impl FnOnce(&Path)) -> Option<Vec<(String, usize)>> {
        let folder = tempfile::tempdir().unwrap();
        fill(folder.path());
        let mut found: Vec<_> = read_small(folder.path())?
            .into_iter()
            .map(|output| (String::from_utf8(output.name).unwrap(), output.content.len()))
            .collect();
        found.sort();
        Some(found)
    }

    #[test]
    fn a_few_small_files_are_told_and_can_be_removed() {
        assert_eq!(small(|_| {}), Some(Vec::new()));
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("count"), "7\n").unwrap();
        fs::write(folder.path().join("name"), "x".repeat(BYTES_MAX - 2)).unwrap();
        let told = read_small(folder.path()).unwrap();
        let lengths: Vec<usize> = told.iter().map(|output| output.content.len()).collect();
        assert_eq!(lengths.iter().sum::<usize>(), BYTES_MAX);
        let names: Vec<Vec<u8>> = told.into_iter().map(|output| output.name).collect();
        remove_small(folder.path(), &names).unwrap();
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
        remove_small(folder.path(), &names).unwrap();
    }

    #[test]
    fn whatever_else_is_there_leaves_all_of_it_to_be_kept() {
        let count = |folder: &Path| fs::write(folder.join("count"), "7\n").unwrap();
        assert_eq!(small(|folder| fs::write(folder.join("large"), vec![0; BYTES_MAX + 1]).unwrap()), None);
        assert_eq!(
            small(|folder| {
                count(folder);
                fs::create_dir(folder.join("folder")).unwrap();
            }),
            None
        );
        assert_eq!(
            small(|folder| {
                count(folder);
                symlink("count", folder.join("link")).unwrap();
            }),
            None
        );
        let fifo = |folder: &Path| {
            rustix::fs::mknodat(CWD, folder.join("fifo"), rustix::fs::FileType::Fifo, Mode::RUSR, 0).unwrap();
        };
        assert_eq!(small(fifo), None);
        let many = |folder: &Path| {
            (0..=FILES_MAX).for_each(|number| fs::write(folder.join(number.to_string()), "x").unwrap());
        };
        assert_eq!(small(many), None);
    }
}
