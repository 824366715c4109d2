//! Steps that were delegated whole: their elements, what each is handed, when one is tried again, what ends it.
//!
//! The agent decides what the control plane would have decided, with the same evaluator over the same values. Where it
//! cannot (an expression has no value, something that it would need is elsewhere) it decides nothing: it hands the step
//! back, and the control plane, which has heard the same outcomes by then, says what is wrong.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ops::Bound::{Excluded, Unbounded};

use atoll_model::elements::ElementSet;
use atoll_model::expression::{EvaluationError, Expression, Scope, evaluate, evaluate_elements};
use atoll_model::id::{Attempt, RunId, StepIndex};
use atoll_model::limits::INPUT_BYTES_MAX;
use atoll_model::session::{
    Binding, BindingSource, Delegation, DispatchElements, FinishedElement, GivenInput, Need, NeedState, Outcome,
};
use atoll_model::time::Timestamp;
use atoll_model::value::Value;
use atoll_model::workflow::OnDisconnect;

use crate::agent::{Agent, Step};
use crate::config::{FEED, FEED_LOW};
use crate::fact::Fact;
use crate::queue::Place;
use crate::state::{AttemptKey, Delegated, DelegatedPhase, Items, Snapshot, StepKey};

/// What follows when an attempt has failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum AfterFailure {
    /// Nothing that the agent would decide.
    Nothing,
    Again(Timestamp),
    /// The run: nothing more of it is started.
    Fails,
}

/// How far the needs of a delegated step are.
enum Needs {
    Open,
    Met,
    Skipped,
    /// They will not all be met here.
    Elsewhere(String),
}

/// What the elements of a step are, and the inputs that all of them share; nothing if it is skipped.
type Expansion = Option<(Items, Vec<Binding>)>;

impl Agent {
    /// After a restart everything is looked at once.
    pub(crate) fn resume_delegations(&mut self) {
        for (key, state) in &self.state.steps {
            let Some(delegated) = state.delegated.as_ref().filter(|delegated| delegated.is_live()) else { continue };
            self.expandable.insert(*key);
            self.fed.insert(*key);
            self.retries.extend(delegated.again.values().map(|(_, not_before)| (*not_before, *key)));
        }
    }

    /// Elements of a step have ended: it may be done with, and those that need it may begin.
    pub(crate) fn step_progressed(&mut self, key: StepKey, step: &mut Step) {
        let Some(state) = self.state.steps.get(&key) else { return };
        self.expandable.extend(state.readers.iter().map(|reader| (key.0, *reader)));
        let is_done = state.delegated.as_ref().is_some_and(|delegated| {
            delegated.phase == DelegatedPhase::Expanded && state.succeeded.len() == delegated.items.count()
        });
        if is_done {
            self.end_delegation(key, "done", step);
        }
    }

    /// The phase of a delegated step has changed: those that need it look at it.
    pub(crate) fn delegation_changed(&mut self, key: StepKey) {
        self.fed.remove(&key);
        self.lists.borrow_mut().remove(&key);
        if let Some(state) = self.state.steps.get(&key) {
            self.expandable.extend(state.readers.iter().map(|reader| (key.0, *reader)));
        }
    }

    /// Finds out what the elements of a delegated step are, once all that it needs has ended.
    pub(crate) fn expand(&mut self, key: StepKey, step: &mut Step) {
        let Some(delegated) = self.state.delegation(key) else { return };
        if delegated.phase != DelegatedPhase::Waiting {
            return;
        }
        let (run, index) = key;
        let terms = std::sync::Arc::clone(&delegated.terms);
        match self.needs(run, &terms) {
            Needs::Open => {}
            Needs::Skipped => {
                self.decide(step, Fact::StepSkipped { run, step: index });
                self.end_delegation(key, "it is skipped", step);
            }
            Needs::Elsewhere(reason) => self.end_delegation(key, &reason, step),
            Needs::Met => match self.expansion(key, &terms) {
                Ok(None) => {
                    self.decide(step, Fact::StepSkipped { run, step: index });
                    self.end_delegation(key, "it is skipped", step);
                }
                Ok(Some((items, bindings))) => {
                    self.decide(step, Fact::StepExpanded { run, step: index, items, bindings });
                    self.fed.insert(key);
                    self.step_progressed(key, step);
                }
                Err(reason) => self.end_delegation(key, &reason, step),
            },
        }
    }

    /// Takes up elements of delegated steps, as far as the queue runs low and a lease holds; whether it has.
    pub(crate) fn feed(&mut self, now: Timestamp, step: &mut Step) -> bool {
        if self.fed.is_empty() || self.closed().is_some() {
            return false;
        }
        let (session, work) = self.session.leases(now);
        let mut next = self.fed.first().copied();
        while let Some(key) = next {
            next = self.fed.range((Excluded(key), Unbounded)).next().copied();
            let Some(delegated) = self.state.delegation(key).filter(|d| d.phase == DelegatedPhase::Expanded) else {
                self.fed.remove(&key);
                continue;
            };
            let finishes = delegated.terms.template.on_disconnect == OnDisconnect::Finish;
            if !(session || (work && finishes)) || self.state.steps[&key].items.len() >= FEED_LOW {
                continue;
            }
            let Some((attempt, elements)) = next_elements(delegated, now) else {
                self.fed.remove(&key);
                continue;
            };
            let (run, index) = key;
            match self.bound(key, delegated, elements) {
                Ok(elements) => {
                    self.decide(step, Fact::ElementsTaken { run, step: index, attempt, elements, at: now });
                    self.notice_items(std::iter::once(key));
                }
                Err(reason) => self.end_delegation(key, &reason, step),
            }
            return true;
        }
        false
    }

    /// Nothing more of the step is started here.
    pub(crate) fn end_delegation(&mut self, key: StepKey, reason: &str, step: &mut Step) {
        let dropped = self.queued(key);
        self.decide(step, Fact::DelegationEnded { run: key.0, step: key.1, reason: reason.to_owned() });
        self.wake.extend(dropped);
        self.delegation_changed(key);
    }

    pub(crate) fn end_delegations(&mut self, run: RunId, reason: &str, step: &mut Step) {
        let live: Vec<StepKey> = self.state.delegations_of(run).map(|(key, _)| key).collect();
        for key in live {
            self.end_delegation(key, reason, step);
        }
    }

    /// A site that takes no new work hands back what it has not begun, once it can: others may have it.
    pub(crate) fn hand_back_if_closed(&mut self, step: &mut Step) {
        if let Some(reason) = self.closed().filter(|_| self.session.is_online()) {
            self.hand_back(&reason, step);
        }
    }

    /// Ends all delegations; what has begun goes on.
    pub(crate) fn hand_back(&mut self, reason: &str, step: &mut Step) {
        let runs: std::collections::BTreeSet<RunId> = self.state.steps.keys().map(|(run, _)| *run).collect();
        for run in runs {
            self.end_delegations(run, reason, step);
        }
    }

    /// What of a step waits in the queue.
    pub(crate) fn queued(&self, key: StepKey) -> Vec<Place> {
        self.state.steps.get(&key).into_iter().flat_map(|state| state.items.keys()).map(|order| (*order, key)).collect()
    }

    /// What follows from how an attempt, which is still active, has ended.
    pub(crate) fn after_failure(&self, (execution, attempt): AttemptKey, ended: &FinishedElement) -> AfterFailure {
        let Outcome::Failed { .. } = ended.outcome else { return AfterFailure::Nothing };
        let active = &self.state.active[&(execution, attempt)];
        let by_itself = active.terms.as_ref().is_some_and(|terms| terms.delegated);
        let Some(delegated) = self.state.delegation((execution.run, execution.step)).filter(|_| by_itself) else {
            return AfterFailure::Nothing;
        };
        let (retry, first) = (&delegated.terms.retry, delegated.terms.attempt);
        match retry.after_failure(attempt.0.saturating_sub(first.0)) {
            None => AfterFailure::Fails,
            Some(_) if retry.other_site || active.ending.is_some() || active.forgotten => AfterFailure::Nothing,
            Some(delay) => AfterFailure::Again(ended.finished_at + delay),
        }
    }

    fn needs(&self, run: RunId, terms: &Delegation) -> Needs {
        let mut open = false;
        for need in &terms.needs {
            let state = self.state.steps.get(&(run, need.step));
            match &need.state {
                NeedState::Ended { .. } => {}
                NeedState::Dispatched { count } => {
                    let Some(state) = state else { return elsewhere(need) };
                    let mut missing = ElementSet::from_range(0..*count);
                    missing.remove_all(&state.succeeded);
                    open |= !missing.is_empty();
                    state.seen.values().for_each(|seen| missing.remove_all(seen));
                    if !missing.is_empty() {
                        return elsewhere(need);
                    }
                }
                NeedState::Delegated => match state.and_then(|state| state.delegated.as_ref()).map(|d| d.phase) {
                    Some(DelegatedPhase::Waiting | DelegatedPhase::Expanded) => open = true,
                    Some(DelegatedPhase::Skipped) => return Needs::Skipped,
                    Some(DelegatedPhase::Done) => {}
                    Some(DelegatedPhase::HandedBack) | None => return elsewhere(need),
                },
            }
        }
        if open { Needs::Open } else { Needs::Met }
    }

    /// What the control plane would come to once all that the step needs has ended.
    fn expansion(&self, key: StepKey, terms: &Delegation) -> Result<Expansion, String> {
        let scope = self.scope(key, terms);
        if let Some(when) = &terms.when {
            let Value::Boolean(holds) = evaluate(when, &scope).map_err(at_place)? else {
                return Err("`when` gives neither true nor false".to_owned());
            };
            if !holds {
                return Ok(None);
            }
        }
        let items = match &terms.foreach {
            Some(foreach) => evaluate_elements(foreach, &scope).map_err(at_place)?.into(),
            None => Items::Single,
        };
        Ok(Some((items, bindings(&terms.shared, &scope)?)))
    }

    /// The elements, with their inputs where those differ.
    fn bound(&self, key: StepKey, delegated: &Delegated, elements: ElementSet) -> Result<DispatchElements, String> {
        if delegated.terms.own.is_empty() {
            return Ok(DispatchElements::Plain(elements));
        }
        let mut scope = self.scope(key, &delegated.terms);
        let mut bound = Vec::with_capacity(elements.len() as usize);
        for element in elements.iter() {
            (scope.item, scope.index) = (delegated.items.get(element), Some(element));
            bound.push((element, bindings(&delegated.terms.own, &scope)?));
        }
        Ok(DispatchElements::Bound(bound))
    }

    fn scope<'a>(&'a self, key: StepKey, terms: &'a Delegation) -> SiteScope<'a> {
        SiteScope { state: &self.state, lists: &self.lists, key, terms, item: None, index: None }
    }
}

/// The next attempts that may be taken up together.
fn next_elements(delegated: &Delegated, now: Timestamp) -> Option<(Attempt, ElementSet)> {
    let mut due = delegated.again.iter().filter(|(_, (_, not_before))| *not_before <= now);
    if let Some((element, (attempt, _))) = due.next() {
        return Some((*attempt, std::iter::once(*element).collect()));
    }
    let most = if delegated.terms.own.is_empty() { u32::MAX } else { FEED };
    let elements = delegated.ready.clone().take_first(most);
    (!elements.is_empty()).then_some((delegated.terms.attempt, elements))
}

fn bindings(expressions: &[(String, Expression)], scope: &SiteScope<'_>) -> Result<Vec<Binding>, String> {
    let mut bytes = 0;
    let mut bindings = Vec::with_capacity(expressions.len());
    for (name, expression) in expressions {
        let value = evaluate(expression, scope).map_err(at_place)?;
        bytes += value.stored_bytes();
        bindings.push(Binding { name: name.clone(), source: BindingSource::Value(value) });
    }
    if bytes > INPUT_BYTES_MAX {
        return Err(format!("its inputs come to {bytes} bytes, more than can be handed over"));
    }
    Ok(bindings)
}

fn elsewhere(need: &Need) -> Needs {
    Needs::Elsewhere(format!("step {}, which it needs, goes on elsewhere", need.step))
}

fn at_place(error: EvaluationError) -> String {
    format!("{}:{}: {}", error.place.line, error.place.column, error.message)
}

pub(crate) type Lists = RefCell<BTreeMap<StepKey, BTreeMap<(StepIndex, String), Value>>>;

/// What the expressions of a delegated step see.
struct SiteScope<'a> {
    state: &'a Snapshot,
    lists: &'a Lists,
    key: StepKey,
    terms: &'a Delegation,
    item: Option<Value>,
    index: Option<u32>,
}

impl SiteScope<'_> {
    /// An output of an execution that has succeeded here.
    fn value(&self, step: StepIndex, element: u32, output: &str) -> Value {
        let Some(state) = self.state.steps.get(&(self.key.0, step)) else { return Value::Null };
        let mut results = state.results.range((element, Attempt(0))..=(element, Attempt(u32::MAX)));
        let Some((_, result)) = results.next() else { return Value::Null };
        let template = state.templates.get(result.template as usize);
        let place = template.and_then(|template| template.outputs.iter().position(|known| known.name == output));
        place.and_then(|place| result.outputs.get(place)).cloned().unwrap_or(Value::Null)
    }

    fn list(&self, step: StepIndex, count: u32, output: &str) -> Value {
        let name = (step, output.to_owned());
        let mut lists = self.lists.borrow_mut();
        let known = lists.entry(self.key).or_default();
        known
            .entry(name)
            .or_insert_with(|| Value::list((0..count).map(|element| self.value(step, element, output)).collect()))
            .clone()
    }
}

impl Scope for SiteScope<'_> {
    fn input(&self, name: &str) -> Option<Value> {
        let (_, given) = self.terms.inputs.iter().find(|(known, _)| known == name)?;
        match given {
            GivenInput::Value(value) => Some(value.clone()),
            GivenInput::Output { step, output } => self.output(*step, output),
        }
    }

    fn output(&self, step: StepIndex, output: &str) -> Option<Value> {
        let need = self.terms.needs.iter().find(|need| need.step == step)?;
        let count = match &need.state {
            NeedState::Ended { outputs } => {
                return outputs.iter().find(|(known, _)| known == output).map(|(_, value)| value.clone());
            }
            NeedState::Dispatched { count } => *count,
            NeedState::Delegated => self.state.steps.get(&(self.key.0, step))?.delegated.as_ref()?.items.count(),
        };
        Some(if need.fans_out { self.list(step, count, output) } else { self.value(step, 0, output) })
    }

    fn item(&self) -> Option<Value> {
        self.item.clone()
    }

    fn index(&self) -> Option<u32> {
        self.index
    }
}
