//! What the control plane's commands and verdicts do to the durable state.

use std::sync::Arc;

use atoll_model::elements::ElementSet;
use atoll_model::id::{Attempt, CommandSeq, ExecutionId, RunId, StepIndex};
use atoll_model::session::{Dispatch, DispatchElements, NotStartedReason, Outcome, SiteCommand, StepTemplate};
use atoll_model::time::Timestamp;

use super::{AttemptKey, Ending, Item, Part, PushOrder, Snapshot, StepKey, Terms};

impl Snapshot {
    pub(super) fn accept(&mut self, first: CommandSeq, at: Timestamp, commands: &[SiteCommand]) {
        assert_eq!(first, self.last_command.next(), "commands are accepted in their order");
        self.last_command = CommandSeq(self.last_command.0 + commands.len() as u64);
        for (number, command) in (first.0..).map(CommandSeq).zip(commands) {
            match command {
                SiteCommand::Prepare(template) => self.prepare(template),
                SiteCommand::Dispatch(dispatch) => self.dispatch(dispatch, at),
                SiteCommand::Cancel { run, step, elements, reason: _ } => {
                    self.end_items((*run, *step), elements, None, Ending::Cancelled);
                }
                SiteCommand::Push { transfer, object } => {
                    self.pushes.entry(*transfer).or_insert(PushOrder { object: *object, cancelled: false });
                }
                SiteCommand::CancelPush { transfer } => {
                    if let Some(push) = self.pushes.get_mut(transfer) {
                        push.cancelled = true;
                    }
                }
                SiteCommand::Forget { run } => self.forget(*run),
                SiteCommand::Evict { objects, .. } if !objects.is_empty() => {
                    self.evictions.insert(number, objects.clone());
                }
                SiteCommand::Verify { objects } => {
                    self.verifications.insert(number, objects.clone());
                }
                SiteCommand::Evict { .. } | SiteCommand::ProposeEviction { .. } => {}
                SiteCommand::Unknown { reason: _ } => {}
                SiteCommand::MakeReady(template) => {
                    self.ahead.insert((template.run, template.step), Arc::new((**template).clone()));
                }
                SiteCommand::Delegate(delegation) => self.delegate(delegation),
                SiteCommand::Withdraw { run, step, stop } => {
                    self.end_delegation((*run, *step), "it was withdrawn", *stop);
                }
                SiteCommand::Replicate { object, execution } => {
                    self.replicas.insert(object.id, (*object, *execution));
                }
            }
        }
    }

    pub(super) fn accept_verdicts(&mut self, cancel: &[AttemptKey], forget: &[AttemptKey]) {
        for (execution, attempt) in cancel {
            let element = ElementSet::from_range(execution.element..execution.element + 1);
            self.end_items((execution.run, execution.step), &element, Some(*attempt), Ending::Cancelled);
        }
        for (execution, attempt) in forget {
            if let Some(active) = self.active.get_mut(&(*execution, *attempt)) {
                active.forgotten = true;
            }
            let Some(step) = self.steps.get_mut(&(execution.run, execution.step)) else { continue };
            let mut waited = false;
            step.items.retain(|_, item| {
                waited |= item.attempt == *attempt && item.elements.remove(execution.element);
                !item.elements.is_empty()
            });
            if waited {
                step.ended.entry(*attempt).or_default().insert(execution.element);
            }
        }
    }

    fn prepare(&mut self, template: &StepTemplate) {
        let key = (template.run, template.step);
        let state = self.steps.entry(key).or_default();
        if state.templates.last().is_none_or(|known| **known != *template) {
            state.templates.push(Arc::new(template.clone()));
        }
    }

    fn dispatch(&mut self, dispatch: &Dispatch, at: Timestamp) {
        let key = (dispatch.run, dispatch.step);
        let state = self.steps.entry(key).or_default();
        let terms = Terms {
            template: u32::try_from(state.templates.len()).unwrap_or(u32::MAX).saturating_sub(1),
            bindings: Arc::default(),
            accepted_at: at,
            start_by: dispatch.start_by,
            fragment: dispatch.fragment,
            delegated: false,
        };
        let known = self.queue_attempt(key, dispatch.attempt, &dispatch.elements, &terms);
        let past = self.past(key, dispatch.attempt, known);
        if !past.is_empty() {
            let message = "this attempt was made here before the control plane was restored from a backup".to_owned();
            self.outbox.push(Part::Same {
                run: dispatch.run,
                step: dispatch.step,
                attempt: dispatch.attempt,
                elements: past,
                started_at: None,
                finished_at: at,
                outcome: Outcome::NotStarted { reason: NotStartedReason::AttemptKnown, message },
            });
        }
    }

    /// Those of the elements of which this attempt has ended, or a later one is known, among those of which either is known.
    /// Only a control plane that was restored from a backup (B6) gives out such an attempt: it is told, and gives out the
    /// next.
    fn past(&self, key: StepKey, attempt: Attempt, known: ElementSet) -> ElementSet {
        if known.is_empty() {
            return known;
        }
        let state = &self.steps[&key];
        let mut over = state.ended.get(&attempt).cloned().unwrap_or_default();
        state.seen.range(attempt.next()..).for_each(|(_, later)| over.insert_all(later));
        let mut past = known.intersection(&over);
        // Its end is still to be told.
        self.outbox.visit_ended(&mut |(execution, ended)| {
            if (execution.run, execution.step, ended) == (key.0, key.1, attempt) {
                past.remove(execution.element);
            }
        });
        past
    }

    /// Puts attempts at elements into the queue, and returns those for which this attempt or a later one was known: they are
    /// repeats (A2, C2).
    pub(super) fn queue_attempt(
        &mut self,
        key: StepKey,
        attempt: Attempt,
        elements: &DispatchElements,
        terms: &Terms,
    ) -> ElementSet {
        match elements {
            DispatchElements::Plain(elements) => {
                self.adopt_orphans(key, attempt, elements, |_| terms.clone());
                let (mut new, known) = self.split_known(key, attempt, elements);
                self.supersede(key, attempt, &new);
                let earlier = self.with_earlier_attempts(key, attempt, &new);
                for element in earlier.iter() {
                    self.queue(key, attempt, ElementSet::from_range(element..element + 1), terms.clone());
                }
                new.remove_all(&earlier);
                if !new.is_empty() {
                    self.queue(key, attempt, new, terms.clone());
                }
                known
            }
            DispatchElements::Bound(bound) => {
                let elements: ElementSet = bound.iter().map(|(element, _)| *element).collect();
                let own = |element: u32| {
                    let place = bound.binary_search_by_key(&element, |(element, _)| *element);
                    let bindings = place.map_or_else(|_| Vec::new(), |place| bound[place].1.clone());
                    Terms { bindings: Arc::new(bindings), ..terms.clone() }
                };
                self.adopt_orphans(key, attempt, &elements, own);
                let (new, known) = self.split_known(key, attempt, &elements);
                self.supersede(key, attempt, &new);
                for element in new.iter() {
                    self.queue(key, attempt, ElementSet::from_range(element..element + 1), own(element));
                }
                known
            }
        }
    }

    /// Those of the elements for which neither this attempt nor a later one is known, and the others.
    fn split_known(&self, key: StepKey, attempt: Attempt, elements: &ElementSet) -> (ElementSet, ElementSet) {
        let mut new = elements.clone();
        for known in self.steps[&key].seen.range(attempt..).map(|(_, known)| known) {
            new.remove_all(known);
        }
        let mut known = ElementSet::new();
        if new.len() != elements.len() {
            known = elements.clone();
            known.remove_all(&new);
        }
        (new, known)
    }

    fn queue(&mut self, key: StepKey, attempt: Attempt, elements: ElementSet, terms: Terms) {
        let order = self.take_order();
        let state = self.steps.get_mut(&key).expect("a step that is dispatched to is there");
        state.seen.entry(attempt).or_default().insert_all(&elements);
        state.items.insert(order, Item { attempt, elements, terms, ending: None });
    }

    fn adopt_orphans(
        &mut self,
        (run, step): StepKey,
        attempt: Attempt,
        elements: &ElementSet,
        terms: impl Fn(u32) -> Terms,
    ) {
        let orphans: Vec<ExecutionId> = self
            .active_of((run, step))
            .filter(|((execution, found), active)| {
                *found == attempt && active.terms.is_none() && elements.contains(execution.element)
            })
            .map(|((execution, _), _)| *execution)
            .collect();
        for execution in orphans {
            if let Some(active) = self.active.get_mut(&(execution, attempt)) {
                active.terms = Some(terms(execution.element));
                active.forgotten = false;
            }
        }
    }

    fn supersede(&mut self, key: StepKey, attempt: Attempt, elements: &ElementSet) {
        let earlier: Vec<(Attempt, ElementSet)> = self.steps[&key]
            .seen
            .range(..attempt)
            .map(|(earlier, seen)| (*earlier, seen.intersection(elements)))
            .filter(|(_, common)| !common.is_empty())
            .collect();
        for (earlier, common) in earlier {
            self.end_items(key, &common, Some(earlier), Ending::Superseded);
        }
    }

    fn with_earlier_attempts(&self, key: StepKey, attempt: Attempt, elements: &ElementSet) -> ElementSet {
        let mut earlier = ElementSet::new();
        for seen in self.steps[&key].seen.range(..attempt).map(|(_, seen)| seen) {
            earlier.insert_all(&seen.intersection(elements));
        }
        earlier
    }

    /// Marks what waits or runs of these elements (of one attempt, or of all) as having to end.
    pub(super) fn end_items(
        &mut self,
        (run, step): StepKey,
        elements: &ElementSet,
        attempt: Option<Attempt>,
        ending: Ending,
    ) {
        let of_attempt = |candidate: Attempt| attempt.is_none_or(|attempt| attempt == candidate);
        let execution = |element| ExecutionId { run, step, element };
        let range = (execution(0), Attempt(0))..=(execution(u32::MAX), Attempt(u32::MAX));
        for ((execution, candidate), active) in self.active.range_mut(range) {
            if of_attempt(*candidate) && elements.contains(execution.element) {
                active.ending = active.ending.or(Some(ending));
            }
        }
        let Some(state) = self.steps.get_mut(&(run, step)) else { return };
        let mut split = Vec::new();
        for item in state.items.values_mut().filter(|item| of_attempt(item.attempt) && item.ending.is_none()) {
            let hit = item.elements.intersection(elements);
            if hit == item.elements {
                item.ending = Some(ending);
            } else if !hit.is_empty() {
                item.elements.remove_all(&hit);
                split.push(Item { elements: hit, ending: Some(ending), ..item.clone() });
            }
        }
        for item in split {
            let order = self.take_order();
            if let Some(state) = self.steps.get_mut(&(run, step)) {
                state.items.insert(order, item);
            }
        }
    }

    fn forget(&mut self, run: RunId) {
        let steps: Vec<StepKey> =
            self.steps.range((run, StepIndex(0))..=(run, StepIndex(u16::MAX))).map(|(key, _)| *key).collect();
        for key in steps {
            self.steps.remove(&key);
        }
        self.ahead.retain(|(of, _), _| *of != run);
        for ((execution, _), active) in &mut self.active {
            active.forgotten |= execution.run == run;
        }
    }
}
