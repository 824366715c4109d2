//! The agent itself: events in, facts and commands out.

use atoll_model::time::Timestamp;

use crate::command::Command;
use crate::config::Config;
use crate::event::{Event, FoundAttempt};
use crate::fact::Fact;
use crate::state::Snapshot;

/// What follows from an event: to be made durable, and then to be carried out, in this order.
#[derive(Debug, Default)]
#[must_use]
pub struct Step {
    pub facts: Vec<Fact>,
    pub commands: Vec<Command>,
}

#[derive(Debug)]
pub struct Agent {
    config: Config,
    state: Snapshot,
}

impl Agent {
    /// Rebuilds the state from the last snapshot, if there is one, and the facts after it; none of both is a new journal.
    /// `found` is everything that shims and outcome records hold. The step is carried out like any other.
    pub fn recover(
        config: Config,
        snapshot: Option<Snapshot>,
        facts: impl IntoIterator<Item = Fact>,
        found: Vec<FoundAttempt>,
        now: Timestamp,
    ) -> (Self, Step) {
        let _ = (facts, found, now);
        (Self { config, state: snapshot.unwrap_or_default() }, Step::default())
    }

    /// Takes in one event and returns everything that follows from it. `now` never goes back while the process lives, and
    /// goes on while the machine is suspended.
    pub fn handle(&mut self, event: Event, now: Timestamp) -> Step {
        let _ = (event, now);
        Step::default()
    }

    /// When to handle [`Event::TimeoutElapsed`], if nothing happens before.
    pub fn next_timeout(&self) -> Option<Timestamp> {
        None
    }

    /// Asserts the invariants that the crate's documentation names.
    pub fn check(&self) {
        let _ = &self.config;
    }

    /// Everything durable: what [`Agent::recover`] would come to from all facts so far.
    pub fn snapshot(&self) -> Snapshot {
        self.state.clone()
    }
}
