//! Recorded workflows, carried out again in virtual time: a real [`control_plane_core::ControlPlane`] decides, sites that
//! take as long as the trace says do. Nothing runs, no byte moves, and the same trace gives the same outcome every time.
//!
//! [`Trace::parse`] reads one, [`replay`] carries it out, [`heft`] and [`least_bytes`] say what others would have made of
//! it.

mod recorded;
mod reference;
mod replay;
mod site;
mod trace;
mod wfformat;
mod workflow;
mod world;

pub use recorded::{Retraced, Setting, retrace};
pub use reference::{Reference, heft, least_bytes};
pub use replay::{Carried, Installation, replay};
pub use trace::{File, Task, Trace, TraceError};
pub use world::ReplayError;
