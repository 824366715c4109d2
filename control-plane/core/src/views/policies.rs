//! The rules that hold, and what they say of the data of a run.

use std::sync::Arc;

use atoll_model::id::RunId;
use atoll_model::policy::Location;

use crate::control_plane::ControlPlane;
use crate::rules::{AppliedPolicy, DataRules};
use crate::state::Run;
use crate::view::{DataRulesView, RunRulesView};

impl ControlPlane {
    /// Versions of the rules of a project, as far as they are remembered; the last one holds.
    pub fn policies(&self, project: &str) -> &[Arc<AppliedPolicy>] {
        self.state.policies.get(project).map_or(&[], Vec::as_slice)
    }

    /// What the rules say of each output and input of a run.
    pub fn run_rules(&self, run: RunId) -> Option<RunRulesView> {
        let run = self.state.runs.get(&run)?;
        let outputs = run.workflow.steps.iter().zip(&run.plan.steps).flat_map(|(step, planned)| {
            let names = step.outputs.keys().map(|output| format!("{}.{output}", step.name));
            names.zip(&planned.outputs)
        });
        let inputs = run.workflow.inputs.keys().map(|name| format!("inputs.{name}")).zip(&run.plan.inputs);
        let data = inputs.chain(outputs).map(|(data, rules)| self.data_rules(run, data, rules)).collect();
        Some(RunRulesView { run: run.id, project: run.project.to_string(), version: run.plan.rules.version(), data })
    }

    fn data_rules(&self, run: &Run, data: String, rules: &DataRules) -> DataRulesView {
        let of_run = &run.plan.rules;
        let allowed = self.state.sites.values().filter(|site| {
            let location = Location { name: &site.name, labels: &site.labels };
            of_run.keeping_away(&rules.confined_by, location).is_none()
        });
        let sites = allowed.map(|site| site.name.clone()).collect();
        DataRulesView {
            data,
            confined_by: rules.confined_by.iter().map(|rule| of_run.name(*rule)).collect(),
            sites: (!rules.confined_by.is_empty()).then_some(sites),
            push: rules.push.mode,
            push_rule: rules.push.rule.map(|rule| of_run.name(rule)),
            bucket_closed: rules.bucket.map(|rule| of_run.name(rule)),
            direct_closed: rules.direct.map(|rule| of_run.name(rule)),
            encrypted: rules.encrypt.map(|rule| of_run.name(rule)),
            expires: rules.expires.map(|expires| of_run.name(expires.rule)),
        }
    }
}
