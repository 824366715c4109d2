//! What the control plane decides: which runs and executions there are, where each is placed, what every agent is told,
//! which bytes cross a border.
//!
//! Four kinds of method, called in this order: [`ControlPlane::recover`] once; then, for ever, [`ControlPlane::handle`]
//! with each event and the time, whose [`Step`] the shell carries out (facts durable first, all of a step or none, then
//! commands), and [`ControlPlane::next_timeout`] to know when to send [`Event::TimeoutElapsed`]; between them any of the
//! read-only views; [`ControlPlane::check`] asserts the invariants whenever somebody wants to know.

mod agenda;
mod caches;
mod check;
pub mod command;
mod control_plane;
mod engine;
mod estimates;
pub mod event;
mod fact;
mod placement;
mod plan;
mod sessions;
mod state;
#[cfg(test)]
mod tests;
pub mod view;
mod views;

pub use command::{Command, Rejection, Response};
pub use control_plane::{ControlPlane, Step};
pub use event::{Config, ConnectionId, Event, Request, RequestId};
pub use fact::{Fact, Items, LogPositions, ReturnCause, RuleText};
pub use state::Snapshot;
