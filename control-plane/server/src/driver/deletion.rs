//! Takes objects out of the bucket that nobody needs any more, and looks where it is not known whether one came.

use std::time::Duration;

use atoll_model::id::TransferId;
use atoll_model::value::ObjectRef;
use control_plane_core::Event;
use storage_sync_engine::bucket::{Bucket, BucketError};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::Handle;

/// Orders at a time: enough to hide a round trip to a bucket far away.
const AT_ONCE: usize = 16;
const RETRY_FIRST: Duration = Duration::from_secs(1);
const RETRY_MAX: Duration = Duration::from_secs(60);

/// What the core asks of the bucket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum BucketOrder {
    Delete(ObjectRef),
    /// Whether a push, of which nobody knows the end, brought the object in.
    Look(ObjectRef, TransferId),
}

/// Runs until the driver has ended. What was not carried out then is asked for again after the next start.
pub(crate) async fn delete_objects(bucket: Bucket, handle: Handle, mut orders: mpsc::UnboundedReceiver<BucketOrder>) {
    let mut running = JoinSet::new();
    while let Some(order) = orders.recv().await {
        while running.len() >= AT_ONCE {
            running.join_next().await;
        }
        running.spawn(carry_out(bucket.clone(), handle.clone(), order));
        while running.try_join_next().is_some() {}
    }
}

async fn carry_out(bucket: Bucket, handle: Handle, order: BucketOrder) {
    let event = match order {
        BucketOrder::Delete(object) => {
            persistently(object, "could not delete an object from the bucket", || bucket.delete(object)).await;
            Event::BucketObjectDeleted { object: object.id }
        }
        BucketOrder::Look(object, transfer) => {
            let look = || bucket.stream_bytes(object);
            let found = persistently(object, "could not look for an object in the bucket", look).await;
            Event::BucketObjectSeen { object: object.id, transfer, present: found.is_some() }
        }
    };
    // After a shutdown nobody has to know: the order is repeated, and harmless.
    let _ = handle.submit(event).await;
}

/// Tries again until it succeeds.
async fn persistently<T, F>(object: ObjectRef, problem: &str, attempt: impl Fn() -> F) -> T
where
    F: Future<Output = Result<T, BucketError>>,
{
    let mut pause = RETRY_FIRST;
    loop {
        match attempt().await {
            Ok(result) => return result,
            Err(error) => {
                tracing::warn!(object = %object.id, error = &error as &dyn std::error::Error, "{problem}");
            }
        }
        tokio::time::sleep(pause).await;
        pause = (2 * pause).min(RETRY_MAX);
    }
}
