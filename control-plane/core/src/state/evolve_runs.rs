//! How facts about runs and their steps change the state.

use std::sync::Arc;

use atoll_model::elements::ElementSet;
use atoll_model::id::{ObjectId, RunId, StepIndex};
use atoll_model::limits;
use atoll_model::value::{ObjectKind, ObjectRef, Value};
use atoll_model::workflow::Workflow;

use super::{ActivePhase, ObjectState, Phase, Run, Source, State, StepPhase, StepState, Use};
use crate::fact::Fact;
use crate::plan::RunPlan;
use crate::rules::{AppliedPolicy, Rules};
use crate::view::RunTags;

impl State {
    #[expect(clippy::wildcard_enum_match_arm, reason = "`evolve` names every fact once")]
    pub(super) fn evolve_run(&mut self, fact: &Fact) {
        match fact {
            Fact::RunSubmitted { .. } => self.submit(fact),
            Fact::StepExpanded { run, step, items, count, at: _ } => {
                let run = self.run_mut(*run);
                let state = &mut run.steps[step.index()];
                state.phase = StepPhase::Expanded;
                state.items = Some(items.clone());
                state.count = *count;
                state.ready = ElementSet::from_range(0..*count);
                let again: Vec<_> = state.again.keys().copied().collect();
                again.into_iter().for_each(|element| {
                    state.ready.remove(element);
                });
                if state.is_ended() {
                    run.end_step(*step);
                }
            }
            Fact::StepSkipped { run, step } => {
                let run = self.run_mut(*run);
                run.steps[step.index()].phase = StepPhase::Skipped;
                run.end_step(*step);
            }
            Fact::RunFailing { run, error } => {
                let state = self.run_mut(*run);
                state.phase = Phase::Failing;
                state.error.get_or_insert_with(|| error.clone());
                self.cancel_waiting(*run);
            }
            Fact::RunCancelling { run, reason: _ } => {
                self.run_mut(*run).phase = Phase::Cancelling;
                self.cancel_waiting(*run);
            }
            Fact::RunEnded { run, state, outputs, error, at } => {
                self.live_runs -= 1;
                self.refusals.retain(|(of, _), _| of != run);
                self.grown_templates.retain(|(of, _), _| of != run);
                let run = self.run_mut(*run);
                run.phase = Phase::Ended(*state);
                run.outputs.clone_from(outputs);
                run.error.clone_from(error);
                run.finished_at = Some(*at);
            }
            Fact::RunRemoved { run } => self.remove_run(*run),
            Fact::RunTagged { run, tags } => {
                // A run that has left memory keeps its tags in the history.
                if let Some(run) = self.runs.get_mut(run).map(Arc::make_mut) {
                    run.tag(Some(tags));
                }
                self.tags.insert(*run, tags.clone());
                self.plan_anew(*run);
            }
            Fact::ProjectSet { project, settings } => {
                self.projects.0.insert(project.clone(), settings.clone());
            }
            Fact::PolicyApplied { project, applied } => self.apply_policy(project, applied),
            _ => unreachable!("evolve hands over facts about runs only"),
        }
    }

    fn apply_policy(&mut self, project: &str, applied: &Arc<AppliedPolicy>) {
        let versions = self.policies.entry(project.to_owned()).or_default();
        versions.push(Arc::clone(applied));
        let surplus = versions.len().saturating_sub(limits::POLICY_VERSIONS_KEPT);
        versions.drain(..surplus);
        let of_project = self.runs.values().filter(|run| *run.project == *project);
        let runs: Vec<RunId> = of_project.map(|run| run.id).collect();
        runs.into_iter().for_each(|run| self.plan_anew(run));
        self.lift_claims(project, &applied.policy);
        self.note_holds(project, applied);
    }

    fn submit(&mut self, fact: &Fact) {
        let Fact::RunSubmitted { run, workflow, source, inputs, submitted_by, traceparent, at } = fact else { return };
        let rules = Rules::new(workflow, self.policy(RunTags::PROJECT), &Default::default());
        let plan = Arc::new(RunPlan::new(workflow, rules));
        let steps: Vec<_> = workflow
            .steps
            .iter()
            .zip(&plan.steps)
            .map(|(step, planned)| StepState {
                needs_left: u32::try_from(step.needs.len()).unwrap_or(u32::MAX),
                readers_left: u32::try_from(planned.successors.len()).unwrap_or(u32::MAX),
                ..StepState::default()
            })
            .collect();
        let state = Run {
            id: *run,
            workflow: workflow.clone(),
            source: source.clone(),
            inputs: inputs.clone(),
            submitted_by: submitted_by.clone(),
            submitted_at: *at,
            traceparent: traceparent.clone(),
            started_at: None,
            finished_at: None,
            phase: Phase::Going,
            error: None,
            outputs: Default::default(),
            steps_left: u32::try_from(steps.len()).unwrap_or(u32::MAX),
            steps,
            active: 0,
            unknown: 0,
            ahead: 0,
            in_bucket: Default::default(),
            ledger: Vec::new(),
            plan,
            project: Arc::from(RunTags::PROJECT),
            priority: workflow.priority,
        };
        self.runs.insert(*run, Arc::new(state));
        self.live_runs += 1;
        for (source, object, parts) in submitted_objects(workflow, inputs) {
            self.note_object(object, Use { run: *run, source, output: 0 }, &parts);
            let known = self.objects.get_mut(&object.id).expect("just noted");
            known.upload_until = None;
            parts.iter().for_each(|part| self.note_container(part.id, object.id, Use { run: *run, source, output: 0 }));
            let run = Arc::make_mut(self.runs.get_mut(run).expect("just inserted"));
            let claimed = self.unclaimed_ledger.extract_if(.., |entry| entry.object == object.id);
            run.ledger.extend(claimed);
        }
    }

    /// Cancels what has not been handed to an agent. Of a delegated step its agent says what that is.
    fn cancel_waiting(&mut self, run: RunId) {
        for index in 0..self.run(run).steps.len() {
            let step = StepIndex(u16::try_from(index).expect("steps are counted in 16 bits"));
            if self.delegation(run, step).is_none() {
                self.cancel_waiting_step(run, step);
            }
        }
    }

    pub(super) fn cancel_waiting_step(&mut self, run: RunId, name: StepIndex) {
        let state = Arc::make_mut(self.runs.get_mut(&run).expect("facts name runs that exist"));
        let step = &mut state.steps[name.index()];
        if step.is_ended() && step.recomputing.is_empty() {
            return;
        }
        let was_ended = step.is_ended();
        if step.phase == StepPhase::Waiting {
            step.again.clear();
            step.phase = StepPhase::Cancelled;
        } else {
            let mut cancelled = std::mem::take(&mut step.ready);
            cancelled.insert_all(&std::mem::take(&mut step.again).into_keys().collect());
            let placed: ElementSet = step
                .active
                .iter()
                .filter(|(_, active)| active.phase == ActivePhase::Placed)
                .map(|(element, _)| *element)
                .collect();
            for element in placed.iter() {
                let active = step.active.remove(&element).expect("just seen");
                let site = self.sites.get_mut(&active.site).expect("what is placed is at a site that exists");
                site.remove_busy(run, name, 1);
            }
            state.active -= u64::from(placed.len());
            cancelled.insert_all(&placed);
            cancelled.remove_all(&step.recomputing);
            step.recomputing = step.active.keys().copied().filter(|e| step.recomputing.contains(*e)).collect();
            step.ended += cancelled.len();
            step.cancelled.insert_all(&cancelled);
        }
        if !was_ended && step.is_ended() {
            state.end_step(name);
        }
    }

    fn remove_run(&mut self, run: RunId) {
        let Some(removed) = self.runs.remove(&run) else { return };
        self.tags.remove(&run);
        self.results.forget_run(run);
        for object in removed.objects() {
            if let Some(known) = self.objects.get_mut(&object) {
                known.uses.retain(|usage| usage.run != run);
                self.drop_if_unknown(object);
            }
        }
    }

    /// Registers what an object is in a run, and the files of a directory whose listing is known.
    pub(super) fn note_object(&mut self, object: ObjectRef, usage: Use, parts: &[ObjectRef]) {
        for part in parts {
            self.note_use(*part, usage);
        }
        self.note_use(object, usage);
        let known = self.objects.get_mut(&object.id).expect("just noted");
        if known.parts.is_empty() {
            known.parts = parts.iter().map(|part| part.id).collect();
        }
    }

    /// A directory that was sent in holds this file. It counts among what the run has in the bucket, so that it is looked
    /// at, and the directory with it, when the run needs it no more.
    fn note_container(&mut self, part: ObjectId, tree: ObjectId, usage: Use) {
        let known = self.objects.get(&part).expect("just noted");
        if self.container(known).is_none() {
            self.objects.get_mut(&part).expect("just seen").within = Some(tree);
        }
        if let Some(run) = self.runs.get_mut(&usage.run) {
            Arc::make_mut(run).in_bucket.entry(usage.source).or_default().insert(part);
        }
    }

    fn note_use(&mut self, object: ObjectRef, usage: Use) {
        let known = self.objects.entry(object.id).or_insert_with(|| ObjectState::new(object));
        known.add_use(usage);
        if known.bucket == super::BucketState::Present
            && let Some(run) = self.runs.get_mut(&usage.run)
        {
            Arc::make_mut(run).in_bucket.entry(usage.source).or_default().insert(object.id);
        }
    }
}

impl Run {
    /// All objects that it knows: what it was given and what it has made.
    pub(crate) fn objects(&self) -> Vec<ObjectId> {
        let mut objects = Vec::new();
        submitted_objects(&self.workflow, &self.inputs).into_iter().for_each(|(_, object, parts)| {
            objects.push(object.id);
            objects.extend(parts.iter().map(|part| part.id));
        });
        let outputs = self.steps.iter().flat_map(|step| step.details.values()).flat_map(|detail| &detail.outputs);
        outputs.for_each(|value| {
            visit_with_parts(value, &mut |object, parts| {
                objects.push(object.id);
                objects.extend(parts.iter().map(|part| part.id));
            });
        });
        objects
    }

    pub(super) fn end_step(&mut self, step: StepIndex) {
        self.steps_left -= 1;
        let plan = Arc::clone(&self.plan);
        for successor in &plan.steps[step.index()].successors {
            self.steps[successor.index()].needs_left -= 1;
        }
        let workflow = Arc::clone(&self.workflow);
        for need in &workflow.step(step).needs {
            self.steps[need.index()].readers_left -= 1;
        }
    }
}

/// The objects that a run brings along: of its inputs, and the bundles of its actions.
pub(crate) fn submitted_objects(
    workflow: &Workflow,
    inputs: &indexmap::IndexMap<String, Value>,
) -> Vec<(Source, ObjectRef, Vec<ObjectRef>)> {
    let mut objects = Vec::new();
    for (name, value) in inputs {
        let place = workflow.inputs.get_index_of(name).and_then(|place| u16::try_from(place).ok()).unwrap_or(u16::MAX);
        visit_with_parts(value, &mut |object, parts| objects.push((Source::Input(place), object, parts)));
    }
    for step in &workflow.steps {
        if let Some(action) = step.work.action()
            && let Some(id) = action.bundle
        {
            let bundle = ObjectRef { id, kind: ObjectKind::Tree, bytes: action.bundle_bytes };
            objects.push((Source::Bundle(step.index), bundle, Vec::new()));
        }
    }
    objects
}

/// Visits the objects of a value, each with the files of its listing.
pub(crate) fn visit_with_parts(value: &Value, visit: &mut dyn FnMut(ObjectRef, Vec<ObjectRef>)) {
    match value {
        Value::Directory(tree) => {
            let file = |file: &atoll_model::value::ListedFile| ObjectRef {
                id: file.object,
                kind: ObjectKind::File,
                bytes: file.bytes,
            };
            let parts = tree.listing.iter().flat_map(|listing| listing.iter()).map(file).collect();
            visit(ObjectRef { id: tree.object, kind: ObjectKind::Tree, bytes: tree.bytes }, parts);
        }
        Value::List(values) => values.iter().for_each(|value| visit_with_parts(value, visit)),
        Value::Object(fields) => fields.values().for_each(|value| visit_with_parts(value, visit)),
        Value::File(_) => value.visit_objects(&mut |object| visit(object, Vec::new())),
        Value::Null | Value::Boolean(_) | Value::Integer(_) | Value::Number(_) | Value::String(_) => {}
    }
}
