//! The machines, their states and events, and the pairs that cannot be.

mod agent;
mod control_plane;

/// A machine of one of the cores.
#[derive(Debug)]
pub(crate) struct Machine {
    pub(crate) name: &'static str,
    pub(crate) states: &'static [&'static str],
    pub(crate) events: &'static [&'static str],
    pub(crate) impossible: &'static [Impossible],
}

/// Events that meet only some states.
#[derive(Debug)]
pub(crate) struct Impossible {
    pub(crate) events: &'static [&'static str],
    /// The only states that they can meet.
    pub(crate) only: &'static [&'static str],
    pub(crate) why: &'static str,
}

impl Machine {
    pub(crate) fn why_impossible(&self, state: &str, event: &str) -> Option<&'static str> {
        let rule = self.impossible.iter().find(|rule| rule.events.contains(&event) && !rule.only.contains(&state));
        rule.map(|rule| rule.why)
    }
}

pub(crate) const MACHINES: &[Machine] = &[
    control_plane::SESSION,
    control_plane::EXECUTION,
    control_plane::OBJECT_IN_THE_BUCKET,
    control_plane::TRANSFER,
    agent::SESSION,
    agent::ATTEMPT,
    agent::FETCH,
    agent::PUSH,
];
