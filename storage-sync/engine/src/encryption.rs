//! How an object's stream is encrypted where it stands in the bucket.
//!
//! First [`Header`]: eight bytes that name the format, and a salt that is made anew for each upload. Then the stream in
//! chunks of [`CHUNK_BYTES`], the last of which may be shorter (and is empty for a stream of nothing), each sealed alone
//! with AES-256-GCM: so that any range can be fetched, verified and gone on with. The nonce of a chunk is its number and
//! whether it is the last, as in the STREAM construction of Hoang, Reyhanitabar, Rogaway and Vizár: chunks that were
//! changed, swapped, repeated, left out or cut off at the end are found, and those of another upload do not open, because
//! the key is derived from the header as well.
//!
//! A project has a key; of it are derived a key for each object, and the name by which the object stands in the bucket: who
//! does not have the key cannot tell by the name what it holds, even of content that he knows. What he sees is how long the
//! stream is, and when it was read.

mod chunks;
mod keys;

pub(crate) use chunks::{Encrypting, RangeReader};
pub use keys::{Header, ObjectKey, ProjectKey, StreamKey};

/// Bytes of a stream that are sealed as one: few enough that a range costs little more than itself, and that little is lost
/// with a connection; enough that their tags are nothing.
pub const CHUNK_BYTES: u64 = 64 << 10;
/// AES-256-GCM's.
const TAG_BYTES: u64 = 16;
pub(crate) const HEADER_BYTES: u64 = 40;

/// Chunks of a stream; there is always one.
fn chunks(stream_bytes: u64) -> u64 {
    stream_bytes.div_ceil(CHUNK_BYTES).max(1)
}

/// Length in the bucket of a stream of this length.
pub fn encrypted_bytes(stream_bytes: u64) -> u64 {
    HEADER_BYTES + stream_bytes + chunks(stream_bytes) * TAG_BYTES
}

/// Length of a stream that has this length in the bucket; nothing if none has.
pub fn stream_bytes(encrypted: u64) -> Option<u64> {
    let sealed = encrypted.checked_sub(HEADER_BYTES)?;
    let bytes = sealed.checked_sub(sealed.div_ceil(CHUNK_BYTES + TAG_BYTES) * TAG_BYTES)?;
    (encrypted_bytes(bytes) == encrypted).then_some(bytes)
}

/// What stands in the bucket is not what was put there under this key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("chunk {chunk} of what is encrypted is not what was put there")]
pub struct Tampered {
    pub chunk: u64,
}

#[cfg(test)]
mod tests;
