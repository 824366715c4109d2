//! A copy of the core with faults in it, all of them off until [`planted::switch`] turns one on. Nothing that people run
//! depends on this crate.
#![allow(warnings, clippy::all, reason = "a copy of what is linted elsewhere, with faults in it")]

include!(concat!(env!("OUT_DIR"), "/src/lib.rs"));
pub mod probe;

/// Edits that found nothing to change.
pub const UNPLANTED: &str = include_str!(concat!(env!("OUT_DIR"), "/unplanted.txt"));
