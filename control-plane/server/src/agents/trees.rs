//! What directories in the bucket hold, kept while their files are taken out one after the other.

use std::collections::VecDeque;
use std::sync::Arc;

use atoll_model::value::ObjectRef;
use storage_sync_engine::bucket::{Bucket, BucketError, TreeContents};
use tokio::sync::Mutex;

/// Directories that runs fan out over at the same time; one has at most some tens of megabytes of manifests.
const TREES_MAX: usize = 4;

#[derive(Debug, Default)]
pub(super) struct Trees {
    /// The latest used last. Held while one is read, so that a directory is read once for all who wait for it.
    known: Mutex<VecDeque<(ObjectRef, Arc<TreeContents>)>>,
}

impl Trees {
    pub(super) async fn contents(&self, bucket: &Bucket, tree: ObjectRef) -> Result<Arc<TreeContents>, BucketError> {
        let mut known = self.known.lock().await;
        let found = known.iter().position(|(object, _)| *object == tree).and_then(|place| known.remove(place));
        let contents = match found {
            Some((_, contents)) => contents,
            None => Arc::new(bucket.contents(tree).await?),
        };
        known.push_back((tree, Arc::clone(&contents)));
        if known.len() > TREES_MAX {
            known.pop_front();
        }
        Ok(contents)
    }
}
