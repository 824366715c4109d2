//! What was found out by looking ahead, for each run. Lost with the process, and found out again; the decisions made with
//! it are facts.

mod draw;
mod sketch;

use std::collections::BTreeMap;

use atoll_model::id::{RunId, SiteId, StepIndex};

pub(crate) use self::sketch::{Parts, Place, Sketch};

/// What a border is worth where a policy asks for few bytes: it is crossed rather than waiting for longer than a day.
pub(crate) const BYTES_DETOUR_SECONDS: f64 = 86_400.0;
/// Where time counts, work goes elsewhere if it ends sooner there by this share of what the whole takes.
pub(crate) const TIME_DETOUR: f64 = 0.15;

#[derive(Debug, Default)]
pub(crate) struct Outlooks {
    runs: BTreeMap<RunId, RunOutlook>,
}

#[derive(Debug)]
pub(crate) struct RunOutlook {
    /// Where work could be placed when it was made.
    pub(crate) open: Vec<SiteId>,
    /// It is made again when so many steps have ended.
    pub(crate) again_at: usize,
    /// By step; nothing where it is not worth it.
    pub(crate) steps: Vec<StepOutlook>,
    /// What going elsewhere is worth.
    pub(crate) detour_seconds: f64,
}

/// Sites of a step's elements: of as many parts of about the same size.
#[derive(Debug, Clone, Default)]
pub(crate) struct StepOutlook {
    pub(crate) count: u32,
    pub(crate) sites: Vec<SiteId>,
}

impl StepOutlook {
    fn site(&self, element: u32) -> Option<SiteId> {
        let parts = self.sites.len() as u64;
        let part = u64::from(element.min(self.count.saturating_sub(1))) * parts / u64::from(self.count.max(1));
        self.sites.get(usize::try_from(part).ok()?).copied()
    }
}

impl Outlooks {
    pub(crate) fn of(&self, run: RunId) -> Option<&RunOutlook> {
        self.runs.get(&run)
    }

    pub(crate) fn keep(&mut self, run: RunId, outlook: RunOutlook) {
        self.runs.insert(run, outlook);
    }

    pub(crate) fn forget(&mut self, run: RunId) {
        self.runs.remove(&run);
    }

    pub(crate) fn has(&self, run: RunId) -> bool {
        self.runs.get(&run).is_some_and(|run| !run.steps.is_empty())
    }

    /// Where an execution should go, and what going elsewhere is worth.
    pub(crate) fn site(&self, run: RunId, step: StepIndex, element: u32) -> Option<(SiteId, f64)> {
        let outlook = self.runs.get(&run)?;
        let site = outlook.steps.get(step.index())?.site(element)?;
        Some((site, outlook.detour_seconds))
    }
}
