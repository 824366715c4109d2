//! How objects in the bucket are encrypted, as far as the core knows: by which key. Keys themselves it has only wrapped, by
//! a key that its shell holds and no journal does.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// Names a key of a project.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct KeyId {
    pub project: Arc<str>,
    /// From 1.
    pub number: u32,
}

impl fmt::Display for KeyId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "key {} of project {}", self.number, self.project)
    }
}

/// A key of a project, encrypted by the installation's.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WrappedKey(Arc<[u8]>);

impl WrappedKey {
    pub fn new(bytes: &[u8]) -> Self {
        Self(Arc::from(bytes))
    }

    pub fn bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for WrappedKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("WrappedKey").finish_non_exhaustive()
    }
}

/// How an object is encrypted where it stands in the bucket, or is to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Encryption {
    pub key: KeyId,
    /// Nothing as long as nobody has made it: then nothing is encrypted by it yet.
    pub wrapped: Option<WrappedKey>,
}

/// An object as it stands in the bucket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BucketCopy {
    pub object: atoll_model::value::ObjectRef,
    pub encryption: Option<Encryption>,
}
