//! The command of a step, made once for all of its executions that only differ in what an order adds to the environment.

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::rc::Rc;

use super::directory::SlotDirectory;
use super::protocol::{Common, Order};

/// The last command that was asked for.
#[derive(Debug, Default)]
pub(crate) struct Prepared {
    last: Option<Last>,
}

#[derive(Debug)]
struct Last {
    common: Rc<Common>,
    command: Command,
    /// Names of what the order added to the environment.
    names: Vec<Vec<u8>>,
}

impl Prepared {
    /// What starts an order in a slot.
    ///
    /// # Errors
    /// When there is nothing to start.
    pub(crate) fn command(
        &mut self,
        common: &Rc<Common>,
        order: &Order,
        slot: &SlotDirectory,
    ) -> io::Result<&mut Command> {
        let names = || order.environment.iter().map(|(name, _)| name);
        let fits = self.last.as_ref().is_some_and(|last| Rc::ptr_eq(&last.common, common) && names().eq(&last.names));
        if !fits {
            self.last = None;
        }
        let last = match &mut self.last {
            Some(last) => last,
            none => {
                let names = names().cloned().collect();
                none.insert(Last { common: Rc::clone(common), command: make(common, slot)?, names })
            }
        };
        for (name, value) in &order.environment {
            last.command.env(OsStr::from_bytes(name), OsStr::from_bytes(value));
        }
        Ok(&mut last.command)
    }
}

fn make(common: &Common, slot: &SlotDirectory) -> io::Result<Command> {
    let Some((program, arguments)) = common.command.split_first() else {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "there is no command"));
    };
    let mut command = Command::new(OsStr::from_bytes(program));
    command.args(arguments.iter().map(|argument| OsStr::from_bytes(argument))).env_clear().process_group(0);
    for (name, value) in slot.environment() {
        command.env(name, value);
    }
    for (name, value) in &common.environment {
        command.env(OsStr::from_bytes(name), OsStr::from_bytes(value));
    }
    Ok(command)
}
