//! The rules, by concern. Each file adds methods to [`ControlPlane`](crate::ControlPlane); none changes the durable
//! state but by recording facts.

mod adoption;
mod breaker;
mod bucket;
mod cancel;
mod claims;
mod commands;
pub(crate) mod data;
mod delegate_command;
mod delegation;
mod direct;
mod dispatch;
mod encryption;
pub(crate) mod eviction;
mod expiry;
pub(crate) mod flow;
mod fragments;
mod handshake;
mod identity;
pub(crate) mod limits;
mod liveness;
mod outcomes;
pub(crate) mod outlook;
mod pacing;
pub(crate) mod place;
mod policies;
mod registry;
mod replicas;
mod reports;
mod requests;
mod restored;
mod reuse;
mod ruling;
mod runs;
mod submit;
mod taking_out;
mod wanted;
