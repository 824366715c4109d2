//! Faults on purpose: [`plant`] is for build scripts that copy sources and put faults into the copy, [`switch`] and
//! [`is_on`] are for what then runs. The lists of edits stand beside this crate: `faults.txt` (each is off until it is
//! turned on) and `probes.txt` (each is there always, and only looks).

mod coverage;
mod edits;

use std::cell::Cell;

pub use coverage::{Pair, seen, take_seen};
pub use edits::{Fault, faults, plant};

thread_local! {
    static ON: Cell<Option<&'static str>> = const { Cell::new(None) };
}

/// Turns one fault on in this thread, and all others off.
pub fn switch(fault: Option<&'static str>) {
    ON.set(fault);
}

pub fn is_on(fault: &str) -> bool {
    ON.get() == Some(fault)
}
