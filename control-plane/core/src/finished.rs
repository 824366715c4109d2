//! A run that has ended, apart from everything else.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use atoll_model::id::{RunId, SiteId, SiteName, StepIndex};
use atoll_model::time::Timestamp;
use serde::{Deserialize, Serialize};

use crate::control_plane::ControlPlane;
use crate::event::Config;
use crate::state::{Phase, Results, Run, Site, Snapshot, State, TakenFrom};
use crate::view::{RunTags, RunView};
use crate::views::sites_of;

/// All that is known of one run that has ended, as a history keeps it. Cheap to make: it shares what the state holds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FinishedRun {
    run: Arc<Run>,
    tags: RunTags,
    /// The sites that it was at, and those where was made what it took.
    sites: BTreeMap<SiteId, SiteName>,
    taken: BTreeMap<(StepIndex, u32), TakenFrom>,
}

impl FinishedRun {
    pub fn id(&self) -> RunId {
        self.run.id
    }

    /// The run as it was, if it is this one.
    pub(crate) fn run_of(&self, run: RunId) -> Option<Arc<Run>> {
        // What follows from the workflow is not kept.
        self.open().state.runs.get(&run).cloned()
    }

    pub(crate) fn run(&self) -> &Run {
        &self.run
    }

    /// How long it took to make what an execution of it has taken, if it has.
    pub(crate) fn took(&self, step: StepIndex, element: u32) -> Option<Duration> {
        self.taken.get(&(step, element)).map(|taken| taken.took)
    }

    pub(crate) fn tags(&self) -> &RunTags {
        &self.tags
    }

    pub fn finished_at(&self) -> Timestamp {
        self.run.finished_at.unwrap_or(self.run.submitted_at)
    }

    /// Whether nothing has happened to the run between the two.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.run, &other.run)
    }

    pub fn view(&self) -> RunView {
        self.open().run(self.run.id).expect("it holds this run")
    }

    /// A control plane that knows of nothing but this run: for its views, which show it as they did before it was
    /// removed.
    pub fn open(&self) -> ControlPlane {
        let sites = self.sites.iter().map(|(id, name)| (*id, Site::new(name.clone(), BTreeMap::new())));
        let state = State {
            sites: sites.collect(),
            site_names: self.sites.iter().map(|(id, name)| (name.clone(), *id)).collect(),
            runs: BTreeMap::from([(self.run.id, Arc::clone(&self.run))]),
            tags: BTreeMap::from([(self.run.id, self.tags.clone())]),
            results: Results::of_run(self.run.id, &self.taken),
            ..State::default()
        };
        ControlPlane::recover(Config::default(), Some(Snapshot(state)), [], self.finished_at())
    }
}

impl ControlPlane {
    /// A run that has ended, for the history; nothing if there is no such run, or it goes on.
    pub fn finished_run(&self, run: RunId) -> Option<FinishedRun> {
        let state = self.state.runs.get(&run).filter(|run| matches!(run.phase, Phase::Ended(_)))?;
        let name = |site: SiteId| Some((site, self.state.sites.get(&site)?.name.clone()));
        let taken = self.state.results.taken_by(run);
        let made_at = taken.keys().filter_map(|(step, element)| Some(state.steps[step.index()].row(*element)?.site));
        let sites = sites_of(state).into_iter().chain(made_at).filter_map(name).collect();
        let tags = self.state.tags.get(&run).cloned().unwrap_or_default();
        Some(FinishedRun { run: Arc::clone(state), tags, sites, taken })
    }
}
