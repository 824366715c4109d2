//! What placement would do, before anything runs.

use std::collections::BTreeMap;

use atoll_model::expression::{Expression, Form};
use atoll_model::id::{SiteId, SiteName, StepIndex};
use atoll_model::placement::{Explanation, PushMode};
use atoll_model::value::{ObjectRef, Value};
use atoll_model::workflow::{Step, Workflow};
use indexmap::IndexMap;

use crate::control_plane::ControlPlane;
use crate::engine::outlook::lean;
use crate::engine::place::requirement;
use crate::fact::RuleText;
use crate::outlook::Sketch;
use crate::placement::{self, DataTerms};
use crate::plan::{RunPlan, in_order};
use crate::state::Source;
use crate::view::{PlanView, PlannedEdge, RunTags};

impl ControlPlane {
    /// What placement would do with each step if the sites were as they are now and the steps ran one after the other.
    pub fn plan(&self, workflow: &Workflow, inputs: &IndexMap<String, Value>, tags: &RunTags) -> PlanView {
        let plan = RunPlan::new(workflow, self.rules_for(workflow, tags));
        let mut chosen: BTreeMap<StepIndex, SiteName> = BTreeMap::new();
        let mut explanations = BTreeMap::new();
        let sketch = Sketch { workflow, plan: &plan, inputs, run: None, estimates: &self.estimates };
        let ahead = self.look_before(&sketch);
        for index in in_order(workflow) {
            let step = workflow.step(index);
            let explanation = self.plan_step(&sketch, step, &chosen, ahead[index.index()]);
            if let Some(site) = &explanation.chosen {
                chosen.insert(index, site.clone());
            }
            explanations.insert(index, explanation);
        }
        let steps =
            workflow.steps.iter().map(|step| (step.name.clone(), explanations.remove(&step.index).unwrap_or_default()));
        let steps = steps.collect();
        let mut edges = Vec::new();
        for step in &workflow.steps {
            self.plan_edges(workflow, &plan, step, inputs, &chosen, &mut edges);
        }
        PlanView { steps, edges }
    }

    fn plan_step(
        &self,
        sketch: &Sketch<'_>,
        step: &Step,
        chosen: &BTreeMap<StepIndex, SiteName>,
        ahead: Option<(SiteId, f64)>,
    ) -> Explanation {
        let Sketch { workflow, plan, inputs, .. } = *sketch;
        let candidates = self.candidates();
        let wanted = requirement(step, self.estimates.run_seconds(workflow, step));
        let given = objects_of(workflow, step, inputs);
        let mut assessments = placement::assess(&candidates, &wanted, &mut |candidate| {
            let mut terms = DataTerms {
                obstacle: self.rule_obstacle(plan, step, candidate),
                bytes_per_second: self.estimates.bytes_per_second(candidate.site),
                ..DataTerms::default()
            };
            for object in &given {
                if self.state.objects.get(&object.id).is_none_or(|known| !known.is_at(candidate.site)) {
                    self.add_missing(&mut terms, *object, candidate.site);
                }
            }
            for source in &plan.steps[step.index.index()].reads {
                let Source::Step(producer) = source else { continue };
                if chosen.get(producer).is_some_and(|site| site == candidate.name) {
                    continue;
                }
                terms.obstacle = terms.obstacle.or_else(|| plan.staying(workflow, *producer));
                let bytes = self.estimates.bytes_out(workflow, workflow.step(*producer)).unwrap_or(0.0) as u64;
                let crossing = self.crossing(chosen.get(producer), Some(candidate.name), false, Some(bytes));
                terms.missing_objects += 1;
                terms.missing_bytes += bytes;
                terms.missing_seconds += crossing.seconds.map_or(0.0, |seconds| seconds - placement::TRANSFER_SECONDS);
                terms.egress_money += crossing.money.unwrap_or(0.0);
            }
            terms
        });
        if let Some((site, detour_seconds)) = ahead {
            lean(&mut assessments, site, detour_seconds);
        }
        let tie = (atoll_model::id::RunId::from_bits(0), step.index, 0);
        let best = placement::best(&assessments, tie);
        let chosen = best.map(|site| self.state.site(site).name.clone());
        Explanation { chosen, sites: placement::verdicts(&assessments, &candidates) }
    }

    fn plan_edges(
        &self,
        workflow: &Workflow,
        plan: &RunPlan,
        step: &Step,
        inputs: &IndexMap<String, Value>,
        chosen: &BTreeMap<StepIndex, SiteName>,
        edges: &mut Vec<PlannedEdge>,
    ) {
        let mut sources: Vec<Source> = plan.steps[step.index.index()].reads.clone();
        sources.retain(|source| !matches!(source, Source::Bundle(_)));
        for source in sources {
            let (from, bytes_expected, is_local, push) = match source {
                Source::Step(producer) => {
                    let made_by = workflow.step(producer);
                    let local = chosen.get(&producer).is_some() && chosen.get(&producer) == chosen.get(&step.index);
                    let eager = plan.steps[producer.index()].outputs.iter().map(|output| output.push);
                    let bytes = self.estimates.bytes_out(workflow, made_by).map(|bytes| bytes as u64);
                    (made_by.name.clone(), bytes, local, eager.into_iter().find(|push| push.mode == PushMode::Eager))
                }
                Source::Input(place) => {
                    let Some((name, _)) = workflow.inputs.get_index(usize::from(place)) else { continue };
                    let mut bytes = None;
                    if let Some(value) = inputs.get(name) {
                        value.visit_objects(&mut |object| *bytes.get_or_insert(0) += object.bytes);
                    }
                    if bytes.is_none() {
                        // A plain value travels with the dispatch.
                        continue;
                    }
                    (format!("inputs.{name}"), bytes, false, None)
                }
                Source::Bundle(_) => continue,
            };
            let rule = push.and_then(|push| push.rule).map_or(RuleText::WhenNeeded, |rule| plan.rules.cite(rule));
            let maker = if let Source::Step(maker) = source { chosen.get(&maker) } else { None };
            let crossing = self.crossing(maker, chosen.get(&step.index), is_local, bytes_expected);
            edges.push(PlannedEdge {
                from,
                to: step.name.clone(),
                bytes_expected,
                seconds_expected: crossing.seconds,
                money_expected: crossing.money,
                route: crossing.route.to_owned(),
                rule: rule.to_string(),
            });
        }
    }
}

/// What a way between two sites is expected to take.
struct Crossing {
    route: &'static str,
    seconds: Option<f64>,
    money: Option<f64>,
}

impl ControlPlane {
    fn crossing(&self, from: Option<&SiteName>, to: Option<&SiteName>, is_local: bool, bytes: Option<u64>) -> Crossing {
        if is_local {
            return Crossing { route: "local", seconds: Some(0.0), money: Some(0.0) };
        }
        let site = |name: Option<&SiteName>| name.and_then(|name| self.state.site_names.get(name)).copied();
        let (from, to) = (site(from), site(to));
        let open = from.zip(to).is_some_and(|(from, to)| self.direct.is_open(from, to, self.now));
        let rate = match (from, to) {
            (Some(from), Some(to)) => self.estimates.link(from, to),
            (Some(site), None) | (None, Some(site)) => self.estimates.bytes_per_second(site),
            (None, None) => placement::BANDWIDTH_DEFAULT,
        };
        let price = from.and_then(|from| placement::egress_price(&self.state.site(from).labels));
        Crossing {
            route: if open { "direct" } else { "bucket" },
            seconds: bytes.map(|bytes| placement::TRANSFER_SECONDS + bytes as f64 / rate),
            money: bytes.zip(price).map(|(bytes, price)| bytes as f64 * price),
        }
    }
}

/// Objects of the given inputs that a step reads.
fn objects_of(workflow: &Workflow, step: &Step, inputs: &IndexMap<String, Value>) -> Vec<ObjectRef> {
    let mut objects = Vec::new();
    let reads = |expression: &Expression| {
        if let Form::Input(name) = &expression.form { vec![name.clone()] } else { expression.reads_inputs.clone() }
    };
    for name in step.bindings.values().chain(&step.foreach).flat_map(reads) {
        let value = inputs.get(&name).or_else(|| workflow.inputs.get(&name)?.default.as_ref());
        if let Some(value) = value {
            value.visit_objects(&mut |object| objects.push(object));
        }
    }
    objects.sort_unstable();
    objects.dedup();
    objects
}
