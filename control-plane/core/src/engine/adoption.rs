//! What an agent says it has, against what it should have.
//!
//! The rule for each item: the current attempt goes on; one that was given away is taken back if its replacement has not
//! started, and is stopped if it has; what nobody needs is forgotten. The rule for what is missing: a command up to the
//! last one in the agent's journal was there, so an attempt that it dispatched and that the agent does not name is gone
//! without an outcome. Whether it ran is not known, so it gets another attempt, or its fate is unknown if it must not
//! start twice. Later commands are sent again. With a new journal, the inventory is the whole truth about everything that
//! was ever sent.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use atoll_model::elements::ElementSet;
use atoll_model::id::{Attempt, ExecutionId, RunId, SiteId, StepIndex};
use atoll_model::session::{ControlBody, Inventory, InventoryItem, LocalState, PushFailure, Verdict};
use atoll_model::time::Timestamp;

use super::dispatch::Assignment;
use super::outcomes::is_bound_to_accepted;
use crate::control_plane::ControlPlane;
use crate::fact::Fact;
use crate::plan::in_order;
use crate::sessions::SessionPhase;
use crate::state::{Active, ActivePhase, Phase, StepPhase};

impl ControlPlane {
    pub(crate) fn inventory(&mut self, site: SiteId, Inventory { items, last_report }: Inventory) {
        let session = self.sessions.by_site.get_mut(&site).expect("frames are heard in sessions");
        if session.phase != SessionPhase::AwaitingInventory {
            return;
        }
        session.phase = SessionPhase::Draining;
        // What the welcome ended at the agent is not to be taken for what is given out from now on.
        session.drained_at = session.drained_at.max(last_report);
        let (connection, epoch, restarted) = (session.connection, session.epoch, session.restarted);
        let agent = session.agent;
        let in_journal = session.sent;
        if restarted {
            // A new journal knows of no delegation; what of one runs there is what was given away.
            self.give_away_delegations(site, true);
        }
        // First, so that what waited for something missing is taken back before it is judged.
        let named: BTreeSet<_> = items.iter().map(|item| (item.execution, item.attempt)).collect();
        self.give_up_missing(site, in_journal, &named);
        let mut verdicts = vec![Verdict::Forget; items.len()];
        for place in self.in_order_of_steps(&items) {
            verdicts[place] = self.verdict(site, &items[place]);
        }
        self.forget_unknown_runs(site, &items);
        if restarted {
            self.forget_stopped(site, &items, &mut verdicts);
            self.give_up_unbound(site, &items, &mut verdicts);
            self.record(Fact::InventoryHeard { agent });
            self.send_again(site, &items, &verdicts);
        }
        self.send(connection, site, epoch, ControlBody::Verdicts(verdicts));
        self.agenda.touched.insert(site);
        self.ready_if_drained(site);
    }

    /// Places of the items, such that what an execution waits for comes before it.
    fn in_order_of_steps(&self, items: &[InventoryItem]) -> Vec<usize> {
        let mut ranks: BTreeMap<RunId, BTreeMap<StepIndex, usize>> = BTreeMap::new();
        for item in items {
            let run = item.execution.run;
            if let Some(known) = self.state.runs.get(&run) {
                ranks.entry(run).or_insert_with(|| in_order(&known.workflow).into_iter().zip(0..).collect());
            }
        }
        let rank = |place: &usize| {
            let execution = items[*place].execution;
            ranks.get(&execution.run).and_then(|steps| steps.get(&execution.step)).copied()
        };
        let mut places: Vec<_> = (0..items.len()).collect();
        places.sort_by_key(|place| (items[*place].execution.run, rank(place)));
        places
    }

    fn verdict(&mut self, site: SiteId, item: &InventoryItem) -> Verdict {
        let ExecutionId { run, step, element } = item.execution;
        let Some(known) = self.state.runs.get(&run).filter(|run| run.is_live()) else { return Verdict::Forget };
        let Some(state) = known.steps.get(step.index()) else { return Verdict::Forget };
        let is_this = |active: &Active| active.attempt == item.attempt && active.site == site;
        if let Some(active) = state.active.get(&element).filter(|active| is_this(active)) {
            let stop = active.cancelling || known.phase == Phase::Cancelling;
            return if stop && item.state != LocalState::Finished { Verdict::Cancel } else { Verdict::Keep };
        }
        let started_at = match item.state {
            LocalState::Accepted => None,
            LocalState::Running | LocalState::Finished => Some(self.now),
        };
        if state.unknown.get(&element).is_some_and(is_this) {
            if known.is_going_on() {
                self.adopt_attempt(item.execution, item.attempt, site, started_at);
            }
            return Verdict::Keep;
        }
        if let Some(delegated) = self.state.delegation(run, step).filter(|delegated| delegated.site == site)
            && item.attempt >= delegated.attempt
            && !delegated.back.contains(element)
            && state.row(element).is_none()
        {
            // Given out by the agent itself; nothing was heard of it yet.
            if item.state != LocalState::Accepted {
                self.take_reported(site, run, step, std::iter::once((element, item.attempt)));
            }
            return Verdict::Keep;
        }
        let is_former = self.is_former(item.execution, item.attempt, site);
        if self.is_judged_later(site, item) {
            let session = self.sessions.by_site.get_mut(&site).expect("inventories are heard in sessions");
            session.judged_later.push(item.clone());
            return Verdict::Keep;
        }
        if !is_former && let Some(verdict) = self.verdict_on_news(site, item) {
            return verdict;
        }
        let known = self.state.run(run);
        let state = &known.steps[step.index()];
        if !is_former || !known.is_going_on() {
            return if item.state == LocalState::Finished { Verdict::Keep } else { Verdict::Forget };
        }
        // At one site a later attempt begins when the earlier one has ended, of which its report may not have come yet.
        let is_before = |active: &Active| active.site == site && active.attempt < item.attempt;
        let replacement = state.active.get(&element).filter(|active| !is_before(active));
        let replacement_started = replacement.is_some_and(|active| active.phase == ActivePhase::Running);
        let is_placed = state.active.contains_key(&element);
        let is_open = state.row(element).is_none();
        let adoptable = match item.state {
            // Not started either: whoever has it now keeps it.
            LocalState::Accepted => is_open && !is_placed,
            LocalState::Running | LocalState::Finished => is_open && !replacement_started,
        };
        if adoptable && self.can_go_on(run, step, element, item.attempt, site) {
            self.adopt_attempt(item.execution, item.attempt, site, started_at);
            return Verdict::Keep;
        }
        match item.state {
            LocalState::Finished => Verdict::Keep,
            LocalState::Running if is_open => Verdict::Cancel,
            LocalState::Running | LocalState::Accepted => Verdict::Forget,
        }
    }

    /// Whether what an attempt was bound to was accepted, or goes on at the same site.
    fn can_go_on(&self, run: RunId, step: StepIndex, element: u32, attempt: Attempt, site: SiteId) -> bool {
        let execution = ExecutionId { run, step, element };
        if let Some(former) = self.state.former_delegation(execution, attempt, site) {
            return former.is_adoptable;
        }
        let run = self.state.run(run);
        if run.steps[step.index()].phase == StepPhase::Cancelled {
            return false;
        }
        let bound = run.steps[step.index()].bound.get(&attempt);
        is_bound_to_accepted(run, step, attempt)
            || bound.is_none_or(|bound| {
                bound.iter().all(|(need, attempt)| {
                    let needed = &run.steps[need.index()];
                    let goes_on = needed.active.get(&0).is_some_and(|a| a.attempt == *attempt && a.site == site);
                    let ended = needed.row(0).is_some_and(|row| row.attempt == *attempt);
                    goes_on || ended
                })
            })
    }

    /// Whether an attempt was given away while this site may still have it.
    pub(crate) fn is_former(&self, execution: ExecutionId, attempt: Attempt, site: SiteId) -> bool {
        let run = self.state.run(execution.run);
        let state = &run.steps[execution.step.index()];
        let of_delegation = || {
            let is_element = state.phase == StepPhase::Expanded && execution.element < state.count;
            is_element && self.state.former_delegation(execution, attempt, site).is_some()
        };
        state.former(execution.element, attempt, site) || of_delegation()
    }

    /// Whether the outcome of such an attempt can count: it read what was accepted. Since a backup was restored nothing else
    /// was given out, and what came before it is taken in.
    pub(crate) fn is_adoptable(&self, execution: ExecutionId, attempt: Attempt, site: SiteId) -> bool {
        match self.state.former_delegation(execution, attempt, site) {
            Some(former) => former.is_adoptable || self.state.catching_up.contains(&site),
            None => is_bound_to_accepted(self.state.run(execution.run), execution.step, attempt),
        }
    }

    /// Makes an attempt that was given away the current one, and stops the one that has replaced it.
    pub(crate) fn adopt_attempt(
        &mut self,
        execution: ExecutionId,
        attempt: Attempt,
        site: SiteId,
        started_at: Option<Timestamp>,
    ) {
        let replaced = self.state.active(execution).cloned();
        self.agenda.unwant(execution);
        if let Some(replaced) = &replaced
            && replaced.phase != ActivePhase::Placed
            && !replaced.cancelling
            // What is cancelled at a site is the element, whichever attempt at it is there.
            && (replaced.site != site || replaced.attempt > attempt)
        {
            let reason: Arc<str> = Arc::from("an earlier attempt was further");
            let elements = std::iter::once(execution.element).collect();
            self.order_cancel(replaced.site, execution.run, execution.step, elements, &reason);
        }
        self.record(Fact::AttemptAdopted { execution, attempt, site, started_at, at: self.now });
        self.tolerate(execution.run, execution.step);
        if let Some(replaced) = replaced {
            self.agenda.has_room(replaced.site);
            self.withdraw_successors(execution.run, execution.step);
        }
        self.want(site, execution);
    }

    /// What the agent should have and does not name is gone.
    fn give_up_missing(
        &mut self,
        site: SiteId,
        in_journal: atoll_model::id::CommandSeq,
        named: &BTreeSet<(ExecutionId, Attempt)>,
    ) {
        let busy: Vec<_> = self.state.site(site).busy.keys().copied().collect();
        let mut returned = Vec::new();
        for (run, step) in busy {
            let missing = self.active_at(site, run, step, |element, active| {
                active.phase != ActivePhase::Placed
                    && active.command <= in_journal
                    && !named.contains(&(ExecutionId { run, step, element }, active.attempt))
            });
            if !missing.is_empty() {
                self.return_from(site, run, step, &missing, "the agent has no trace of it");
                returned.push((run, step));
            }
        }
        self.after_returns(&returned);
    }

    /// With a new journal an agent cannot collect what it is to stop, and nobody waits for it: it is forgotten instead.
    fn forget_stopped(&mut self, site: SiteId, items: &[InventoryItem], verdicts: &mut [Verdict]) {
        for (item, verdict) in items.iter().zip(verdicts).filter(|(_, verdict)| **verdict == Verdict::Cancel) {
            *verdict = Verdict::Forget;
            let ExecutionId { run, step, element } = item.execution;
            let active = self.state.active(item.execution);
            if active.is_some_and(|active| active.attempt == item.attempt && active.site == site) {
                let elements = std::iter::once(element).collect();
                self.return_from(site, run, step, &elements, "it was to be stopped");
            }
        }
    }

    /// What ran on outputs of an attempt of which a new journal has no trace cannot be told again what it reads: it is run
    /// anew after what it waits for.
    fn give_up_unbound(&mut self, site: SiteId, items: &[InventoryItem], verdicts: &mut [Verdict]) {
        let mut returned = Vec::new();
        for (item, verdict) in items.iter().zip(verdicts).filter(|(_, verdict)| **verdict == Verdict::Keep) {
            let ExecutionId { run, step, element } = item.execution;
            let active = self.state.active(item.execution).filter(|active| active.attempt == item.attempt);
            let ahead = active.is_some_and(|active| active.site == site && active.fragment);
            if ahead && item.state != LocalState::Finished && !self.can_go_on(run, step, element, item.attempt, site) {
                *verdict = Verdict::Forget;
                let elements = std::iter::once(element).collect();
                self.return_from(site, run, step, &elements, "the agent has no trace of what it waits for");
                returned.push((run, step));
            }
        }
        self.after_returns(&returned);
    }

    /// A new journal knows neither templates nor inputs nor pushes: what goes on is told again, under the same attempts.
    fn send_again(&mut self, site: SiteId, items: &[InventoryItem], verdicts: &[Verdict]) {
        let mut kept: BTreeMap<(RunId, StepIndex, Attempt, u32, bool), ElementSet> = BTreeMap::new();
        for (item, _) in items.iter().zip(verdicts).filter(|(_, verdict)| **verdict == Verdict::Keep) {
            let ExecutionId { run, step, element } = item.execution;
            let active = self.state.active(item.execution).filter(|active| active.attempt == item.attempt);
            let Some(active) = active.filter(|active| active.site == site && item.state != LocalState::Finished) else {
                continue;
            };
            let key = (run, step, item.attempt, active.decision, active.fragment);
            kept.entry(key).or_default().insert(element);
        }
        for ((run, step, attempt, decision, fragment), elements) in kept {
            self.dispatch(Assignment { run, step, attempt, site, decision }, elements, fragment);
        }
        let pushes: Vec<_> = self.state.transfers.iter().filter(|(_, transfer)| transfer.site == site).collect();
        let pushes: Vec<_> = pushes.into_iter().map(|(id, transfer)| (*id, transfer.clone())).collect();
        for (transfer, known) in pushes {
            if known.cancelled {
                self.end_push(transfer, known.object.id, PushFailure::Cancelled, "the agent has a new journal");
                continue;
            }
            self.record(Fact::PushOrdered {
                transfer,
                object: known.object,
                site,
                run: known.run,
                for_execution: known.for_execution,
                rule: known.rule,
                at: known.ordered_at,
            });
        }
        self.order_copies_again(site);
    }
}
