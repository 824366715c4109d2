//! Which event met which state, and how often.

use std::cell::RefCell;
use std::collections::BTreeMap;

/// A machine, a state of it, and an event.
pub type Pair = (&'static str, &'static str, &'static str);

thread_local! {
    static SEEN: RefCell<BTreeMap<Pair, u64>> = const { RefCell::new(BTreeMap::new()) };
}

pub fn seen(machine: &'static str, state: &'static str, event: &'static str) {
    SEEN.with_borrow_mut(|seen| *seen.entry((machine, state, event)).or_default() += 1);
}

/// All that was seen in this thread since the last call.
pub fn take_seen() -> BTreeMap<Pair, u64> {
    SEEN.take()
}
