//! What goes over the wire between agents and the control plane: the generated messages of `atoll.v1`, and the only
//! conversions between them and the model.
//!
//! A frame of the model becomes a message with [`From`]; a message becomes a frame with [`TryFrom`], inside a
//! [`Received`] that also lists what of it could not be read. What a peer of another version may have meant (a kind, a
//! reason, a value that is not known here) costs only the item that holds it: a command or report becomes `Unknown` and
//! keeps its number, an ended element becomes a failure that says why. What no version may say (columns of different
//! lengths, a digest of 31 bytes) is a [`WireError`], and the session's end.
//!
//! Where elements repeat, messages are columns, so that a frame of ten thousand elements costs a few nanoseconds for each.

mod bindings;
mod codec;
mod columns;
mod commands;
mod delegation;
mod error;
mod finished;
mod frame_size;
mod join_token;
mod proof;
mod reports;
mod session;
mod types;
mod values;

pub use error::{Received, WireError, required};
pub use frame_size::{split_agent_frame, split_control_frame};
pub use join_token::{InvalidJoinToken, JoinToken};
pub use proof::{EXPORTER_LABEL, IdentityCall, proof_statement};
pub use types::LogStream;

/// The generated messages and the service.
#[expect(clippy::allow_attributes_without_reason, reason = "generated code")]
pub mod v1 {
    tonic::include_proto!("atoll.v1");
}

impl std::fmt::Debug for v1::Key {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Key").finish_non_exhaustive()
    }
}
