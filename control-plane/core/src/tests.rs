//! Each rule alone, against agents that do what a test says. Every event is followed by the invariants and by a recovery
//! whose state must equal the live one.

#![expect(clippy::unwrap_used, reason = "a test may")]
#![expect(clippy::wildcard_enum_match_arm, reason = "a test looks for what it names")]

mod claims;
mod crossings;
mod damage;
mod data;
mod delegation;
mod deployments;
mod direct;
mod encryption;
mod eviction;
mod expiry;
mod failures;
mod fleet;
mod flow;
mod fragments;
mod history;
mod identity;
mod look_ahead;
mod make_ready;
mod memory;
mod patience;
mod pins;
mod poison;
mod policies;
mod properties;
mod publish;
mod registry;
mod replicas;
mod repositories;
mod restored;
mod results;
mod runs;
mod sessions;
mod world;
