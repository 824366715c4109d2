use std::collections::HashMap;
use std::fs::{self, File};
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::fs::FlockOperation;
use rustix::io::Errno;

use super::barrier::Barrier;
use super::copy::Copier;
use super::error::{Doing as _, StoreError};
use super::folders::Folders;
use super::layout::{Key, Layout};
use super::seal::recover;
use super::seal_log::SealLog;
use super::verified::Verified;
use super::{Inner, WalkLimits, locked};
use crate::hash::Hashing;

/// After this long nobody comes back to a transfer.
const TRANSFER_KEPT: Duration = Duration::from_secs(7 * 24 * 3_600);
/// After this long nobody looks for the cause of a damage.
const QUARANTINE_KEPT: Duration = Duration::from_secs(30 * 24 * 3_600);
const FOLDERS: [&str; 5] = ["objects", "trees", "sealed", "partial", "quarantine"];

pub(super) fn open(root: &Path, limits: WalkLimits) -> Result<Inner, StoreError> {
    fs::create_dir_all(root).doing("make", root)?;
    let root = root.canonicalize().doing("find", root)?;
    let layout = Layout { root };
    let lock_path = layout.folder("lock");
    let lock = File::options().create(true).truncate(false).write(true).open(&lock_path).doing("open", &lock_path)?;
    match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(Errno::WOULDBLOCK) => return Err(StoreError::InUse(layout.root)),
        // Some directories know no locks: the agent has a lock of its own that needs none.
        Err(Errno::NOSYS | Errno::NOTSUP | Errno::NOLCK) => {}
        Err(error) => return Err(StoreError::io("lock", &lock_path, error)),
    }
    make_folders(&layout)?;
    let directory = File::open(&layout.root).doing("open", &layout.root)?;
    directory.sync_all().doing("sync", &layout.root)?;
    drop_temporaries(&layout)?;
    drop_old_quarantine(&layout)?;
    let log = SealLog::open(&layout)?;
    let (next, found) = (log.next, log.found());
    let hashing = Hashing::new();
    let inner = Inner {
        limits,
        folders: Folders::default(),
        copier: Copier::new(hashing.clone()),
        hashing,
        told_of_copies: AtomicBool::new(false),
        barrier: Barrier::new(directory),
        verified: Mutex::new(Verified::load(&layout.folder("verified"))),
        shards: (0..256).map(|_| Mutex::default()).collect(),
        seals: Mutex::new(HashMap::new()),
        claims: Mutex::new(HashMap::new()),
        seal_log: Mutex::new(log),
        guards: Mutex::default(),
        watching: AtomicBool::new(false),
        next: AtomicU64::new(next),
        objects: AtomicU64::new(0),
        bytes: AtomicU64::new(0),
        quarantined: AtomicU64::new(0),
        layout,
        _lock: lock,
    };
    scan(&inner.layout, &mut |_, metadata| inner.count(metadata.len()))?;
    for found in found {
        if let Some((seal, sealed)) = recover(&inner, found)? {
            locked(&inner.claims).insert(sealed.claim.clone(), seal);
            locked(&inner.seals).insert(seal, std::sync::Arc::new(Mutex::new(sealed)));
        }
    }
    drop_unclaimed(&inner)?;
    Ok(inner)
}

fn make_folders(layout: &Layout) -> Result<(), StoreError> {
    for folder in FOLDERS {
        let path = layout.folder(folder);
        match fs::create_dir(&path) {
            Ok(()) => {}
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => continue,
            Err(error) => return Err(StoreError::io("make", &path, error)),
        }
    }
    Ok(())
}

fn drop_temporaries(layout: &Layout) -> Result<(), StoreError> {
    let partial = layout.folder("partial");
    for entry in fs::read_dir(&partial).doing("read", &partial)? {
        let entry = entry.doing("read", &partial)?;
        let age = entry.metadata().and_then(|metadata| metadata.modified()).ok().and_then(|time| time.elapsed().ok());
        if entry.file_name().to_string_lossy().starts_with("tmp-") || age.is_some_and(|age| age > TRANSFER_KEPT) {
            remove_any(&entry.path())?;
        }
    }
    Ok(())
}

/// A damaged copy is of use to nobody but people who look for its cause.
fn drop_old_quarantine(layout: &Layout) -> Result<(), StoreError> {
    let quarantine = layout.folder("quarantine");
    for entry in fs::read_dir(&quarantine).doing("read", &quarantine)? {
        let path = entry.doing("read", &quarantine)?.path();
        // Moving it there has set its change time; that of its content may be old.
        let since = rustix::fs::lstat(&path).map_or(i64::MAX, |stat| stat.st_ctime);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        if now.saturating_sub(u64::try_from(since).unwrap_or(0)) > QUARANTINE_KEPT.as_secs() {
            remove_any(&path)?;
        }
    }
    Ok(())
}

/// Drops what was moved to `sealed/` by a process that died before it could say whose it is.
fn drop_unclaimed(inner: &Inner) -> Result<(), StoreError> {
    let sealed = inner.layout.folder("sealed");
    for entry in fs::read_dir(&sealed).doing("read", &sealed)? {
        let entry = entry.doing("read", &sealed)?;
        let seal = entry.file_name().to_str().and_then(|name| name.parse().ok());
        if seal.is_some_and(|seal| !locked(&inner.seals).contains_key(&super::SealId(seal))) {
            remove_any(&entry.path())?;
        }
    }
    Ok(())
}

pub(super) fn remove_any(path: &Path) -> Result<(), StoreError> {
    let removed = match path.symlink_metadata() {
        Ok(metadata) if metadata.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    match removed {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(StoreError::io("remove", path, error)),
        _ => Ok(()),
    }
}

pub(super) fn scan(layout: &Layout, found: &mut dyn FnMut(Key, fs::Metadata)) -> Result<(), StoreError> {
    for folder in ["objects", "trees"] {
        let path = layout.folder(folder);
        for digits in fs::read_dir(&path).doing("read", &path)? {
            let digits = digits.doing("read", &path)?;
            let path = digits.path();
            for entry in fs::read_dir(&path).doing("read", &path)? {
                let entry = entry.doing("read", &path)?;
                let (digits, name) = (digits.file_name(), entry.file_name());
                let key =
                    digits.to_str().zip(name.to_str()).and_then(|(digits, name)| Key::parse(folder, digits, name));
                // What is removed while this looks is not there.
                if let Some(key) = key
                    && let Ok(metadata) = entry.metadata()
                {
                    found(key, metadata);
                }
            }
        }
    }
    Ok(())
}
