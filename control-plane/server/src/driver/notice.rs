//! Who is told that something durable has changed: watchers of runs, the meters, the exporter of traces.

use std::collections::BTreeSet;
use std::sync::Arc;

use atoll_model::id::RunId;
use control_plane_core::Fact;
use tokio::sync::{broadcast, mpsc};

use crate::telemetry::{Meters, Traced};

/// Notices that a slow watcher may be behind before it is told to look at everything anew.
const NOTICES_MAX: usize = 256;

/// What has changed. Whoever cares asks the core what it is now, so a notice that was missed costs nothing.
#[derive(Debug, Clone)]
pub struct Changed {
    runs: Arc<[RunId]>,
    /// Of them, those that have ended.
    ended: Arc<[RunId]>,
    /// Bytes have crossed a border, for a run that the fact does not name.
    transfers: bool,
    repositories: bool,
}

impl Changed {
    pub fn concerns(&self, run: RunId) -> bool {
        self.transfers || self.runs.binary_search(&run).is_ok()
    }

    /// Whether repositories may have changed, or what goes on with them.
    pub fn concerns_repositories(&self) -> bool {
        self.repositories
    }

    pub fn ends(&self, run: RunId) -> bool {
        self.ended.contains(&run)
    }
}

#[derive(Debug, Clone)]
pub(crate) struct Notices {
    changes: broadcast::Sender<Changed>,
    traced: Option<mpsc::Sender<Traced>>,
    meters: Arc<Meters>,
}

impl Notices {
    /// Facts go to `traced` too, if traces are exported; what it cannot take is left out of them.
    pub(crate) fn new(traced: Option<mpsc::Sender<Traced>>, meters: Arc<Meters>) -> Self {
        Self { changes: broadcast::Sender::new(NOTICES_MAX), traced, meters }
    }

    pub(crate) fn subscribe(&self) -> broadcast::Receiver<Changed> {
        self.changes.subscribe()
    }

    /// The driver has ended: whoever asks anything more learns so.
    pub(crate) fn end(&self) {
        self.refresh();
    }

    /// Anything may have changed.
    pub(crate) fn refresh(&self) {
        // Nobody listens any more: nobody is to be told.
        let _ = self.changes.send(Changed {
            runs: Arc::default(),
            ended: Arc::default(),
            transfers: true,
            repositories: true,
        });
    }

    pub(crate) fn publish(&self, facts: Vec<Fact>) {
        if facts.is_empty() {
            return;
        }
        self.tell(&facts);
        if let Some(traced) = &self.traced
            && traced.try_send(Traced::Facts(facts)).is_err()
        {
            self.meters.untraced_batches.inc();
        }
    }

    /// Tells watchers only: what another server has decided is told of by its traces.
    pub(crate) fn tell(&self, facts: &[Fact]) {
        if self.changes.receiver_count() > 0 {
            let runs: BTreeSet<RunId> = facts.iter().filter_map(Fact::run).collect();
            let transfers = facts.iter().any(|fact| matches!(fact, Fact::PushEnded { .. } | Fact::PushFailed { .. }));
            let repositories = facts.iter().any(is_of_repositories);
            if transfers || repositories || !runs.is_empty() {
                let ended = facts.iter().filter(|fact| matches!(fact, Fact::RunEnded { .. })).filter_map(Fact::run);
                let changed =
                    Changed { ended: ended.collect(), runs: runs.into_iter().collect(), transfers, repositories };
                // Nobody listens any more: nothing is lost.
                let _ = self.changes.send(changed);
            }
        }
    }
}

fn is_of_repositories(fact: &Fact) -> bool {
    matches!(
        fact,
        Fact::RepositoryAdded { .. }
            | Fact::RepositoryRemoved { .. }
            | Fact::ImportAsked { .. }
            | Fact::ImportEnded { .. }
    )
}
