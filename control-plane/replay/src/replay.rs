//! Carrying out a trace.

use std::sync::Arc;

use atoll_model::id::{ExecutionId, RunId};
use atoll_model::placement::Labels;
use atoll_model::resources::Capacity;
use atoll_model::time::Timestamp;
use atoll_model::value::Value;
use control_plane_core::RecordedSite;
use control_plane_core::look_ahead::{Goal, Links};
use control_plane_core::view::{ExecutionPage, LedgerFilter, RunTags};
use indexmap::IndexMap;

use crate::trace::Trace;
use crate::workflow::{outputs, workflow};
use crate::world::{ReplayError, Script, World};

/// Sites that are alike, each linked with each other.
#[derive(Debug, Clone, Copy)]
pub struct Installation {
    pub sites: usize,
    pub processors: u32,
    pub links: Links,
    pub goal: Goal,
}

/// How a trace went.
#[derive(Debug, Clone, PartialEq)]
pub struct Carried {
    /// By task.
    pub site_of: Vec<usize>,
    /// Bytes that came to a site from another, as the ledger has them.
    pub crossing_bytes: u64,
    pub makespan_seconds: f64,
    /// Run time at each site.
    pub site_seconds: Vec<f64>,
}

/// Carries out a trace `runs` times, one after the other, on one installation that learns from each; how each went.
///
/// # Errors
/// When the control plane refuses it, or does not bring it to its end.
pub fn replay(trace: &Trace, installation: &Installation, runs: u8) -> Result<Vec<Carried>, ReplayError> {
    let workflow = Arc::new(workflow(trace));
    let mut world = World::new(Box::new(OfTrace { trace, outputs: Vec::new() }), installation.links, installation.goal);
    for number in 0..installation.sites {
        world.join(&alike(number, installation.processors))?;
    }
    let mut all = Vec::new();
    for number in 1..=runs {
        world.script = Box::new(OfTrace { trace, outputs: outputs(trace, number) });
        let run = RunId::from_bits(u128::from(world.number()));
        let submitted_at = world.now;
        world.carry_out(run, &workflow, &IndexMap::new(), &RunTags::default())?;
        all.push(carried(&world, trace, run, submitted_at));
    }
    Ok(all)
}

struct OfTrace<'a> {
    trace: &'a Trace,
    outputs: Vec<Arc<Vec<Value>>>,
}

impl Script for OfTrace<'_> {
    fn seconds(&self, execution: ExecutionId) -> f64 {
        self.trace.tasks[execution.step.index()].seconds
    }

    fn outputs(&self, execution: ExecutionId) -> Vec<Value> {
        Vec::clone(&self.outputs[execution.step.index()])
    }
}

fn alike(number: usize, processors: u32) -> RecordedSite {
    let cpu_millis = processors.saturating_mul(1_000);
    RecordedSite {
        name: site_name(number).parse().expect("a valid name"),
        labels: Labels::default(),
        capacity: Capacity { cpu_millis, memory_bytes: 1 << 50, disk_free_bytes: 1 << 60, ..Capacity::default() },
        runtimes: vec!["command".to_owned()],
        listens: true,
    }
}

fn carried(world: &World<'_>, trace: &Trace, run: RunId, submitted_at: Timestamp) -> Carried {
    let mut site_of = vec![0; trace.tasks.len()];
    let mut site_seconds = vec![0.0; world.sites.len()];
    let mut last = submitted_at;
    for view in world.core.executions(run, &ExecutionPage::default()).unwrap_or_default() {
        let task = view.execution.step.index();
        let site =
            view.site.and_then(|site| (0..world.sites.len()).find(|number| site_name(*number) == *site.as_str()));
        site_of[task] = site.unwrap_or(0);
        site_seconds[site_of[task]] += trace.tasks[task].seconds;
        last = last.max(view.finished_at.unwrap_or(last));
    }
    let filter = LedgerFilter { run: Some(run), ..LedgerFilter::default() };
    let ledger = world.core.ledger(&filter);
    let crossing = ledger.iter().filter(|entry| entry.to != "bucket" && entry.to != "client");
    Carried {
        site_of,
        crossing_bytes: crossing.map(|entry| entry.bytes).sum(),
        makespan_seconds: last.saturating_since(submitted_at).as_secs_f64(),
        site_seconds,
    }
}

fn site_name(number: usize) -> String {
    format!("site-{}", number + 1)
}
