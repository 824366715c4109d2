//! Calls of the system that are refused to what runs: programs for seccomp, by profile.

use std::ffi::c_long;

use libc::{BPF_ABS, BPF_JEQ, BPF_JGE, BPF_JMP, BPF_JSET, BPF_K, BPF_LD, BPF_RET, BPF_W, sock_filter};

/// Where `struct seccomp_data` has the number of the call, the kind of machine, and the low half of the first argument.
const NUMBER: u32 = 0;
const MACHINE: u32 = 4;
const FIRST_ARGUMENT: u32 = 16;

#[cfg(target_arch = "x86_64")]
const OWN_MACHINE: Option<u32> = Some(0xC000_003E);
#[cfg(target_arch = "aarch64")]
const OWN_MACHINE: Option<u32> = Some(0xC000_00B7);
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
const OWN_MACHINE: Option<u32> = None;

/// Calls of another table for the same machine begin here.
#[cfg(target_arch = "x86_64")]
const OTHER_TABLE: Option<u32> = Some(0x4000_0000);
#[cfg(not(target_arch = "x86_64"))]
const OTHER_TABLE: Option<u32> = None;

/// What changes the machine for everybody: its kernel, its clock, its swap, whether it runs; and files by other than names.
const CHANGE_THE_MACHINE: &[c_long] = &[
    libc::SYS_kexec_load,
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_reboot,
    libc::SYS_swapon,
    libc::SYS_swapoff,
    libc::SYS_settimeofday,
    libc::SYS_clock_settime,
    libc::SYS_acct,
    libc::SYS_bpf,
    libc::SYS_open_by_handle_at,
    libc::SYS_nfsservctl,
];

#[cfg(target_arch = "x86_64")]
const CHANGE_THIS_MACHINE: &[c_long] = &[libc::SYS_kexec_file_load, libc::SYS_iopl, libc::SYS_ioperm];
#[cfg(not(target_arch = "x86_64"))]
const CHANGE_THIS_MACHINE: &[c_long] = &[];

/// Ways out of an enclosure: other mounts and namespaces, keys of the user that no namespace holds, and large parts of the
/// kernel that few programs use and all do without.
const LEAD_OUT: &[c_long] = &[
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_pivot_root,
    libc::SYS_chroot,
    libc::SYS_open_tree,
    libc::SYS_move_mount,
    libc::SYS_fsopen,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fspick,
    libc::SYS_mount_setattr,
    libc::SYS_unshare,
    libc::SYS_setns,
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_keyctl,
    libc::SYS_userfaultfd,
    libc::SYS_perf_event_open,
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_fanotify_init,
    libc::SYS_name_to_handle_at,
    libc::SYS_quotactl,
    libc::SYS_syslog,
    libc::SYS_sethostname,
    libc::SYS_setdomainname,
];

const NEW_NAMESPACES: libc::c_int = libc::CLONE_NEWNS
    | libc::CLONE_NEWCGROUP
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUSER
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNET;

/// Calls that are refused, to be installed for a process and all that it starts.
#[derive(Debug, Clone)]
pub struct Filter {
    pub(crate) program: Vec<sock_filter>,
}

impl Filter {
    /// Refuses what changes the machine. Programs of another kind that the kernel runs too are let be: with this goes nothing
    /// that only rights could not do.
    ///
    /// Nothing where it is not known how this machine names its calls.
    pub fn standard() -> Option<Self> {
        let mut program = begin(libc::SECCOMP_RET_ALLOW)?;
        refuse_all(&mut program, CHANGE_THE_MACHINE);
        refuse_all(&mut program, CHANGE_THIS_MACHINE);
        Some(Self::end(program))
    }

    /// Refuses what changes the machine or leads out of an enclosure, and programs of another kind.
    ///
    /// Nothing where it is not known how this machine names its calls.
    pub fn strict() -> Option<Self> {
        let mut program = begin(libc::SECCOMP_RET_KILL_PROCESS)?;
        if let Some(table) = OTHER_TABLE {
            program.extend([jump(BPF_JGE, table, 0, 1), answer(libc::ENOSYS)]);
        }
        for calls in [CHANGE_THE_MACHINE, CHANGE_THIS_MACHINE, LEAD_OUT] {
            refuse_all(&mut program, calls);
        }
        // Its flags are out of reach here; without it the C library takes the older one.
        program.extend([jump(BPF_JEQ, number(libc::SYS_clone3), 0, 1), answer(libc::ENOSYS)]);
        refuse_if(&mut program, libc::SYS_clone, jump(BPF_JSET, NEW_NAMESPACES.cast_unsigned(), 0, 1));
        // Leads to the machine that this one runs in, whatever the network namespace.
        refuse_if(&mut program, libc::SYS_socket, jump(BPF_JEQ, libc::AF_VSOCK.cast_unsigned(), 0, 1));
        Some(Self::end(program))
    }

    fn end(mut program: Vec<sock_filter>) -> Self {
        program.push(statement(BPF_RET | BPF_K, libc::SECCOMP_RET_ALLOW));
        Self { program }
    }
}

/// Goes on with the number of the call; `foreign` becomes of calls of a program of another kind.
fn begin(foreign: u32) -> Option<Vec<sock_filter>> {
    Some(vec![load(MACHINE), jump(BPF_JEQ, OWN_MACHINE?, 1, 0), statement(BPF_RET | BPF_K, foreign), load(NUMBER)])
}

fn refuse_all(program: &mut Vec<sock_filter>, calls: &[c_long]) {
    for call in calls {
        program.extend([jump(BPF_JEQ, number(*call), 0, 1), answer(libc::EPERM)]);
    }
}

/// Refuses a call whose first argument is `bad`: a jump over one if it is not.
fn refuse_if(program: &mut Vec<sock_filter>, call: c_long, bad: sock_filter) {
    let test = [jump(BPF_JEQ, number(call), 0, 4), load(FIRST_ARGUMENT), bad, answer(libc::EPERM), load(NUMBER)];
    program.extend(test);
}

fn number(call: c_long) -> u32 {
    u32::try_from(call).expect("calls have small numbers")
}

fn answer(errno: libc::c_int) -> sock_filter {
    statement(BPF_RET | BPF_K, libc::SECCOMP_RET_ERRNO | errno.cast_unsigned())
}

fn load(offset: u32) -> sock_filter {
    statement(BPF_LD | BPF_W | BPF_ABS, offset)
}

fn statement(code: u32, k: u32) -> sock_filter {
    sock_filter { code: code as u16, jt: 0, jf: 0, k }
}

fn jump(test: u32, k: u32, jt: u8, jf: u8) -> sock_filter {
    sock_filter { code: (BPF_JMP | test | BPF_K) as u16, jt, jf, k }
}
