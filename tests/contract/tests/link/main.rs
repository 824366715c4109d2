//! The seam between agents and the control plane: a real server and the agent's own link, over TLS on loopback.
#![expect(clippy::unwrap_used, reason = "a panic is a failed test")]

mod agent;
mod certificates;
mod connections;
mod objects;
mod probes;
mod raw;
mod tokens;
mod world;
