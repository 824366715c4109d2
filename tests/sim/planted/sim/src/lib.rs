//! The simulator, on copies of the cores with faults in them. Nothing that people run depends on this crate.
#![allow(warnings, clippy::all, reason = "a copy of what is linted elsewhere, with faults in it")]

include!(concat!(env!("OUT_DIR"), "/src/lib.rs"));

/// Edits that found nothing to change.
pub const UNPLANTED: [&str; 3] = [
    include_str!(concat!(env!("OUT_DIR"), "/unplanted.txt")),
    control_plane_core::UNPLANTED,
    site_agent_core::UNPLANTED,
];
