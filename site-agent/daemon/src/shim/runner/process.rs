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
}

impl Process {
    pub(super) fn child(&self) -> &Child {
        match self {
            Self::Own(child) | Self::Contained(child) => child,
            Self::Called(worker) => &worker.child,
        }
    }

    pub(super) fn child_mut(&mut self) -> &mut Child {
        match self {
            Self::Own(child) | Self::Contained(child) => child,
            Self::Called(worker) => &mut worker.child,
        }
    }

    pub(super) const fn is_worker(&self) -> bool {
        matches!(self, Self::Called(_))
    }
}
