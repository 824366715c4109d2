//! What happens to a run, as it happens: server-sent events.

use std::collections::{HashSet, VecDeque};
use std::convert::Infallible;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::Arc;
use std::time::Duration;

use atoll_model::id::RunId;
use axum::extract::State;
use axum::response::Sse;
use axum::response::sse::{Event, KeepAlive};
use control_plane_core::view::{LedgerFilter, RunView};
use futures::Stream;
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::RecvError;
use tokio::time::Instant;

use super::App;
use super::error::{ApiError, ErrorBody};
use super::extract::Id;
use super::runs::no_such_run;
use super::views::{LedgerEntryBody, RunBody, has_ended};
use crate::driver::Changed;

/// A watcher of a busy run is told of its changes this often; of its end at once.
const PAUSE: Duration = Duration::from_millis(100);
/// Looking through a long ledger is not cheap: this often, and at the end.
const LEDGER_PAUSE: Duration = Duration::from_secs(1);
/// How far objects are on their way is looked at this often.
const PROGRESS_PAUSE: Duration = Duration::from_secs(2);
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// What happens to a run until it has ended: `run` events with the run (as `GET /runs/{run}` without executions),
/// `transfer` events with each new entry of the ledger
#[utoipa::path(get, path = "/runs/{run}/events", tag = "runs",
    params(("run" = String, Path, description = "Id of the run")),
    responses((status = 200, body = String, content_type = "text/event-stream"), (status = 404, body = ErrorBody)))]
pub(super) async fn events(
    State(app): State<Arc<App>>,
    Id(run): Id<RunId>,
) -> Result<Sse<impl Stream<Item = Result<Event, Infallible>>>, ApiError> {
    // Subscribed before the first look, so that no change falls between them.
    let changes = app.handle.changes();
    app.look(run, move |core| core.run(run).map(|_| ())).await?.ok_or_else(|| no_such_run(run))?;
    let watcher = Watcher::new(app, run, changes);
    let stream = futures::stream::unfold(watcher, |mut watcher| async move {
        let event = watcher.next().await?;
        Some((Ok(event), watcher))
    });
    Ok(Sse::new(stream).keep_alive(KeepAlive::new().interval(KEEP_ALIVE)))
}

/// Looks at a run whenever it has changed, and tells what is new.
struct Watcher {
    app: Arc<App>,
    run: RunId,
    changes: Receiver<Changed>,
    waiting: VecDeque<Event>,
    looked_at: Option<Instant>,
    ledger_at: Option<Instant>,
    /// The run as it was shown last.
    shown: Option<RunView>,
    /// Digests of the crossings that were shown.
    crossings: HashSet<u64>,
    over: bool,
}

impl Watcher {
    fn new(app: Arc<App>, run: RunId, changes: Receiver<Changed>) -> Self {
        Self {
            app,
            run,
            changes,
            waiting: VecDeque::new(),
            looked_at: None,
            ledger_at: None,
            shown: None,
            crossings: HashSet::new(),
            over: false,
        }
    }

    async fn next(&mut self) -> Option<Event> {
        loop {
            if let Some(event) = self.waiting.pop_front() {
                return Some(event);
            }
            if self.over {
                return None;
            }
            if self.looked_at.is_some() {
                self.wait_for_change().await;
            }
            self.look().await;
        }
    }

    /// Returns at once when the run ends, and otherwise not more often than it is to be looked at.
    async fn wait_for_change(&mut self) {
        let ledger_is_due = self.ledger_at.map(|at| at + LEDGER_PAUSE).filter(|_| self.crossings_may_wait());
        let mut changed = false;
        loop {
            let due = match (changed, ledger_is_due) {
                (true, _) => self.looked_at.map(|at| at + PAUSE),
                (false, due) => due,
            };
            // How far things are on their way is no change of the run.
            let progress = self.looked_at.map(|at| at + PROGRESS_PAUSE);
            let due = due.into_iter().chain(progress).min();
            let told = match due {
                Some(due) => tokio::time::timeout_at(due, self.changes.recv()).await,
                None => Ok(self.changes.recv().await),
            };
            match told {
                Err(_) => return,
                Ok(Ok(change)) if change.ends(self.run) => return,
                Ok(Ok(change)) => changed |= change.concerns(self.run),
                // What was missed is seen by looking.
                Ok(Err(RecvError::Lagged(_))) => return,
                Ok(Err(RecvError::Closed)) => {
                    self.over = true;
                    return;
                }
            }
        }
    }

    /// Whether the run was looked at after the ledger was.
    fn crossings_may_wait(&self) -> bool {
        self.ledger_at < self.looked_at
    }

    async fn look(&mut self) {
        let run = self.run;
        let now = Instant::now();
        let ledger = self.ledger_at.is_none_or(|at| now >= at + LEDGER_PAUSE);
        let seen = self
            .app
            .look(run, move |core| {
                let view = core.run(run)?;
                let filter = LedgerFilter { run: Some(run), ..LedgerFilter::default() };
                let ledger = (ledger || has_ended(view.state)).then(|| core.ledger(&filter));
                Some((view, ledger))
            })
            .await;
        self.looked_at = Some(now);
        let Ok(Some((view, ledger))) = seen else {
            self.over = true;
            return;
        };
        if let Some(ledger) = ledger {
            self.ledger_at = Some(now);
            for crossing in &ledger {
                let mut hasher = DefaultHasher::new();
                (crossing.object, &crossing.from, &crossing.to, crossing.at).hash(&mut hasher);
                if self.crossings.insert(hasher.finish()) {
                    self.waiting.push_back(event("transfer", &LedgerEntryBody::new(crossing)));
                }
            }
        }
        self.over = has_ended(view.state);
        if self.shown.as_ref() != Some(&view) {
            self.waiting.push_back(event("run", &RunBody::new(&view)));
            self.shown = Some(view);
        }
    }
}

fn event(name: &str, body: &impl serde::Serialize) -> Event {
    Event::default().event(name).json_data(body).expect("what is shown can be encoded as JSON")
}
