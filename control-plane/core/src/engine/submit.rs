//! What is accepted as a run: only what can be carried out, as far as that can be known.

use std::collections::BTreeSet;
use std::sync::Arc;

use atoll_model::expression::Form;
use atoll_model::id::{RunId, SiteId, StepIndex};
use atoll_model::policy::Location;
use atoll_model::value::Value;
use atoll_model::workflow::Workflow;
use indexmap::IndexMap;
use storage_sync_core::policy::{Origin, RuleId, evaluate};

use super::place::requirement;
use crate::command::{Rejection, Response};
use crate::control_plane::ControlPlane;
use crate::fact::Fact;
use crate::placement::permanent_obstacle;
use crate::plan::RunPlan;
use crate::rules::Rules;
use crate::state::{BucketState, Source, StepPhase, submitted_objects};
use crate::view::RunTags;

pub(crate) struct Submission {
    pub(crate) run: RunId,
    pub(crate) workflow: Arc<Workflow>,
    pub(crate) source: Arc<str>,
    pub(crate) inputs: IndexMap<String, Value>,
    pub(crate) submitted_by: String,
    pub(crate) traceparent: Option<String>,
    pub(crate) tags: RunTags,
}

impl ControlPlane {
    pub(crate) fn submit(&mut self, submission: Submission) -> Result<Response, Rejection> {
        let Submission { run, workflow, source, inputs, submitted_by, traceparent, tags } = submission;
        if self.state.runs.contains_key(&run) {
            // Its answer was lost.
            return Ok(Response::Submitted { run });
        }
        if self.state.live_runs >= self.config.live_runs_max {
            let live = self.state.live_runs;
            return Err(Rejection::Busy(format!("{live} runs have not ended, and no more are taken; come again")));
        }
        let inputs = with_defaults(&workflow, inputs)?;
        let plan = RunPlan::new(&workflow, self.rules_for(&workflow, &tags));
        let mut steps = workflow.steps.iter().zip(&plan.steps);
        let poisonous = steps.find_map(|(step, planned)| self.state.poisonous(step, planned.version, self.now));
        if let Some(reason) = poisonous {
            return Err(Rejection::Conflict(reason));
        }
        self.check_inputs_sent(&workflow, &inputs, &plan)?;
        self.check_possible_sites(&workflow, &plan)?;
        self.counters.runs_submitted += 1;
        let at = self.now;
        self.record(Fact::RunSubmitted { run, workflow, source, inputs, submitted_by, traceparent, at });
        if tags != RunTags::default() {
            self.record(Fact::RunTagged { run, tags });
        }
        let state = self.state.run(run);
        let first = (0..=u16::MAX).map(StepIndex).zip(&state.steps);
        let first = first.filter(|(_, step)| step.phase == StepPhase::Waiting && step.needs_left == 0);
        self.agenda.expand.extend(first.map(|(step, _)| (run, step)));
        self.agenda.ending.insert(run);
        self.make_ready_for(run);
        Ok(Response::Submitted { run })
    }

    pub(crate) fn check_inputs_sent(
        &self,
        workflow: &Workflow,
        inputs: &IndexMap<String, Value>,
        plan: &RunPlan,
    ) -> Result<(), Rejection> {
        for (source, object, _) in submitted_objects(workflow, inputs) {
            let name = match source {
                Source::Input(place) => {
                    let name = workflow.inputs.get_index(usize::from(place)).map_or("?", |(name, _)| name);
                    if let Some(rule) = plan.inputs.get(usize::from(place)).and_then(|rules| rules.confined_by.first())
                    {
                        let rule = plan.rules.name(*rule);
                        let reason = format!(
                            "{rule} confines input {name}, so it cannot be sent in through the bucket; name a file that \
                             one of the sites holds"
                        );
                        return Err(Rejection::Invalid(reason));
                    }
                    format!("input {name}")
                }
                Source::Bundle(step) => format!("the action of step {}", workflow.step(step).name),
                Source::Step(_) => continue,
            };
            let known = self.state.objects.get(&object.id);
            if known.is_none_or(|known| known.bucket != BucketState::Present) {
                let reason = format!("{name} is {}, which was not sent in", object.id);
                return Err(Rejection::Invalid(reason));
            }
        }
        Ok(())
    }

    /// Refuses what no registered site could ever run, and rules that contradict each other or the steps.
    pub(crate) fn check_possible_sites(&self, workflow: &Workflow, plan: &RunPlan) -> Result<(), Rejection> {
        let mut possible: Vec<Vec<SiteId>> = Vec::new();
        let candidates = self.candidates();
        for step in &workflow.steps {
            let wanted = requirement(step, 0.0);
            let mut sites = Vec::new();
            let mut reasons = Vec::new();
            for candidate in &candidates {
                let revoked = self.state.site(candidate.site).revoked.is_some();
                let obstacle = permanent_obstacle(candidate, &wanted)
                    .or_else(|| revoked.then(|| "it is revoked".to_owned()))
                    .or_else(|| self.rule_obstacle(plan, step, candidate));
                match obstacle {
                    None => sites.push(candidate.site),
                    Some(obstacle) => reasons.push(format!("{}: {obstacle}", candidate.name)),
                }
            }
            if sites.is_empty() {
                let reason = match reasons.as_slice() {
                    [] => format!("no site can run step {}: no site is registered", step.name),
                    reasons => format!("no site can run step {}: {}", step.name, reasons.join("; ")),
                };
                return Err(Rejection::Invalid(reason));
            }
            possible.push(sites);
        }
        if plan.rules.is_empty() {
            return Ok(());
        }
        self.check_rules_agree(workflow, plan, &possible)?;
        for step in &workflow.steps {
            self.check_ways(workflow, plan, step.index, &possible)?;
        }
        Ok(())
    }

    /// The rules that a run of the workflow is under.
    pub(crate) fn rules_for(&self, workflow: &Workflow, tags: &RunTags) -> Rules {
        Rules::new(workflow, self.state.policy(&tags.project), &tags.labels)
    }

    /// Refuses rules that cannot hold together, at the sites that there are.
    fn check_rules_agree(
        &self,
        workflow: &Workflow,
        plan: &RunPlan,
        possible: &[Vec<SiteId>],
    ) -> Result<(), Rejection> {
        let sites: Vec<_> = self.state.sites.iter().filter(|(_, site)| site.revoked.is_none()).collect();
        let locations: Vec<_> =
            sites.iter().map(|(_, site)| Location { name: &site.name, labels: &site.labels }).collect();
        let layers = plan.rules.layers();
        let check =
            |what: String, origin: Origin<'_>, inherited: &BTreeSet<RuleId>, producers: Option<&BTreeSet<usize>>| {
                let object = plan.rules.object(origin, None);
                let verdict = evaluate(&layers, &object, inherited, &locations, producers);
                match verdict.conflicts.first() {
                    Some(conflict) => Err(Rejection::Invalid(plan.rules.disagreement(&what, conflict))),
                    None => Ok(()),
                }
            };
        for (step, planned) in workflow.steps.iter().zip(&plan.steps) {
            let producers =
                (0..sites.len()).filter(|place| possible[step.index.index()].contains(sites[*place].0)).collect();
            for output in step.outputs.keys() {
                let what = format!("output {output} of step {}", step.name);
                let origin = Origin::Output { step: &step.name, output };
                check(what, origin, &planned.confined_by, Some(&producers))?;
            }
        }
        for name in workflow.inputs.keys() {
            check(format!("input {name}"), Origin::Input { name }, &BTreeSet::new(), None)?;
        }
        Ok(())
    }

    /// What may take no way must be read where it is made.
    fn check_ways(
        &self,
        workflow: &Workflow,
        plan: &RunPlan,
        step: StepIndex,
        possible: &[Vec<SiteId>],
    ) -> Result<(), Rejection> {
        let definition = workflow.step(step);
        for value in definition.bindings.values().chain(&definition.foreach) {
            let Form::Output { step: producer, output } = &value.form else { continue };
            let Some(place) = workflow.step(*producer).outputs.get_index_of(output) else { continue };
            let Some(rules) = plan.steps[producer.index()].outputs.get(place) else { continue };
            let (here, there) = (&possible[step.index()], &possible[producer.index()]);
            // Straight it goes between sites that reach each other, as far as that is known now.
            let straight = || there.iter().any(|from| here.iter().any(|to| self.direct.is_open(*from, *to, self.now)));
            let closed = rules.bucket.filter(|_| !straight());
            let Some(rule) = rules.staying().or(closed) else { continue };
            if !here.iter().any(|site| there.contains(site)) {
                let (reader, maker) = (&definition.name, &workflow.step(*producer).name);
                let reason = format!(
                    "step {reader} reads output {output} of step {maker}, which {} keeps where it is made, but no site \
                     may run both",
                    plan.rules.name(rule)
                );
                return Err(Rejection::Invalid(reason));
            }
        }
        Ok(())
    }
}

fn with_defaults(
    workflow: &Workflow,
    mut given: IndexMap<String, Value>,
) -> Result<IndexMap<String, Value>, Rejection> {
    if let Some(unknown) = given.keys().find(|name| !workflow.inputs.contains_key(*name)) {
        return Err(Rejection::Invalid(format!("the workflow has no input {unknown}")));
    }
    let mut inputs = IndexMap::new();
    for (name, input) in &workflow.inputs {
        if input.imported_by.is_some() {
            continue;
        }
        match given.swap_remove(name).or_else(|| input.default.clone()) {
            Some(value) => inputs.insert(name.clone(), value),
            None => return Err(Rejection::Invalid(format!("input {name} has no value"))),
        };
    }
    Ok(inputs)
}
