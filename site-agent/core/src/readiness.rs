//! Whether an item may start: its inputs, where they come from, what they still lack.

use atoll_model::action::{CUSTOM_SCRIPT, SERVICE_VARIABLE};
use atoll_model::id::{Attempt, ExecutionId, ObjectId};
use atoll_model::session::{Binding, BindingSource, NotStartedReason, StepTemplate, TemplateWork};
use atoll_model::value::{ObjectRef, Value};
use atoll_model::workflow::StartMode;

use crate::agent::Agent;
use crate::command::{StartInput, StartValue};
use crate::event::{SealedOutput, SealedValue};
use crate::queue::Waits;
use crate::room::Where;
use crate::state::{AttemptKey, Item, Standing, StepKey, Terms};

#[derive(Debug)]
pub(crate) enum Readiness {
    Ready,
    /// The objects among what it waits for, so that they can be fetched.
    Waiting(Waits, Vec<ObjectRef>),
    /// It can never start.
    Doomed(NotStartedReason, String),
}

/// Where the value of a binding comes from at present.
enum Source<'a> {
    Value(&'a Value),
    Sealed(&'a SealedOutput),
    Waits(AttemptKey),
    Doomed(NotStartedReason, String),
}

impl Agent {
    pub(crate) fn readiness(&self, step: StepKey, item: &Item) -> Readiness {
        let Some(template) = self.state.template(step, item.terms.template) else {
            return Readiness::Doomed(NotStartedReason::Impossible, "its step was never prepared".to_owned());
        };
        if let Some(reason) = self.closed() {
            return Readiness::Doomed(NotStartedReason::Closed, reason);
        }
        if let Some(reason) = self.config.policy.refuses_run(template) {
            return Readiness::Doomed(NotStartedReason::Refused, reason);
        }
        if let Some(message) = self.refuses_size(template, &item.terms) {
            return Readiness::Doomed(NotStartedReason::Impossible, message);
        }
        let mut waits = Waits::default();
        let mut missing = Vec::new();
        if let Some(element) = item.elements.first() {
            let execution = ExecutionId { run: step.0, step: step.1, element };
            waits.attempts.extend(self.state.earlier_active((execution, item.attempt)));
        }
        let need = &mut |object: ObjectRef| {
            if !self.stage.is_present(object.id) && waits.objects.insert(object.id) {
                missing.push(object);
            }
        };
        if let Some(bundle) = template.work.bundle() {
            need(bundle);
        }
        for binding in bindings(template, &item.terms) {
            match self.source(binding, commits_first(template)) {
                Source::Value(value) => value.visit_objects(need),
                Source::Sealed(_) => {}
                Source::Waits(attempt) => {
                    waits.attempts.insert(attempt);
                }
                Source::Doomed(reason, message) => return Readiness::Doomed(reason, message),
            }
        }
        if waits.is_empty() { Readiness::Ready } else { Readiness::Waiting(waits, missing) }
    }

    /// The inputs of a start whose item is ready.
    pub(crate) fn inputs(&self, template: &StepTemplate, terms: &Terms) -> Vec<StartInput> {
        bindings(template, terms)
            .map(|binding| {
                let value = match self.source(binding, commits_first(template)) {
                    Source::Value(value) => StartValue::Value(value.clone()),
                    Source::Sealed(output) => start_value(output),
                    Source::Waits(_) | Source::Doomed(..) => unreachable!("only what is ready is started"),
                };
                StartInput { name: binding.name.clone(), value }
            })
            .collect()
    }

    /// Executions whose outputs this one reads and that are not committed yet: until they are, neither is this one.
    pub(crate) fn uncommitted(&self, step: StepKey, terms: &Terms) -> Result<Vec<AttemptKey>, AttemptKey> {
        let Some(template) = self.state.template(step, terms.template) else { return Ok(Vec::new()) };
        let mut pending = Vec::new();
        for producer in bindings(template, terms).filter_map(|binding| producer(&binding.source)) {
            match self.state.standing(producer) {
                Standing::Succeeded(_) => {}
                Standing::Pending => pending.push(producer),
                Standing::Failed | Standing::Unknown => return Err(producer),
            }
        }
        Ok(pending)
    }

    /// The objects that are known of an input.
    pub(crate) fn visit_input(&self, binding: &Binding, visit: &mut dyn FnMut(ObjectId)) {
        match self.source(binding, true) {
            Source::Value(value) => value.visit_objects(&mut |object| visit(object.id)),
            Source::Sealed(_) | Source::Waits(_) | Source::Doomed(..) => {}
        }
    }

    fn source<'a>(&'a self, binding: &'a Binding, committed: bool) -> Source<'a> {
        let (execution, attempt, output) = match &binding.source {
            BindingSource::Value(value) => return Source::Value(value),
            BindingSource::Output { execution, attempt, output } => (*execution, *attempt, output),
        };
        match self.state.standing((execution, attempt)) {
            Standing::Succeeded(result) => {
                let template = self.state.template((execution.run, execution.step), result.template);
                let place =
                    template.and_then(|template| template.outputs.iter().position(|known| known.name == *output));
                match place.and_then(|place| result.outputs.get(place)) {
                    Some(value) => Source::Value(value),
                    None => Source::Doomed(
                        NotStartedReason::InputUnavailable,
                        format!("{execution} has no output {output:?}"),
                    ),
                }
            }
            Standing::Pending => {
                let sealed = self.launches.get(&(execution, attempt)).and_then(|launch| launch.sealed.as_ref());
                match sealed.and_then(|outputs| outputs.iter().find(|known| known.name == *output)) {
                    Some(output) if !committed => Source::Sealed(output),
                    Some(_) | None => Source::Waits((execution, attempt)),
                }
            }
            Standing::Failed => {
                Source::Doomed(NotStartedReason::PredecessorFailed, format!("{execution} did not succeed"))
            }
            Standing::Unknown => {
                let message = format!("{execution}, whose output it reads, was not dispatched here");
                Source::Doomed(NotStartedReason::InputUnavailable, message)
            }
        }
    }
}

/// All inputs of an execution: those of its step, then its own.
pub(crate) fn bindings<'a>(template: &'a StepTemplate, terms: &'a Terms) -> impl Iterator<Item = &'a Binding> {
    template.bindings.iter().chain(terms.bindings.iter())
}

/// Whether it may only start on outputs that are committed: what starts at most once, or publishes, must not start on bytes
/// that may yet be refused, and work that is nothing ends at once.
fn commits_first(template: &StepTemplate) -> bool {
    template.start == StartMode::AtMostOnce
        || matches!(template.work, TemplateWork::Export { .. })
        || !needs_room(template)
}

impl Agent {
    /// Why it is too large for the site, if it is.
    pub(crate) fn refuses_size(&self, template: &StepTemplate, terms: &Terms) -> Option<String> {
        let place = self.place(template, terms);
        let fits = !needs_room(template) || self.room.could_fit(&template.resources, place);
        (!fits).then(|| "it asks for more than the site, or any one node of it, has".to_owned())
    }

    /// On which nodes it may run.
    pub(crate) fn place(&self, template: &StepTemplate, terms: &Terms) -> Where {
        if is_for_home(template) {
            return Where::Home;
        }
        self.room.place(&template.resources, bindings(template, terms).any(is_script_of_job))
    }
}

/// Whether it is what an action of Ryax is to run instead of its handler, as the job of a cluster.
fn is_script_of_job(binding: &Binding) -> bool {
    binding.name == CUSTOM_SCRIPT && binding.source != BindingSource::Value(Value::Null)
}

/// Whether it can run on the agent's own machine only: images of containers are there, services listen there for what uses
/// them, and what is moved over the border of the site is moved by the agent.
pub(crate) fn is_for_home(template: &StepTemplate) -> bool {
    matches!(template.work, TemplateWork::Container { .. } | TemplateWork::Import { .. } | TemplateWork::Export { .. })
        || template.environment.iter().any(|(variable, _)| variable.starts_with(SERVICE_VARIABLE))
}

pub(crate) fn needs_room(template: &StepTemplate) -> bool {
    template.work != TemplateWork::Null
}

fn producer(source: &BindingSource) -> Option<(ExecutionId, Attempt)> {
    match source {
        BindingSource::Value(_) => None,
        BindingSource::Output { execution, attempt, .. } => Some((*execution, *attempt)),
    }
}

fn start_value(output: &SealedOutput) -> StartValue {
    match (output.seal, &output.value) {
        (Some(seal), Some(SealedValue::File { name, .. })) => {
            StartValue::Sealed { seal, name: name.clone(), directory: false }
        }
        (Some(seal), Some(SealedValue::Directory { name })) => {
            StartValue::Sealed { seal, name: name.clone(), directory: true }
        }
        (_, Some(SealedValue::Whole(value))) => StartValue::Value(value.0.clone()),
        (None, Some(SealedValue::File { .. } | SealedValue::Directory { .. })) | (_, None) => {
            StartValue::Value(Value::Null)
        }
    }
}

/// The objects of outputs that were stored: all of them are in the store now.
pub(crate) fn visit_stored(outputs: &[Value], visit: &mut dyn FnMut(ObjectId)) {
    for output in outputs {
        output.visit_objects(&mut |object| visit(object.id));
    }
}
