//! Where the logs of attempts are that have not been reported yet.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use crate::shim::protocol::Key;

/// The folder that holds `stdout` and `stderr` of an attempt.
#[derive(Debug, Clone)]
pub(crate) struct LogPlace {
    pub(crate) folder: PathBuf,
    /// Whether it may grow.
    pub(crate) running: bool,
}

pub(crate) type LogPlaces = Arc<Mutex<BTreeMap<Key, LogPlace>>>;
