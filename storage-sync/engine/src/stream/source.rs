//! Makes the stream of an object that is in a store.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;
use std::sync::Arc;

use atoll_model::id::ObjectId;
use atoll_model::value::{ObjectKind, ObjectRef};

use super::plan::{Planner, StreamPlan};
use crate::store::{SiteStore, StoreError};

/// Where the bytes of the files are.
#[derive(Debug)]
pub(crate) enum Files {
    Store(SiteStore),
    /// For each file of the plan, in its order.
    Paths(Vec<PathBuf>),
    /// In the store, but for large ones of which only a part may have come.
    Coming {
        store: SiteStore,
        large: BTreeMap<ObjectId, Arc<File>>,
    },
}

/// The stream of one object, any part of which can be read. Blocks.
#[derive(Debug)]
pub struct ObjectStream {
    pub(crate) object: ObjectRef,
    pub(crate) plan: Arc<StreamPlan>,
    pub(crate) files: Files,
}

impl ObjectStream {
    /// # Errors
    /// [`StoreError::NotFound`], or [`StoreError::Damaged`] if a manifest is.
    pub fn of(store: &SiteStore, object: ObjectRef) -> Result<Self, StoreError> {
        let plan = match object.kind {
            ObjectKind::File => {
                let file = store.open_file(object.id)?;
                let length = file.metadata().map_err(|error| StoreError::io("look at", store.root(), error))?.len();
                StreamPlan::of_file(object.id, length)
            }
            ObjectKind::Tree => {
                let damaged =
                    |error: crate::manifest::ManifestError| StoreError::Damaged { object, message: error.to_string() };
                let mut planner = Planner::new(object.id);
                while let Some(id) = planner.next() {
                    planner.add(&store.manifest_bytes(id)?).map_err(damaged)?;
                }
                planner.finish().map_err(damaged)?
            }
        };
        Ok(Self { object, plan: Arc::new(plan), files: Files::Store(store.clone()) })
    }

    /// Exact length.
    pub fn stream_bytes(&self) -> u64 {
        self.plan.stream_bytes
    }

    /// Bytes from `offset`, `length` of them unless the stream ends before. They are not verified.
    pub fn read_at(&self, offset: u64, length: usize) -> io::Result<Vec<u8>> {
        let end = offset.saturating_add(length as u64).min(self.plan.stream_bytes);
        let mut bytes = vec![0; usize::try_from(end.saturating_sub(offset)).unwrap_or(0)];
        self.read_exact_at(offset, &mut bytes)?;
        Ok(bytes)
    }

    /// Fills `bytes` with those from `offset` on. They are not verified.
    pub(crate) fn read_exact_at(&self, offset: u64, mut bytes: &mut [u8]) -> io::Result<()> {
        let mut at = offset;
        let prefix = self.plan.prefix.get(usize::try_from(offset).unwrap_or(usize::MAX)..).unwrap_or_default();
        let (head, rest) = bytes.split_at_mut(prefix.len().min(bytes.len()));
        head.copy_from_slice(&prefix[..head.len()]);
        at += head.len() as u64;
        bytes = rest;
        let mut index = self.plan.files.partition_point(|file| file.start + file.bytes <= at);
        while !bytes.is_empty() {
            let file = self.plan.files.get(index).ok_or(io::ErrorKind::UnexpectedEof)?;
            let length = (file.start + file.bytes - at).min(bytes.len() as u64) as usize;
            let (part, rest) = bytes.split_at_mut(length);
            if !part.is_empty() {
                self.open(index)?.read_exact_at(part, at - file.start)?;
            }
            at += length as u64;
            bytes = rest;
            index += 1;
        }
        Ok(())
    }

    pub(crate) fn open(&self, index: usize) -> io::Result<File> {
        match &self.files {
            Files::Paths(paths) => File::open(&paths[index]),
            Files::Store(store) => store.open_file(self.plan.files[index].id).map_err(io::Error::other),
            Files::Coming { store, large } => {
                let id = self.plan.files[index].id;
                match large.get(&id) {
                    Some(file) => file.try_clone(),
                    None => store.open_file(id).map_err(io::Error::other),
                }
            }
        }
    }
}
