//! What really happened, as nobody inside the simulation can see it, and what must never happen.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use atoll_model::id::{ObjectId, RunId, StepIndex};
use atoll_model::workflow::StartMode;

use crate::machine::Key;

#[derive(Debug, Default)]
pub(crate) struct History {
    /// Starts of a process, by attempt.
    pub(crate) starts: BTreeMap<Key, u32>,
    /// Attempts that have a process now.
    pub(crate) alive: BTreeSet<Key>,
    /// Bytes that crossed a border: object, from, to; how often.
    pub(crate) crossings: BTreeMap<(ObjectId, String, String), u64>,
    /// Steps whose outputs must not leave some sites; and what they made.
    pub(crate) confined_steps: BTreeSet<(RunId, StepIndex)>,
    pub(crate) confined: BTreeSet<ObjectId>,
    /// Sites that were revoked: what one had not told by then, nobody knows.
    pub(crate) revoked: BTreeSet<String>,
    /// Runs that were acknowledged.
    pub(crate) acknowledged: BTreeSet<RunId>,
    /// When a process last began.
    pub(crate) last_start: Duration,
    pub(crate) journals_lost: u32,
    pub(crate) crashes: u32,
    /// When somebody was last killed.
    pub(crate) last_crash: Duration,
    pub(crate) reboots: u32,
    pub(crate) damages: u32,
}

impl History {
    pub(crate) fn process_began(&mut self, key: Key, start: StartMode) {
        assert!(self.alive.insert(key), "two live processes of {key:?}");
        let starts = self.starts.entry(key).or_default();
        *starts += 1;
        assert!(start == StartMode::AtLeastOnce || *starts == 1, "{key:?} was started twice, and must not be");
    }

    pub(crate) fn process_ended(&mut self, key: Key) {
        self.alive.remove(&key);
    }

    pub(crate) fn crossed(&mut self, object: ObjectId, from: &str, to: &str) {
        assert!(!self.confined.contains(&object), "{object}, which is confined, went from {from} to {to}");
        *self.crossings.entry((object, from.to_owned(), to.to_owned())).or_default() += 1;
    }

    pub(crate) fn made(&mut self, run: RunId, step: StepIndex, object: ObjectId) {
        if self.confined_steps.contains(&(run, step)) {
            self.confined.insert(object);
        }
    }
}
