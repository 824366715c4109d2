//! What was hashed on this machine and has not been touched since.
//!
//! Kept in memory, and written to `verified` now and then. An old file does no harm: an entry counts only while the
//! file still has the identity that is written there.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use atoll_model::id::ObjectId;
use atoll_model::limits::VERIFIED_MAX;

use super::layout::{Key, Variant};
use super::stamp::Stamp;

const RECORD: usize = 33 + Stamp::ENCODED;
const CHECKSUM: usize = 32;

#[derive(Debug, Default)]
pub(crate) struct Verified {
    stamps: HashMap<Key, Stamp>,
    inodes: HashMap<(u64, u64), Key>,
    /// Whether it says more or less than what was written down last.
    changed: bool,
}

impl Verified {
    /// Nothing, if there is no file or it is damaged.
    pub(crate) fn load(path: &Path) -> Self {
        let mut verified = Self::default();
        let Ok(bytes) = fs::read(path) else { return verified };
        let Some((records, checksum)) = bytes.split_last_chunk::<CHECKSUM>() else { return verified };
        if blake3::hash(records).as_bytes() != checksum {
            return verified;
        }
        for record in records.chunks_exact(RECORD) {
            let (variant, rest) = record.split_first().expect("a record is not empty");
            let (digest, stamp) = rest.split_first_chunk::<32>().expect("a record holds a digest");
            let stamp = stamp.try_into().expect("a record ends with a stamp");
            if let Some(variant) = Variant::from_byte(*variant) {
                verified.put(Key { id: ObjectId::from_digest(*digest), variant }, Stamp::decode(stamp));
            }
        }
        verified.changed = false;
        verified
    }

    /// What is to be written down, if anything is new.
    pub(crate) fn take_changes(&mut self) -> Option<Vec<u8>> {
        std::mem::take(&mut self.changed).then(|| self.encode())
    }

    /// The last try to write it down has failed.
    pub(crate) fn put_back_changes(&mut self) {
        self.changed = true;
    }

    fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.stamps.len() * RECORD + CHECKSUM);
        for (key, stamp) in &self.stamps {
            bytes.push(key.variant.byte());
            bytes.extend_from_slice(key.id.digest());
            bytes.extend_from_slice(&stamp.encode());
        }
        let checksum = blake3::hash(&bytes);
        bytes.extend_from_slice(checksum.as_bytes());
        bytes
    }

    pub(crate) fn get(&self, key: &Key) -> Option<Stamp> {
        self.stamps.get(key).copied()
    }

    pub(crate) fn put(&mut self, key: Key, stamp: Stamp) {
        if self.stamps.len() >= VERIFIED_MAX && !self.stamps.contains_key(&key) {
            *self = Self::default();
        }
        if let Some(old) = self.stamps.insert(key, stamp)
            && (old.device, old.inode) != (stamp.device, stamp.inode)
        {
            self.inodes.remove(&(old.device, old.inode));
        }
        self.inodes.insert((stamp.device, stamp.inode), key);
        self.changed = true;
    }

    pub(crate) fn remove(&mut self, key: &Key) {
        if let Some(old) = self.stamps.remove(key) {
            self.inodes.remove(&(old.device, old.inode));
            self.changed = true;
        }
    }

    /// Which of the store's files this is, if it is one.
    pub(crate) fn by_inode(&self, device: u64, inode: u64) -> Option<Key> {
        self.inodes.get(&(device, inode)).copied()
    }
}
