//! Executions whose memory has grown since attempts of theirs ended for want of it: what they ask for, and what sites know
//! of that.

use std::borrow::Cow;

use atoll_model::id::{RunId, SiteId, StepIndex};
use atoll_model::workflow::Step;

use super::{Outgoing, Run, State, StepState};
use crate::plan::Load;

impl StepState {
    /// How often the memory has grown that an execution asks for.
    pub(crate) fn grown(&self, element: u32) -> u32 {
        self.tries.get(&element).map_or(0, |tries| tries.grown)
    }
}

impl Run {
    /// A step as executions of it are of which the memory has grown so often.
    pub(crate) fn grown_step(&self, step: StepIndex, grown: u32) -> Cow<'_, Step> {
        let definition = self.workflow.step(step);
        if grown == 0 {
            return Cow::Borrowed(definition);
        }
        let mut definition = definition.clone();
        definition.resources.memory_bytes = definition.memory_after(grown);
        Cow::Owned(definition)
    }

    /// What an execution of which the memory has grown so often means for its site.
    pub(crate) fn grown_load(&self, step: StepIndex, grown: u32) -> Load {
        let load = self.plan.steps[step.index()].load;
        if grown == 0 {
            return load;
        }
        Load { memory_bytes: self.grown_step(step, grown).resources.memory_bytes_in_all(), ..load }
    }

    pub(crate) fn load_of(&self, step: StepIndex, element: u32) -> Load {
        self.grown_load(step, self.steps[step.index()].grown(element))
    }
}

impl State {
    /// How often the memory has grown that the last template says which a site has of a step; nothing if it has none.
    pub(crate) fn template_at(&self, site: SiteId, run: RunId, step: StepIndex) -> Option<u32> {
        let is_prepared = self.site(site).log.prepared.get(&run).is_some_and(|steps| steps.contains(&step));
        let grown = || self.grown_templates.get(&(run, step)).and_then(|sites| sites.get(&site)).copied().unwrap_or(0);
        is_prepared.then(grown)
    }

    /// A site is sent a template of a step, for executions of which the memory has grown so often.
    pub(super) fn prepare(&mut self, site: SiteId, run: RunId, step: StepIndex, grown: u32) {
        let log = &mut self.site_mut(site).log;
        log.prepared.entry(run).or_default().insert(step);
        log.push(match grown {
            0 => Outgoing::Prepare { run, step },
            grown => Outgoing::PrepareGrown { run, step, grown },
        });
        let known = self.grown_templates.entry((run, step)).or_default();
        known.remove(&site);
        if grown > 0 {
            known.insert(site, grown);
        } else if known.is_empty() {
            self.grown_templates.remove(&(run, step));
        }
    }
}
