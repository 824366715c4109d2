//! How executions come back from a site without an end, and how an earlier attempt becomes the current one.

use std::sync::Arc;

use atoll_model::id::{Attempt, CommandSeq, ExecutionId, SiteId};
use atoll_model::time::Timestamp;

use super::{Active, ActivePhase, Former, State, StepPhase};
use crate::fact::{Items, ReturnCause};

impl State {
    pub(super) fn return_one(
        &mut self,
        execution: ExecutionId,
        cause: ReturnCause,
        message: &Arc<str>,
        not_before: Timestamp,
    ) {
        let active = self.deactivate(execution);
        let run = self.run_mut(execution.run);
        let step = &mut run.steps[execution.step.index()];
        let active = active.unwrap_or_else(|| {
            run.unknown -= 1;
            step.unknown.remove(&execution.element).expect("what returns was active, or its fate was unknown")
        });
        let element = execution.element;
        let same_attempt = match cause {
            ReturnCause::NeverSent | ReturnCause::InputUnavailable => true,
            ReturnCause::Failed
            | ReturnCause::Interrupted
            | ReturnCause::NotStarted
            | ReturnCause::Lost
            | ReturnCause::Withdrawn
            | ReturnCause::Resolved
            | ReturnCause::Stopped
            | ReturnCause::Refused
            | ReturnCause::OutOfMemory => false,
        };
        let untouched = same_attempt && active.attempt == Attempt::FIRST && !step.tries.contains_key(&element);
        let is_ahead = step.needs_left > 0;
        if untouched && !is_ahead {
            step.ready.insert(element);
        } else if !untouched {
            let tries = step.tries.entry(element).or_default();
            // Where an earlier attempt was adopted, later ones were given out.
            let is_used_up = !same_attempt || tries.highest > active.attempt;
            tries.highest = tries.highest.max(active.attempt);
            if is_used_up {
                tries.highest = tries.highest.next();
            }
            if !same_attempt {
                tries.last_site = Some(active.site);
                tries.last_error = Some(Arc::clone(message));
            }
            tries.failures += u32::from(matches!(cause, ReturnCause::Failed | ReturnCause::OutOfMemory));
            tries.grown += u32::from(cause == ReturnCause::OutOfMemory);
            tries.crashes += u32::from(cause == ReturnCause::Interrupted);
            tries.not_started += u32::from(cause == ReturnCause::NotStarted);
            step.again.insert(element, not_before);
        }
        if cause == ReturnCause::Lost {
            let former = Former { attempt: active.attempt, site: active.site };
            step.formers.entry(element).or_default().push(former);
        }
        if is_ahead {
            step.phase = StepPhase::Waiting;
            step.count = 0;
            step.items = None;
        }
        if cause == ReturnCause::NeverSent
            && let Some(site) = self.sites.get_mut(&active.site)
        {
            site.log.take_back(execution, &active);
        }
    }

    pub(super) fn adopt(
        &mut self,
        execution: ExecutionId,
        attempt: Attempt,
        site: SiteId,
        started_at: Option<Timestamp>,
        at: Timestamp,
    ) {
        let replaced = self.deactivate(execution);
        let run = Arc::make_mut(self.runs.get_mut(&execution.run).expect("facts name runs that exist"));
        let step = &mut run.steps[execution.step.index()];
        let element = execution.element;
        step.remove_former(element, attempt, site);
        if replaced.is_none()
            && !step.unknown.contains_key(&element)
            && let Some(tries) = step.tries.get_mut(&element)
        {
            // The attempt that it would have got next was not given out.
            tries.highest = Attempt(tries.highest.0 - 1).max(Attempt::FIRST);
        }
        step.ready.remove(element);
        step.again.remove(&element);
        if attempt > step.next_attempt(element) {
            // Given out after the time of a backup that was restored since.
            step.tries.entry(element).or_default().highest = attempt;
        }
        if step.unknown.remove(&element).is_some() {
            run.unknown -= 1;
        }
        let mut decision = 0;
        if let Some(replaced) = replaced {
            decision = replaced.decision;
            if replaced.phase != ActivePhase::Placed {
                let former = Former { attempt: replaced.attempt, site: replaced.site };
                step.formers.entry(element).or_default().push(former);
                let tries = step.tries.entry(element).or_default();
                tries.highest = tries.highest.max(replaced.attempt);
            }
        }
        if step.phase == StepPhase::Waiting {
            step.phase = StepPhase::Expanded;
            step.items = Some(Items::Single);
            step.count = 1;
        }
        let active = Active {
            attempt,
            site,
            phase: if started_at.is_some() { ActivePhase::Running } else { ActivePhase::Dispatched },
            fragment: step.needs_left > 0,
            cancelling: false,
            command: CommandSeq(0),
            decision,
            placed_at: at,
            started_at: started_at.unwrap_or_default(),
        };
        run.ahead += u32::from(active.fragment);
        let loads = u32::from(active.is_load());
        step.active.insert(element, active);
        run.active += 1;
        let load = run.load_of(execution.step, element);
        let site = self.site_mut(site);
        site.add_busy(execution.run, execution.step, 1);
        site.add_load(load, loads);
    }
}
