//! What an agent decides: which executions its site runs and when, what it holds, what it reports and repeats.
//!
//! Four kinds of method, called in this order: [`Agent::recover`] once; then, for ever, [`Agent::handle`] with each event
//! and the time, whose [`Step`] the shell carries out (facts durable first, then commands), and [`Agent::next_timeout`] to
//! know when to send [`Event::TimeoutElapsed`]; [`Agent::snapshot`] whenever the journal is compacted; [`Agent::check`]
//! asserts the invariants whenever somebody wants to know.
//!
//! - An attempt is started only after the intent to start it is durable, under a lease that holds, and never while an
//!   earlier attempt at the same execution may still have a process.
//! - A command is acknowledged by a frame that comes after the fact that holds it; a report keeps its number for ever.
//! - Every accepted element is ready, waits, was asked for, is active, or is over; what is over is reported once, or was
//!   forgotten by the control plane.
//! - No execution is reported as succeeded before those are whose outputs it read.
//! - What the site's own policy withholds, and what was derived from it, is never pushed, whoever asks.

mod agent;
mod ahead;
pub mod command;
mod config;
mod delegation;
mod ending;
pub mod event;
mod fact;
mod making_room;
mod policy;
mod queue;
mod readiness;
mod report;
mod room;
mod session;
mod stage;
mod start;
mod state;

pub use agent::{Agent, Step};
pub use command::Command;
pub use config::{Boot, Config, Pilots};
pub use event::Event;
pub use fact::{Fact, Items};
pub use state::Snapshot;
