//! Which execution has which GPU. What is held is noted in files, so that the next process of the agent knows it of what still
//! runs; after another start of the machine nothing does.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use atoll_model::resources::{Capacity, Gpus};

use crate::shim::make_private;
use crate::shim::protocol::{Common, Key};

/// What programs of one vendor look at, which others have taken over.
const VISIBLE: &str = "CUDA_VISIBLE_DEVICES";
/// Devices that every GPU needs beside its own.
const DEVICES: [&str; 4] = ["nvidiactl", "nvidia-uvm", "nvidia-uvm-tools", "nvidia-modeset"];

/// The GPUs of one machine, by index.
#[derive(Debug)]
pub(super) struct HeldGpus {
    folder: PathBuf,
    kinds: Vec<String>,
    capacity: Capacity,
    held: BTreeMap<Key, Vec<usize>>,
}

impl HeldGpus {
    /// Finds what these attempts hold; what others held is free.
    pub(super) fn open(folder: &Path, kinds: Vec<String>, known: impl Iterator<Item = Key>) -> io::Result<Self> {
        let folder = folder.to_owned();
        make_private(&folder)?;
        let mut held = BTreeMap::new();
        for key in known {
            // Most have none.
            let Ok(text) = fs::read_to_string(folder.join(key.folder())) else { continue };
            held.insert(key, text.split(',').filter_map(|index| index.trim().parse().ok()).collect());
        }
        for entry in fs::read_dir(&folder)? {
            let entry = entry?;
            if !held.keys().any(|key| entry.file_name() == *key.folder()) {
                fs::remove_file(entry.path())?;
            }
        }
        let gpus = counted(&kinds);
        Ok(Self { folder, kinds, capacity: Capacity { gpus, ..Capacity::default() }, held })
    }

    /// Gives an attempt as many as it asks for that nobody else has, and says so in its environment; nothing if there are not
    /// so many.
    ///
    /// # Errors
    /// When it cannot be noted.
    pub(super) fn take(&mut self, key: Key, wanted: &Gpus, common: &Common) -> io::Result<Option<Common>> {
        let Some((kind, _)) = self.capacity.gpus_of(wanted.kind.as_deref()) else { return Ok(None) };
        let is_free =
            |index: &usize| self.kinds[*index] == kind && !self.held.values().flatten().any(|held| held == index);
        let free: Vec<usize> = (0..self.kinds.len()).filter(is_free).take(wanted.count as usize).collect();
        if free.len() < wanted.count as usize {
            return Ok(None);
        }
        let list = free.iter().map(usize::to_string).collect::<Vec<_>>().join(",");
        let (place, next) = (self.folder.join(key.folder()), self.folder.join("next"));
        fs::write(&next, &list)?;
        fs::rename(&next, &place)?;
        let mut common = common.clone();
        common.environment.retain(|(name, _)| name != VISIBLE.as_bytes());
        common.environment.push((VISIBLE.into(), list.into_bytes()));
        if let Some(enclosed) = &mut common.terms.enclosed {
            let own = free.iter().map(|index| format!("nvidia{index}"));
            enclosed.devices = DEVICES.iter().map(|name| (*name).to_owned()).chain(own).collect();
        }
        self.held.insert(key, free);
        Ok(Some(common))
    }

    /// An attempt has ended, or does not begin.
    pub(super) fn release(&mut self, key: Key) {
        if self.held.remove(&key).is_some() {
            // What stays is taken away when the agent starts again.
            let _ = fs::remove_file(self.folder.join(key.folder()));
        }
    }
}

/// How many there are of each kind.
pub(crate) fn counted(kinds: &[String]) -> BTreeMap<String, u32> {
    let mut counted = BTreeMap::new();
    kinds.iter().for_each(|kind| *counted.entry(kind.clone()).or_default() += 1);
    counted
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test that fails here has failed")]

    use atoll_model::id::{Attempt, ExecutionId, RunId, StepIndex};

    use super::*;

    fn key(element: u32) -> Key {
        let execution = ExecutionId { run: RunId::from_bits(7), step: StepIndex(0), element };
        Key { execution, attempt: Attempt(1) }
    }

    fn visible(common: Option<Common>) -> Option<String> {
        let (_, list) = common?.environment.into_iter().find(|(name, _)| name == VISIBLE.as_bytes()).unwrap();
        Some(String::from_utf8(list).unwrap())
    }

    #[test]
    fn nobody_gets_a_gpu_that_another_has_not_after_a_restart_either() {
        let folder = tempfile::tempdir().unwrap();
        let kinds = || ["a100", "v100", "a100"].map(str::to_owned).to_vec();
        let (one, kind) = (Common::default(), |kind: &str| Gpus { count: 1, kind: Some(kind.to_owned()) });
        let mut gpus = HeldGpus::open(folder.path(), kinds(), std::iter::empty()).unwrap();
        assert_eq!(visible(gpus.take(key(0), &kind("a100"), &one).unwrap()).as_deref(), Some("0"));
        assert_eq!(visible(gpus.take(key(1), &kind("v100"), &one).unwrap()).as_deref(), Some("1"));
        assert_eq!(visible(gpus.take(key(2), &Gpus { count: 2, kind: None }, &one).unwrap()), None);
        let mut gpus = HeldGpus::open(folder.path(), kinds(), [key(0)].into_iter()).unwrap();
        assert_eq!(visible(gpus.take(key(2), &kind("a100"), &one).unwrap()).as_deref(), Some("2"));
        assert_eq!(visible(gpus.take(key(3), &kind("a100"), &one).unwrap()), None);
        assert_eq!(
            visible(gpus.take(key(4), &kind("v100"), &one).unwrap()).as_deref(),
            Some("1"),
            "whose holder is gone"
        );
        gpus.release(key(0));
        assert_eq!(visible(gpus.take(key(3), &Gpus { count: 1, kind: None }, &one).unwrap()).as_deref(), Some("0"));
        assert_eq!(visible(gpus.take(key(5), &kind("h100"), &one).unwrap()), None);
    }
}
