//! Which store a journal is kept in.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The store behind a journal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum Backend {
    /// sled 0.34, with an fsync of its own at each barrier. The default.
    #[default]
    Sled,
    /// redb, one file.
    Redb,
    /// A [`MemoryDisk`], for simulations and tests.
    Memory,
}

/// A name that is none of `sled`, `redb` and `memory`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown journal backend `{0}`: it is `sled` or `redb`")]
pub struct UnknownBackend(pub String);

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Sled => "sled",
            Self::Redb => "redb",
            Self::Memory => "memory",
        })
    }
}

impl FromStr for Backend {
    type Err = UnknownBackend;

    fn from_str(name: &str) -> Result<Self, UnknownBackend> {
        match name {
            "sled" => Ok(Self::Sled),
            "redb" => Ok(Self::Redb),
            "memory" => Ok(Self::Memory),
            other => Err(UnknownBackend(other.to_owned())),
        }
    }
}

/// A disk in memory that outlives the journal on it: clones share it. What no barrier has covered is pending, and
/// [`MemoryDisk::crash`] drops it.
#[derive(Clone, Debug, Default)]
pub struct MemoryDisk(Arc<Mutex<MemoryState>>);

#[derive(Debug, Default)]
pub(crate) struct MemoryState {
    /// The generation that is current, if a journal was ever made here.
    pub(crate) current: Option<u64>,
    pub(crate) durable: BTreeMap<u64, BTreeMap<Vec<u8>, Vec<u8>>>,
    pub(crate) pending: Vec<(u64, Vec<u8>, Vec<u8>)>,
    pub(crate) locked: bool,
}

impl MemoryDisk {
    /// Drops everything that was written and not made durable, as a power cut does.
    pub fn crash(&self) {
        self.state().pending.clear();
    }

    /// Bytes written and not yet durable.
    pub fn pending_bytes(&self) -> usize {
        self.state().pending.iter().map(|(_, key, value)| key.len() + value.len()).sum()
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, MemoryState> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
