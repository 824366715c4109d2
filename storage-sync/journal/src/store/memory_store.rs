//! A generation on a [`MemoryDisk`].

use crate::backend::MemoryDisk;
use crate::frame::{FRAME_BYTES_MAX, FRAME_OVERHEAD, KEY_BYTES, Record};
use crate::store::{Store, StoreError, Visit};

#[derive(Debug)]
pub(crate) struct MemoryStore {
    disk: MemoryDisk,
    generation: u64,
}

impl MemoryStore {
    pub(crate) fn open(disk: MemoryDisk, generation: u64) -> Self {
        disk.state().durable.entry(generation).or_default();
        Self { disk, generation }
    }
}

impl Store for MemoryStore {
    fn payload_max(&self) -> usize {
        FRAME_BYTES_MAX - FRAME_OVERHEAD
    }

    fn apply(&mut self, records: &[Record]) -> Result<(), StoreError> {
        let generation = self.generation;
        let written = records.iter().map(|record| (generation, record.key.to_vec(), record.frame.clone()));
        self.disk.state().pending.extend(written);
        Ok(())
    }

    fn sync(&mut self) -> Result<u32, StoreError> {
        let mut state = self.disk.state();
        for (generation, key, value) in std::mem::take(&mut state.pending) {
            state.durable.entry(generation).or_default().insert(key, value);
        }
        Ok(1)
    }

    fn scan(&self, visit: Visit<'_>) -> Result<(), StoreError> {
        let records = self.disk.state().durable.get(&self.generation).cloned().unwrap_or_default();
        for (key, value) in &records {
            if !visit(key, value) {
                break;
            }
        }
        Ok(())
    }

    fn last(&self) -> Result<Option<[u8; KEY_BYTES]>, StoreError> {
        let state = self.disk.state();
        let last = state.durable.get(&self.generation).and_then(|records| records.keys().next_back());
        Ok(last.and_then(|key| key.as_slice().try_into().ok()))
    }

    fn disk_bytes(&self) -> u64 {
        let state = self.disk.state();
        state.durable.values().flatten().map(|(key, value)| (key.len() + value.len()) as u64).sum()
    }
}
