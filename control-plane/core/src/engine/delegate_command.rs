//! The command that delegates a step: made when it is sent, from what is known by then.

use std::collections::BTreeSet;

use atoll_model::expression::{Expression, Form, Scope};
use atoll_model::id::StepIndex;
use atoll_model::session::{Delegation, GivenInput, Need, NeedState, SiteCommand, StepTemplate};
use atoll_model::workflow::Step;

use crate::caches::value_bytes;
use crate::control_plane::ControlPlane;
use crate::state::{Run, StepPhase};

impl ControlPlane {
    /// The whole of a delegation, and roughly how long it is.
    pub(super) fn delegation_command(&self, run: &Run, step: StepIndex) -> (SiteCommand, usize) {
        let Some(delegated) = self.state.delegation(run.id, step) else {
            // Taken back before it was sent: the agent has nothing of it, and says so.
            return (SiteCommand::Withdraw { run: run.id, step, stop: false }, 32);
        };
        let definition = run.workflow.step(step);
        let (template, mut bytes) = self.bare_template(run, step);
        let bindings = self.caches.given_bindings(definition);
        let (needs, inputs) = self.delegated_values(run, step);
        let outputs = needs.iter().filter_map(|need| match &need.state {
            NeedState::Ended { outputs } => Some(outputs.iter().map(|(_, value)| value_bytes(value)).sum::<usize>()),
            NeedState::Dispatched { .. } | NeedState::Delegated => None,
        });
        bytes += outputs.sum::<usize>() + 1_024;
        let pairs = definition.bindings.iter().map(|(name, value)| (name.clone(), value.clone()));
        let (own, shared) = pairs.partition(|(_, value)| reads_element(value));
        let delegation = Delegation {
            template: StepTemplate { bindings, ..template },
            attempt: delegated.attempt,
            retry: definition.retry.clone(),
            needs,
            inputs,
            when: definition.when.clone(),
            foreach: definition.foreach.clone(),
            shared,
            own,
        };
        (SiteCommand::Delegate(Box::new(delegation)), bytes)
    }

    /// What is known of the steps that a step needs, and the inputs that its expressions read.
    pub(super) fn delegated_values(&self, run: &Run, step: StepIndex) -> (Vec<Need>, Vec<(String, GivenInput)>) {
        let definition = run.workflow.step(step);
        let scope = self.caches.scope(run);
        let read: BTreeSet<StepIndex> =
            expressions(definition).flat_map(|expression| expression.reads_steps.iter().copied()).collect();
        let need = |need: &StepIndex| {
            let (state, needed) = (&run.steps[need.index()], run.workflow.step(*need));
            let is_live = self.state.delegation(run.id, *need).is_some();
            let known = if is_live || state.phase != StepPhase::Expanded {
                NeedState::Delegated
            } else if state.is_ended() {
                let names = needed.outputs.keys().filter(|_| read.contains(need));
                let outputs = names.filter_map(|name| Some((name.clone(), scope.output(*need, name)?)));
                NeedState::Ended { outputs: outputs.collect() }
            } else {
                NeedState::Dispatched { count: state.count }
            };
            Need { step: *need, fans_out: needed.foreach.is_some(), state: known }
        };
        let names: BTreeSet<&String> =
            expressions(definition).flat_map(|expression| &expression.reads_inputs).collect();
        let input = |name: &String| {
            if let Some(value) = run.inputs.get(name) {
                return Some((name.clone(), GivenInput::Value(value.clone())));
            }
            let step = run.workflow.inputs.get(name)?.imported_by?;
            let output = run.workflow.step(step).outputs.keys().next()?.clone();
            Some((name.clone(), GivenInput::Output { step, output }))
        };
        (definition.needs.iter().map(need).collect(), names.into_iter().filter_map(input).collect())
    }
}

fn expressions(step: &Step) -> impl Iterator<Item = &Expression> {
    step.bindings.values().chain(&step.when).chain(&step.foreach)
}

fn reads_element(expression: &Expression) -> bool {
    expression.reads_item || matches!(expression.form, Form::Item | Form::Index)
}
