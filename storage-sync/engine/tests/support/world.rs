//! Two sites and a bucket between them.

use std::sync::Arc;

use anyhow::Result;
use atoll_model::id::TransferId;
use atoll_model::value::ObjectRef;
use storage_sync_engine::encryption::ProjectKey;
use storage_sync_engine::transfer::{FetchError, PushError, TransferConfig};

use super::server::{Minter, Served, quick, transfers};
use super::{Site, noise};

pub(crate) const TRANSFER: TransferId = TransferId::from_bits(7);

pub(crate) struct World {
    pub(crate) served: Arc<Served>,
    pub(crate) minter: Arc<Minter>,
    pub(crate) from: Site,
    pub(crate) to: Site,
}

impl World {
    pub(crate) async fn new() -> Result<Self> {
        Self::of_project(None).await
    }

    /// Whatever goes into the bucket is encrypted.
    pub(crate) async fn encrypted() -> Result<Self> {
        Self::of_project(Some(ProjectKey::new([9; 32]))).await
    }

    async fn of_project(project: Option<ProjectKey>) -> Result<Self> {
        let served = Served::start().await?;
        let minter = Minter::of_project(&served.bucket, project);
        Ok(Self { served, minter, from: Site::new()?, to: Site::new()? })
    }

    /// An object of this many bytes at the site `from`.
    pub(crate) fn file(&self, length: usize, seed: u8) -> Result<ObjectRef> {
        Ok(self.from.store.ingest(&self.from.write("file", &noise(length, seed))?)?.object)
    }

    pub(crate) async fn push(&self, object: ObjectRef) -> Result<u64, PushError> {
        let transfers = transfers(&self.from.store, &self.minter, quick()).expect("a client can be made");
        Ok(transfers.push(TRANSFER, object).await?.wire_bytes)
    }

    pub(crate) async fn fetch_with(&self, object: ObjectRef, config: TransferConfig) -> Result<u64, FetchError> {
        let transfers = transfers(&self.to.store, &self.minter, config).expect("a client can be made");
        Ok(transfers.fetch(object).await?.wire_bytes)
    }

    pub(crate) async fn fetch(&self, object: ObjectRef) -> Result<u64, FetchError> {
        self.fetch_with(object, quick()).await
    }
}
