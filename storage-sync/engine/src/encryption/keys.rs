//! Keys, each derived from the one above it with HKDF-SHA256.

use std::fmt;

use atoll_model::id::ObjectId;
use atoll_model::value::{ObjectKind, ObjectRef};
use aws_lc_rs::hkdf::{HKDF_SHA256, Prk, Salt};
use aws_lc_rs::rand::{SecureRandom as _, SystemRandom};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::HEADER_BYTES;

const KEY_BYTES: usize = 32;
const SALT_BYTES: usize = 32;
/// Names the format: another one begins with something else.
const FORMAT: &[u8; 8] = b"atoll-e1";

type Secret = Zeroizing<[u8; KEY_BYTES]>;

/// Of which the keys and names of a project's objects are derived.
#[derive(Clone)]
pub struct ProjectKey(Secret);

/// Opens and seals one object, whatever the upload. It is given to an agent that brings the object in.
#[derive(Clone)]
pub struct ObjectKey(Secret);

/// Opens one upload of one object. It is given to an agent that fetches the object.
#[derive(Clone)]
pub struct StreamKey(Secret);

/// What an encrypted stream begins with. It is no secret, and is authenticated by every chunk, because the key depends on
/// it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Header {
    format: [u8; 8],
    salt: [u8; SALT_BYTES],
}

macro_rules! shows_nothing {
    ($($key:ident),*) => {$(
        impl fmt::Debug for $key {
            fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.debug_struct(stringify!($key)).finish_non_exhaustive()
            }
        }

        impl $key {
            pub fn new(secret: [u8; KEY_BYTES]) -> Self {
                Self(Zeroizing::new(secret))
            }

            /// The key as it is: for whoever wraps it, or hands it to whom it is for.
            pub fn secret(&self) -> &[u8; KEY_BYTES] {
                &self.0
            }
        }

        impl TryFrom<&[u8]> for $key {
            type Error = std::array::TryFromSliceError;

            fn try_from(bytes: &[u8]) -> Result<Self, Self::Error> {
                Ok(Self(Zeroizing::new(bytes.try_into()?)))
            }
        }
    )*};
}

shows_nothing!(ProjectKey, ObjectKey, StreamKey);

impl ProjectKey {
    /// # Panics
    /// When the system has no randomness: whatever is made then is no secret.
    pub fn random() -> Self {
        let mut secret = Zeroizing::new([0; KEY_BYTES]);
        SystemRandom::new().fill(&mut *secret).expect("the system gives random bytes");
        Self(secret)
    }

    pub fn object_key(&self, object: ObjectRef) -> ObjectKey {
        ObjectKey(self.derive(b"atoll object key 1", object))
    }

    /// The name by which an object stands in the bucket.
    pub(crate) fn name(&self, object: ObjectRef) -> [u8; KEY_BYTES] {
        *self.derive(b"atoll bucket name 1", object)
    }

    fn derive(&self, purpose: &[u8], object: ObjectRef) -> Secret {
        let kind = match object.kind {
            ObjectKind::File => b"f",
            ObjectKind::Tree => b"t",
        };
        let id: &ObjectId = &object.id;
        expand(&Salt::new(HKDF_SHA256, b"atoll project key").extract(&*self.0), &[purpose, kind, id.digest()])
    }
}

impl ObjectKey {
    pub fn stream_key(&self, header: &Header) -> StreamKey {
        let extracted = Salt::new(HKDF_SHA256, &header.salt).extract(&*self.0);
        StreamKey(expand(&extracted, &[b"atoll stream key 1", &header.format]))
    }
}

fn expand(extracted: &Prk, labels: &[&[u8]]) -> Secret {
    let mut secret = Zeroizing::new([0; KEY_BYTES]);
    let expanded = extracted.expand(labels, HKDF_SHA256).and_then(|okm| okm.fill(&mut *secret));
    expanded.expect("one block of output is always to be had");
    secret
}

impl Header {
    /// That of a new upload.
    ///
    /// # Panics
    /// When the system has no randomness.
    pub(crate) fn random() -> Self {
        let mut salt = [0; SALT_BYTES];
        SystemRandom::new().fill(&mut salt).expect("the system gives random bytes");
        Self { format: *FORMAT, salt }
    }

    /// What an object begins with. Whatever it is, it makes a key; a wrong one opens nothing.
    pub(crate) fn read(bytes: &[u8]) -> Self {
        let mut whole = [0; HEADER_BYTES as usize];
        let length = bytes.len().min(whole.len());
        whole[..length].copy_from_slice(&bytes[..length]);
        let (format, salt) = whole.split_first_chunk().expect("a header is longer than its name");
        Self { format: *format, salt: salt.try_into().expect("a header is a name and a salt") }
    }

    pub(crate) fn to_bytes(self) -> [u8; HEADER_BYTES as usize] {
        let mut whole = [0; HEADER_BYTES as usize];
        whole[..FORMAT.len()].copy_from_slice(&self.format);
        whole[FORMAT.len()..].copy_from_slice(&self.salt);
        whole
    }
}
