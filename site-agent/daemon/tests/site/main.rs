//! A site for real: an agent's process and its shims, driven by a control plane that says what a test wants. Named after
//! the rows of the failure matrix whose truth lies here.
#![expect(clippy::unwrap_used, reason = "a panic is a failed test")]
#![expect(clippy::wildcard_enum_match_arm, reason = "a test looks for one kind among many")]

mod accounts;
mod authority;
mod confined;
mod containers;
mod control;
mod elsewhere;
mod ends;
mod exports;
mod machine;
mod outputs;
mod packages;
mod pauses;
mod policy;
mod python;
mod restarts;
mod room;
mod shared;
mod shims;
mod site;
mod telemetry;
