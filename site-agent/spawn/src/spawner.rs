//! Starts processes as `vfork` does: the child borrows the memory of its parent, which waits until it has become another
//! program, or could not.
#![expect(unsafe_code, reason = "no safe interface starts a process without a hundred calls that it does not need")]

use std::ffi::{CStr, c_char, c_int, c_void};
use std::io;
use std::os::fd::{FromRawFd, OwnedFd};
use std::ptr;
use std::sync::atomic::{AtomicI32, AtomicUsize, Ordering};

use nix::sys::signal::{SigSet, SigmaskHow};

use crate::child::Child;
use crate::confined;
use crate::enclosure::Enclosure;
use crate::identity::Identity;
use crate::program::{Program, Variable};

/// What a child needs before it becomes another program is a few hundred bytes, and what the C library needs for its calls.
const STACK_BYTES: usize = 64 * 1024;

/// Starts processes from a process of one thread.
#[derive(Debug)]
pub struct Spawner {
    /// The child's, until it becomes another program. Numbers of 16 bytes, since a stack begins at a multiple of that.
    stack: Vec<u128>,
    /// Signals that this process catches or ignores.
    signals: Vec<c_int>,
}

/// What the child works from; it lies in the memory of both.
struct Task<'a> {
    signals: &'a [c_int],
    /// The program's path is the first; a null address ends either.
    arguments: &'a [*const c_char],
    environment: &'a [*const c_char],
    /// The folder that it sees as `/tmp`; a null address if it sees that of this process.
    tmp: *const c_char,
    /// What is shown in that folder before: folders, and where.
    kept: &'a [(&'a CStr, &'a CStr)],
    enclosure: Option<&'a Enclosure>,
    identity: Option<&'a Identity>,
    /// Most bytes of a file that it writes.
    file_bytes_max: Option<u64>,
    /// Why it did not become another program, or 0.
    error: AtomicI32,
    /// How much of the enclosure was set up by then; all of it if more.
    done: AtomicUsize,
}

/// How a program is started.
#[derive(Debug, Clone, Copy, Default)]
pub struct Circumstances<'a> {
    /// A folder that is shown as `/tmp` too, in a mount namespace of its own.
    pub tmp: Option<&'a CStr>,
    /// Each of these folders is shown before at a place that is there already, so that something below `/tmp` can stay where
    /// it is.
    pub kept: &'a [(&'a CStr, &'a CStr)],
    /// What it is enclosed in.
    pub enclosure: Option<&'a Enclosure>,
    /// Who it runs as; with one it gains no rights by the file of a program.
    pub identity: Option<&'a Identity>,
    /// Most bytes of a file that it writes.
    pub file_bytes_max: Option<u64>,
}

impl Spawner {
    /// Looks which signals are to be set back in every child: those that this process catches or ignores now.
    pub fn new() -> Self {
        let is_changed = |signal: &c_int| {
            // SAFETY: a structure of numbers and addresses, of which zero is a value.
            let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
            // SAFETY: asks only, and writes what it is told to where there is room for it.
            let asked = unsafe { libc::sigaction(*signal, ptr::null(), &raw mut action) };
            // Two signals are the C library's own, which does not tell of them.
            asked == 0 && action.sa_sigaction != libc::SIG_DFL
        };
        let signals = (1..=libc::SIGRTMAX()).filter(is_changed).collect();
        Self { stack: vec![0; STACK_BYTES / size_of::<u128>()], signals }
    }

    /// Starts a program, with these variables more in its environment, or instead of those with these names. It leads a
    /// process group of its own and has every signal by default and none blocked; all else it inherits.
    ///
    /// # Errors
    /// `InvalidInput` when a variable holds a byte 0; when there is no such program or it cannot be run, as `execve` says it;
    /// when the system has no room for another process.
    pub fn spawn(&mut self, program: &Program, more: &[(impl AsRef<[u8]>, impl AsRef<[u8]>)]) -> io::Result<Child> {
        self.spawn_under(program, more, Circumstances::default())
    }

    /// As [`Self::spawn`], under other circumstances.
    ///
    /// # Errors
    /// As those of [`Self::spawn`]; and when this process may make no namespaces, may not mount in them what is to be seen, or
    /// may not become who it is to be.
    pub fn spawn_under(
        &mut self,
        program: &Program,
        more: &[(impl AsRef<[u8]>, impl AsRef<[u8]>)],
        circumstances: Circumstances<'_>,
    ) -> io::Result<Child> {
        let Circumstances { tmp, kept, enclosure, identity, file_bytes_max } = circumstances;
        let more: Vec<Variable> =
            more.iter().map(|(name, value)| Variable::new(name.as_ref(), value.as_ref())).collect::<io::Result<_>>()?;
        let own = program.environment.iter().filter(|own| more.iter().all(|other| other.name() != own.name()));
        let environment: Vec<_> =
            own.chain(&more).map(|variable| variable.text.as_ptr()).chain([ptr::null()]).collect();
        let arguments: Vec<_> = program.arguments.iter().map(|text| text.as_ptr()).chain([ptr::null()]).collect();
        let task = Task {
            signals: &self.signals,
            arguments: &arguments,
            environment: &environment,
            tmp: tmp.map_or(ptr::null(), CStr::as_ptr),
            kept,
            enclosure,
            identity,
            file_bytes_max,
            error: AtomicI32::new(0),
            done: AtomicUsize::new(usize::MAX),
        };
        let top = self.stack.as_mut_ptr_range().end;
        let apart = if tmp.is_some() { libc::CLONE_NEWNS } else { 0 };
        let apart = apart | enclosure.map_or(0, |enclosure| enclosure.namespaces);
        let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::CLONE_PIDFD | libc::SIGCHLD | apart;
        let mut handle: c_int = -1;
        // A handler of this process must not run in the child, whose memory is this process's.
        let mask = SigSet::all().thread_swap_mask(SigmaskHow::SIG_SETMASK)?;
        // SAFETY: `become_another` does what a child may that borrows its parent's memory: it calls the system, writes one
        // number, and allocates and locks nothing. `task` and the stack, which nobody else uses, outlive it, since this
        // thread goes on only when the child has another memory or is gone; and no signal is heard meanwhile. `handle` is
        // written to before that.
        let pid = unsafe {
            libc::clone(become_another, top.cast(), flags, (&raw const task).cast_mut().cast(), &raw mut handle)
        };
        let refused = (pid < 0).then(io::Error::last_os_error);
        mask.thread_set_mask()?;
        if let Some(error) = refused {
            return Err(error);
        }
        // SAFETY: the kernel has just opened it for this call.
        let handle = unsafe { OwnedFd::from_raw_fd(handle) };
        match task.error.load(Ordering::Relaxed) {
            0 => Ok(Child::new(pid, handle)),
            error => {
                // SAFETY: nothing is written. It is gone, and this reaps it.
                unsafe { libc::waitpid(pid, ptr::null_mut(), 0) };
                let error = io::Error::from_raw_os_error(error);
                match enclosure.filter(|_| task.done.load(Ordering::Relaxed) < usize::MAX) {
                    Some(enclosure) => {
                        let what = enclosure.described(task.done.load(Ordering::Relaxed));
                        Err(io::Error::new(error.kind(), format!("it cannot be enclosed: {what}: {error}")))
                    }
                    None => Err(error),
                }
            }
        }
    }
}

impl Default for Spawner {
    fn default() -> Self {
        Self::new()
    }
}

/// The child's side: returns only if it could not become another program.
extern "C" fn become_another(task: *mut c_void) -> c_int {
    // SAFETY: it is what `spawn` has made, and stays as long as this runs.
    let task = unsafe { &*task.cast::<Task<'_>>() };
    // SAFETY: calls of the system that read what lives in `task` or on this stack.
    let done = unsafe {
        set_up(task.signals)
            .and_then(|()| show_as_tmp(task.tmp, task.kept))
            .and_then(|()| task.file_bytes_max.map_or(Ok(()), |bytes| limit_files(bytes)))
            .and_then(|()| match (task.enclosure, task.identity) {
                (Some(enclosure), identity) => confined::enter(enclosure, identity, &task.done),
                (None, Some(identity)) => confined::take_on(identity),
                (None, None) => Ok(()),
            })
            .and_then(|()| check(libc::execve(task.arguments[0], task.arguments.as_ptr(), task.environment.as_ptr())))
    };
    task.error.store(done.err().unwrap_or_default(), Ordering::Relaxed);
    127
}

/// Sets signals back to what they are by default, and leads a process group.
unsafe fn set_up(signals: &[c_int]) -> Result<(), c_int> {
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = libc::SIG_DFL;
        for signal in signals {
            check(libc::sigaction(*signal, &raw const action, ptr::null_mut()))?;
        }
        check(libc::setpgid(0, 0))?;
        let mut none: libc::sigset_t = std::mem::zeroed();
        check(libc::sigemptyset(&raw mut none))?;
        check(libc::sigprocmask(libc::SIG_SETMASK, &raw const none, ptr::null_mut()))
    }
}

/// Shows a folder as `/tmp`, if there is one, to this process and what it starts; and in it what is to stay there.
unsafe fn show_as_tmp(folder: *const c_char, kept: &[(&CStr, &CStr)]) -> Result<(), c_int> {
    if folder.is_null() {
        return Ok(());
    }
    let show = |from: *const c_char, at: *const c_char| {
        let flags = libc::MS_BIND | libc::MS_REC;
        // SAFETY: a call of the system that reads two texts, which the caller has.
        unsafe { check(libc::mount(from, at, ptr::null(), flags, ptr::null())) }
    };
    for (from, at) in kept {
        show(from.as_ptr(), at.as_ptr())?;
    }
    show(folder, c"/tmp".as_ptr())
}

/// Limits what files may grow to.
unsafe fn limit_files(bytes: u64) -> Result<(), c_int> {
    let limit = libc::rlimit { rlim_cur: bytes, rlim_max: bytes };
    unsafe { check(libc::setrlimit(libc::RLIMIT_FSIZE, &raw const limit)) }
}

pub(crate) fn check(result: c_int) -> Result<(), c_int> {
    // SAFETY: the address of this thread's last error is always good to read.
    if result == 0 { Ok(()) } else { Err(unsafe { *libc::__errno_location() }) }
}
