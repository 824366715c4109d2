//! Handing executions to an agent.

use std::collections::BTreeMap;

use atoll_model::elements::ElementSet;
use atoll_model::id::{Attempt, ExecutionId, RunId, SiteId, StepIndex};
use atoll_model::value::ObjectRef;

use crate::control_plane::ControlPlane;
use crate::fact::Fact;
use crate::state::{ActivePhase, Run};

/// What executions that are handed over together have in common.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Assignment {
    pub(crate) run: RunId,
    pub(crate) step: StepIndex,
    pub(crate) attempt: Attempt,
    pub(crate) site: SiteId,
    /// The decision, by its place among the step's.
    pub(crate) decision: u32,
}

impl ControlPlane {
    pub(crate) fn dispatch(&mut self, assignment: Assignment, elements: ElementSet, fragment: bool) {
        for (grown, elements) in self.by_growth(assignment.run, assignment.step, elements) {
            self.prepare(assignment.site, assignment.run, assignment.step, grown);
            self.dispatch_prepared(assignment, elements, fragment);
        }
    }

    /// Dispatches executions that are as the last template of their step says.
    fn dispatch_prepared(&mut self, assignment: Assignment, elements: ElementSet, fragment: bool) {
        let Assignment { run, step, attempt, site, decision } = assignment;
        self.counters.executions_dispatched += u64::from(elements.len());
        let reads = self.reads_objects(run, step);
        let given = elements.clone();
        let at = self.now;
        self.record(Fact::ExecutionsDispatched { run, step, attempt, elements, site, decision, fragment, at });
        if reads {
            for element in given.iter() {
                self.want(site, ExecutionId { run, step, element });
            }
        }
        self.agenda.touched.insert(site);
        let successors = &self.state.run(run).plan.steps[step.index()].successors;
        let ahead = successors.iter().map(|successor| (run, *successor));
        self.agenda.chain.extend(ahead);
    }

    /// Executions of a step by how often the memory has grown that they ask for.
    fn by_growth(&self, run: RunId, step: StepIndex, elements: ElementSet) -> BTreeMap<u32, ElementSet> {
        let run = self.state.run(run);
        let (definition, state) = (run.workflow.step(step), &run.steps[step.index()]);
        if definition.retry.memory.is_none() || state.tries.is_empty() {
            return BTreeMap::from([(0, elements)]);
        }
        let mut by_growth: BTreeMap<u32, ElementSet> = BTreeMap::new();
        for element in elements.iter() {
            by_growth.entry(state.grown(element)).or_default().insert(element);
        }
        by_growth
    }

    /// Sends the step's template, unless it is the last one of the step that the agent's journal has: an agent goes by that
    /// with all that it is handed after it.
    fn prepare(&mut self, site: SiteId, run: RunId, step: StepIndex, grown: u32) {
        if self.state.template_at(site, run, step) == Some(grown) {
            return;
        }
        self.record(match grown {
            0 => Fact::Prepared { site, run, step },
            grown => Fact::GrownPrepared { site, run, step, grown },
        });
    }

    /// Whether executions of a step may read objects at all.
    fn reads_objects(&self, run: RunId, step: StepIndex) -> bool {
        let run = self.state.run(run);
        !run.plan.steps[step.index()].reads.is_empty()
    }

    /// Notes which objects an execution reads that are not known to be at its site; all that it reads are returned.
    pub(crate) fn want(&mut self, site: SiteId, execution: ExecutionId) -> Vec<ObjectRef> {
        let objects = self.needed_objects(self.state.run(execution.run), execution.step, execution.element);
        for object in &objects {
            if self.state.objects.get(&object.id).is_none_or(|known| !known.is_at(site)) {
                self.agenda.wants.add(object.id, site, execution);
            }
        }
        objects
    }

    /// Every object that an execution reads, as far as they exist.
    pub(crate) fn needed_objects(&self, run: &Run, step: StepIndex, element: u32) -> Vec<ObjectRef> {
        let mut objects = Vec::new();
        if let Ok(shared) = self.caches.shared(run, step) {
            objects.extend(&shared.objects);
        }
        let planned = &run.plan.steps[step.index()];
        if !planned.own.is_empty() && (run.steps[step.index()].needs_left == 0 || planned.chainable) {
            for value in self.caches.own_so_far(run, step, element) {
                value.visit_objects(&mut |object| objects.push(object));
            }
        }
        objects
    }

    /// Dispatches placed executions whose objects have all arrived where they can be had.
    pub(crate) fn dispatch_arrived(&mut self) {
        let mut ready: BTreeMap<(SiteId, RunId, StepIndex, Attempt, u32), ElementSet> = BTreeMap::new();
        for execution in std::mem::take(&mut self.agenda.arrived) {
            let Some(active) = self.state.active(execution) else { continue };
            if active.phase != ActivePhase::Placed {
                continue;
            }
            let run = self.state.run(execution.run);
            let objects = self.needed_objects(run, execution.step, execution.element);
            if objects.iter().all(|object| self.is_at_hand(*object, active.site)) {
                let key = (active.site, execution.run, execution.step, active.attempt, active.decision);
                ready.entry(key).or_default().insert(execution.element);
            }
        }
        for ((site, run, step, attempt, decision), elements) in ready {
            self.dispatch(Assignment { run, step, attempt, site, decision }, elements, false);
        }
    }
}
