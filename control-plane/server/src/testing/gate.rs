//! A journal whose barrier waits until a test lets it pass, or fails.

use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::Duration;

use storage_sync_journal::{Journal, JournalError, JournalStats};

use crate::driver::Log;

const PATIENCE: Duration = Duration::from_secs(20);

/// Cheap to clone; open at first.
#[derive(Debug, Clone, Default)]
pub(crate) struct Gate(Arc<(Mutex<Passing>, Condvar)>);

#[derive(Debug, Default)]
struct Passing {
    closed: bool,
    broken: bool,
    /// Barriers that wait.
    waiting: usize,
    passed: usize,
}

impl Gate {
    pub(super) fn over(&self, journal: Journal) -> GatedJournal {
        GatedJournal { journal, gate: self.clone() }
    }

    pub(crate) fn close(&self) {
        self.lock().closed = true;
    }

    pub(crate) fn open(&self) {
        self.lock().closed = false;
        self.0.1.notify_all();
    }

    /// From now on barriers fail.
    pub(crate) fn break_down(&self) {
        self.lock().broken = true;
        self.open();
    }

    /// How many barriers there were.
    pub(crate) fn passed(&self) -> usize {
        self.lock().passed
    }

    /// Blocks until a barrier waits.
    pub(crate) fn wait_for_barrier(&self) {
        let none = |passing: &mut Passing| passing.waiting == 0;
        let waited = self.0.1.wait_timeout_while(self.lock(), PATIENCE, none).unwrap().1;
        assert!(!waited.timed_out(), "no barrier was asked for");
    }

    fn pass(&self) -> bool {
        let mut passing = self.lock();
        passing.waiting += 1;
        self.0.1.notify_all();
        passing = self.0.1.wait_while(passing, |passing| passing.closed).unwrap();
        passing.waiting -= 1;
        passing.passed += 1;
        !passing.broken
    }

    fn lock(&self) -> MutexGuard<'_, Passing> {
        self.0.0.lock().unwrap()
    }
}

pub(super) struct GatedJournal {
    journal: Journal,
    gate: Gate,
}

impl Log for GatedJournal {
    fn append(&mut self, batch: &[u8]) -> Result<(), JournalError> {
        Log::append(&mut self.journal, batch)
    }

    fn barrier(&mut self) -> Result<(), JournalError> {
        if self.gate.pass() { self.journal.barrier() } else { Err(JournalError::Store("the disk is gone".to_owned())) }
    }

    fn checkpoint(&mut self, state: &[u8]) -> Result<(), JournalError> {
        self.journal.checkpoint(state)
    }

    fn compact_if_needed(&mut self) -> Result<bool, JournalError> {
        self.journal.compact_if_needed()
    }

    fn stats(&self) -> JournalStats {
        self.journal.stats()
    }

    fn may_act(&self) -> Result<(), JournalError> {
        Ok(())
    }
}
