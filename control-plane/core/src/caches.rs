//! What is computed from the state and kept because it is asked for again. Lost with the process, and never decided by.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::sync::Arc;

use atoll_model::expression::{EvaluationError, Scope, evaluate};
use atoll_model::id::{RunId, StepIndex};
use atoll_model::session::{Binding, BindingSource};
use atoll_model::value::{ObjectKind, ObjectRef, Value};
use atoll_model::workflow::Step;

use crate::fact::Items;
use crate::state::{Run, StepPhase};

#[derive(Debug, Default)]
pub(crate) struct Caches {
    runs: RefCell<BTreeMap<RunId, RunCache>>,
}

#[derive(Debug, Default)]
struct RunCache {
    /// Outputs of steps that have ended and fan out, as lists.
    lists: BTreeMap<(StepIndex, String), Value>,
    templates: BTreeMap<StepIndex, Arc<Shared>>,
}

/// What all executions of a step have in common.
#[derive(Debug, Default)]
pub(crate) struct Shared {
    pub(crate) bindings: Vec<Binding>,
    /// Objects of the bindings, and the action's bundle.
    pub(crate) objects: Vec<ObjectRef>,
    pub(crate) bytes: usize,
}

impl Caches {
    pub(crate) fn forget(&self, run: RunId) {
        self.runs.borrow_mut().remove(&run);
    }

    /// Outputs of a step have changed: it was run again.
    pub(crate) fn outputs_changed(&self, run: RunId) {
        self.forget(run);
    }

    /// The value of `item` for an element.
    pub(crate) fn item(run: &Run, step: StepIndex, element: u32) -> Option<Value> {
        match run.steps[step.index()].items.as_ref()? {
            Items::Single => None,
            Items::Range => Some(Value::Integer(i64::from(element))),
            Items::List(values) => values.get(element as usize).cloned(),
            Items::Input(name) => {
                let Value::List(values) = run.inputs.get(name)? else { return None };
                values.get(element as usize).cloned()
            }
        }
    }

    pub(crate) fn scope<'a>(&'a self, run: &'a Run) -> RunScope<'a> {
        RunScope { caches: self, run, item: None, index: None }
    }

    pub(crate) fn element_scope<'a>(&'a self, run: &'a Run, step: StepIndex, element: u32) -> RunScope<'a> {
        RunScope { caches: self, run, item: Self::item(run, step, element), index: Some(element) }
    }

    /// The inputs that all executions of a step share.
    pub(crate) fn shared(&self, run: &Run, step: StepIndex) -> Result<Arc<Shared>, EvaluationError> {
        if let Some(known) = self.runs.borrow().get(&run.id).and_then(|cache| cache.templates.get(&step)) {
            return Ok(Arc::clone(known));
        }
        let definition = run.workflow.step(step);
        let scope = self.scope(run);
        let mut shared = Shared::default();
        for name in &run.plan.steps[step.index()].template {
            shared.add(name, evaluate(&definition.bindings[name], &scope)?);
        }
        for (name, default) in given(definition) {
            shared.add(name, default.clone());
        }
        if let Some(action) = definition.work.action() {
            let bundle = |id| ObjectRef { id, kind: ObjectKind::Tree, bytes: action.bundle_bytes };
            shared.objects.extend(action.bundle.map(bundle));
        }
        shared.objects.sort_unstable();
        shared.objects.dedup();
        let shared = Arc::new(shared);
        let mut runs = self.runs.borrow_mut();
        runs.entry(run.id).or_default().templates.insert(step, Arc::clone(&shared));
        Ok(shared)
    }

    /// The inputs that a step's action gives by itself.
    pub(crate) fn given_bindings(&self, definition: &Step) -> Vec<Binding> {
        let bound = |(name, value): (&String, &Value)| Binding {
            name: name.clone(),
            source: BindingSource::Value(value.clone()),
        };
        given(definition).map(bound).collect()
    }

    /// The inputs of one execution that are not in its step's template, where their values are known.
    pub(crate) fn own(
        &self,
        run: &Run,
        step: StepIndex,
        element: u32,
    ) -> Result<Vec<(String, Value)>, EvaluationError> {
        let definition = run.workflow.step(step);
        let scope = self.element_scope(run, step, element);
        let own = run.plan.steps[step.index()].own.iter();
        own.map(|name| Ok((name.clone(), evaluate(&definition.bindings[name], &scope)?))).collect()
    }

    /// Those of them that can be told. Of a fragment, some are made by what has not ended; what else cannot be evaluated was
    /// refused when the execution was placed.
    pub(crate) fn own_so_far(&self, run: &Run, step: StepIndex, element: u32) -> Vec<Value> {
        let definition = run.workflow.step(step);
        let scope = self.element_scope(run, step, element);
        let own = run.plan.steps[step.index()].own.iter();
        own.filter_map(|name| evaluate(&definition.bindings[name], &scope).ok()).collect()
    }

    fn list(&self, run: &Run, step: StepIndex, output: &str, place: usize) -> Value {
        let key = (step, output.to_owned());
        if let Some(known) = self.runs.borrow().get(&run.id).and_then(|cache| cache.lists.get(&key)) {
            return known.clone();
        }
        let state = &run.steps[step.index()];
        let value = |element| {
            let detail = state.details.get(&element);
            detail.and_then(|detail| detail.outputs.get(place)).cloned().unwrap_or(Value::Null)
        };
        let list = Value::list((0..state.count).map(value).collect());
        self.runs.borrow_mut().entry(run.id).or_default().lists.insert(key, list.clone());
        list
    }
}

/// Defaults of the action's inputs that the step does not bind.
fn given(definition: &Step) -> impl Iterator<Item = (&String, &Value)> {
    let inputs = definition.work.action().map(|action| &action.inputs);
    let unbound = inputs.into_iter().flatten().filter(|(name, _)| !definition.bindings.contains_key(*name));
    unbound.filter_map(|(name, input)| Some((name, input.default.as_ref()?)))
}

impl Shared {
    fn add(&mut self, name: &str, value: Value) {
        value.visit_objects(&mut |object| self.objects.push(object));
        self.bytes += value_bytes(&value);
        self.bindings.push(Binding { name: name.to_owned(), source: BindingSource::Value(value) });
    }
}

/// What the expressions of a run see.
pub(crate) struct RunScope<'a> {
    caches: &'a Caches,
    run: &'a Run,
    item: Option<Value>,
    index: Option<u32>,
}

impl Scope for RunScope<'_> {
    fn input(&self, name: &str) -> Option<Value> {
        if let Some(given) = self.run.inputs.get(name) {
            return Some(given.clone());
        }
        let import = self.run.workflow.inputs.get(name)?.imported_by?;
        let output = self.run.workflow.step(import).outputs.keys().next()?;
        self.output(import, output)
    }

    fn output(&self, step: StepIndex, output: &str) -> Option<Value> {
        let definition = self.run.workflow.step(step);
        let place = definition.outputs.get_index_of(output)?;
        let state = self.run.steps.get(step.index())?;
        if state.phase == StepPhase::Skipped {
            return Some(Value::Null);
        }
        if !state.is_ended() {
            return None;
        }
        if definition.foreach.is_some() {
            return Some(self.caches.list(self.run, step, output, place));
        }
        let detail = state.details.get(&0);
        Some(detail.and_then(|detail| detail.outputs.get(place)).cloned().unwrap_or(Value::Null))
    }

    fn item(&self) -> Option<Value> {
        self.item.clone()
    }

    fn index(&self) -> Option<u32> {
        self.index
    }
}

/// Roughly how many bytes a value takes in a journal or a frame.
pub(crate) fn value_bytes(value: &Value) -> usize {
    value.stored_bytes()
}
