//! What the contract suites share: payloads that prove themselves, a process to kill, and a disk that forgets what was
//! not synced.

pub mod full_disk;
pub mod journal_child;
pub mod journals;
pub mod payload;
pub mod power_loss;
pub mod random;
