//! How work is run at this site.

pub(crate) mod batch;
pub(crate) mod local;
