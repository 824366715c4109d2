//! How work is run at this site.

pub(crate) mod local;
pub(crate) mod batch;
