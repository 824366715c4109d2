//! The site store: immutable objects named by their digests, on one file system.

use std::path::{Path, PathBuf};

use atoll_model::id::ObjectId;
use atoll_model::value::{FileName, ListedFile, ObjectRef, Value};

/// Blocks; cheap to clone; shared by all threads of a process. One process at a time has a store open.
#[derive(Debug, Clone)]
pub struct SiteStore {}

/// Names a sealed file or tree until its digest is known; never used twice by one store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SealId(pub u64);

/// An output that is out of reach of whoever made it, and may be handed over before its digest is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SealedOutput {
    pub seal: SealId,
    /// The name it had where it was made.
    pub name: FileName,
    pub directory: bool,
    /// Bytes of content.
    pub bytes: u64,
    pub files: u64,
}

/// An output that is in the store, durable and verified.
#[derive(Debug, Clone, PartialEq)]
pub struct Stored {
    pub object: ObjectRef,
    /// [`Value::File`] or [`Value::Directory`], without a listing.
    pub value: Value,
    /// Bytes that the store did not have before.
    pub bytes_new: u64,
    /// Bytes that had to be copied: 0 on the store's own file system.
    pub bytes_copied: u64,
}

/// One file or directory of an input tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Where it is to stand, below the directory of inputs.
    pub path: PathBuf,
    pub source: Source,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    File(ObjectId),
    Tree(ObjectId),
    Sealed(SealId),
}

/// What was lent to an execution.
#[derive(Debug, Clone, Default)]
pub struct Lent {
    /// Bytes that the execution can read of it.
    pub bytes: u64,
    pub files: u64,
    /// Bytes that were copied, because neither a link nor a clone was possible.
    pub bytes_copied: u64,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct StoreStats {
    pub objects: u64,
    pub bytes: u64,
    pub sealed: u64,
    pub quarantined: u64,
}

#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("{0} is not in the store")]
    NotFound(ObjectId),
    /// The copy is in quarantine now.
    #[error("the copy of {} in the store is damaged: {message}", .object.id)]
    Damaged { object: ObjectRef, message: String },
    #[error("no space left on the store's file system ({path})", path = .path.display())]
    NoSpace { path: PathBuf },
    #[error("the seal {0:?} is not known")]
    UnknownSeal(SealId),
    #[error("{what} {path}", path = .path.display())]
    Io {
        what: &'static str,
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
}

/// Why an output cannot be taken in.
#[derive(Debug, thiserror::Error)]
pub enum IngestError {
    #[error("{0} is missing")]
    Missing(String),
    /// Something that outputs may not hold; the message names the path and what it is.
    #[error("{path}: {why}")]
    Refused { path: String, why: String },
    #[error("{0} was changed while it was read")]
    Changed(String),
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Entry {
    /// The entries that the input `name` needs: `name/<file name>` for a file or a directory, `name/<index>/…` for the
    /// elements of a list, `name/<field>/…` for those of an object; nothing for other values.
    pub fn for_value(name: &str, value: &Value) -> Vec<Self> {
        let _ = (name, value);
        unimplemented!()
    }

    /// The entry of an input that is a sealed output.
    pub fn for_sealed(name: &str, file_name: &FileName, seal: SealId) -> Self {
        let _ = (name, file_name, seal);
        unimplemented!()
    }
}

impl SiteStore {
    /// Opens the store in `root`, making it if there is none. Takes up what was sealed before a crash.
    ///
    /// # Errors
    /// When the directory cannot be made or read, or another process has it open.
    pub fn open(root: &Path) -> Result<Self, StoreError> {
        let _ = root;
        unimplemented!()
    }

    pub fn root(&self) -> &Path {
        unimplemented!()
    }

    /// Whether the object is there: for a tree, whole.
    pub fn contains(&self, object: ObjectRef) -> bool {
        let _ = object;
        unimplemented!()
    }

    /// The kind and size of an object of which only the name is known.
    pub fn find(&self, id: ObjectId) -> Result<Option<ObjectRef>, StoreError> {
        let _ = id;
        unimplemented!()
    }

    pub fn stats(&self) -> StoreStats {
        unimplemented!()
    }

    /// Every file and every tree's manifest.
    pub fn list(&self) -> Result<Vec<ObjectRef>, StoreError> {
        unimplemented!()
    }

    /// Drops an object; of a tree only its root manifest. Whether it was there.
    pub fn remove(&self, object: ObjectRef) -> Result<bool, StoreError> {
        let _ = object;
        unimplemented!()
    }

    /// Puts the file or directory at `path` out of reach of whoever made it, without reading it. Repeating it after a
    /// crash gives the same seal. Every process that could write to it must have ended.
    pub fn seal(&self, path: &Path) -> Result<SealedOutput, IngestError> {
        let _ = path;
        unimplemented!()
    }

    /// Hashes what was sealed and gives it its name. Repeating it gives the same answer.
    pub fn commit(&self, seal: SealId) -> Result<Stored, IngestError> {
        let _ = seal;
        unimplemented!()
    }

    /// [`Self::commit`] for several seals, which are made durable together.
    pub fn commit_all(&self, seals: &[SealId]) -> Vec<Result<Stored, IngestError>> {
        let _ = seals;
        unimplemented!()
    }

    /// [`Self::seal`] and [`Self::commit`].
    pub fn ingest(&self, path: &Path) -> Result<Stored, IngestError> {
        let _ = path;
        unimplemented!()
    }

    /// Takes in a file or directory that belongs to somebody else: it is cloned where the file system can, else copied.
    pub fn import(&self, path: &Path) -> Result<Stored, IngestError> {
        let _ = path;
        unimplemented!()
    }

    /// Forgets a seal, and drops what is sealed under it if it was not committed.
    pub fn drop_seal(&self, seal: SealId) -> Result<(), StoreError> {
        let _ = seal;
        unimplemented!()
    }

    /// Builds the tree of inputs in `dir` (which is made) out of hard links. Each object is verified before.
    pub fn materialise(&self, dir: &Path, entries: &[Entry]) -> Result<Lent, StoreError> {
        let _ = (dir, entries);
        unimplemented!()
    }

    /// The objects among those lent that were tampered with since; their copies are in quarantine now. Needed only where
    /// the borrower could write to the store's files.
    pub fn touched(&self, lent: &Lent) -> Result<Vec<ObjectRef>, StoreError> {
        let _ = lent;
        unimplemented!()
    }

    /// Removes a tree that [`Self::materialise`] made; better than removing it by other means, after which each of its
    /// objects has to be hashed again before its next use.
    pub fn take_back(&self, lent: Lent) -> Result<(), StoreError> {
        let _ = lent;
        unimplemented!()
    }

    /// Hashes the object again if anything about its files changed since that was last done here.
    ///
    /// # Errors
    /// [`StoreError::Damaged`] when the copy is not what its name says; it is in quarantine then.
    pub fn verify(&self, object: ObjectRef) -> Result<(), StoreError> {
        let _ = object;
        unimplemented!()
    }

    /// Hashes the object again in any case.
    pub fn scrub(&self, object: ObjectRef) -> Result<(), StoreError> {
        let _ = object;
        unimplemented!()
    }

    /// The files of a tree in order of their paths, at most `max` of them.
    pub fn listing(&self, tree: ObjectId, max: usize) -> Result<Vec<ListedFile>, StoreError> {
        let _ = (tree, max);
        unimplemented!()
    }

    /// Bytes of a file from `offset`, at most `length`.
    pub fn read(&self, file: ObjectId, offset: u64, length: usize) -> Result<Vec<u8>, StoreError> {
        let _ = (file, offset, length);
        unimplemented!()
    }
}
