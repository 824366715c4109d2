//! Other rules, tried on runs that were recorded.

use std::sync::Arc;

use atoll_model::id::RunId;
use atoll_model::policy::Policy;
use axum::Json;
use axum::extract::State;
use control_plane_core::look_ahead::{Aim, Goal, Links};
use control_plane_core::view::{RunFilter, RunState};
use control_plane_core::{RecordedSite, Recording};
use control_plane_replay::{Setting, retrace};
use serde::Deserialize;
use utoipa::ToSchema;

use super::App;
use super::error::{ApiError, ErrorBody};
use super::extract::{Admitted, Body, Id};
use super::policies::{policy, unnamed};
use super::views::{SimulatedRun, SimulationBody};

/// Runs that are tried where nothing is said, and at most.
const RUNS_DEFAULT: usize = 20;
const RUNS_MAX: usize = 200;
/// Of one run: more are not carried out again, so that an answer comes within seconds.
const EXECUTIONS_MAX: usize = 20_000;
/// What links are taken to be where nothing was measured: a modest wide-area link.
const LINKS: Links = Links { bytes_per_second: 50e6, latency_micros: 50_000 };
const GOAL: Goal = Goal { aim: Aim::Time, share_max: 1.0, effort: 100_000 };

#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct SimulationRequest {
    /// The text of the policy file.
    source: String,
    /// What the file is called where a rule is named.
    #[serde(default = "unnamed")]
    file_name: String,
    /// Only runs of this workflow.
    workflow: Option<String>,
    /// The last so many runs of the project that have succeeded; 20 unless given, 200 at most.
    runs: Option<usize>,
}

/// What recorded runs of a project would move, take and cost under other rules
///
/// Each is carried out twice in virtual time by the same decisions that the server makes, at the sites that there are: under
/// the rules that hold, and under those that are sent. Nothing is changed.
#[utoipa::path(post, path = "/projects/{project}/policy/simulate", tag = "policies",
    params(("project" = String, Path, description = "Name of the project")), request_body = SimulationRequest,
    responses((status = 200, body = SimulationBody), (status = 422, body = ErrorBody)))]
pub(super) async fn simulate(
    State(app): State<Arc<App>>,
    Id(project): Id<String>,
    _admitted: Admitted,
    Body(body): Body<SimulationRequest>,
) -> Result<Json<SimulationBody>, ApiError> {
    let changed = policy(&body.file_name, &body.source)?;
    let filter = RunFilter {
        state: Some(RunState::Succeeded),
        workflow: body.workflow.clone(),
        project: Some(project.clone()),
        limit: Some(body.runs.unwrap_or(RUNS_DEFAULT).min(RUNS_MAX)),
        ..RunFilter::default()
    };
    let mut recordings = Vec::new();
    let mut left_out = Vec::new();
    for run in app.runs(filter).await? {
        match app.recording(run.run).await? {
            Some(recording) if recording.executions.len() <= EXECUTIONS_MAX => recordings.push(recording),
            Some(_) | None => left_out.push(run.run),
        }
    }
    let (name, sites) = (project.clone(), app.handle.query(|core| core.recorded_sites()).await?);
    let current = app.handle.query(move |core| core.policies(&name).last().cloned()).await?;
    let tried = tokio::task::spawn_blocking(move || {
        let current = current.as_ref().map(|applied| &applied.policy);
        recordings.iter().map(|recording| tried(recording, &sites, current, &changed)).collect::<Vec<_>>()
    });
    let tried = tried.await.map_err(|error| ApiError::internal("the runs could not be carried out again", error))?;
    Ok(Json(SimulationBody::new(&project, &tried, &left_out)))
}

fn tried(recording: &Recording, sites: &[RecordedSite], current: Option<&Policy>, changed: &Policy) -> SimulatedRun {
    let under = |policy| {
        let setting = Setting { sites, policy, links: LINKS, goal: GOAL };
        retrace(recording, &setting).map_err(|error| error.to_string())
    };
    SimulatedRun {
        run: recording.run,
        workflow: recording.workflow.name.clone(),
        before: under(current),
        after: under(Some(changed)),
    }
}

impl App {
    /// A run as it was, wherever it is.
    async fn recording(&self, run: RunId) -> Result<Option<Recording>, ApiError> {
        let live = self.handle.query(move |core| core.finished_run(run)).await?;
        let finished = match live {
            Some(finished) => Some(finished),
            None => self.kept(run).await?,
        };
        Ok(finished.and_then(|finished| finished.recording()))
    }
}
