//! Reads the workspace as text, so that the house rules can be tested.

pub mod rows;
pub mod source;
pub mod workspace;
