//! What an execution asks of a machine, and what a site has.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// What one execution asks for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resources {
    /// Thousandths of a CPU; at least 1.
    pub cpu_millis: u32,
    /// Bytes of memory that it may use, enforced; nothing means no limit of its own.
    pub memory_bytes: Option<u64>,
    /// How long one attempt may run; nothing means no limit.
    pub time: Option<Duration>,
}

impl Default for Resources {
    fn default() -> Self {
        Self { cpu_millis: 1_000, memory_bytes: None, time: None }
    }
}

/// What a site has in all.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Capacity {
    pub cpu_millis: u32,
    pub memory_bytes: u64,
    /// Bytes that the site's store may still take.
    pub disk_free_bytes: u64,
}
