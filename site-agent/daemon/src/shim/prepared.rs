//! The program of a step, made once for all of its executions, which only differ in what an order adds to the environment.

use std::io;
use std::os::unix::ffi::OsStrExt;
use std::rc::Rc;

use site_agent_spawn::Program;

use super::directory::SlotDirectory;
use super::protocol::Common;

/// The last program that was asked for.
#[derive(Debug, Default)]
pub(crate) struct Prepared {
    last: Option<(Rc<Common>, Program)>,
}

impl Prepared {
    /// What starts the orders of a batch in a slot.
    ///
    /// # Errors
    /// When there is nothing to start, or nothing that could be.
    pub(crate) fn program(&mut self, common: &Rc<Common>, slot: &SlotDirectory) -> io::Result<&Program> {
        let last = match self.last.take().filter(|(last, _)| Rc::ptr_eq(last, common)) {
            Some(last) => last,
            None => (Rc::clone(common), make(common, slot)?),
        };
        Ok(&self.last.insert(last).1)
    }
}

fn make(common: &Common, slot: &SlotDirectory) -> io::Result<Program> {
    let of_slot = slot.environment();
    let of_slot = of_slot.iter().map(|(name, path)| (name.as_bytes(), path.as_os_str().as_bytes()));
    let of_step = common.environment.iter().map(|(name, value)| (name.as_slice(), value.as_slice()));
    Program::new(&common.command, of_slot.chain(of_step))
}
