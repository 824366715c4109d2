//! The invariants, asserted.

use std::collections::BTreeMap;

use atoll_model::id::{ExecutionId, SiteId, StepIndex};

use crate::control_plane::ControlPlane;
use crate::state::{ActivePhase, BucketState, Outgoing, RowState, Run, StepPhase, StepState};

impl ControlPlane {
    /// Asserts the invariants that the crate documentation names.
    ///
    /// # Panics
    /// When one is broken.
    pub fn check(&self) {
        let mut outstanding: BTreeMap<SiteId, u32> = BTreeMap::new();
        for run in self.state.runs.values() {
            self.check_run(run, &mut outstanding);
        }
        for (id, site) in &self.state.sites {
            assert_eq!(site.outstanding, outstanding.get(id).copied().unwrap_or(0), "outstanding at {}", site.name);
            assert_eq!(site.outstanding, site.busy.values().sum::<u32>(), "busy steps of {}", site.name);
        }
        self.check_usage();
        self.check_limits();
        self.check_objects();
        self.state.check_delegations();
        self.state.results.check();
        self.state.registry.check();
        self.state.repositories.check();
        for (name, deployment) in self.state.deployments.iter() {
            let lives = |run| self.state.runs.get(&run).is_some_and(|run| run.is_live());
            assert!(deployment.live_run().is_none_or(lives), "the source of {name:?} lives in a run that goes on");
        }
    }

    /// What is counted along is what there is.
    fn check_usage(&self) {
        let live = self.state.runs.values().filter(|run| run.is_live()).count() as u64;
        assert_eq!(self.state.live_runs, live, "live runs");
        assert_eq!(self.state.usage, self.state.recounted_usage(), "usage of projects");
        let loads = self.state.recounted_loads();
        for (id, site) in &self.state.sites {
            let recounted = loads.get(id).cloned().unwrap_or_default();
            assert_eq!(site.loads, recounted, "what {} has to do", site.name);
        }
    }

    fn check_run(&self, run: &Run, outstanding: &mut BTreeMap<SiteId, u32>) {
        let (mut active, mut unknown, mut ahead, mut left) = (0, 0, 0, 0);
        for (index, step) in (0..=u16::MAX).map(StepIndex).zip(&run.steps) {
            let name = StepName(run, index);
            check_step(step, name);
            let needs = &run.workflow.step(index).needs;
            let open = needs.iter().filter(|need| !run.steps[need.index()].is_ended()).count();
            assert_eq!(step.needs_left as usize, open, "what {name} needs");
            let successors = &run.plan.steps[index.index()].successors;
            let readers = successors.iter().filter(|reader| !run.steps[reader.index()].is_ended()).count();
            assert_eq!(step.readers_left as usize, readers, "who reads {name}");
            left += u32::from(!step.is_ended());
            active += step.active.len() as u64;
            unknown += step.unknown.len() as u64;
            ahead += u32::try_from(step.active.values().filter(|active| active.fragment).count()).expect("few");
            for (element, at) in &step.active {
                *outstanding.entry(at.site).or_default() += 1;
                self.check_place(run, ExecutionId { run: run.id, step: index, element: *element });
            }
        }
        assert_eq!(run.steps_left, left, "steps left of {}", run.id);
        assert_eq!(run.active, active, "active executions of {}", run.id);
        assert_eq!(run.unknown, unknown, "unknown executions of {}", run.id);
        assert_eq!(run.ahead, ahead, "executions of {} that are out ahead", run.id);
        assert!(run.is_live() || active == 0, "{} has ended with executions that go on", run.id);
    }

    /// I5: what is dispatched is known to its agent, or its command is in the outbox.
    fn check_place(&self, run: &Run, execution: ExecutionId) {
        let active = &run.steps[execution.step.index()].active[&execution.element];
        let Some(site) = self.state.sites.get(&active.site) else {
            panic!("{execution} is at a site that was removed");
        };
        assert!(site.revoked.is_none() && site.lost.is_none(), "{execution} is at {}, which will not do it", site.name);
        if active.phase != ActivePhase::Dispatched || active.command < site.log.first_unacknowledged() {
            return;
        }
        let place = usize::try_from(active.command.0 - site.log.first_unacknowledged().0).expect("short");
        let dispatched = match site.log.outbox.get(place) {
            Some(Outgoing::Dispatch { run, step, attempt, elements, .. }) => {
                (*run, *step, *attempt) == (execution.run, execution.step, active.attempt)
                    && elements.contains(execution.element)
            }
            Some(_) | None => false,
        };
        assert!(dispatched, "{execution} is dispatched by a command that is not in the outbox");
    }

    fn check_objects(&self) {
        for (id, object) in &self.state.objects {
            assert!(object.sites.is_sorted(), "sites of {id}");
            if let Some(transfer) = object.transfer {
                let live = self.state.transfers.get(&transfer);
                assert!(live.is_some_and(|live| live.object.id == *id), "{id} has a transfer that is not live");
            }
            assert!(
                object.doubtful.is_none() || object.bucket == BucketState::Deleting,
                "{id} is kept from pushes until the bucket was looked into"
            );
            // What was in the bucket before a rule came to be against it stays until nobody reads it.
            let live = object.transfer.and_then(|transfer| self.state.transfers.get(&transfer));
            assert!(
                live.is_none_or(|live| live.cancelled) || self.vetoes(object, None).bucket.is_none(),
                "{id} is on its way to the bucket against a rule"
            );
        }
        for id in self.state.keys.copies() {
            let known = self.state.objects.get(&id);
            assert!(
                known.is_some_and(|known| known.transfer.is_some() || known.bucket != BucketState::Absent),
                "a key is remembered for {id}, which is not in the bucket"
            );
        }
        for (id, transfer) in &self.state.transfers {
            let known = self.state.objects.get(&transfer.object.id);
            assert!(
                known.is_some_and(|known| known.transfer == Some(*id)),
                "{id} moves an object that does not know it"
            );
        }
    }
}

/// A step as messages name it, written only when one is.
#[derive(Clone, Copy)]
struct StepName<'a>(&'a Run, StepIndex);

impl std::fmt::Display for StepName<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} of {}", self.0.workflow.step(self.1).name, self.0.id)
    }
}

/// I1 and I2: every element is in one place, and has at most one outcome.
fn check_step(step: &StepState, name: StepName<'_>) {
    if step.phase != StepPhase::Expanded {
        assert!(step.ready.is_empty() && step.active.is_empty(), "{name} has executions before it has elements");
        return;
    }
    let open_rows = step.rows.iter().filter(|row| row.state != RowState::Open).count();
    let rows = (step.succeeded + step.failed + step.cancelled_rows) as usize;
    assert_eq!(open_rows, rows, "outcomes of {name}");
    let ended = rows + step.cancelled.len() as usize;
    assert_eq!(step.ended as usize, ended, "elements of {name} that have ended");
    let again = step.again.keys().filter(|element| !step.recomputing.contains(**element)).count();
    let active = step.active.keys().filter(|element| !step.recomputing.contains(**element)).count();
    let all = ended + step.ready.len() as usize + again + active + step.unknown.len();
    assert_eq!(all, step.count as usize, "elements of {name}");
    for (element, active) in &step.active {
        assert!(
            !step.ready.contains(*element) && !step.again.contains_key(element),
            "{name} {element} is in two places"
        );
        let highest = step.tries.get(element).map_or(atoll_model::id::Attempt::FIRST, |tries| tries.highest);
        assert!(active.attempt <= highest, "{name} {element} runs an attempt that was not given out");
    }
}
