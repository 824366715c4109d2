//! The directory of a journal: its lock, the pointer to the current generation, and the generations.
//!
//! ```text
//! LOCK              held while a process has the journal open; says who
//! CURRENT           which generation counts, and in which store it is; replaced by one rename
//! journal.<n>/      a generation
//! watermark         how far barriers have come
//! ballast           room to give up when the disk is full
//! journal.bad.<n>/  what was set aside; never deleted by us
//! ```

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use crate::backend::Backend;
use crate::error::{IntegrityFault, OpenError};

/// What the file CURRENT says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Current {
    pub(crate) generation: u64,
    pub(crate) backend: Backend,
}

/// A journal's directory, locked as long as this lives.
#[derive(Debug)]
pub(crate) struct Directory {
    path: PathBuf,
    _lock: File,
}

impl Directory {
    /// Makes the directory if need be, and locks it.
    pub(crate) fn acquire(path: &Path, allow_network_file_system: bool) -> Result<Self, OpenError> {
        make_durably(path).map_err(io_error("make", path))?;
        if let Some(kind) = network_file_system(path) {
            if !allow_network_file_system {
                return Err(OpenError::NetworkFileSystem { directory: path.to_owned(), kind });
            }
            tracing::warn!(%kind, directory = %path.display(), "the journal is on a network file system, as was asked for");
        }
        let lock = lock(path)?;
        Ok(Self { path: path.to_owned(), _lock: lock })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn generation_path(&self, generation: u64) -> PathBuf {
        self.path.join(format!("journal.{generation}"))
    }

    /// The generations that stand here, oldest first.
    pub(crate) fn generations(&self) -> io::Result<Vec<u64>> {
        let mut generations = Vec::new();
        for entry in fs::read_dir(&self.path)? {
            let name = entry?.file_name();
            let number = name.to_str().and_then(|name| name.strip_prefix("journal."));
            generations.extend(number.and_then(|number| number.parse::<u64>().ok()));
        }
        generations.sort_unstable();
        Ok(generations)
    }

    /// What CURRENT says; a fault if it stands there and can't be read.
    pub(crate) fn current(&self) -> io::Result<Option<Result<Current, IntegrityFault>>> {
        let text = match fs::read(self.path.join("CURRENT")) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let current = std::str::from_utf8(&text).ok().and_then(parse_current);
        Ok(Some(current.ok_or_else(|| IntegrityFault::Description("CURRENT is not readable".to_owned()))))
    }

    /// Makes `current` the generation that counts: from the rename on, and durable when this returns.
    pub(crate) fn set_current(&self, current: Current) -> io::Result<()> {
        let temporary = self.path.join("CURRENT.new");
        let mut file = File::create(&temporary)?;
        file.write_all(print_current(current).as_bytes())?;
        file.sync_all()?;
        self.sync()?;
        fs::rename(&temporary, self.path.join("CURRENT"))?;
        self.sync()
    }

    /// Whether `generation` is, or may be, the one that counts.
    pub(crate) fn counts(&self, generation: u64) -> bool {
        !matches!(self.current(), Ok(Some(Ok(current))) if current.generation != generation)
    }

    pub(crate) fn sync(&self) -> io::Result<()> {
        File::open(&self.path)?.sync_all()
    }

    /// Removes a generation that counts no more. What can't be removed is left for the next start.
    pub(crate) fn remove_generation(&self, generation: u64) {
        let path = self.generation_path(generation);
        match fs::remove_dir_all(&path) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => tracing::warn!(%error, path = %path.display(), "could not remove an old generation"),
        }
    }
}

fn print_current(current: Current) -> String {
    let line = format!("atoll-journal 1 generation {} {}", current.generation, current.backend);
    let checksum = blake3::hash(line.as_bytes()).to_hex();
    format!("{line} {checksum}\n")
}

fn parse_current(text: &str) -> Option<Current> {
    let words: Vec<&str> = text.split_ascii_whitespace().collect();
    let ["atoll-journal", "1", "generation", generation, backend, _] = words.as_slice() else { return None };
    let current = Current { generation: generation.parse().ok()?, backend: backend.parse().ok()? };
    (print_current(current) == text).then_some(current)
}

/// Moves everything that belongs to the journal in `directory` into `journal.bad.<n>` beside it, and returns that path,
/// so that the next [`crate::open`] starts an empty journal with a new identity. Deletes nothing.
///
/// # Errors
/// [`OpenError::Locked`] if the journal is open; [`OpenError::Io`] if a file can't be moved.
pub fn set_aside(directory: &Path) -> Result<PathBuf, OpenError> {
    let held = Directory::acquire(directory, true)?;
    let entries = fs::read_dir(directory).map_err(io_error("read", directory))?;
    let mut names = Vec::new();
    for entry in entries {
        names.push(entry.map_err(io_error("read", directory))?.file_name());
    }
    let numbers = names.iter().filter_map(|name| name.to_str()?.strip_prefix("journal.bad.")?.parse::<u64>().ok());
    let bad = directory.join(format!("journal.bad.{}", numbers.max().unwrap_or(0) + 1));
    fs::create_dir(&bad).map_err(io_error("make", &bad))?;
    for name in names {
        let text = name.to_string_lossy();
        if text == "LOCK" || text == "ballast" || text.starts_with("journal.bad.") {
            continue;
        }
        let from = directory.join(&name);
        fs::rename(&from, bad.join(&name)).map_err(io_error("move", &from))?;
    }
    held.sync().map_err(io_error("sync", directory))?;
    tracing::warn!(path = %bad.display(), "a journal that could not be used was set aside");
    Ok(bad)
}

pub(crate) fn io_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> OpenError + use<> {
    let path = path.to_owned();
    move |source| {
        if crate::store::is_out_of_space(&source) {
            OpenError::NoSpace { directory: path }
        } else {
            OpenError::Io { action, path, source }
        }
    }
}

/// Makes a directory and what is missing above it, each name synced.
fn make_durably(path: &Path) -> io::Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    make_durably(parent)?;
    match fs::create_dir(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        _ => File::open(parent)?.sync_all(),
    }
}

fn lock(directory: &Path) -> Result<File, OpenError> {
    let path = directory.join("LOCK");
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(&path)
        .map_err(io_error("open", &path))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut holder = String::new();
            // Who holds it is only said to help; the lock is what counts.
            let _ = file.read_to_string(&mut holder);
            let holder = if holder.trim().is_empty() { "another process".to_owned() } else { holder.trim().to_owned() };
            return Err(OpenError::Locked { directory: directory.to_owned(), holder });
        }
        Err(TryLockError::Error(source)) => return Err(io_error("lock", &path)(source)),
    }
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let text = format!("process {} on {host} (boot {})\n", std::process::id(), boot.trim());
    // On a full disk the name of the holder can't be written, and the journal must open all the same.
    let _ = file.set_len(0).and_then(|()| file.write_all(text.as_bytes()));
    Ok(file)
}

/// The name of the network file system that `path` is on, if it is on one whose syncs and locks can't be trusted.
fn network_file_system(path: &Path) -> Option<&'static str> {
    const KINDS: [(u64, &str); 9] = [
        (0x6969, "NFS"),
        (0x0BD0_0BD0, "Lustre"),
        (0xFF53_4D42, "CIFS"),
        (0xFE53_4D42, "SMB"),
        (0x0102_1997, "9P"),
        (0x5346_414F, "AFS"),
        (0x00C3_6400, "CephFS"),
        (0x4750_4653, "GPFS"),
        (0x1983_0326, "BeeGFS"),
    ];
    let status = rustix::fs::statfs(path).ok()?;
    let magic = (status.f_type as u64) & 0xFFFF_FFFF;
    KINDS.iter().find(|(kind, _)| *kind == magic).map(|(_, name)| *name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pointer_reads_back_and_a_changed_one_does_not() {
        let current = Current { generation: 12, backend: Backend::Redb };
        let text = print_current(current);
        assert_eq!(parse_current(&text), Some(current));
        for place in 0..text.len() {
            let mut changed = text.clone().into_bytes();
            changed[place] ^= 1;
            let read = std::str::from_utf8(&changed).ok().and_then(parse_current);
            assert_eq!(read, None, "byte {place}");
        }
    }

    #[test]
    fn what_is_set_aside_keeps_every_file() {
        let home = tempfile::tempdir().expect("a directory");
        fs::create_dir(home.path().join("journal.3")).expect("made");
        fs::write(home.path().join("journal.3/db"), "x").expect("written");
        fs::write(home.path().join("CURRENT"), "y").expect("written");
        let first = set_aside(home.path()).expect("set aside");
        assert_eq!(fs::read_to_string(first.join("journal.3/db")).expect("there"), "x");
        fs::write(home.path().join("CURRENT"), "z").expect("written");
        let second = set_aside(home.path()).expect("set aside");
        assert_ne!(first, second);
        assert_eq!(fs::read_to_string(first.join("CURRENT")).expect("there"), "y");
    }
}
