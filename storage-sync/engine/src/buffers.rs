//! Buffers that are used again: memory that the system has just given is cleared page by page, which costs as much as
//! encrypting what goes into it.

use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;

/// Where in memory they begin: on a boundary of what any disk wants that is written to past the cache of the system.
pub(crate) const ALIGNMENT: usize = 4 << 10;
/// Kept at most when nobody uses them.
const KEPT_MAX: usize = 32;

/// Buffers of one size. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Pool {
    bytes: usize,
    idle: Arc<Mutex<Vec<Vec<u8>>>>,
}

/// Goes back to its pool when it is dropped.
#[derive(Debug)]
pub(crate) struct Buffer {
    bytes: Vec<u8>,
    /// The first of them that is on a boundary of [`ALIGNMENT`].
    start: usize,
    used: usize,
    pool: Option<Pool>,
}

impl Pool {
    pub(crate) fn new(bytes: usize) -> Self {
        Self { bytes, idle: Arc::default() }
    }

    /// What it holds is left over from its last use.
    pub(crate) fn take(&self, used: usize) -> Buffer {
        if used > self.bytes {
            return Buffer::new(vec![0; used + ALIGNMENT], used, None);
        }
        let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let bytes = idle.unwrap_or_else(|| vec![0; self.bytes + ALIGNMENT]);
        Buffer::new(bytes, used, Some(self.clone()))
    }
}

impl Buffer {
    fn new(bytes: Vec<u8>, used: usize, pool: Option<Pool>) -> Self {
        let start = bytes.as_ptr().align_offset(ALIGNMENT).min(ALIGNMENT);
        Self { bytes, start, used, pool }
    }

    pub(crate) fn into_bytes(self) -> Bytes {
        Bytes::from_owner(self)
    }
}

impl std::ops::Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes[self.start..self.start + self.used]
    }
}

impl std::ops::DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.bytes[self.start..self.start + self.used]
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let Some(pool) = &self.pool else { return };
        let mut idle = pool.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.len() < KEPT_MAX {
            idle.push(std::mem::take(&mut self.bytes));
        }
    }
}
