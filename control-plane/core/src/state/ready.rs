//! Actions that sites were told to make ready for steps of live runs.

use std::collections::BTreeMap;

use atoll_model::id::{ExecutionId, ObjectId, RunId, SiteId, StepIndex};
use serde::{Deserialize, Serialize};

use super::{Outgoing, Source, State};

/// The site that was told, by run and step.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct ReadyOrders(BTreeMap<RunId, BTreeMap<StepIndex, SiteId>>);

impl State {
    pub(crate) fn is_ready_ordered(&self, run: RunId, step: StepIndex) -> bool {
        self.ready_orders.0.get(&run).is_some_and(|steps| steps.contains_key(&step))
    }

    /// Sites that were told of steps of a run.
    pub(crate) fn told_to_make_ready(&self, run: RunId) -> impl Iterator<Item = SiteId> {
        self.ready_orders.0.get(&run).into_iter().flat_map(|steps| steps.values().copied())
    }

    /// What a bundle is fetched for that a site was told to make ready.
    pub(crate) fn made_ready_for(&self, site: SiteId, object: ObjectId) -> Option<ExecutionId> {
        self.objects.get(&object)?.uses.iter().find_map(|usage| {
            let Source::Bundle(step) = usage.source else { return None };
            let told = self.ready_orders.0.get(&usage.run)?.get(&step)?;
            (*told == site).then_some(ExecutionId { run: usage.run, step, element: 0 })
        })
    }

    pub(super) fn order_ready(&mut self, site: SiteId, run: RunId, step: StepIndex) {
        self.ready_orders.0.entry(run).or_default().insert(step, site);
        self.site_mut(site).log.push(Outgoing::MakeReady { run, step });
    }

    /// A site is told that a run has ended.
    pub(super) fn forget_ready(&mut self, site: SiteId, run: RunId) {
        if let Some(steps) = self.ready_orders.0.get_mut(&run) {
            steps.retain(|_, told| *told != site);
            if steps.is_empty() {
                self.ready_orders.0.remove(&run);
            }
        }
    }

    /// A site knows nothing of what it was told.
    pub(super) fn forget_ready_at(&mut self, site: SiteId) {
        self.ready_orders.0.retain(|_, steps| {
            steps.retain(|_, told| *told != site);
            !steps.is_empty()
        });
    }
}
