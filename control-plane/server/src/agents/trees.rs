//! What directories in the bucket hold, kept while their files are taken out one after the other.

use std::collections::VecDeque;
use std::sync::Arc;

use storage_sync_engine::bucket::{Bucket, BucketError, Stored, TreeContents};
use tokio::sync::Mutex;

/// Directories that runs fan out over at the same time; one has at most some tens of megabytes of manifests.
const TREES_MAX: usize = 4;

#[derive(Debug, Default)]
pub(super) struct Trees {
    /// The latest used last. Held while one is read, so that a directory is read once for all who wait for it.
    known: Mutex<VecDeque<Arc<TreeContents>>>,
}

impl Trees {
    pub(super) async fn contents(&self, bucket: &Bucket, tree: Stored) -> Result<Arc<TreeContents>, BucketError> {
        let mut known = self.known.lock().await;
        let found =
            known.iter().position(|contents| contents.tree().is_at(&tree)).and_then(|place| known.remove(place));
        let contents = match found {
            Some(contents) => contents,
            None => Arc::new(bucket.contents(tree).await?),
        };
        known.push_back(Arc::clone(&contents));
        if known.len() > TREES_MAX {
            known.pop_front();
        }
        Ok(contents)
    }
}
