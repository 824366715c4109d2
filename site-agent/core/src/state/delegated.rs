//! Steps that were delegated whole: what is known of them, and how facts about them change it.

use std::collections::BTreeMap;
use std::sync::Arc;

use atoll_model::elements::ElementSet;
use atoll_model::expression::Elements;
use atoll_model::id::{Attempt, StepIndex};
use atoll_model::session::{Binding, Delegation, DispatchElements, FinishedElement, Report};
use atoll_model::time::Timestamp;
use atoll_model::value::Value;
use serde::{Deserialize, Serialize};

use super::{Ending, Part, Snapshot, StepKey, Terms};

/// What the elements of a delegated step are.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Items {
    /// The step does not fan out.
    Single,
    /// The integers from 0.
    Range {
        count: u32,
    },
    List(Arc<Vec<Value>>),
}

impl Items {
    pub(crate) fn count(&self) -> u32 {
        match self {
            Self::Single => 1,
            Self::Range { count } => *count,
            Self::List(values) => u32::try_from(values.len()).unwrap_or(u32::MAX),
        }
    }

    /// The value of `item` for an element.
    pub(crate) fn get(&self, element: u32) -> Option<Value> {
        match self {
            Self::Single => None,
            Self::Range { count } => (element < *count).then(|| Value::Integer(i64::from(element))),
            Self::List(values) => values.get(element as usize).cloned(),
        }
    }
}

impl From<Elements> for Items {
    fn from(elements: Elements) -> Self {
        match elements {
            Elements::Range { count } => Self::Range { count },
            Elements::List(values) => Self::List(values),
        }
    }
}

/// A delegated step. Elements that were not given out are a set, whatever their number.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Delegated {
    pub(crate) terms: Arc<Delegation>,
    pub(crate) phase: Phase,
    pub(crate) items: Items,
    /// The template with the inputs that all elements share, by its place among those of the step.
    template: u32,
    /// Elements whose first attempt was not taken up.
    pub(crate) ready: ElementSet,
    /// Elements that are to be tried again: the attempt, and when it may begin.
    pub(crate) again: BTreeMap<u32, (Attempt, Timestamp)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Phase {
    /// What it needs has not ended.
    Waiting,
    Expanded,
    Skipped,
    /// All its elements have succeeded here.
    Done,
    /// The control plane goes on with it.
    HandedBack,
}

impl Delegated {
    /// Whether the agent still goes on with it.
    pub(crate) fn is_live(&self) -> bool {
        matches!(self.phase, Phase::Waiting | Phase::Expanded)
    }
}

impl Snapshot {
    pub(super) fn delegate(&mut self, delegation: &Delegation) {
        let key = (delegation.template.run, delegation.template.step);
        let state = self.steps.entry(key).or_default();
        // The control plane delegates a step once, unless it was restored from a backup (B6): it may give an attempt again
        // that was handed back to what it was before.
        if state.delegated.as_ref().is_some_and(|known| known.is_live() && known.terms.attempt >= delegation.attempt) {
            return;
        }
        state.delegated = Some(Box::new(Delegated {
            terms: Arc::new(delegation.clone()),
            phase: Phase::Waiting,
            items: Items::Single,
            template: 0,
            ready: ElementSet::new(),
            again: BTreeMap::new(),
        }));
        let is_past = state.seen.range(delegation.attempt..).any(|(_, seen)| !seen.is_empty());
        for need in &delegation.needs {
            self.steps.entry((key.0, need.step)).or_default().readers.insert(key.1);
        }
        if is_past {
            // Its attempts were made here before that: the control plane has to name others.
            self.end_delegation(key, "it was tried here before the control plane was restored from a backup", false);
        }
    }

    pub(super) fn expand(&mut self, key: StepKey, items: &Items, bindings: &[Binding]) {
        let state = self.steps.get_mut(&key).expect("what is expanded was delegated");
        let delegated = state.delegated.as_mut().expect("what is expanded was delegated");
        let mut template = delegated.terms.template.clone();
        template.bindings.extend_from_slice(bindings);
        delegated.phase = Phase::Expanded;
        delegated.items = items.clone();
        delegated.ready = ElementSet::from_range(0..items.count());
        delegated.template = u32::try_from(state.templates.len()).unwrap_or(u32::MAX);
        state.templates.push(Arc::new(template));
    }

    pub(super) fn skip(&mut self, key: StepKey) {
        if let Some(delegated) = self.steps.get_mut(&key).and_then(|state| state.delegated.as_mut()) {
            delegated.phase = Phase::Skipped;
        }
    }

    pub(super) fn take_elements(&mut self, key: StepKey, attempt: Attempt, elements: &DispatchElements, at: Timestamp) {
        let state = self.steps.get_mut(&key).expect("what is taken up was delegated");
        let delegated = state.delegated.as_mut().expect("what is taken up was delegated");
        let mut take = |element| {
            delegated.again.remove(&element);
        };
        match elements {
            DispatchElements::Plain(set) => {
                set.iter().for_each(&mut take);
                delegated.ready.remove_all(set);
            }
            DispatchElements::Bound(bound) => {
                bound.iter().for_each(|(element, _)| take(*element));
                bound.iter().for_each(|(element, _)| {
                    delegated.ready.remove(*element);
                });
            }
        }
        let terms = Terms {
            template: delegated.template,
            bindings: Arc::default(),
            accepted_at: at,
            start_by: None,
            fragment: true,
            delegated: true,
        };
        self.queue_attempt(key, attempt, elements, &terms);
    }

    /// The attempt failed, and the agent makes the next one.
    pub(super) fn retry(&mut self, key: StepKey, element: &FinishedElement, not_before: Timestamp) {
        let execution = crate::agent::execution(key, element.element);
        self.active.remove(&(execution, element.attempt)).expect("what finishes was started");
        let state = self.steps.entry(key).or_default();
        state.ended.entry(element.attempt).or_default().insert(element.element);
        if let Some(delegated) = &mut state.delegated {
            delegated.again.insert(element.element, (element.attempt.next(), not_before));
        }
        let (run, step) = key;
        self.outbox.push(Part::Other(Box::new(Report::Retried { run, step, elements: vec![element.clone()] })));
    }

    /// Nothing more of the step is started under its delegation. What was taken up and not started never was.
    pub(super) fn end_delegation(&mut self, key: StepKey, reason: &str, stop: bool) {
        let mut kept: BTreeMap<Attempt, ElementSet> = BTreeMap::new();
        for ((execution, attempt), active) in self.active_of(key) {
            if !active.forgotten && active.terms.as_ref().is_some_and(|terms| terms.delegated) {
                kept.entry(*attempt).or_default().insert(execution.element);
            }
        }
        if let Some(state) = self.steps.get_mut(&key)
            && let Some(delegated) = &mut state.delegated
        {
            delegated.phase = match delegated.phase {
                Phase::Expanded if state.succeeded.len() == delegated.items.count() => Phase::Done,
                Phase::Waiting | Phase::Expanded => Phase::HandedBack,
                ended @ (Phase::Skipped | Phase::Done | Phase::HandedBack) => ended,
            };
            delegated.ready = ElementSet::new();
            delegated.again.clear();
            let seen = &mut state.seen;
            state.items.retain(|_, item| {
                let drop = item.terms.delegated && item.ending.is_none();
                if drop && let Some(seen) = seen.get_mut(&item.attempt) {
                    seen.remove_all(&item.elements);
                }
                !drop
            });
        }
        let ((run, step), reason, kept) = (key, reason.to_owned(), kept.into_iter().collect());
        self.outbox.push(Part::Other(Box::new(Report::DelegationEnded { run, step, kept, reason })));
        if stop {
            self.end_items(key, &ElementSet::from_range(0..u32::MAX), None, Ending::Cancelled);
        }
    }

    /// Live delegations of a run.
    pub(crate) fn delegations_of(&self, run: atoll_model::id::RunId) -> impl Iterator<Item = (StepKey, &Delegated)> {
        self.steps.range((run, StepIndex(0))..=(run, StepIndex(u16::MAX))).filter_map(|(key, state)| {
            let delegated = state.delegated.as_deref().filter(|delegated| delegated.is_live())?;
            Some((*key, delegated))
        })
    }

    /// The delegation of a step, while the agent goes on with it.
    pub(crate) fn delegation(&self, key: StepKey) -> Option<&Delegated> {
        self.steps.get(&key)?.delegated.as_deref().filter(|delegated| delegated.is_live())
    }
}
