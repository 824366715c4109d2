//! Why something is where it is, or would be.

use std::collections::BTreeMap;

use atoll_model::diagnostic::Diagnostic;
use atoll_model::placement::{Explanation, SiteVerdict};
use control_plane_core::view::{ExecutionView, PlanView, PlannedEdge};
use serde::Serialize;
use utoipa::ToSchema;

use super::{CrashBody, ReusedBody};
use crate::api::error::DiagnosticBody;

/// Why an execution is where it is.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ExplanationBody {
    chosen: Option<String>,
    sites: Vec<SiteVerdictBody>,
    attempt: u32,
    /// How much memory the attempt may use, where its step says so: more than that, where it has grown.
    memory_limit_bytes: Option<u64>,
    /// Why it waits, if it does.
    waiting_for: Option<String>,
    /// The times that something went down while it ran.
    crashes: Vec<CrashBody>,
    /// It did not run: another execution had made the same.
    reused: Option<ReusedBody>,
}

#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct SiteVerdictBody {
    site: String,
    feasible: bool,
    reason: String,
    /// Lower is better.
    terms: BTreeMap<String, f64>,
}

fn verdicts(sites: &[SiteVerdict]) -> Vec<SiteVerdictBody> {
    let verdict = |site: &SiteVerdict| SiteVerdictBody {
        site: site.site.to_string(),
        feasible: site.feasible,
        reason: site.reason.clone(),
        terms: site.terms.clone(),
    };
    sites.iter().map(verdict).collect()
}

impl ExplanationBody {
    pub(crate) fn new(explanation: &Explanation, execution: &ExecutionView) -> Self {
        Self {
            chosen: explanation.chosen.as_ref().map(ToString::to_string),
            sites: verdicts(&explanation.sites),
            attempt: execution.attempt.0,
            memory_limit_bytes: execution.memory_limit_bytes,
            waiting_for: execution.waiting_for.clone(),
            crashes: execution.crashes.iter().map(CrashBody::new).collect(),
            reused: execution.reused.as_ref().map(ReusedBody::new),
        }
    }
}

/// What placement would do.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct PlanBody {
    steps: Vec<PlannedStepBody>,
    edges: Vec<PlannedEdgeBody>,
}

#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct PlannedStepBody {
    step: String,
    site: Option<String>,
    explanation: Vec<SiteVerdictBody>,
}

#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct PlannedEdgeBody {
    from: String,
    to: String,
    bytes_expected: Option<u64>,
    /// Until they are there.
    seconds_expected: Option<f64>,
    /// What their leaving costs, by the `egress-price-per-gb` label of the site that they leave.
    money_expected: Option<f64>,
    /// `local`, `direct` or `bucket`.
    route: String,
    rule: String,
}

impl PlanBody {
    pub(crate) fn new(view: &PlanView) -> Self {
        let step = |(step, explanation): &(String, Explanation)| PlannedStepBody {
            step: step.clone(),
            site: explanation.chosen.as_ref().map(ToString::to_string),
            explanation: verdicts(&explanation.sites),
        };
        let edge = |edge: &PlannedEdge| PlannedEdgeBody {
            from: edge.from.clone(),
            to: edge.to.clone(),
            bytes_expected: edge.bytes_expected,
            seconds_expected: edge.seconds_expected,
            money_expected: edge.money_expected,
            route: edge.route.clone(),
            rule: edge.rule.clone(),
        };
        Self { steps: view.steps.iter().map(step).collect(), edges: view.edges.iter().map(edge).collect() }
    }
}

/// What is wrong with a workflow, if anything is.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct CheckBody {
    valid: bool,
    errors: Vec<DiagnosticBody>,
}

impl CheckBody {
    pub(crate) fn new(diagnostics: &[Diagnostic]) -> Self {
        Self { valid: diagnostics.is_empty(), errors: diagnostics.iter().map(DiagnosticBody::new).collect() }
    }
}
