//! The rows of the failure matrix that an agent's core has to keep, each a test named after it.

#![expect(clippy::unwrap_used, reason = "a test that fails here has failed")]
#![expect(clippy::wildcard_enum_match_arm, reason = "a test looks for one thing among many")]

mod ahead;
mod data;
mod delegation;
mod executions;
mod harness;
mod link;
mod nodes;
mod policy;
mod replicas;
mod restarts;
mod room;
mod turns;
