//! The canonical stream of an object: how it crosses a border. For a file its bytes; for a tree all manifests depth
//! first, then the bytes of all files in canonical order, each once.

use std::path::Path;

use atoll_model::value::{FileName, ObjectRef, Value};

/// What [`pack`] found: everything that an upload needs to know beforehand.
#[derive(Debug)]
pub struct Packed {}

impl Packed {
    pub fn object(&self) -> ObjectRef {
        unimplemented!()
    }

    pub fn value(&self, name: FileName) -> Value {
        let _ = name;
        unimplemented!()
    }

    /// Exact length of the stream.
    pub fn stream_bytes(&self) -> u64 {
        unimplemented!()
    }

    /// Bytes of the stream from `offset`, at most `length`; empty at its end. Blocks.
    pub fn read_at(&self, offset: u64, length: usize) -> std::io::Result<Vec<u8>> {
        let _ = (offset, length);
        unimplemented!()
    }
}

/// Hashes a local file or directory, in order to send it. Blocks.
pub fn pack(path: &Path) -> Result<Packed, crate::store::IngestError> {
    let _ = path;
    unimplemented!()
}

/// Writes a stream to a local path, verifying it; nothing stands at the path before everything is verified.
#[derive(Debug)]
pub struct Unpacker {}

#[derive(Debug, thiserror::Error)]
pub enum UnpackError {
    #[error("the bytes are not those of {}: {message}", .object.id)]
    Corrupt { object: ObjectRef, message: String },
    #[error("{0} exists already")]
    Exists(String),
    #[error("{what}")]
    Io {
        what: String,
        #[source]
        source: std::io::Error,
    },
}

impl Unpacker {
    /// Begins to write `object` to `path`, which must not exist.
    pub fn new(object: ObjectRef, path: &Path) -> Result<Self, UnpackError> {
        let _ = (object, path);
        unimplemented!()
    }

    /// Takes the next bytes of the stream. Blocks.
    pub fn push(&mut self, bytes: &[u8]) -> Result<(), UnpackError> {
        let _ = bytes;
        unimplemented!()
    }

    /// The stream has ended: puts the result at its path.
    pub fn finish(self) -> Result<(), UnpackError> {
        unimplemented!()
    }
}
