//! Runs as they were, and sites as they are: what it takes to carry runs out again under other rules.

use std::collections::BTreeMap;
use std::sync::Arc;

use atoll_model::id::{RunId, SiteName, StepIndex};
use atoll_model::placement::Labels;
use atoll_model::resources::Capacity;
use atoll_model::value::{ObjectRef, Value};
use atoll_model::workflow::Workflow;
use indexmap::IndexMap;

use crate::control_plane::ControlPlane;
use crate::finished::FinishedRun;
use crate::state::{Phase, RowState, StepPhase, submitted_objects};
use crate::view::{RunState, RunTags};

/// A run that has succeeded.
#[derive(Debug, Clone, PartialEq)]
pub struct Recording {
    pub run: RunId,
    pub workflow: Arc<Workflow>,
    pub source: Arc<str>,
    pub inputs: IndexMap<String, Value>,
    pub tags: RunTags,
    /// What it brought along: inputs that were sent in, and the bundles of its actions.
    pub submitted: Vec<ObjectRef>,
    pub executions: BTreeMap<(StepIndex, u32), RecordedExecution>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct RecordedExecution {
    pub seconds: f64,
    pub outputs: Vec<Value>,
}

/// A site that could be given work.
#[derive(Debug, Clone, PartialEq)]
pub struct RecordedSite {
    pub name: SiteName,
    pub labels: Labels,
    pub capacity: Capacity,
    pub runtimes: Vec<String>,
    /// Whether others fetch from its agent.
    pub listens: bool,
}

impl FinishedRun {
    /// Nothing for a run that did not succeed: what it would have made is not known.
    pub fn recording(&self) -> Option<Recording> {
        let run = self.run();
        if run.phase != Phase::Ended(RunState::Succeeded) {
            return None;
        }
        let mut executions = BTreeMap::new();
        for (step, state) in (0..=u16::MAX).map(StepIndex).zip(&run.steps) {
            if state.phase != StepPhase::Expanded {
                continue;
            }
            for (element, row) in (0..=u32::MAX).zip(&state.rows).filter(|(_, row)| row.state == RowState::Succeeded) {
                let ran = row.finished_at.saturating_since(row.started_at.max(row.placed_at));
                let seconds = self.took(step, element).unwrap_or(ran).as_secs_f64();
                let outputs = state.details.get(&element).map_or_else(Vec::new, |detail| detail.outputs.clone());
                executions.insert((step, element), RecordedExecution { seconds, outputs });
            }
        }
        let mut submitted = Vec::new();
        for (_, object, parts) in submitted_objects(&run.workflow, &run.inputs) {
            submitted.push(object);
            submitted.extend(parts);
        }
        Some(Recording {
            run: run.id,
            workflow: Arc::clone(&run.workflow),
            source: Arc::clone(&run.source),
            inputs: run.inputs.clone(),
            tags: self.tags().clone(),
            submitted,
            executions,
        })
    }
}

impl ControlPlane {
    /// The sites that are not revoked and have been connected once.
    pub fn recorded_sites(&self) -> Vec<RecordedSite> {
        let sites = self.state.sites.iter().filter(|(_, site)| site.revoked.is_none());
        let recorded = sites.filter_map(|(id, site)| {
            Some(RecordedSite {
                name: site.name.clone(),
                labels: site.labels.clone(),
                capacity: site.capacity.clone()?,
                runtimes: site.runtimes.clone(),
                listens: !self.direct.addresses(*id).is_empty(),
            })
        });
        recorded.collect()
    }
}
