//! What is durable.

use serde::{Deserialize, Serialize};

/// Everything that an agent must remember.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Snapshot {}
