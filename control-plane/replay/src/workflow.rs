//! A trace as a workflow: a step for each task, an output for each file that another task reads.

use std::collections::BTreeMap;
use std::sync::Arc;

use atoll_model::diagnostic::Place;
use atoll_model::expression::{Expression, Form};
use atoll_model::id::{ObjectId, StepIndex};
use atoll_model::placement::SiteSelector;
use atoll_model::resources::Resources;
use atoll_model::value::{FileName, FileRef, Type, Value};
use atoll_model::workflow::{
    Concurrency, OnDisconnect, Output, ResourcePlaces, Retry, StartMode, Step, Work, Workflow,
};
use indexmap::IndexMap;

use crate::trace::{Task, Trace};

pub(crate) fn workflow(trace: &Trace) -> Workflow {
    let handed_on = trace.handed_on();
    let mut outputs: Vec<IndexMap<String, Output>> = vec![IndexMap::new(); trace.tasks.len()];
    let mut bindings: Vec<IndexMap<String, Expression>> = vec![IndexMap::new(); trace.tasks.len()];
    for (file, readers) in &handed_on {
        let Some(maker) = trace.files[*file].maker else { continue };
        let name = output_name(*file);
        let output = Output { r#type: Type::File, optional: false, listed: false, place: Place::default() };
        outputs[maker].insert(name.clone(), output);
        for reader in readers {
            bindings[*reader].insert(name.clone(), reads(step_index(maker), &name));
        }
    }
    let parts = trace.tasks.iter().zip(outputs).zip(bindings).enumerate();
    let steps = parts.map(|(number, ((task, outputs), bindings))| step(number, task, outputs, bindings)).collect();
    Workflow {
        file: trace.name.clone(),
        name: trace.name.clone(),
        description: None,
        inputs: IndexMap::new(),
        steps,
        outputs: IndexMap::new(),
        placement: Vec::new(),
        requires: Vec::new(),
        priority: 0,
        concurrency: Concurrency::default(),
    }
}

/// What each task makes, in the order of its step's outputs, as the run of this number makes it: two runs make nothing
/// that is the same.
pub(crate) fn outputs(trace: &Trace, run: u8) -> Vec<Arc<Vec<Value>>> {
    let mut outputs: BTreeMap<usize, Vec<Value>> = BTreeMap::new();
    for file in trace.handed_on().into_keys() {
        let Some(maker) = trace.files[file].maker else { continue };
        let mut digest = [run; 32];
        digest[..8].copy_from_slice(&(file as u64).to_be_bytes());
        let name = FileName::new(b"data").expect("a plain name");
        let (object, bytes) = (ObjectId::from_digest(digest), trace.files[file].bytes);
        outputs.entry(maker).or_default().push(Value::File(FileRef { object, bytes, name, executable: false }));
    }
    (0..trace.tasks.len()).map(|task| Arc::new(outputs.remove(&task).unwrap_or_default())).collect()
}

fn step(number: usize, task: &Task, outputs: IndexMap<String, Output>, bindings: IndexMap<String, Expression>) -> Step {
    Step {
        name: task.name.clone(),
        index: step_index(number),
        place: Place::default(),
        work: Work::Script(task.name.clone()),
        bindings,
        foreach: None,
        when: None,
        site: SiteSelector::default(),
        resources: Resources::default(),
        resource_places: ResourcePlaces::default(),
        retry: Retry::default(),
        outputs,
        needs: task.needs.iter().map(|need| step_index(*need)).collect(),
        start: StartMode::default(),
        on_disconnect: OnDisconnect::default(),
        environment: IndexMap::new(),
        priority: 0,
        max_parallel: None,
        cache: None,
    }
}

fn reads(maker: StepIndex, output: &str) -> Expression {
    Expression {
        form: Form::Output { step: maker, output: output.to_owned() },
        place: Place::default(),
        r#type: Type::File,
        reads_steps: vec![maker],
        reads_inputs: Vec::new(),
        reads_item: false,
    }
}

fn output_name(file: usize) -> String {
    format!("file{file}")
}

pub(crate) fn step_index(task: usize) -> StepIndex {
    StepIndex(u16::try_from(task).expect("a trace has no more tasks than a workflow steps"))
}
