//! What is made once at the site for all that ask for the same: packages, images, components. Each is made by a thread of its
//! own, so that nothing else waits for it and no execution's time runs.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

/// So long a failure is told to those who ask for the same, before it is tried again.
const FAILURE_KEPT: Duration = Duration::from_secs(30);

/// What tells it apart from all else that is made.
pub(super) type Name = String;

/// Something was made, or cannot be; the message says why.
pub(super) type Made<T> = (Name, Result<T, String>);

/// Takes what a thread has made.
pub(super) type Tell<T> = Arc<dyn Fn(Made<T>) + Send + Sync>;

/// What there is of something that was asked for.
#[derive(Debug)]
pub(super) enum State<T> {
    Ready(T),
    /// Who asked is told when it is there.
    InWork(Name),
    Failed(String),
}

/// What is being made, and what could not be.
pub(super) struct Making<T> {
    /// In the name of the threads.
    what: &'static str,
    in_work: HashSet<Name>,
    failed: HashMap<Name, (Instant, String)>,
    tell: Tell<T>,
}

impl<T: Send + 'static> Making<T> {
    pub(super) fn new(what: &'static str, tell: Tell<T>) -> Self {
        Self { what, in_work: HashSet::new(), failed: HashMap::new(), tell }
    }

    /// Has something made that is not there, unless that is under way, or has failed just now.
    pub(super) fn begin(&mut self, name: Name, make: impl FnOnce() -> Result<T, String> + Send + 'static) -> State<T> {
        if let Some((_, message)) = self.failed.get(&name).filter(|(at, _)| at.elapsed() < FAILURE_KEPT) {
            return State::Failed(message.clone());
        }
        if self.in_work.insert(name.clone()) {
            let (tell, named) = (Arc::clone(&self.tell), name.clone());
            let thread = thread::Builder::new().name(format!("atoll-{}", self.what));
            if let Err(error) = thread.spawn(move || tell((named, make()))) {
                (self.tell)((name.clone(), Err(format!("no thread is to be had: {error}"))));
            }
        }
        State::InWork(name)
    }

    pub(super) fn is_in_work(&self, name: &str) -> bool {
        self.in_work.contains(name)
    }

    /// Nobody who is there has heard that it failed: who asks next has it tried again.
    pub(super) fn forgive(&mut self, name: &str) {
        self.failed.remove(name);
    }

    /// Takes note of what was told. Returns what was made.
    pub(super) fn ended(&mut self, (name, result): Made<T>) -> Option<(Name, T)> {
        self.in_work.remove(&name);
        match result {
            Ok(made) => {
                self.failed.remove(&name);
                Some((name, made))
            }
            Err(message) => {
                tracing::warn!(what = self.what, name, message, "something that an action needs cannot be had");
                self.failed.insert(name, (Instant::now(), message));
                None
            }
        }
    }
}
