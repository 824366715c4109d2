//! Executions that run in a container of their own.

use std::env;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStringExt as _;
use std::os::unix::process::ExitStatusExt as _;
use std::thread;
use std::time::Duration;

use atoll_model::session::FailureReason;
use site_agent_spawn::{Ended, Program};

use super::{Current, Process, Runner};
use crate::shim::container::{self, Container, SlotFolders};
use crate::shim::limits::field;
use crate::shim::protocol::{Common, EndKind, Order};

/// How often an engine is asked to remove what it must before that is left to the next execution, and the pause between.
const REMOVALS_MAX: u32 = 3;
const REMOVAL_PAUSE: Duration = Duration::from_millis(500);

/// What a shell and an engine make of a process that was killed.
const CODE_OF_SIGKILL: i32 = 128 + 9;

impl Runner {
    /// Starts the engine's program for an execution.
    pub(super) fn contain(&mut self, common: &Common, container: &Container, order: &Order) -> io::Result<Process> {
        self.contained = true;
        container::remove_noted(self.slot.path()).map_err(io::Error::other)?;
        let of_slot = Common {
            memory_bytes: common.memory_bytes.filter(|_| !container.limits.memory),
            cpu_millis: common.cpu_millis.filter(|_| !container.limits.cpu),
            ..Common::default()
        };
        let folders = SlotFolders { work: self.slot.work(), tmp: self.slot.tmp(), out: self.slot.out() };
        let command = container.command(common, order, folders, self.limits.processes_max());
        let own: Vec<(Vec<u8>, Vec<u8>)> =
            env::vars_os().map(|(name, value)| (name.into_vec(), value.into_vec())).collect();
        let own = own.iter().map(|(name, value)| (name.as_slice(), value.as_slice()));
        let program = Program::new(&command, own)?;
        if let Some(removal) = container.removal(order.key) {
            container::note(self.slot.path(), &removal)?;
        }
        self.oom_kills_of_machine = oom_kills_of_machine();
        self.limits.apply(&of_slot)?;
        let spawned = self.spawner.spawn(&program, &container.environment(common, order));
        self.limits.started();
        if spawned.is_err() {
            container::forget(self.slot.path());
        }
        Ok(Process::Contained(spawned?))
    }

    /// Has the engine end the current execution, if it is one of its own. Whatever comes of it, all that is left is killed
    /// next.
    pub(super) fn end_container(&self) {
        let is_contained = |current: &Current| {
            matches!(current.process, Process::Contained(_)) && current.stopped.is_none() && current.clearing.is_none()
        };
        if self.current.as_ref().is_some_and(is_contained) {
            // It is asked once more when everything has been killed.
            let _ = container::end_noted(self.slot.path());
        }
    }

    /// How an execution ended whose engine's program has ended, and everything that was below this process. Unless it came
    /// to its end by itself its container is removed first, so that nothing of it runs beside a next attempt.
    pub(super) fn end_of_contained(&mut self, current: &Current, container: &Container, ended: Ended) -> EndKind {
        let ran_out = self.limits.ran_out_of_memory();
        if let Some(reason) = current.stopped.clone() {
            self.remove_container();
            return reason;
        }
        let Some(code) = ended.status.code() else {
            self.remove_container();
            return if ran_out {
                EndKind::OutOfMemory
            } else {
                EndKind::Signal(ended.status.signal().unwrap_or_default())
            };
        };
        let is_asked = !container.removes_itself(&current.common);
        let refusal = container.refusal(code, &self.slot.last_of_stderr());
        let how = match refusal {
            _ if code == 0 => EndKind::Code(0),
            _ if ran_out || (is_asked && self.ran_out_of_memory(container, current, code)) => EndKind::OutOfMemory,
            Some(message) => EndKind::Failed { reason: FailureReason::NotExecutable, message },
            None => EndKind::Code(code),
        };
        if !is_asked && matches!(how, EndKind::Code(_)) {
            container::forget(self.slot.path());
        }
        how
    }

    /// Not every engine notices it with control groups of the first version. Then what ended by SIGKILL while the kernel took
    /// something of this machine for its memory is what was taken.
    fn ran_out_of_memory(&self, container: &Container, current: &Current, code: i32) -> bool {
        container.ran_out_of_memory(current.key)
            || (code == CODE_OF_SIGKILL && oom_kills_of_machine() > self.oom_kills_of_machine)
    }

    /// Whoever asks for the slot next tries it again if it fails.
    fn remove_container(&self) {
        for _ in 0..REMOVALS_MAX {
            if container::remove_noted(self.slot.path()).is_ok() {
                return;
            }
            thread::sleep(REMOVAL_PAUSE);
        }
    }
}

/// How often the kernel has ended something of this machine for its memory, whichever limit it was at.
fn oom_kills_of_machine() -> u64 {
    fs::read_to_string("/proc/vmstat").map_or(0, |text| field(&text, "oom_kill"))
}
