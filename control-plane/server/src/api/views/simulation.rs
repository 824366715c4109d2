//! What recorded runs would be under other rules.

use std::collections::BTreeMap;

use atoll_model::id::RunId;
use control_plane_replay::Retraced;
use serde::Serialize;
use utoipa::ToSchema;

/// A run under the rules that hold, and under others; or why it would not succeed.
#[derive(Debug)]
pub(crate) struct SimulatedRun {
    pub(crate) run: RunId,
    pub(crate) workflow: String,
    pub(crate) before: Result<Retraced, String>,
    pub(crate) after: Result<Retraced, String>,
}

/// What would be different.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct SimulationBody {
    project: String,
    runs: Vec<SimulatedRunBody>,
    /// Of all runs that succeed under both.
    before: FiguresBody,
    after: FiguresBody,
    /// Runs that do not succeed under the rules that were sent.
    refused: u64,
    /// Runs of which too little is known, or that are too large.
    left_out: Vec<String>,
}

#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct SimulatedRunBody {
    run: String,
    workflow: String,
    before: Option<FiguresBody>,
    after: Option<FiguresBody>,
    /// Why it would not succeed, with the rules that it is against.
    error_before: Option<String>,
    error_after: Option<String>,
}

#[derive(Debug, Default, Serialize, ToSchema)]
pub(crate) struct FiguresBody {
    /// That leave a site.
    bytes: u64,
    seconds: f64,
    /// By the `egress-price-per-gb` labels of the sites.
    money: f64,
    /// Executions by site.
    executions: BTreeMap<String, u64>,
}

impl SimulationBody {
    pub(crate) fn new(project: &str, runs: &[SimulatedRun], left_out: &[RunId]) -> Self {
        let both = || runs.iter().filter_map(|run| run.before.as_ref().ok().zip(run.after.as_ref().ok()));
        Self {
            project: project.to_owned(),
            runs: runs.iter().map(run_body).collect(),
            before: FiguresBody::sum(both().map(|(before, _)| before)),
            after: FiguresBody::sum(both().map(|(_, after)| after)),
            refused: runs.iter().filter(|run| run.after.is_err()).count() as u64,
            left_out: left_out.iter().map(ToString::to_string).collect(),
        }
    }
}

fn run_body(run: &SimulatedRun) -> SimulatedRunBody {
    let figures =
        |figures: &Result<Retraced, String>| figures.as_ref().ok().map(|one| FiguresBody::sum([one].into_iter()));
    SimulatedRunBody {
        run: run.run.to_string(),
        workflow: run.workflow.clone(),
        before: figures(&run.before),
        after: figures(&run.after),
        error_before: run.before.as_ref().err().cloned(),
        error_after: run.after.as_ref().err().cloned(),
    }
}

impl FiguresBody {
    fn sum<'a>(all: impl Iterator<Item = &'a Retraced>) -> Self {
        let mut sum = Self::default();
        for one in all {
            sum.bytes += one.bytes;
            sum.seconds += one.seconds;
            sum.money += one.money;
            for (site, executions) in &one.executions {
                *sum.executions.entry(site.to_string()).or_default() += executions;
            }
        }
        sum
    }
}
