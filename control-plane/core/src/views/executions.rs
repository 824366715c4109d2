//! Executions, and why they are where they are.

use atoll_model::id::{ExecutionId, RunId, SiteId, StepIndex};
use atoll_model::placement::Explanation;
use atoll_model::session::BindingSource;
use atoll_model::time::Timestamp;
use indexmap::IndexMap;

use crate::control_plane::ControlPlane;
use crate::placement;
use crate::state::{Active, ActivePhase, Crash, Phase, RowState, Run, StepPhase, StepState};
use crate::view::{CrashView, ExecutionPage, ExecutionState, ExecutionView, ReusedView};

impl ControlPlane {
    /// Executions of a run, in order of step and element; nothing if there is no such run. A step whose elements are not
    /// known yet shows as its element 0.
    pub fn executions(&self, run: RunId, page: &ExecutionPage) -> Option<Vec<ExecutionView>> {
        let run = self.state.runs.get(&run)?;
        let limit = page.limit.unwrap_or(usize::MAX);
        let mut views = Vec::new();
        for (index, (state, definition)) in (0..=u16::MAX).map(StepIndex).zip(run.steps.iter().zip(&run.workflow.steps))
        {
            if page.step.as_ref().is_some_and(|name| *name != definition.name) {
                continue;
            }
            let first = match page.after {
                Some(after) if after.step > index => continue,
                Some(after) if after.step == index => after.element + 1,
                Some(_) | None => 0,
            };
            let count = if state.phase == StepPhase::Expanded { state.count } else { 1 };
            for element in first..count {
                if views.len() >= limit {
                    return Some(views);
                }
                views.extend(self.execution(ExecutionId { run: run.id, step: index, element }));
            }
        }
        Some(views)
    }

    pub fn execution(&self, execution: ExecutionId) -> Option<ExecutionView> {
        let ExecutionId { run, step, element } = execution;
        let run = self.state.runs.get(&run)?;
        let state = run.steps.get(step.index())?;
        let definition = run.workflow.step(step);
        let exists = if state.phase == StepPhase::Expanded { element < state.count } else { element == 0 };
        if !exists {
            return None;
        }
        let mut view = ExecutionView {
            execution,
            step: definition.name.clone(),
            attempt: state.next_attempt(element),
            memory_limit_bytes: definition.memory_after(state.grown(element)),
            state: ExecutionState::Waiting,
            site: None,
            submitted_at: run.submitted_at,
            placed_at: None,
            started_at: None,
            finished_at: None,
            inputs: self.inputs(run, step, element),
            outputs: IndexMap::new(),
            exit_code: None,
            error: state.tries.get(&element).and_then(|tries| tries.last_error.as_deref()).map(str::to_owned),
            usage: Default::default(),
            logs: Default::default(),
            waiting_for: None,
            crashes: self.crashes(state, element),
            reused: None,
        };
        self.fill_state(run, state, step, element, &mut view);
        Some(view)
    }

    fn crashes(&self, state: &StepState, element: u32) -> Vec<CrashView> {
        let crash = |crash: &Crash| CrashView {
            at: crash.at,
            attempt: crash.attempt,
            site: self.state.site_name(crash.site),
            incarnation: crash.incarnation,
            message: crash.message.to_string(),
            logs: crash.logs,
        };
        state.crashes.get(&element).into_iter().flatten().map(crash).collect()
    }

    fn fill_state(&self, run: &Run, state: &StepState, step: StepIndex, element: u32, view: &mut ExecutionView) {
        if let Some(active) = state.active.get(&element) {
            self.fill_active(active, active_state(active), view);
            if active.phase == ActivePhase::Placed {
                view.waiting_for = Some(self.waits_for_inputs(ExecutionId { run: run.id, step, element }));
            } else if active.phase == ActivePhase::Dispatched {
                let told = self.sessions.told_waiting(active.site, view.execution, active.attempt);
                let delegated =
                    || active.fragment.then(|| "its agent starts it as soon as its inputs exist".to_owned());
                view.waiting_for = told.or_else(delegated);
            }
        } else if let Some(active) = state.unknown.get(&element) {
            self.fill_active(active, ExecutionState::Unknown, view);
            view.waiting_for = Some("somebody to decide whether it may run again".to_owned());
        } else if let Some(row) = state.row(element).filter(|_| !state.again.contains_key(&element)) {
            view.state = match row.state {
                RowState::Succeeded => ExecutionState::Succeeded,
                RowState::Failed | RowState::Open => ExecutionState::Failed,
                RowState::Cancelled => ExecutionState::Cancelled,
            };
            view.attempt = row.attempt;
            view.site = self.site_known(row.site);
            view.placed_at = some_time(row.placed_at);
            view.started_at = some_time(row.started_at);
            view.finished_at = some_time(row.finished_at);
            view.exit_code = (row.state == RowState::Succeeded).then_some(0);
            view.error = None;
            let taken = self.state.results.taken(view.execution);
            view.reused = taken.map(|taken| ReusedView { made_by: taken.made_by, took: taken.took });
            if taken.is_some() {
                view.exit_code = None;
            }
            if let Some(detail) = state.details.get(&element) {
                let names = run.workflow.step(step).outputs.keys();
                view.outputs = names.cloned().zip(detail.outputs.iter().cloned()).collect();
                view.exit_code = detail.exit_code.or(view.exit_code);
                view.error = detail.error.as_deref().map(str::to_owned);
                view.usage = detail.usage;
                view.logs = detail.logs;
            }
        } else if state.phase == StepPhase::Skipped {
            view.state = ExecutionState::Skipped;
        } else if state.phase == StepPhase::Cancelled || state.cancelled.contains(element) {
            view.state = ExecutionState::Cancelled;
        } else if state.phase == StepPhase::Expanded {
            view.state = ExecutionState::Ready;
            view.waiting_for = Some(self.waits_for_site(run, state, step, element));
        } else {
            let needs = run.workflow.step(step).needs.iter();
            let open: Vec<_> = needs
                .filter(|need| !run.steps[need.index()].is_ended())
                .map(|need| run.workflow.step(*need).name.as_str())
                .collect();
            view.waiting_for = (!open.is_empty()).then(|| format!("step {}", open.join(", ")));
        }
    }

    /// What a placed execution waits for, and what is in the way of it.
    fn waits_for_inputs(&self, execution: ExecutionId) -> String {
        let troubled = self.agenda.wants.lacked_by(execution).iter().find_map(|object| {
            let trouble = self.state.objects.get(object)?.push_trouble.as_ref()?;
            Some((object, trouble))
        });
        match troubled {
            Some((object, trouble)) => format!(
                "its inputs are on their way, but {object} could not be sent to the bucket (tried {} times, and again \
                 until it can): {}",
                trouble.times, trouble.message
            ),
            None => "its inputs are on their way".to_owned(),
        }
    }

    fn fill_active(&self, active: &Active, state: ExecutionState, view: &mut ExecutionView) {
        view.state = state;
        view.attempt = active.attempt;
        view.site = self.site_known(active.site);
        view.placed_at = some_time(active.placed_at);
        view.started_at = some_time(active.started_at);
    }

    fn site_known(&self, site: SiteId) -> Option<atoll_model::id::SiteName> {
        self.state.sites.get(&site).map(|site| site.name.clone())
    }

    /// The inputs of an execution, as far as they are known.
    fn inputs(&self, run: &Run, step: StepIndex, element: u32) -> IndexMap<String, atoll_model::value::Value> {
        let mut inputs = IndexMap::new();
        if run.steps[step.index()].needs_left > 0 || run.steps[step.index()].phase == StepPhase::Cancelled {
            return inputs;
        }
        if let Ok(shared) = self.caches.shared(run, step) {
            for binding in &shared.bindings {
                if let BindingSource::Value(value) = &binding.source {
                    inputs.insert(binding.name.clone(), value.clone());
                }
            }
        }
        inputs.extend(self.caches.own(run, step, element).unwrap_or_default());
        inputs
    }

    /// Why a ready execution has no site.
    fn waits_for_site(&self, run: &Run, state: &StepState, step: StepIndex, element: u32) -> String {
        if let Some(not_before) = state.again.get(&element).filter(|at| **at > self.now) {
            return format!("its next attempt, at {not_before}");
        }
        if let Some(delegated) = self.state.delegation(run.id, step).filter(|d| !d.back.contains(element)) {
            return format!("site {}, whose agent starts it by itself", self.state.site_name(delegated.site));
        }
        if run.is_going_on()
            && let Some(limit) = self.limited_by(run, step)
        {
            return limit;
        }
        let assessments = self.assess_execution(run, step, element);
        let candidates = self.candidates();
        let feasible = assessments.iter().any(|assessment| assessment.obstacle.is_none());
        match (feasible, run.phase) {
            (_, Phase::Failing | Phase::Cancelling | Phase::Ended(_)) => "nothing: its run is ending".to_owned(),
            (true, Phase::Going) => "room at a site".to_owned(),
            (false, Phase::Going) => {
                let reasons = assessments.iter().zip(&candidates).filter_map(|(assessment, candidate)| {
                    Some(format!("{}: {}", candidate.name, assessment.obstacle.as_ref()?))
                });
                let reasons: Vec<_> = reasons.collect();
                if reasons.is_empty() {
                    "a site: none is registered".to_owned()
                } else {
                    format!("a site ({})", reasons.join("; "))
                }
            }
        }
    }

    fn assess_execution(&self, run: &Run, step: StepIndex, element: u32) -> Vec<placement::Assessment> {
        let objects = self.needed_objects(run, step, element);
        let definition = run.grown_step(step, run.steps[step.index()].grown(element));
        self.assess(run, &definition, &self.candidates(), &objects, None)
    }

    /// Why an execution is where it is; for one that waits, why it is nowhere yet.
    pub fn why_execution(&self, execution: ExecutionId) -> Option<Explanation> {
        let view = self.execution(execution)?;
        let run = self.state.runs.get(&execution.run)?;
        let state = &run.steps[execution.step.index()];
        let decided = state.decisions.iter().rev().find_map(|decision| {
            let site = view.site.as_ref().and_then(|site| self.state.site_names.get(site));
            let chosen = decision.chosen.iter().filter(|(chosen, _)| site.is_none_or(|site| site == *chosen));
            let mut chosen = chosen.filter(|(_, elements)| elements.contains(execution.element));
            chosen.next().map(|(site, _)| (*site, decision))
        });
        if let Some((site, decision)) = decided.filter(|_| view.site.is_some()) {
            return Some(Explanation { chosen: self.site_known(site), sites: decision.sites.clone() });
        }
        let waits = matches!(view.state, ExecutionState::Ready | ExecutionState::Waiting);
        let sites = if waits && run.is_live() {
            let candidates = self.candidates();
            placement::verdicts(&self.assess_execution(run, execution.step, execution.element), &candidates)
        } else {
            Vec::new()
        };
        Some(Explanation { chosen: None, sites })
    }
}

pub(super) fn active_state(active: &Active) -> ExecutionState {
    match active.phase {
        ActivePhase::Placed => ExecutionState::Placed,
        ActivePhase::Dispatched => ExecutionState::Dispatched,
        ActivePhase::Running => ExecutionState::Running,
    }
}

fn some_time(at: Timestamp) -> Option<Timestamp> {
    (at != Timestamp::ZERO).then_some(at)
}
