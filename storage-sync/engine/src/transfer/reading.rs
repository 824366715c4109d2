//! What is sent of an object that is pushed: its stream, or what encryption makes of it.

use bytes::{Bytes, BytesMut};

use super::verifying::Verifying;
use crate::encryption::{Encrypting, Header, ObjectKey, encrypted_bytes};
use crate::stream::ObjectStream;

/// Reads what is to be sent from its beginning to its end.
pub(super) struct Reading {
    stream: Verifying,
    encrypting: Option<Encryption>,
}

struct Encryption {
    with: Encrypting,
    /// Encrypted, and not asked for yet.
    ready: BytesMut,
    ended: bool,
}

impl Reading {
    pub(super) fn new(stream: ObjectStream, encrypt: Option<(ObjectKey, Header)>) -> Self {
        let encrypting = encrypt.map(|(key, header)| Encryption {
            with: Encrypting::new(&key, header),
            ready: BytesMut::new(),
            ended: false,
        });
        Self { stream: Verifying::new(stream), encrypting }
    }

    /// Bytes that are to be sent of a stream of this length.
    pub(super) fn length(&self, stream_bytes: u64) -> u64 {
        if self.encrypting.is_some() { encrypted_bytes(stream_bytes) } else { stream_bytes }
    }

    /// The next bytes, `length` of them unless it ends before.
    ///
    /// # Errors
    /// As [`Verifying::next`]. What was encrypted of a damaged file may have been given out before, and is of no use.
    pub(super) fn next(&mut self, length: usize) -> Result<Bytes, String> {
        let Some(encryption) = &mut self.encrypting else { return self.stream.next(length).map(Bytes::from) };
        while encryption.ready.len() < length && !encryption.ended {
            let bytes = self.stream.next(length.max(1))?;
            encryption.with.push(&bytes, &mut encryption.ready);
            if bytes.len() < length {
                encryption.with.finish(&mut encryption.ready);
                encryption.ended = true;
            }
        }
        Ok(encryption.ready.split_to(length.min(encryption.ready.len())).freeze())
    }
}
