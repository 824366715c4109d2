//! What carries an execution out, as its shim has started it.

use site_agent_spawn::Child;

use crate::shim::worker::Worker;

/// What carries an execution out.
#[derive(Debug)]
pub(super) enum Process {
    Own(Child),
    Called(Box<Worker>),
    /// The engine's program that has a container for it.
    Contained(Child),
    /// Nothing: a service waits to be begun again.
    Resting,
}

impl Process {
    pub(super) fn child(&self) -> Option<&Child> {
        match self {
            Self::Own(child) | Self::Contained(child) => Some(child),
            Self::Called(worker) => Some(&worker.child),
            Self::Resting => None,
        }
    }

    pub(super) fn child_mut(&mut self) -> Option<&mut Child> {
        match self {
            Self::Own(child) | Self::Contained(child) => Some(child),
            Self::Called(worker) => Some(&mut worker.child),
            Self::Resting => None,
        }
    }

    pub(super) const fn is_worker(&self) -> bool {
        matches!(self, Self::Called(_))
    }
}
