//! What goes wrong, as gRPC says it.

use atoll_proto::WireError;
use control_plane_core::Rejection;
use storage_sync_engine::bucket::BucketError;
use tonic::Status;

pub(super) fn of_rejection(rejection: Rejection) -> Status {
    match rejection {
        Rejection::NotFound(message) => Status::not_found(message),
        Rejection::Conflict(message) => Status::failed_precondition(message),
        Rejection::Invalid(message) => Status::invalid_argument(message),
        Rejection::Forbidden(message) => Status::permission_denied(message),
        Rejection::Busy(message) => Status::resource_exhausted(message),
        Rejection::Unavailable(message) => Status::unavailable(message),
    }
}

pub(super) fn of_wire_error(error: &WireError) -> Status {
    Status::invalid_argument(error.to_string())
}

/// The message names the object at most: what the bucket's own errors say may name places that are no agent's business.
pub(super) fn of_bucket_error(error: &BucketError) -> Status {
    match error {
        BucketError::NotFound(_) => Status::not_found(error.to_string()),
        BucketError::Incomplete { .. } | BucketError::Corrupt { .. } => Status::failed_precondition(error.to_string()),
        BucketError::NoSpace => Status::resource_exhausted(error.to_string()),
        BucketError::Settings(_)
        | BucketError::Unusable { .. }
        | BucketError::Source(_)
        | BucketError::Store(_)
        | BucketError::Io { .. } => {
            Status::unavailable("the bucket cannot be reached or used; the server's log says why")
        }
    }
}
