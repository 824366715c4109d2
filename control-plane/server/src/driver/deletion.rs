//! Takes objects out of the bucket that nobody needs any more, and says so when it is done.

use std::time::Duration;

use atoll_model::value::ObjectRef;
use control_plane_core::Event;
use storage_sync_engine::bucket::Bucket;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::Handle;

/// Deletions at a time: enough to hide a round trip to a bucket far away.
const AT_ONCE: usize = 16;
const RETRY_FIRST: Duration = Duration::from_secs(1);
const RETRY_MAX: Duration = Duration::from_secs(60);

/// Runs until the driver has ended. What was not deleted then is asked for again after the next start.
pub(crate) async fn delete_objects(bucket: Bucket, handle: Handle, mut objects: mpsc::UnboundedReceiver<ObjectRef>) {
    let mut running = JoinSet::new();
    while let Some(object) = objects.recv().await {
        while running.len() >= AT_ONCE {
            running.join_next().await;
        }
        running.spawn(delete(bucket.clone(), handle.clone(), object));
        while running.try_join_next().is_some() {}
    }
}

async fn delete(bucket: Bucket, handle: Handle, object: ObjectRef) {
    let mut pause = RETRY_FIRST;
    while let Err(error) = bucket.delete(object).await {
        tracing::warn!(object = %object.id, error = &error as &dyn std::error::Error, "could not delete an object from the bucket");
        tokio::time::sleep(pause).await;
        pause = (2 * pause).min(RETRY_MAX);
    }
    // After a shutdown nobody has to know: the deletion is repeated, and harmless.
    let _ = handle.submit(Event::BucketObjectDeleted { object: object.id }).await;
}
