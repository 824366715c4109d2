//! What the control plane does: it owns the core's driver, speaks gRPC with agents and HTTP with people, holds the CA,
//! and serves the bucket where it is a directory. It decides nothing.

mod admission;
pub mod agents;
mod api;
mod audit;
pub mod config;
pub mod driver;
pub mod history;
pub mod identity;
pub mod journal;
mod keys;
mod migrate;
mod patience;
mod repositories;
mod restored;
mod server;
pub mod telemetry;
#[cfg(test)]
mod testing;

pub use config::Config;
pub use migrate::{Moved, migrate};
pub use restored::note_restored;
pub use server::run;
