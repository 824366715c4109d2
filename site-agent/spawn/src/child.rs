//! A process that was started, to be waited for.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;

/// A process that was started. Whoever drops it before it was waited for leaves its remains to their own parent's end.
#[derive(Debug)]
pub struct Child {
    pid: libc::pid_t,
    handle: OwnedFd,
}

/// How a process ended, and what it used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ended {
    pub status: ExitStatus,
    /// The most that it, or one of its own children that it waited for, ever had in memory.
    pub max_rss_bytes: u64,
}

impl Child {
    pub(crate) fn new(pid: libc::pid_t, handle: OwnedFd) -> Self {
        Self { pid, handle }
    }

    /// Its process id.
    pub fn id(&self) -> i32 {
        self.pid
    }

    /// Reaps it if it has ended.
    ///
    /// # Errors
    /// `ECHILD` when it was reaped before.
    #[expect(unsafe_code, reason = "no safe interface tells what a process used that was not started by the library")]
    pub fn try_wait(&mut self) -> io::Result<Option<Ended>> {
        let mut status = 0;
        // SAFETY: a structure of numbers, of which every value is one, zero too.
        let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
        // SAFETY: both are written to, and outlive the call.
        match unsafe { libc::wait4(self.pid, &raw mut status, libc::WNOHANG, &raw mut usage) } {
            0 => Ok(None),
            -1 => Err(io::Error::last_os_error()),
            _ => Ok(Some(Ended {
                status: ExitStatus::from_raw(status),
                max_rss_bytes: u64::try_from(usage.ru_maxrss).unwrap_or_default() * 1024,
            })),
        }
    }
}

/// Becomes readable when the process ends, and signals it without a doubt whom its number means.
impl AsFd for Child {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.handle.as_fd()
    }
}
