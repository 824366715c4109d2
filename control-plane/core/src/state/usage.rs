//! How much of each project, and of each of its workflows, is under way. It follows from the runs, and is counted along.

use std::collections::BTreeMap;
use std::sync::Arc;

use atoll_model::id::{RunId, SiteId, StepIndex};
use serde::{Deserialize, Serialize};

use super::{Active, ActivePhase, Run, State};
use crate::plan::Load;
use crate::view::ProjectSettings;

/// What is under way.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Usage {
    /// Executions that are placed and have not ended.
    pub(crate) executions: u64,
    /// Runs that have begun and have not ended.
    pub(crate) runs: u64,
}

#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct ProjectUsage {
    pub(crate) all: Usage,
    pub(crate) workflows: BTreeMap<String, Usage>,
}

/// What an administrator has set.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Projects(pub(crate) BTreeMap<String, ProjectSettings>);

impl Run {
    pub(crate) fn has_begun(&self) -> bool {
        self.is_live() && (self.started_at.is_some() || self.active > 0)
    }

    fn usage(&self) -> Usage {
        Usage { executions: self.active, runs: u64::from(self.has_begun()) }
    }
}

impl Active {
    /// Whether it is something that the site can do now: it is there, and waits for nothing but room.
    pub(crate) fn is_load(&self) -> bool {
        !self.fragment && self.phase != ActivePhase::Placed
    }
}

impl Usage {
    fn moved(&mut self, from: Self, to: Self) {
        self.executions = self.executions + to.executions - from.executions;
        self.runs = self.runs + to.runs - from.runs;
    }
}

impl State {
    pub(crate) fn usage_of(&self, project: &str) -> Usage {
        self.usage.get(project).map(|usage| usage.all).unwrap_or_default()
    }

    pub(crate) fn usage_of_workflow(&self, project: &str, workflow: &str) -> Usage {
        let workflows = self.usage.get(project).map(|usage| &usage.workflows);
        workflows.and_then(|workflows| workflows.get(workflow)).copied().unwrap_or_default()
    }

    pub(super) fn run_usage(&self, run: Option<RunId>) -> Usage {
        run.and_then(|run| self.runs.get(&run)).map(|run| run.usage()).unwrap_or_default()
    }

    /// The usage of a run has changed from what it was.
    pub(super) fn count_usage(&mut self, run: Option<RunId>, before: Usage) {
        if let Some(run) = run.and_then(|run| self.runs.get(&run)) {
            move_usage(&mut self.usage, run, before);
        }
    }

    /// Makes what is counted along from what a checkpoint holds.
    pub(super) fn recount(&mut self) {
        self.usage = self.recounted_usage();
        self.live_runs = self.runs.values().filter(|run| run.is_live()).count() as u64;
        for (site, loads) in self.recounted_loads() {
            if let Some(site) = self.sites.get_mut(&site) {
                site.loads = loads;
            }
        }
    }

    pub(crate) fn recounted_usage(&self) -> BTreeMap<Arc<str>, ProjectUsage> {
        let mut usage = BTreeMap::new();
        self.runs.values().for_each(|run| move_usage(&mut usage, run, Usage::default()));
        usage
    }

    pub(crate) fn recounted_loads(&self) -> BTreeMap<SiteId, BTreeMap<Load, u32>> {
        let mut loads: BTreeMap<SiteId, BTreeMap<Load, u32>> = BTreeMap::new();
        for run in self.runs.values().filter(|run| run.active > 0) {
            for (index, step) in (0..=u16::MAX).map(StepIndex).zip(&run.steps) {
                for (element, active) in step.active.iter().filter(|(_, active)| active.is_load()) {
                    *loads.entry(active.site).or_default().entry(run.load_of(index, *element)).or_default() += 1;
                }
            }
        }
        loads
    }
}

fn move_usage(all: &mut BTreeMap<Arc<str>, ProjectUsage>, run: &Run, before: Usage) {
    let now = run.usage();
    if now == before {
        return;
    }
    let usage = match all.get_mut(&run.project) {
        Some(usage) => usage,
        None => all.entry(Arc::clone(&run.project)).or_default(),
    };
    usage.all.moved(before, now);
    let workflow = match usage.workflows.get_mut(&run.workflow.name) {
        Some(workflow) => workflow,
        None => usage.workflows.entry(run.workflow.name.clone()).or_default(),
    };
    workflow.moved(before, now);
    if *workflow == Usage::default() {
        usage.workflows.remove(&run.workflow.name);
        if usage.workflows.is_empty() {
            all.remove(&run.project);
        }
    }
}
