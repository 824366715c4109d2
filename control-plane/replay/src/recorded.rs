//! Runs that were recorded, carried out again under other rules: what they would have moved, and how long they would have
//! taken, by the same decisions that a control plane makes.

use std::collections::BTreeMap;
use std::sync::Arc;

use atoll_model::id::{ExecutionId, SiteName};
use atoll_model::placement::EGRESS_PRICE_LABEL;
use atoll_model::policy::Policy;
use atoll_model::value::Value;
use control_plane_core::look_ahead::{Goal, Links};
use control_plane_core::view::{ExecutionPage, LedgerFilter};
use control_plane_core::{PolicyApplication, RecordedSite, Recording, Request};

use crate::world::{ReplayError, Script, World};

/// Where runs are carried out again, and under which rules of their project.
#[derive(Debug, Clone, Copy)]
pub struct Setting<'a> {
    pub sites: &'a [RecordedSite],
    pub policy: Option<&'a Policy>,
    pub links: Links,
    pub goal: Goal,
}

/// How a run would have gone.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Retraced {
    /// Bytes that left a site.
    pub bytes: u64,
    /// From its submission to its end.
    pub seconds: f64,
    /// What the bytes cost, by the price that the sites have as their label.
    pub money: f64,
    /// Executions at each site.
    pub executions: BTreeMap<SiteName, u64>,
}

/// Carries a run out again.
///
/// # Errors
/// When it is refused, or fails, under the rules: the reason names them.
pub fn retrace(recording: &Recording, setting: &Setting<'_>) -> Result<Retraced, ReplayError> {
    let mut world = World::new(Box::new(OfRecording(recording)), setting.links, setting.goal);
    for site in setting.sites {
        world.join(site)?;
    }
    for object in &recording.submitted {
        world.in_bucket.insert(object.id);
        world.ask(Request::RecordUpload { object: *object, key: None })?;
    }
    if let Some(policy) = setting.policy {
        let application = PolicyApplication {
            project: recording.tags.project.clone(),
            policy: policy.clone(),
            source: Arc::from(""),
            applied_by: "replay".to_owned(),
            instead_of: None,
        };
        world.ask(Request::ApplyPolicy { application: Box::new(application) })?;
    }
    let submitted_at = world.now;
    let carried = world.carry_out(recording.run, &recording.workflow, &recording.inputs, &recording.tags);
    let view = world.core.run(recording.run);
    if let Some(error) = view.and_then(|view| view.error) {
        return Err(ReplayError::Failed(error.message));
    }
    carried?;
    let mut retraced =
        Retraced { seconds: world.now.saturating_since(submitted_at).as_secs_f64(), ..Retraced::default() };
    for view in world.core.executions(recording.run, &ExecutionPage::default()).unwrap_or_default() {
        if let Some(site) = view.site {
            *retraced.executions.entry(site).or_default() += 1;
        }
    }
    let filter = LedgerFilter { run: Some(recording.run), ..LedgerFilter::default() };
    for entry in world.core.ledger(&filter) {
        let Some(site) = setting.sites.iter().find(|site| site.name.as_str() == entry.from) else { continue };
        retraced.bytes += entry.bytes;
        retraced.money += entry.bytes as f64 / 1e9 * price(site);
    }
    Ok(retraced)
}

fn price(site: &RecordedSite) -> f64 {
    site.labels.get(EGRESS_PRICE_LABEL).and_then(|price| price.parse().ok()).unwrap_or(0.0)
}

struct OfRecording<'a>(&'a Recording);

impl Script for OfRecording<'_> {
    fn seconds(&self, execution: ExecutionId) -> f64 {
        self.0.executions.get(&(execution.step, execution.element)).map_or(0.0, |recorded| recorded.seconds)
    }

    fn outputs(&self, execution: ExecutionId) -> Vec<Value> {
        let recorded = self.0.executions.get(&(execution.step, execution.element));
        recorded.map_or_else(Vec::new, |recorded| recorded.outputs.clone())
    }
}
