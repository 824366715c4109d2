//! Where an object stands in the bucket, and how.

use std::fmt;

use atoll_model::value::{ObjectKind, ObjectRef};
use futures::{StreamExt as _, TryStreamExt as _};

use super::ByteStream;
use crate::encryption::{self, ObjectKey, ProjectKey, RangeReader, StreamKey, encrypted_bytes};

/// How an object is encrypted in the bucket.
#[derive(Debug, Clone)]
pub struct Encryption {
    pub(super) key: ObjectKey,
    name: [u8; 32],
}

impl Encryption {
    pub fn new(key: &ProjectKey, object: ObjectRef) -> Self {
        Self { key: key.object_key(object), name: key.name(object) }
    }

    /// For an agent that is to encrypt the object.
    pub fn key(&self) -> &ObjectKey {
        &self.key
    }
}

/// An object as it stands in the bucket.
#[derive(Debug, Clone)]
pub struct Stored {
    pub object: ObjectRef,
    pub encryption: Option<Encryption>,
}

/// What is to be known of an object in the bucket to read it.
#[derive(Debug, Clone)]
pub struct Found {
    /// Of the stream, before it was encrypted.
    pub stream_bytes: u64,
    /// Opens it, if it is encrypted.
    pub key: Option<StreamKey>,
}

impl From<ObjectRef> for Stored {
    fn from(object: ObjectRef) -> Self {
        Self { object, encryption: None }
    }
}

impl Stored {
    /// Whether both are the same object at the same place.
    pub fn is_at(&self, other: &Self) -> bool {
        self.object == other.object && self.key() == other.key()
    }

    pub(super) fn key(&self) -> Key {
        match &self.encryption {
            None => Key { folder: folder(self.object.kind), hex: self.object.id.hex() },
            Some(encryption) => Key { folder: ENCRYPTED, hex: hex(&encryption.name) },
        }
    }

    /// Bytes that stand in the bucket for a stream of this length.
    pub(super) fn bytes_of(&self, stream_bytes: u64) -> u64 {
        if self.encryption.is_some() { encrypted_bytes(stream_bytes) } else { stream_bytes }
    }

    /// Length of the stream for which this many bytes stand there; 0 if there is no such stream.
    pub(super) fn stream_bytes(&self, there: u64) -> u64 {
        if self.encryption.is_some() { encryption::stream_bytes(there).unwrap_or(0) } else { there }
    }
}

const ENCRYPTED: &str = "e";

pub(super) fn folder(kind: ObjectKind) -> &'static str {
    match kind {
        ObjectKind::File => "o",
        ObjectKind::Tree => "t",
    }
}

/// The name of an object in the bucket, without the prefix that all have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Key {
    folder: &'static str,
    hex: String,
}

impl Key {
    pub(super) fn names(&self) -> [&str; 3] {
        [self.folder, &self.hex[..2], &self.hex]
    }

    pub(super) fn parse(text: &str) -> Option<Self> {
        let (folder, rest) = text.split_once('/')?;
        let folder = ["o", "t", ENCRYPTED].into_iter().find(|known| *known == folder)?;
        let (_, digits) = rest.split_once('/')?;
        let is_digit = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        if digits.len() != 64 || !digits.bytes().all(is_digit) {
            return None;
        }
        let key = Self { folder, hex: digits.to_owned() };
        // Exactly the one way in which it is written, so that an object has one URL path.
        (key.to_string() == text).then_some(key)
    }
}

impl fmt::Display for Key {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.names().join("/"))
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// What `reader` makes of the bytes that it asked for.
pub(super) fn decrypted(reader: RangeReader, bytes: ByteStream) -> ByteStream {
    let opened = bytes.scan(reader, |reader, bytes| {
        let opened = bytes.and_then(|bytes| {
            let (mut rest, mut opened) = (&bytes[..], Vec::with_capacity(bytes.len()));
            while let Some(part) = reader.next(&mut rest).map_err(std::io::Error::other)? {
                opened.extend_from_slice(part);
            }
            Ok(bytes::Bytes::from(opened))
        });
        futures::future::ready(Some(opened))
    });
    opened.try_filter(|bytes| futures::future::ready(!bytes.is_empty())).boxed()
}

#[cfg(test)]
mod tests {
    use atoll_model::id::ObjectId;

    use super::*;

    #[test]
    fn a_key_is_read_in_the_one_way_in_which_it_is_written() {
        let object = ObjectRef { id: ObjectId::from_digest([0xa1; 32]), kind: ObjectKind::File, bytes: 3 };
        let encryption = Encryption::new(&ProjectKey::new([1; 32]), object);
        let stored = [
            object.into(),
            ObjectRef { kind: ObjectKind::Tree, ..object }.into(),
            Stored { object, encryption: Some(encryption) },
        ];
        for stored in stored {
            let key = stored.key();
            assert_eq!(Key::parse(&key.to_string()), Some(key.clone()));
            let [folder, two, hex] = key.names();
            let other = if two == "00" { "11" } else { "00" };
            for wrong in [
                format!("{folder}/{other}/{hex}"),
                format!("{folder}/{two}/{}", hex.to_uppercase()),
                format!("{folder}/{two}/{hex}/x"),
                format!("x/{two}/{hex}"),
                format!("{folder}//{two}/{hex}"),
                format!("{folder}/{hex}"),
            ] {
                assert_eq!(Key::parse(&wrong), None, "{wrong}");
            }
        }
    }
}
