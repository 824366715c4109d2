//! The core itself.

use std::sync::Arc;

use atoll_model::id::{ExecutionId, ObjectId, RunId, SiteName};
use atoll_model::placement::Explanation;
use atoll_model::time::Timestamp;
use atoll_model::value::Value;
use atoll_model::workflow::{SiteFacts, Workflow};
use indexmap::IndexMap;

use crate::command::Command;
use crate::event::{Config, Event};
use crate::fact::Fact;
use crate::state::{Snapshot, State};
use crate::view::{
    Counters, ExecutionPage, ExecutionView, LedgerFilter, LedgerView, ObjectView, PlanView, RunFilter, RunView,
    SiteView,
};

/// What follows from an event: facts to make durable, then commands to carry out. The facts of one step are appended
/// together: all of them are found again, or none.
#[must_use]
#[derive(Debug, Clone, Default)]
pub struct Step {
    pub facts: Vec<Fact>,
    pub commands: Vec<Command>,
}

/// Decides for all runs and all sites.
#[derive(Debug)]
pub struct ControlPlane {
    config: Config,
    state: State,
}

impl ControlPlane {
    /// Rebuilds the state from a checkpoint and everything decided since. Nothing at all is a first start.
    pub fn recover(
        config: Config,
        snapshot: Option<Snapshot>,
        facts: impl IntoIterator<Item = Fact>,
        now: Timestamp,
    ) -> Self {
        let _ = (facts, now, snapshot);
        Self { config, state: State::default() }
    }

    /// Takes in one event and returns everything that follows from it.
    pub fn handle(&mut self, event: Event, now: Timestamp) -> Step {
        let _ = (event, now, &self.config);
        unimplemented!("being written")
    }

    /// When to handle [`Event::TimeoutElapsed`], if nothing happens before.
    pub fn next_timeout(&self) -> Option<Timestamp> {
        unimplemented!("being written")
    }

    /// The whole durable state. Cheap: runs are shared until they change.
    pub fn snapshot(&self) -> Snapshot {
        Snapshot(self.state.clone())
    }

    /// Asserts the invariants that the crate documentation names.
    ///
    /// # Panics
    /// When one is broken.
    pub fn check(&self) {
        unimplemented!("being written")
    }

    /// Newest first.
    pub fn runs(&self, filter: &RunFilter) -> Vec<RunView> {
        let _ = filter;
        unimplemented!("being written")
    }

    pub fn run(&self, run: RunId) -> Option<RunView> {
        let _ = run;
        unimplemented!("being written")
    }

    /// The workflow of a run and the text of its file.
    pub fn workflow(&self, run: RunId) -> Option<(Arc<Workflow>, Arc<str>)> {
        let _ = run;
        unimplemented!("being written")
    }

    /// Executions of a run, in order of step and element; nothing if there is no such run.
    pub fn executions(&self, run: RunId, page: &ExecutionPage) -> Option<Vec<ExecutionView>> {
        let _ = (run, page);
        unimplemented!("being written")
    }

    pub fn execution(&self, execution: ExecutionId) -> Option<ExecutionView> {
        let _ = execution;
        unimplemented!("being written")
    }

    /// Why an execution is where it is; for one that waits, why it is nowhere yet.
    pub fn why_execution(&self, execution: ExecutionId) -> Option<Explanation> {
        let _ = execution;
        unimplemented!("being written")
    }

    pub fn object(&self, object: ObjectId) -> Option<ObjectView> {
        let _ = object;
        unimplemented!("being written")
    }

    pub fn sites(&self) -> Vec<SiteView> {
        unimplemented!("being written")
    }

    pub fn site(&self, site: &SiteName) -> Option<SiteView> {
        let _ = site;
        unimplemented!("being written")
    }

    /// In order of time.
    pub fn ledger(&self, filter: &LedgerFilter) -> Vec<LedgerView> {
        let _ = filter;
        unimplemented!("being written")
    }

    /// What placement would do with each step if it were ready now.
    pub fn plan(&self, workflow: &Workflow, inputs: &IndexMap<String, Value>) -> PlanView {
        let _ = (workflow, inputs);
        unimplemented!("being written")
    }

    /// What [`check_sites`](atoll_model::workflow::check_sites) needs to know.
    pub fn site_facts(&self) -> Vec<SiteFacts> {
        unimplemented!("being written")
    }

    pub fn counters(&self) -> Counters {
        unimplemented!("being written")
    }
}
