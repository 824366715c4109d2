//! Enters an enclosure, and gives rights up: calls of the system that a child makes which borrows its parent's memory, so
//! nothing here allocates or locks.
#![expect(unsafe_code, reason = "no safe interface makes these calls without memory of its own")]

use std::ffi::{CStr, c_int, c_long};
use std::io;
use std::ptr;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::enclosure::{Enclosure, Operation};
use crate::filter::Filter;
use crate::identity::Identity;
use crate::spawner::check;

const OPEN_TREE_CLONE: c_int = 1;
const MOVE_MOUNT_F_EMPTY_PATH: c_int = 4;
const MOUNT_ATTR_RDONLY: u64 = 1;
const AT_RECURSIVE: c_int = 0x8000;
const LINUX_CAPABILITY_VERSION_3: u32 = 0x2008_0522;
/// More than there will be for long: what there is not ends the loop.
const CAPABILITIES_MAX: c_int = 64;

/// `struct mount_attr` of the kernel.
#[repr(C)]
struct MountAttributes {
    set: u64,
    clear: u64,
    propagation: u64,
    user_namespace: u64,
}

/// `struct __user_cap_header_struct` of the kernel.
#[repr(C)]
struct CapabilityHeader {
    version: u32,
    pid: c_int,
}

/// Carries an enclosure out, in a child that was made with its namespaces, and becomes another account there if there is one;
/// `done` counts what was done if it fails.
///
/// # Safety
/// For a child that has no memory of its own: it allocates nothing, and calls the system only.
pub(crate) unsafe fn enter(
    enclosure: &Enclosure,
    identity: Option<&Identity>,
    done: &AtomicUsize,
) -> Result<(), c_int> {
    done.store(0, Ordering::Relaxed);
    for operation in &enclosure.operations {
        unsafe { carry_out(operation, enclosure)? };
        done.fetch_add(1, Ordering::Relaxed);
    }
    unsafe {
        if enclosure.namespaces & libc::CLONE_NEWNET != 0 {
            raise_loopback();
        }
        check(libc::chdir(enclosure.directory.as_ptr()))?;
        forbid_capabilities()?;
        if let Some(identity) = identity {
            switch(identity)?;
        }
        drop_capabilities()?;
        install(&enclosure.filter)?;
    }
    done.store(usize::MAX, Ordering::Relaxed);
    Ok(())
}

unsafe fn carry_out(operation: &Operation, enclosure: &Enclosure) -> Result<(), c_int> {
    let memory = libc::MS_NOSUID | libc::MS_NODEV;
    unsafe {
        match operation {
            Operation::ReadOnlyAll => set_read_only(c"/", true, AT_RECURSIVE),
            Operation::ReadOnly(path, read_only) => set_read_only(path, *read_only, 0),
            Operation::Cover(path, options) => {
                let tmpfs = c"tmpfs".as_ptr();
                check(libc::mount(tmpfs, path.as_ptr(), tmpfs, memory, options.as_ptr().cast()))
            }
            Operation::Folder(path) => unless_there(check(libc::mkdir(path.as_ptr(), 0o755))),
            Operation::File(path) => {
                let file = libc::open(path.as_ptr(), libc::O_WRONLY | libc::O_CREAT | libc::O_CLOEXEC, 0o644);
                check(file.min(0))?;
                check(libc::close(file))
            }
            Operation::Link(path, target) => unless_there(check(libc::symlink(target.as_ptr(), path.as_ptr()))),
            Operation::Take(path, place) => {
                let flags = OPEN_TREE_CLONE | libc::O_CLOEXEC;
                let tree = libc::syscall(libc::SYS_open_tree, libc::AT_FDCWD, path.as_ptr(), flags);
                enclosure.taken[*place].store(tree as c_int, Ordering::Relaxed);
                of_call(tree)
            }
            Operation::Put(place, path) => {
                let tree = enclosure.taken[*place].load(Ordering::Relaxed);
                let (nothing, flags) = (c"".as_ptr(), MOVE_MOUNT_F_EMPTY_PATH);
                of_call(libc::syscall(libc::SYS_move_mount, tree, nothing, libc::AT_FDCWD, path.as_ptr(), flags))
            }
            Operation::Processes(path) => {
                let (proc, flags) = (c"proc".as_ptr(), memory | libc::MS_NOEXEC | libc::MS_RDONLY);
                check(libc::mount(proc, path.as_ptr(), proc, flags, ptr::null()))
            }
        }
    }
}

unsafe fn set_read_only(path: &CStr, read_only: bool, flags: c_int) -> Result<(), c_int> {
    let (set, clear) = if read_only { (MOUNT_ATTR_RDONLY, 0) } else { (0, MOUNT_ATTR_RDONLY) };
    let wanted = MountAttributes { set, clear, propagation: 0, user_namespace: 0 };
    let (call, size) = (libc::SYS_mount_setattr, size_of::<MountAttributes>());
    unsafe { of_call(libc::syscall(call, libc::AT_FDCWD, path.as_ptr(), flags, &raw const wanted, size)) }
}

/// Without it the program reaches not even itself. A machine without IPv4 has none to raise.
unsafe fn raise_loopback() {
    unsafe {
        let socket = libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0);
        if socket < 0 {
            return;
        }
        let mut request: libc::ifreq = std::mem::zeroed();
        request.ifr_name[0] = b'l'.cast_signed();
        request.ifr_name[1] = b'o'.cast_signed();
        request.ifr_ifru.ifru_flags = libc::IFF_UP as i16;
        libc::ioctl(socket, libc::SIOCSIFFLAGS, &raw mut request);
        libc::close(socket);
    }
}

/// Becomes another account, in a child, with no way back: it has no right but those of that account, and gains none by the
/// file of a program.
///
/// # Safety
/// As for [`enter`].
pub(crate) unsafe fn take_on(identity: &Identity) -> Result<(), c_int> {
    unsafe {
        switch(identity)?;
        drop_capabilities()?;
        check(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
    }
}

/// By the kernel's own calls: those of the C library are for all threads of a process, and this one has its parent's memory.
/// From then on nobody may look into that memory who could not before, as the kernel sees to.
unsafe fn switch(identity: &Identity) -> Result<(), c_int> {
    let Identity { user, group, groups } = identity;
    unsafe {
        of_call(libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr()))?;
        of_call(libc::syscall(libc::SYS_setresgid, *group, *group, *group))?;
        of_call(libc::syscall(libc::SYS_setresuid, *user, *user, *user))
    }
}

/// No program that is started from now on has capabilities by its file or its user.
unsafe fn forbid_capabilities() -> Result<(), c_int> {
    unsafe {
        for capability in 0..CAPABILITIES_MAX {
            match check(libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0)) {
                Err(libc::EINVAL) => break,
                dropped => dropped?,
            }
        }
    }
    Ok(())
}

/// Nothing that is started from now on has any right but those of its user.
unsafe fn drop_capabilities() -> Result<(), c_int> {
    unsafe {
        check(libc::prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0))?;
        let header = CapabilityHeader { version: LINUX_CAPABILITY_VERSION_3, pid: 0 };
        let none = [0u32; 6];
        of_call(libc::syscall(libc::SYS_capset, &raw const header, none.as_ptr()))
    }
}

/// No program that is started gains rights by its file, and none makes the calls that the filter refuses.
unsafe fn install(filter: &Filter) -> Result<(), c_int> {
    let length = u16::try_from(filter.program.len()).map_err(|_| libc::EINVAL)?;
    let program = libc::sock_fprog { len: length, filter: filter.program.as_ptr().cast_mut() };
    unsafe {
        check(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))?;
        of_call(libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0, &raw const program))
    }
}

fn unless_there(made: Result<(), c_int>) -> Result<(), c_int> {
    made.or_else(|error| if error == libc::EEXIST { Ok(()) } else { Err(error) })
}

fn of_call(result: c_long) -> Result<(), c_int> {
    check(if result < 0 { -1 } else { 0 })
}

/// This process, which has one thread, and all that it starts from now on gain no rights, and make no call that the filter
/// refuses. There is no way back.
///
/// # Errors
/// When the kernel has no such filters.
pub fn give_up_rights(filter: &Filter) -> io::Result<()> {
    // SAFETY: the program lives as long as the call, and the kernel copies it.
    unsafe { install(filter) }.map_err(io::Error::from_raw_os_error)
}

/// How many filters a process is under; nothing if it is gone or the kernel does not say.
pub fn filters_of(pid: u32) -> Option<u32> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    status.lines().find_map(|line| line.strip_prefix("Seccomp_filters:"))?.trim().parse().ok()
}
