//! What an agent decides: which executions its site runs and when, what it holds, what it reports and repeats.
//!
//! Called as the control plane's core is: [`Agent::recover`] once, then [`Agent::handle`] with each event and the time,
//! whose step the shell carries out (facts durable first, then commands), and [`Agent::next_timeout`].

pub mod command;
pub mod event;

pub use command::Command;
pub use event::Event;
