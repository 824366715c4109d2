//! Makes the stream of an object that is in a store.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;

use atoll_model::value::{ObjectKind, ObjectRef};

use super::plan::{Planner, StreamPlan};
use crate::store::{SiteStore, StoreError};

/// Where the bytes of the files are.
#[derive(Debug)]
pub(crate) enum Files {
    Store(SiteStore),
    /// For each file of the plan, in its order.
    Paths(Vec<PathBuf>),
}

/// The stream of one object, any part of which can be read. Blocks.
#[derive(Debug)]
pub struct ObjectStream {
    pub(crate) object: ObjectRef,
    pub(crate) plan: StreamPlan,
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
        Ok(Self { object, plan, files: Files::Store(store.clone()) })
    }

    /// Exact length.
    pub fn stream_bytes(&self) -> u64 {
        self.plan.stream_bytes
    }

    /// Bytes from `offset`, `length` of them unless the stream ends before. They are not verified.
    pub fn read_at(&self, offset: u64, length: usize) -> io::Result<Vec<u8>> {
        let end = offset.saturating_add(length as u64).min(self.plan.stream_bytes);
        let mut bytes = Vec::with_capacity(usize::try_from(end.saturating_sub(offset)).unwrap_or(0));
        let mut at = offset;
        let prefix = self.plan.prefix.len() as u64;
        if at < prefix && at < end {
            bytes.extend_from_slice(&self.plan.prefix[at as usize..end.min(prefix) as usize]);
            at = end.min(prefix);
        }
        let mut index = self.plan.files.partition_point(|file| file.start + file.bytes <= at);
        while at < end {
            let file = self.plan.files.get(index).ok_or(io::ErrorKind::UnexpectedEof)?;
            let stop = (file.start + file.bytes).min(end);
            if stop > at {
                let filled = bytes.len();
                bytes.resize(filled + (stop - at) as usize, 0);
                self.open(index)?.read_exact_at(&mut bytes[filled..], at - file.start)?;
                at = stop;
            }
            index += 1;
        }
        Ok(bytes)
    }

    pub(crate) fn open(&self, index: usize) -> io::Result<File> {
        match &self.files {
            Files::Paths(paths) => File::open(&paths[index]),
            Files::Store(store) => store.open_file(self.plan.files[index].id).map_err(io::Error::other),
        }
    }
}
