//! What runs in a slot sees the agent's folders read-only, and some of them not at all, where the machine allows it.

use std::ffi::CString;
use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;

use nix::sched::{CloneFlags, unshare};
use rustix::fs::{StatVfsMountFlags, statvfs};
use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_bind, mount_change, mount_remount};
use site_agent_spawn::Filter;

use super::directory::SOCKET;

use super::protocol::{Isolation, Setup};

/// What is said of a slot that has no namespaces and was to have some.
pub(crate) const UNPROTECTED: &str = "lent files are checked after each use";

/// Puts this process, and so all that it starts, into a mount namespace of its own. What could not be had is said in
/// `complaints`.
pub(crate) fn isolate(setup: &Setup, complaints: &mut Vec<String>) -> Isolation {
    if setup.no_namespace {
        return Isolation::Nothing;
    }
    let isolation = match enter_namespace() {
        Ok(isolation) => isolation,
        Err(error) => {
            complaints.push(format!("no mount namespace is to be had ({error}): {UNPROTECTED}"));
            return Isolation::Nothing;
        }
    };
    match protect(setup) {
        Ok(()) => isolation,
        Err(error) => {
            complaints.push(format!("folders cannot be shown read-only ({error}): {UNPROTECTED}"));
            Isolation::Nothing
        }
    }
}

/// Enters what the machine gives of namespaces.
pub(super) fn enter_namespace() -> io::Result<Isolation> {
    let isolation = match unshare(CloneFlags::CLONE_NEWNS) {
        Ok(()) => Isolation::Mounts,
        Err(_) => {
            let (user, group) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
            unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNS)?;
            // A group map may only be written once groups cannot be dropped to gain what they deny.
            fs::write("/proc/self/setgroups", "deny")?;
            fs::write("/proc/self/uid_map", format!("{user} {user} 1"))?;
            fs::write("/proc/self/gid_map", format!("{group} {group} 1"))?;
            Isolation::UserMounts
        }
    };
    // What the machine mounts later is seen here, and nothing that is mounted here is seen outside.
    mount_change("/", MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC)?;
    Ok(isolation)
}

fn protect(setup: &Setup) -> io::Result<()> {
    // Through the descriptor the slot is reached as it was mounted before the folders around it became read-only.
    let slot = File::open(&setup.slot)?;
    for folder in &setup.read_only {
        mount_bind(folder, folder)?;
        remount_read_only(folder)?;
    }
    if setup.read_only.iter().any(|folder| setup.slot.starts_with(folder)) {
        mount_bind(format!("/proc/self/fd/{}", slot.as_raw_fd()), &setup.slot)?;
    }
    for path in &setup.hidden {
        hide(path)?;
    }
    hide(&setup.slot.join(SOCKET))
}

fn remount_read_only(folder: &Path) -> io::Result<()> {
    let present = statvfs(folder)?.f_flag;
    let mut flags = MountFlags::BIND | MountFlags::RDONLY;
    // In a user namespace a flag that the mount already has may not be taken off.
    for (has, keep) in [
        (StatVfsMountFlags::NOSUID, MountFlags::NOSUID),
        (StatVfsMountFlags::NODEV, MountFlags::NODEV),
        (StatVfsMountFlags::NOEXEC, MountFlags::NOEXEC),
    ] {
        if present.contains(has) {
            flags |= keep;
        }
    }
    mount_remount(folder, flags, c"")?;
    Ok(())
}

fn hide(path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_dir() => {
            let flags = MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
            let options = CString::new("size=4k,mode=0500").expect("the text holds no NUL");
            mount("tmpfs", path, "tmpfs", flags, options.as_c_str())?;
        }
        Ok(_) => mount_bind("/dev/null", path)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    Ok(())
}

/// Has this process, and so all that it starts, do without what only rights could do.
pub(super) fn give_up_rights(complaints: &mut Vec<String>) {
    let Some(filter) = Filter::standard() else { return };
    if let Err(error) = site_agent_spawn::give_up_rights(&filter) {
        complaints
            .push(format!("calls of the system cannot be refused ({error}): what runs has all of its user's rights"));
    }
}
