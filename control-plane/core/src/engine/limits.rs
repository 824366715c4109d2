//! Limits on what goes on at a time: of a project and of its workflows, set by administrators; of a workflow and of a
//! step, said by authors. What a limit holds back waits in a queue of its own, and is looked at when something under the
//! limit has ended.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use atoll_model::id::{RunId, StepIndex};
use atoll_model::limits::{CONCURRENCY_MAX, SHARE_MAX};
use atoll_model::workflow::Concurrency;

use crate::agenda::{StepKey, Timer};
use crate::command::{Rejection, Response};
use crate::control_plane::ControlPlane;
use crate::event::ProjectChange;
use crate::fact::Fact;
use crate::state::{Run, Usage};

/// Steps that are looked at for one limit before other events get their turn.
const LOOKS_MAX: u32 = 64;
/// When the rest is looked at.
const LOOK_AGAIN: Duration = Duration::from_millis(10);

/// What may be the reason that a step waits.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Limit {
    ProjectRuns(Arc<str>),
    WorkflowRuns(Arc<str>, Arc<str>),
    Project(Arc<str>),
    Workflow(Arc<str>, Arc<str>),
    Step(RunId, StepIndex),
}

/// A limit of a step, and how much is left below it.
pub(crate) struct Bound {
    pub(crate) limit: Limit,
    pub(crate) is: u32,
    pub(crate) used: u64,
}

impl Bound {
    fn left(&self) -> u32 {
        u32::try_from(u64::from(self.is).saturating_sub(self.used)).expect("less than the limit")
    }
}

impl ControlPlane {
    /// How many more executions of a step may be given to sites, and what forbids more.
    pub(crate) fn allowance(&self, run: &Run, step: StepIndex) -> (u32, Option<Limit>) {
        let mut allowed = (u32::MAX, None);
        self.visit_bounds(run, step, &mut |bound| {
            let left = match bound.limit {
                // One that goes on may go on.
                Limit::ProjectRuns(_) | Limit::WorkflowRuns(..) if run.has_begun() || bound.left() > 0 => u32::MAX,
                Limit::ProjectRuns(_) | Limit::WorkflowRuns(..) => 0,
                Limit::Project(_) | Limit::Workflow(..) | Limit::Step(..) => bound.left(),
            };
            if left < allowed.0 {
                allowed = (left, Some(bound.limit));
            }
        });
        allowed
    }

    /// Whether anything says how many executions of a step may be at sites. How many runs may go on says nothing of one
    /// that has begun.
    pub(crate) fn is_limited(&self, run: &Run, step: StepIndex) -> bool {
        let mut limited = false;
        self.visit_bounds(run, step, &mut |bound| limited |= !is_of_runs(&bound.limit));
        limited
    }

    /// Every limit that bears on a step.
    fn visit_bounds(&self, run: &Run, step: StepIndex, visit: &mut dyn FnMut(Bound)) {
        if let Some(is) = run.workflow.step(step).max_parallel {
            let used = run.steps[step.index()].active.len() as u64;
            visit(Bound { limit: Limit::Step(run.id, step), is, used });
        }
        let own = run.workflow.concurrency;
        let project = self.state.projects.0.get(&*run.project);
        let given = project.and_then(|project| project.workflows.get(&run.workflow.name)).copied().unwrap_or_default();
        let both = least(own, given);
        if both != Concurrency::default() {
            let used = self.state.usage_of_workflow(&run.project, &run.workflow.name);
            let name = || (run.project.clone(), Arc::from(run.workflow.name.as_str()));
            visit_both(both, used, visit, &|| Limit::Workflow(name().0, name().1), &|| {
                Limit::WorkflowRuns(name().0, name().1)
            });
        }
        if let Some(limits) = project.map(|project| project.limits).filter(|limits| *limits != Concurrency::default()) {
            let used = self.state.usage_of(&run.project);
            visit_both(limits, used, visit, &|| Limit::Project(run.project.clone()), &|| {
                Limit::ProjectRuns(run.project.clone())
            });
        }
    }

    /// Every limit that bears on what a run has under way. Those of the whole run do so although nothing of it is at a site.
    fn visit_all_bounds(&self, run: &Run, visit: &mut dyn FnMut(Bound)) {
        for step in (0..=u16::MAX).map(StepIndex).take(run.steps.len()) {
            if step == StepIndex(0) || !run.steps[step.index()].active.is_empty() {
                self.visit_bounds(run, step, visit);
            }
        }
    }

    /// The step waits until something under the limit has ended.
    pub(crate) fn wait_for_limit(&mut self, run: RunId, step: StepIndex, limit: Limit) {
        let standing = self.standing(self.state.run(run), step);
        let now = self.now;
        self.agenda.limited.entry(limit).or_default().push((run, step), &standing, now);
    }

    /// What a limit that a fact has loosened held back is looked at again.
    pub(crate) fn loosen(&mut self, fact: &Fact) {
        if self.agenda.limited.is_empty() && self.agenda.tolerated.is_empty() {
            return;
        }
        if let Fact::ProjectSet { .. } = fact {
            self.agenda.loosened.extend(self.agenda.limited.keys().cloned());
            return;
        }
        let Some((run, step)) = ends_under(fact) else { return };
        let Some(run) = self.state.runs.get(&run) else { return };
        let (project, workflow): (_, Arc<str>) = (run.project.clone(), Arc::from(run.workflow.name.as_str()));
        let limits = [
            Limit::ProjectRuns(project.clone()),
            Limit::WorkflowRuns(project.clone(), workflow.clone()),
            Limit::Project(project.clone()),
            Limit::Workflow(project, workflow),
        ];
        let of_step = step.map(|step| Limit::Step(run.id, step));
        for limit in limits.into_iter().chain(of_step) {
            if self.agenda.limited.contains_key(&limit) {
                self.agenda.loosened.insert(limit);
            }
        }
    }

    /// The next step whose limit may allow more now.
    pub(crate) fn next_within_limits(&mut self) -> Option<StepKey> {
        while let Some(limit) = self.agenda.loosened.first().cloned() {
            let waiting = self.agenda.limited.get(&limit).and_then(|queue| queue.first(self.now));
            match waiting {
                Some(_) if self.agenda.looks >= LOOKS_MAX => {
                    self.agenda.set(self.now + LOOK_AGAIN, Timer::Wake);
                    return None;
                }
                Some((run, step)) if !self.is_held_by(&limit, run, step) => {
                    self.agenda.looks += 1;
                    self.take_from_limit(&limit, run);
                    return Some((run, step));
                }
                // Nobody waits, or all go on waiting.
                Some(_) | None => self.agenda.loosened.remove(&limit),
            };
        }
        None
    }

    /// Whether a limit allows a step nothing. One that another limit holds back is to wait for that one.
    fn is_held_by(&self, limit: &Limit, run: RunId, step: StepIndex) -> bool {
        let allowance = self.state.runs.get(&run).map(|run| self.allowance(run, step));
        matches!(&allowance, Some((0, Some(by))) if by == limit)
    }

    /// Takes out the step whose turn it is, of this run, and where whole runs wait, the run's other steps.
    fn take_from_limit(&mut self, limit: &Limit, run: RunId) {
        let Some(queue) = self.agenda.limited.get_mut(limit) else { return };
        queue.pop(self.now);
        let others = if is_of_runs(limit) { queue.take_run(run) } else { Vec::new() };
        if queue.is_empty() {
            self.agenda.limited.remove(limit);
        }
        others.into_iter().for_each(|(run, step)| self.want_place(run, step));
    }

    /// An agent has brought something back that goes on: it counts, whatever the limits say.
    pub(crate) fn tolerate(&mut self, run: RunId, step: StepIndex) {
        let mut over = Vec::new();
        let run = self.state.run(run);
        self.visit_bounds(run, step, &mut |bound| note_excess(&mut over, bound));
        self.agenda.tolerated.extend(over);
    }

    /// What was tolerated beyond a limit is not, once it has ended.
    pub(crate) fn tolerate_less(&mut self) {
        if self.agenda.tolerated.is_empty() {
            return;
        }
        let state = &self.state;
        self.agenda.tolerated.retain(|limit, tolerated| {
            *tolerated = state.used_under(limit).min(*tolerated);
            *tolerated > 0
        });
    }

    /// Whatever goes on when this process begins, or a limit is set, may go on.
    pub(crate) fn tolerate_all(&mut self) {
        let mut over = Vec::new();
        for run in self.state.runs.values().filter(|run| run.has_begun()) {
            self.visit_all_bounds(run, &mut |bound| note_excess(&mut over, bound));
        }
        self.agenda.tolerated.extend(over);
    }

    /// No limit is exceeded by what was given out under it.
    pub(crate) fn check_limits(&self) {
        let mut bounds: BTreeMap<Limit, (u32, u64)> = BTreeMap::new();
        for run in self.state.runs.values().filter(|run| run.has_begun()) {
            let name: Arc<str> = Arc::from(run.workflow.name.as_str());
            let mut free = vec![
                Limit::Workflow(run.project.clone(), name.clone()),
                Limit::WorkflowRuns(run.project.clone(), name),
            ];
            for (step, delegated) in self.state.delegated_steps(run.id) {
                let is_ending = delegated.withdrawing.is_some() || self.is_out_of_reach(delegated.site);
                assert!(is_ending || !self.is_limited(run, step), "step {step} of {} is delegated and limited", run.id);
            }
            self.visit_all_bounds(run, &mut |bound| {
                free.retain(|limit| *limit != bound.limit);
                let most = bounds.entry(bound.limit).or_insert((bound.is, bound.used));
                most.0 = most.0.max(bound.is);
            });
            // Versions of a workflow may say different things, or nothing: each is given out as it says itself.
            for limit in free {
                bounds.insert(limit, (u32::MAX, 0));
            }
        }
        for (limit, (is, used)) in bounds {
            let tolerated = self.agenda.tolerated.get(&limit).copied().unwrap_or(0);
            assert!(used <= u64::from(is).max(tolerated), "{limit:?} is {is}, and {used} go on");
        }
    }

    pub(crate) fn set_project(&mut self, project: &str, change: &ProjectChange) -> Result<Response, Rejection> {
        let mut settings = self.state.projects.0.get(project).cloned().unwrap_or_default();
        if let Some(share) = change.share {
            if !(1..=SHARE_MAX).contains(&share) {
                return Err(Rejection::Invalid(format!("a share is a number from 1 to {SHARE_MAX}, not {share}")));
            }
            settings.share = share;
        }
        let limits = match &change.workflow {
            Some(workflow) => settings.workflows.entry(workflow.clone()).or_default(),
            None => &mut settings.limits,
        };
        for (limit, change) in [(&mut limits.executions, change.max_executions), (&mut limits.runs, change.max_runs)] {
            match change {
                Some(Some(most)) if !(1..=CONCURRENCY_MAX).contains(&most) => {
                    let message = format!("a limit is a number from 1 to {CONCURRENCY_MAX}, not {most}");
                    return Err(Rejection::Invalid(message));
                }
                Some(most) => *limit = most,
                None => {}
            }
        }
        settings.workflows.retain(|_, limits| *limits != Concurrency::default());
        if self.state.projects.0.get(project) != Some(&settings) {
            self.record(Fact::ProjectSet { project: project.to_owned(), settings });
            self.tolerate_all();
            self.withdraw_limited();
        }
        Ok(Response::Done)
    }

    /// Why a step that is ready is not placed, if a limit is the reason.
    pub(crate) fn limited_by(&self, run: &Run, step: StepIndex) -> Option<String> {
        let (0, Some(limit)) = self.allowance(run, step) else { return None };
        let mut text = None;
        self.visit_bounds(run, step, &mut |bound| {
            if bound.limit == limit {
                text = Some(explain(&bound));
            }
        });
        text
    }
}

fn explain(Bound { limit, is, used }: &Bound) -> String {
    match limit {
        Limit::Project(project) => {
            format!("the limit of project {project}: {is} executions at a time, and {used} are at sites")
        }
        Limit::ProjectRuns(project) => {
            format!("the limit of project {project}: {is} runs at a time, and {used} are under way")
        }
        Limit::Workflow(project, workflow) => format!(
            "the limit of workflow {workflow} in project {project}: {is} executions at a time, and {used} are at sites"
        ),
        Limit::WorkflowRuns(project, workflow) => format!(
            "the limit of workflow {workflow} in project {project}: {is} runs at a time, and {used} are under way"
        ),
        Limit::Step(..) => format!("the step's max_parallel: {is} at a time, and {used} are at sites"),
    }
}

impl crate::state::State {
    fn used_under(&self, limit: &Limit) -> u64 {
        match limit {
            Limit::ProjectRuns(project) => self.usage_of(project).runs,
            Limit::Project(project) => self.usage_of(project).executions,
            Limit::WorkflowRuns(project, workflow) => self.usage_of_workflow(project, workflow).runs,
            Limit::Workflow(project, workflow) => self.usage_of_workflow(project, workflow).executions,
            Limit::Step(run, step) => self.runs.get(run).map_or(0, |run| run.steps[step.index()].active.len() as u64),
        }
    }
}

fn note_excess(over: &mut Vec<(Limit, u64)>, bound: Bound) {
    if bound.used > u64::from(bound.is) {
        over.push((bound.limit, bound.used));
    }
}

fn is_of_runs(limit: &Limit) -> bool {
    matches!(limit, Limit::ProjectRuns(_) | Limit::WorkflowRuns(..))
}

fn visit_both(
    limits: Concurrency,
    used: Usage,
    visit: &mut dyn FnMut(Bound),
    executions: &dyn Fn() -> Limit,
    runs: &dyn Fn() -> Limit,
) {
    if let Some(is) = limits.runs {
        visit(Bound { limit: runs(), is, used: used.runs });
    }
    if let Some(is) = limits.executions {
        visit(Bound { limit: executions(), is, used: used.executions });
    }
}

/// The tighter of both.
fn least(one: Concurrency, other: Concurrency) -> Concurrency {
    let least = |one: Option<u32>, other: Option<u32>| match (one, other) {
        (Some(one), Some(other)) => Some(one.min(other)),
        (one, other) => one.or(other),
    };
    Concurrency { executions: least(one.executions, other.executions), runs: least(one.runs, other.runs) }
}

/// Where a fact makes room under a limit.
#[expect(clippy::wildcard_enum_match_arm, reason = "all other facts end nothing")]
fn ends_under(fact: &Fact) -> Option<(RunId, Option<StepIndex>)> {
    match fact {
        Fact::ExecutionsFinished { run, step, .. }
        | Fact::ExecutionsGivenUp { run, step, .. }
        | Fact::ExecutionsReturned { run, step, .. }
        | Fact::ExecutionsUnknown { run, step, .. } => Some((*run, Some(*step))),
        Fact::RunFailing { run, .. } | Fact::RunCancelling { run, .. } | Fact::RunEnded { run, .. } => {
            Some((*run, None))
        }
        _ => None,
    }
}
