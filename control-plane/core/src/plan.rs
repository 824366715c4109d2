//! What follows from a workflow, and from the rules that hold for it: who reads what, which inputs differ by element, which rules bear on which data.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::sync::Arc;

use atoll_model::expression::{Expression, Form};
use atoll_model::id::{ObjectId, StepIndex};
use atoll_model::value::{ObjectKind, ObjectRef, Type};
use atoll_model::workflow::{Step, Work, Workflow};
use storage_sync_core::policy::{Origin, RuleId};

use crate::estimates::Kind;
use crate::rules::{DataRules, Rules};
use crate::state::Source;

#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct RunPlan {
    pub(crate) steps: Vec<StepPlan>,
    /// By the place of the workflow's input.
    pub(crate) inputs: Vec<DataRules>,
    pub(crate) rules: Arc<Rules>,
}

#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct StepPlan {
    /// Steps that need it.
    pub(crate) successors: Vec<StepIndex>,
    /// Whose objects it may read; its own bundle is one of them.
    pub(crate) reads: Vec<Source>,
    /// Names of inputs that are the same for every element and go into the template.
    pub(crate) template: Vec<String>,
    /// Names of inputs that go with each dispatch.
    pub(crate) own: Vec<String>,
    /// Whether `own` differs by element.
    pub(crate) own_by_element: bool,
    /// Whether it may be dispatched before what it needs has ended.
    pub(crate) chainable: bool,
    /// Rules that confine anything it reads.
    pub(crate) confined_by: BTreeSet<RuleId>,
    pub(crate) outputs: Vec<DataRules>,
    pub(crate) load: Load,
    /// What its executions carry out, by its content.
    pub(crate) version: Option<ObjectId>,
}

/// What one execution means for its site: for how long, and how much of it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Load {
    pub(crate) kind: Kind,
    pub(crate) cpu_millis: u32,
    pub(crate) memory_bytes: Option<u64>,
}

impl StepPlan {
    /// The first rule that confines anything that the step reads or makes.
    pub(crate) fn confining(&self) -> Option<RuleId> {
        let made = self.outputs.iter().flat_map(|output| &output.confined_by);
        self.confined_by.iter().chain(made).copied().next()
    }
}

impl RunPlan {
    pub(crate) fn new(workflow: &Workflow, rules: Rules) -> Self {
        let unknown = BTreeSet::new();
        let inputs = workflow.inputs.keys().map(|name| rules.data(Origin::Input { name }, None, &unknown)).collect();
        let steps = vec![StepPlan::default(); workflow.steps.len()];
        let mut plan = Self { steps, inputs, rules: Arc::new(rules) };
        for step in &workflow.steps {
            for need in &step.needs {
                plan.steps[need.index()].successors.push(step.index);
            }
        }
        for index in in_order(workflow) {
            let step = workflow.step(index);
            let built = plan.step(workflow, step);
            let successors = std::mem::take(&mut plan.steps[index.index()].successors);
            plan.steps[index.index()] = StepPlan { successors, ..built };
        }
        plan
    }

    /// The rules on an object of this source, of which the size is known.
    pub(crate) fn rules_on(
        &self,
        workflow: &Workflow,
        source: Source,
        output: u16,
        object: ObjectRef,
    ) -> Option<Cow<'_, DataRules>> {
        if !self.rules.sized {
            return self.rules(source, output).map(Cow::Borrowed);
        }
        let size = |r#type: &Type| {
            // A file of a directory is under the rules of the directory, whose size it does not say.
            Some(object.bytes).filter(|_| object.kind == ObjectKind::Tree || !holds_directories(r#type))
        };
        match source {
            Source::Step(index) => {
                let step = workflow.steps.get(index.index())?;
                let (name, declared) = step.outputs.get_index(usize::from(output))?;
                let inherited = &self.steps[index.index()].confined_by;
                Some(Cow::Owned(output_rules(&self.rules, workflow, step, name, size(&declared.r#type), inherited)))
            }
            Source::Input(place) => {
                let (name, declared) = workflow.inputs.get_index(usize::from(place))?;
                Some(Cow::Owned(self.rules.data(Origin::Input { name }, size(&declared.r#type), &BTreeSet::new())))
            }
            Source::Bundle(_) => None,
        }
    }

    /// The rules on an object that comes from `source`, whatever its size.
    pub(crate) fn rules(&self, source: Source, output: u16) -> Option<&DataRules> {
        match source {
            Source::Step(step) => self.steps.get(step.index())?.outputs.get(usize::from(output)),
            Source::Input(input) => self.inputs.get(usize::from(input)),
            Source::Bundle(_) => None,
        }
    }

    /// Why what a step makes is read where it is made, if all of it is.
    pub(crate) fn staying(&self, workflow: &Workflow, producer: StepIndex) -> Option<String> {
        let rules = &self.steps[producer.index()].outputs;
        let rule = rules.first()?.staying()?;
        let all = rules.iter().all(|rules| rules.staying().is_some());
        let maker = &workflow.step(producer).name;
        all.then(|| format!("it reads from {maker}, and {} keeps that where it is made", self.rules.name(rule)))
    }

    fn step(&self, workflow: &Workflow, step: &Step) -> StepPlan {
        let mut reads = Reads { workflow, sources: Vec::new(), outputs: Vec::new() };
        step.bindings.values().chain(&step.foreach).for_each(|expression| reads.visit(expression));
        let mut confined_by = BTreeSet::new();
        for (source, output) in &reads.outputs {
            confined_by.extend(self.rules(*source, *output).into_iter().flat_map(|rules| &rules.confined_by));
        }
        let mut sources = reads.sources;
        if let Some(action) = step.work.action()
            && action.bundle.is_some()
        {
            sources.push(Source::Bundle(step.index));
        }
        sort_and_deduplicate(&mut sources);
        let chainable = is_chainable(workflow, step);
        let own_by_element = step.bindings.values().any(reads_element);
        let (own, template) =
            step.bindings.iter().map(|(name, expression)| (name.clone(), expression)).partition::<Vec<_>, _>(
                |(_, value)| reads_element(value) || (chainable && !value.reads_steps.is_empty()),
            );
        let names = |bindings: Vec<(String, &Expression)>| bindings.into_iter().map(|(name, _)| name).collect();
        let rules = |output| output_rules(&self.rules, workflow, step, output, None, &confined_by);
        let outputs = step.outputs.keys().map(|output| rules(output)).collect();
        StepPlan {
            successors: Vec::new(),
            reads: sources,
            template: names(template),
            own: names(own),
            own_by_element,
            chainable,
            confined_by,
            outputs,
            version: step.version(),
            load: Load {
                kind: Kind::new(workflow, step),
                cpu_millis: step.resources.cpu_millis_in_all(),
                memory_bytes: step.resources.memory_bytes_in_all(),
            },
        }
    }
}

/// The rules on an output: its own, those of everything that the step reads, and, where the step takes in an input that
/// a site holds, those of the input.
fn output_rules(
    rules: &Rules,
    workflow: &Workflow,
    step: &Step,
    output: &str,
    bytes: Option<u64>,
    inherited: &BTreeSet<RuleId>,
) -> DataRules {
    let mut data = rules.data(Origin::Output { step: &step.name, output }, bytes, inherited);
    for (name, _) in workflow.inputs.iter().filter(|(_, input)| input.imported_by == Some(step.index)) {
        data.add(rules.data(Origin::Input { name }, bytes, inherited));
    }
    data
}

fn holds_directories(r#type: &Type) -> bool {
    match r#type {
        Type::Directory | Type::List(None) | Type::Object | Type::Any => true,
        Type::List(Some(items)) => holds_directories(items),
        Type::String | Type::Integer | Type::Number | Type::Boolean | Type::Enum(_) | Type::File => false,
    }
}

/// A step may go along with those it waits for if the agent can tell by itself when to start it and with what: it is one
/// execution that is made anew in any case, and each step that it needs hands it an output, unchanged. What is published is
/// to have ended here before.
fn is_chainable(workflow: &Workflow, step: &Step) -> bool {
    let is_single = |step: &Step| step.foreach.is_none();
    let handed = |need: &StepIndex| {
        step.bindings.values().any(|value| matches!(&value.form, Form::Output { step, .. } if step == need))
    };
    let evaluable = |value: &Expression| value.reads_steps.is_empty() || matches!(value.form, Form::Output { .. });
    is_single(step)
        && step.cache.is_none()
        && step.when.is_none()
        && !matches!(step.work, Work::Export { .. })
        && !step.needs.is_empty()
        && step.needs.iter().all(|need| is_single(workflow.step(*need)) && handed(need))
        && step.bindings.values().all(evaluable)
}

fn reads_element(expression: &Expression) -> bool {
    expression.reads_item || matches!(expression.form, Form::Item | Form::Index)
}

struct Reads<'a> {
    workflow: &'a Workflow,
    sources: Vec<Source>,
    outputs: Vec<(Source, u16)>,
}

impl Reads<'_> {
    fn visit(&mut self, expression: &Expression) {
        match &expression.form {
            Form::Literal(_) | Form::Item | Form::Index => {}
            Form::Input(name) => self.input(name),
            Form::Output { step, output } => self.output(*step, Some(output)),
            Form::Template(parts) | Form::List(parts) => parts.iter().for_each(|part| self.visit(part)),
            Form::Object(fields) => fields.values().for_each(|part| self.visit(part)),
            Form::Cel(_) => {
                expression.reads_steps.iter().for_each(|step| self.output(*step, None));
                expression.reads_inputs.iter().for_each(|name| self.input(name));
            }
        }
    }

    fn input(&mut self, name: &str) {
        if let Some((place, _, input)) = self.workflow.inputs.get_full(name) {
            match input.imported_by {
                Some(step) => self.output(step, None),
                None => {
                    let source = Source::Input(u16::try_from(place).unwrap_or(u16::MAX));
                    self.sources.push(source);
                    self.outputs.push((source, 0));
                }
            }
        }
    }

    /// An output of a step, or all of them.
    fn output(&mut self, step: StepIndex, name: Option<&str>) {
        let source = Source::Step(step);
        self.sources.push(source);
        let outputs = (0..u16::MAX).zip(self.workflow.step(step).outputs.keys());
        self.outputs.extend(
            outputs.filter(|(_, output)| name.is_none_or(|name| name == *output)).map(|(place, _)| (source, place)),
        );
    }
}

fn sort_and_deduplicate<T: Ord>(values: &mut Vec<T>) {
    values.sort_unstable();
    values.dedup();
}

/// The steps, each after those it needs.
pub(crate) fn in_order(workflow: &Workflow) -> Vec<StepIndex> {
    let mut needs: Vec<usize> = workflow.steps.iter().map(|step| step.needs.len()).collect();
    let mut successors = vec![Vec::new(); workflow.steps.len()];
    for step in &workflow.steps {
        step.needs.iter().for_each(|need| successors[need.index()].push(step.index));
    }
    let mut order: Vec<_> = workflow.steps.iter().filter(|step| step.needs.is_empty()).map(|step| step.index).collect();
    let mut next = 0;
    while let Some(step) = order.get(next).copied() {
        next += 1;
        for successor in &successors[step.index()] {
            needs[successor.index()] -= 1;
            if needs[successor.index()] == 0 {
                order.push(*successor);
            }
        }
    }
    assert_eq!(order.len(), workflow.steps.len(), "a workflow has no cycle");
    order
}
