//! Hands runs over to the history, and tells the core when it holds them.

use std::sync::Arc;
use std::time::Duration;

use atoll_model::id::RunId;
use control_plane_core::view::RunFilter;
use control_plane_core::{Event, FinishedRun};
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior, interval_at};

use super::{History, HistoryError, Retention};
use crate::driver::{Handle, wall_clock};

/// Runs that are kept with one write: enough to share its sync, few enough to hold them in memory.
const AT_ONCE: usize = 64;
const RETRY_FIRST: Duration = Duration::from_secs(1);
const RETRY_MAX: Duration = Duration::from_secs(60);
/// How often what is kept long enough is looked for.
const EXPIRE_EVERY: Duration = Duration::from_secs(3_600);

/// What the core asks of the history.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Keep {
    pub(crate) run: FinishedRun,
    /// The core waits for the answer, and forgets the run.
    pub(crate) last: bool,
}

/// Runs until the driver has ended. What was not kept then is asked for again after the next start.
pub(crate) async fn keep_runs(
    history: Arc<dyn History>,
    retention: Retention,
    handle: Handle,
    mut orders: mpsc::UnboundedReceiver<Keep>,
) {
    if history.wants_ended_runs() {
        keep_those_that_ended_before(&history, &handle).await;
    }
    let mut look = interval_at(Instant::now(), EXPIRE_EVERY);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut batch = Vec::with_capacity(AT_ONCE);
    loop {
        tokio::select! {
            count = orders.recv_many(&mut batch, AT_ONCE) => {
                if count == 0 {
                    return;
                }
                keep_batch(&history, &handle, std::mem::take(&mut batch)).await;
            }
            _ = look.tick(), if retention.is_bounded() => expire(&history, retention.clone()).await,
        }
    }
}

async fn keep_batch(history: &Arc<dyn History>, handle: &Handle, batch: Vec<Keep>) {
    let last: Vec<RunId> = batch.iter().filter(|keep| keep.last).map(|keep| keep.run.id()).collect();
    let wanted = batch.into_iter().filter(|keep| keep.last || history.wants_ended_runs());
    keep_persistently(history, wanted.map(|keep| keep.run).collect()).await;
    for run in last {
        // After a shutdown nobody has to know: the core asks again, and the run is replaced by itself.
        let _ = handle.submit(Event::RunKept { run }).await;
    }
}

async fn keep_persistently(history: &Arc<dyn History>, runs: Vec<FinishedRun>) {
    if runs.is_empty() {
        return;
    }
    let runs: Arc<[FinishedRun]> = runs.into();
    let mut pause = RETRY_FIRST;
    loop {
        let (history, kept) = (Arc::clone(history), Arc::clone(&runs));
        match blocking(move || history.keep(&kept)).await {
            Ok(()) => return,
            Err(error) => {
                let error = &error as &dyn std::error::Error;
                tracing::warn!(runs = runs.len(), error, "runs cannot be put into the history; they stay in memory");
            }
        }
        tokio::time::sleep(pause).await;
        pause = (2 * pause).min(RETRY_MAX);
    }
}

/// A run may have ended right before the last process did.
async fn keep_those_that_ended_before(history: &Arc<dyn History>, handle: &Handle) {
    let Ok(ids) = handle.query(|core| core.runs(&RunFilter::default())).await else { return };
    for view in ids.into_iter().filter(|view| view.finished_at.is_some()) {
        let asked = Arc::clone(history);
        match blocking(move || asked.run(view.run)).await {
            Ok(Some(_)) => {}
            Ok(None) => {
                let Ok(run) = handle.query(move |core| core.finished_run(view.run)).await else { return };
                keep_persistently(history, run.into_iter().collect()).await;
            }
            Err(error) => {
                let error = &error as &dyn std::error::Error;
                tracing::warn!(run = %view.run, error, "it is not known whether the history holds a run");
            }
        }
    }
}

async fn expire(history: &Arc<dyn History>, retention: Retention) {
    let history = Arc::clone(history);
    match blocking(move || history.expire(&retention, wall_clock())).await {
        Ok(0) => {}
        Ok(runs) => tracing::info!(runs, "runs that were kept long enough left the history"),
        Err(error) => {
            let error = &error as &dyn std::error::Error;
            tracing::warn!(error, "runs that were kept long enough cannot be removed from the history");
        }
    }
}

/// Asks the history on a thread that may block.
pub(crate) async fn blocking<R: Send + 'static>(
    ask: impl FnOnce() -> Result<R, HistoryError> + Send + 'static,
) -> Result<R, HistoryError> {
    match tokio::task::spawn_blocking(ask).await {
        Ok(result) => result,
        Err(error) => Err(HistoryError::Store(Box::new(error))),
    }
}
