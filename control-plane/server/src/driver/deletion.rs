//! Takes objects out of the bucket that nobody needs any more, and looks where it is not known whether one came.

use std::time::Duration;

use atoll_model::id::TransferId;
use atoll_model::value::ObjectRef;
use control_plane_core::{BucketCopy, Event};
use storage_sync_engine::bucket::{Bucket, BucketError};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::Handle;
use crate::keys::{KeyError, Keys};

/// Orders at a time: enough to hide a round trip to a bucket far away.
const AT_ONCE: usize = 16;
const RETRY_FIRST: Duration = Duration::from_secs(1);
const RETRY_MAX: Duration = Duration::from_secs(60);

/// What the core asks of the bucket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum BucketOrder {
    Delete(BucketCopy),
    /// Whether a push, of which nobody knows the end, brought the object in.
    Look(BucketCopy, TransferId),
}

/// Runs until the driver has ended. What was not carried out then is asked for again after the next start.
pub(crate) async fn delete_objects(
    bucket: Bucket,
    keys: Keys,
    handle: Handle,
    mut orders: mpsc::UnboundedReceiver<BucketOrder>,
) {
    let mut running = JoinSet::new();
    while let Some(order) = orders.recv().await {
        while running.len() >= AT_ONCE {
            running.join_next().await;
        }
        running.spawn(carry_out(bucket.clone(), keys.clone(), handle.clone(), order));
        while running.try_join_next().is_some() {}
    }
}

async fn carry_out(bucket: Bucket, keys: Keys, handle: Handle, order: BucketOrder) {
    let event = match order {
        BucketOrder::Delete(copy) => {
            let delete = || delete(&bucket, &keys, &copy);
            persistently(copy.object, "could not delete an object from the bucket", delete).await;
            Event::BucketObjectDeleted { object: copy.object.id }
        }
        BucketOrder::Look(copy, transfer) => {
            let look = || look(&bucket, &keys, &copy);
            let present = persistently(copy.object, "could not look for an object in the bucket", look).await;
            Event::BucketObjectSeen { object: copy.object.id, transfer, present }
        }
    };
    // After a shutdown nobody has to know: the order is repeated, and harmless.
    let _ = handle.submit(event).await;
}

/// Why an order cannot be carried out now.
#[derive(Debug, thiserror::Error)]
enum OrderError {
    #[error(transparent)]
    Bucket(#[from] BucketError),
    #[error(transparent)]
    Key(#[from] KeyError),
}

async fn delete(bucket: &Bucket, keys: &Keys, copy: &BucketCopy) -> Result<(), OrderError> {
    match keys.stored_before(copy)? {
        Some(stored) => Ok(bucket.delete(stored).await?),
        None => Ok(()),
    }
}

async fn look(bucket: &Bucket, keys: &Keys, copy: &BucketCopy) -> Result<bool, OrderError> {
    match keys.stored_before(copy)? {
        Some(stored) => Ok(bucket.stream_bytes(stored).await?.is_some()),
        None => Ok(false),
    }
}

/// Tries again until it succeeds.
async fn persistently<T, F>(object: ObjectRef, problem: &str, attempt: impl Fn() -> F) -> T
where
    F: Future<Output = Result<T, OrderError>>,
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
