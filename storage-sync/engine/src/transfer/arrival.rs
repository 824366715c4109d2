//! Notes of fetches whose bytes have all come, for who records them in a journal of his own: between the two the process
//! may be killed. A note is not synced: a power cut may take those of the last moments along.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use atoll_model::id::AgentId;
use atoll_model::value::ObjectRef;
use serde::{Deserialize, Serialize};

use crate::store::error::Doing as _;
use crate::store::{SiteStore, StoreError};

const PREFIX: &str = "arrived-";

/// A fetch whose bytes have all come.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NotedArrival {
    pub object: ObjectRef,
    /// That of [`super::Transfers::fetch_noted`].
    pub intent: u64,
    pub wire_bytes: u64,
    /// As in [`super::Fetched::direct`].
    #[serde(default)]
    pub direct: Option<(AgentId, u64)>,
    /// When, by the wall clock.
    pub since_epoch: Duration,
}

/// The notes of earlier processes.
///
/// # Errors
/// When the folder cannot be read. A note that was half written is none.
pub fn arrivals(store: &SiteStore) -> Result<Vec<NotedArrival>, StoreError> {
    let folder = store.partial("");
    let mut found = Vec::new();
    for entry in std::fs::read_dir(&folder).doing("read", &folder)? {
        let entry = entry.doing("read", &folder)?;
        if entry.file_name().to_string_lossy().starts_with(PREFIX) {
            let path = entry.path();
            let bytes = std::fs::read(&path).doing("read", &path)?;
            found.extend(serde_json::from_slice::<NotedArrival>(&bytes));
        }
    }
    Ok(found)
}

pub(super) fn note(
    store: &SiteStore,
    object: ObjectRef,
    intent: u64,
    fetched: super::Fetched,
) -> Result<(), StoreError> {
    let super::Fetched { wire_bytes, direct } = fetched;
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let noted = NotedArrival { object, intent, wire_bytes, direct, since_epoch };
    let bytes = serde_json::to_vec(&noted).expect("a note has an encoding");
    let (path, temporary) = (path(store, object), store.temporary());
    std::fs::write(&temporary, bytes).and_then(|()| std::fs::rename(&temporary, &path)).doing("write", &path)
}

pub(super) fn forget(store: &SiteStore, object: ObjectRef, intent: u64) -> Result<(), StoreError> {
    if read(store, object)?.is_none_or(|noted| noted.intent != intent) {
        return Ok(());
    }
    let path = path(store, object);
    std::fs::remove_file(&path).doing("remove", &path)
}

pub(super) fn read(store: &SiteStore, object: ObjectRef) -> Result<Option<NotedArrival>, StoreError> {
    let path = path(store, object);
    match std::fs::read(&path) {
        Ok(bytes) => Ok(serde_json::from_slice(&bytes).ok()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(StoreError::io("read", &path, error)),
    }
}

fn path(store: &SiteStore, object: ObjectRef) -> std::path::PathBuf {
    store.partial(&format!("{PREFIX}{}", object.id.hex()))
}
