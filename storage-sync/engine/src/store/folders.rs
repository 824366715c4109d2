//! The folders of objects, `objects/<2 hex>` and `trees/<2 hex>`: made when they are needed first.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use super::barrier::Barrier;
use super::error::StoreError;
use super::locked;

#[derive(Debug, Default)]
pub(super) struct Folders {
    known: Mutex<HashSet<PathBuf>>,
    /// Those that have new folders in them whose names may not be on disk, and how many were made there.
    unsynced: Mutex<BTreeMap<PathBuf, u64>>,
}

impl Folders {
    /// Makes the folder that `path` is to stand in, if it is not there.
    pub(super) fn make_for(&self, path: &Path) -> Result<(), StoreError> {
        let Some(folder) = path.parent() else { return Ok(()) };
        if locked(&self.known).contains(folder) {
            return Ok(());
        }
        match fs::create_dir(folder) {
            Ok(()) => {
                let above = folder.parent().unwrap_or(folder).to_owned();
                *locked(&self.unsynced).entry(above).or_default() += 1;
            }
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(StoreError::io("make", folder, error)),
        }
        locked(&self.known).insert(folder.to_owned());
        Ok(())
    }

    /// Returns when the names in these folders are on disk, and the names of the folders too.
    pub(super) fn sync(
        &self,
        barrier: &Barrier,
        mut folders: BTreeSet<PathBuf>,
        root: &Path,
    ) -> Result<(), StoreError> {
        let unsynced = locked(&self.unsynced).clone();
        folders.extend(unsynced.keys().cloned());
        if let Err(error) = barrier.sync(&folders) {
            // Nothing in them counts as stored until a later sync has taken them along.
            let mut unsynced = locked(&self.unsynced);
            folders.into_iter().for_each(|folder| *unsynced.entry(folder).or_default() += 1);
            return Err(StoreError::io("sync", root, error));
        }
        // What was made since has to wait for the next.
        locked(&self.unsynced).retain(|folder, count| unsynced.get(folder) != Some(count));
        Ok(())
    }
}
