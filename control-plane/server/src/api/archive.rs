//! Looks at runs wherever they are: in the core's memory, or in the history.

use std::sync::Arc;

use atoll_model::id::RunId;
use control_plane_core::view::{RunFilter, RunPlace, RunView};
use control_plane_core::{ControlPlane, FinishedRun};

use super::App;
use super::error::ApiError;
use crate::history::blocking;

impl App {
    /// What is seen of a run: `ask` says nothing where it is not.
    pub(crate) async fn look<R: Send + 'static>(
        &self,
        run: RunId,
        ask: impl Fn(&ControlPlane) -> Option<R> + Clone + Send + 'static,
    ) -> Result<Option<R>, ApiError> {
        let live = ask.clone();
        if let Some(seen) = self.handle.query(move |core| live(core)).await? {
            return Ok(Some(seen));
        }
        Ok(self.kept(run).await?.and_then(|kept| ask(&kept.open())))
    }

    /// What the history holds of a run.
    pub(crate) async fn kept(&self, run: RunId) -> Result<Option<FinishedRun>, ApiError> {
        let history = Arc::clone(&self.history);
        Ok(blocking(move || history.run(run)).await?)
    }

    /// The runs of memory and history that the filter admits, newest first.
    pub(crate) async fn runs(&self, filter: RunFilter) -> Result<Vec<RunView>, ApiError> {
        // A run may move from the memory to the history between the two looks, and is then in both answers, never in none.
        let asked = filter.clone();
        let mut runs = self.handle.query(move |core| core.runs(&asked)).await?;
        let (history, asked) = (Arc::clone(&self.history), filter.clone());
        let kept = blocking(move || history.runs(&asked)).await?;
        runs.extend(kept);
        runs.sort_by_key(|run| std::cmp::Reverse(run.place()));
        runs.dedup_by_key(|run| run.run);
        runs.truncate(filter.limit.unwrap_or(usize::MAX));
        Ok(runs)
    }

    /// Where a run stands in the list of all.
    pub(crate) async fn place(&self, run: RunId) -> Result<Option<RunPlace>, ApiError> {
        self.look(run, move |core| core.run(run).map(|view| view.place())).await
    }
}
