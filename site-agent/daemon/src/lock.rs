//! Two agents never work in one data directory (E7).

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read as _, Seek as _, Write as _};
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use crate::shim::log::boot_id;
use crate::shim::tree::ProcessStat;

/// How long a lock is waited for that was left behind, and how often it is looked.
const LEFT_BEHIND: Duration = Duration::from_secs(10);
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// Held as long as the agent runs.
#[derive(Debug)]
pub(crate) struct DataLock {
    _in_directory: File,
    _on_machine: UnixListener,
}

/// Locks a data directory: by a lock on a file there, which says which machine has it, since locks of a shared directory
/// may not reach from one machine to another; and by a name on this machine, since some directories know no locks at all.
/// The name is that of a socket in no directory: it is gone with its process, however that ends.
///
/// A process that the last agent was starting when it was killed holds its locks until it has become another program: that is
/// waited for.
///
/// # Errors
/// When another agent works in it; the message says where.
pub(crate) fn lock(data_dir: &Path) -> anyhow::Result<DataLock> {
    let host = nix::unistd::gethostname().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let own = format!("{host} {}", boot_id()?);
    let path = data_dir.join("lock");
    let mut file = open(&path)?;
    let began = Instant::now();
    let (on_machine, holder) = loop {
        let mut holder = String::new();
        file.rewind()?;
        file.read_to_string(&mut holder)?;
        if let Some(name) = try_lock(&file, data_dir)? {
            break (name, holder);
        }
        if !is_left_behind(&holder, &own) || began.elapsed() > LEFT_BEHIND {
            let holder = holder.trim();
            bail!(
                "an agent already works in {} ({holder}): stop it first, or give each agent a directory of its own",
                data_dir.display()
            );
        }
        std::thread::sleep(LOOK_AGAIN);
    };
    let elsewhere =
        holder.lines().next().filter(|line| !line.is_empty() && line.split(' ').next() != Some(host.as_str()));
    if let Some(elsewhere) = elsewhere {
        bail!(
            "{} belongs to the agent on {elsewhere}: give each machine a data directory of its own, or remove {} if that agent is gone for good",
            data_dir.display(),
            path.display()
        );
    }
    file.set_len(0)?;
    file.rewind()?;
    writeln!(file, "{own}\nprocess {}", std::process::id())?;
    file.sync_all()?;
    Ok(DataLock { _in_directory: file, _on_machine: on_machine })
}

/// Whether an agent works in a data directory on this machine now. It hears nothing of this.
pub(crate) fn is_held(data_dir: &Path) -> bool {
    let Ok(name) = machine_name(data_dir) else { return false };
    let name = name.as_abstract_name().map(|name| format!("@{}", String::from_utf8_lossy(name)));
    let sockets = fs::read_to_string("/proc/net/unix").unwrap_or_default();
    sockets.lines().any(|line| line.split_whitespace().next_back() == name.as_deref())
}

/// Both locks, if nobody has one of them.
fn try_lock(file: &File, data_dir: &Path) -> anyhow::Result<Option<UnixListener>> {
    match flock(file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) | Err(Errno::NOSYS | Errno::NOTSUP | Errno::NOLCK) => {}
        Err(_) => return Ok(None),
    }
    match UnixListener::bind_addr(&machine_name(data_dir)?) {
        Ok(name) => Ok(Some(name)),
        Err(error) if error.kind() == ErrorKind::AddrInUse => Ok(None),
        Err(error) => Err(error).context("this machine gives no name to lock"),
    }
}

/// Whether the agent that the file names ran on this machine and is no more.
fn is_left_behind(holder: &str, own: &str) -> bool {
    let Some((machine, process)) = holder.split_once("\nprocess ") else { return false };
    let stat = process.trim().parse().ok().and_then(ProcessStat::read);
    machine == own && !stat.is_some_and(|stat| stat.is_alive())
}

fn open(path: &Path) -> anyhow::Result<File> {
    OpenOptions::new()
        .create(true)
        .read(true)
        .write(true)
        .truncate(false)
        .open(path)
        .with_context(|| format!("cannot open {}", path.display()))
}

/// What the directory is called on this machine, by whatever path it is reached.
fn machine_name(data_dir: &Path) -> anyhow::Result<SocketAddr> {
    let found = fs::metadata(data_dir)?;
    let name = format!("atoll-agent/{}/{}", found.dev(), found.ino());
    Ok(SocketAddr::from_abstract_name(name)?)
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test that fails here has failed")]

    use super::*;

    #[test]
    fn e7_a_directory_is_locked_by_whatever_path_and_left_unlocked() {
        let folder = tempfile::tempdir().unwrap();
        let (real, link) = (folder.path().join("real"), folder.path().join("link"));
        fs::create_dir(&real).unwrap();
        std::os::unix::fs::symlink(&real, &link).unwrap();
        let held = lock(&real).unwrap();
        assert!(lock(&link).unwrap_err().to_string().contains("already works in"));
        assert!(is_held(&real) && is_held(&link) && !is_held(folder.path()));
        drop(held);
        assert!(!is_held(&real));
        drop(lock(&link).unwrap());
    }

    #[test]
    fn e7_a_lock_that_a_killed_agent_has_left_to_a_child_is_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        drop(lock(folder.path()).unwrap());
        let path = folder.path().join("lock");
        let said = fs::read_to_string(&path).unwrap();
        // No process has this number.
        fs::write(&path, format!("{}\nprocess 4194305\n", said.lines().next().unwrap())).unwrap();
        let left = open(&path).unwrap();
        flock(&left, FlockOperation::NonBlockingLockExclusive).unwrap();
        let child = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(200));
            drop(left);
        });
        drop(lock(folder.path()).unwrap());
        child.join().unwrap();
    }

    #[test]
    fn e7_a_directory_without_locks_is_locked_by_its_name() {
        let folder = tempfile::tempdir().unwrap();
        let held = lock(folder.path()).unwrap();
        // As if the file's lock had not reached here.
        fs::remove_file(folder.path().join("lock")).unwrap();
        assert!(lock(folder.path()).unwrap_err().to_string().contains("already works in"));
        drop(held);
        drop(lock(folder.path()).unwrap());
    }

    #[test]
    fn e7_a_directory_of_another_machine_is_refused_with_the_way_out() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("lock"), "elsewhere 1-2-3\nprocess 7\n").unwrap();
        let refused = lock(folder.path()).unwrap_err().to_string();
        assert!(refused.contains("belongs to the agent on elsewhere") && refused.contains("remove"), "{refused}");
    }
}
