//! What the control plane decides: which runs and executions there are, where each is placed, what every agent is told,
//! which bytes cross a border.
//!
//! Four kinds of method, called in this order: [`ControlPlane::recover`] once; then, for ever, [`ControlPlane::handle`]
//! with each event and the time, whose [`Step`] the shell carries out (facts durable first, all of a step or none, then
//! commands), and [`ControlPlane::next_timeout`] to know when to send [`Event::TimeoutElapsed`]; between them any of the
//! read-only views; [`ControlPlane::check`] asserts the invariants whenever somebody wants to know.
//!
//! A control plane that stands by for another calls [`ControlPlane::follow`] with that one's facts instead, and
//! [`ControlPlane::take_over`] once.
//!
//! Invariants:
//! - I1, I2: an execution has at most one outcome that counts, of the attempt that was current when it was accepted (a
//!   second success of one whose outputs were gone and were made again takes the place of the first);
//! - I4: a report moves the agent's position in the step of its effects, and is acknowledged after it;
//! - I5: an execution that is dispatched is known to its agent, or its command is in the outbox for that agent;
//! - every element of a step is in one place: waiting, at a site, unknown, or ended;
//! - what goes on stays within the limits of its step, its workflow and its project, but for what went on already when
//!   a limit was set or an agent brought it back;
//! - what is confined never enters the bucket, and an object has at most one push on its way;
//! - a key is remembered for what is in the bucket, or on its way there, and for nothing else;
//! - the state after recovery is the state before.
//!
//! What it does not: it knows no wire format, no store, no key of the bucket. I3 (no start after the end of its lease) is
//! the agent's to keep, I6 (a stale leader changes nothing) the store's.

mod agenda;
mod caches;
mod check;
pub mod command;
mod control_plane;
mod deployments;
mod direct;
mod encryption;
mod engine;
mod estimates;
pub mod event;
mod fact;
mod fair;
mod finished;
pub mod look_ahead;
mod outlook;
mod placement;
mod plan;
mod recording;
mod registry;
mod repositories;
mod rules;
mod sessions;
mod state;
#[cfg(test)]
mod tests;
pub mod view;
mod views;

pub use command::{Command, HolderOffer, Rejection, Response};
pub use control_plane::{ControlPlane, Step};
pub use deployments::{Deployed, DeploymentName, Emission, EmittedRecord};
pub use encryption::{BucketCopy, Encryption, KeyId, WrappedKey};
pub use event::{Config, ConnectionId, Event, PinPlace, PolicyApplication, ProjectChange, Request, RequestId};
pub use fact::{Fact, Items, LogPositions, PinnedAt, ReturnCause, RuleText};
pub use finished::FinishedRun;
pub use recording::{RecordedExecution, RecordedSite, Recording};
pub use registry::{ActionName, ActionVersion, Deprecation, Registry};
pub use repositories::{
    EndedImport, Finding, FoundAction, Import, ImportMode, ImportOrder, ImportOutcome, ImportReport, Origin,
    Repositories, Repository,
};
pub use rules::AppliedPolicy;
pub use state::Snapshot;
