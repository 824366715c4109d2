//! Rules for where data may go.

use std::sync::Arc;

use atoll_model::policy::{PolicyMatch, PolicyRule};
use control_plane_core::AppliedPolicy;
use control_plane_core::view::{DataRulesView, RunRulesView};
use serde::Serialize;
use utoipa::ToSchema;

use super::time;

/// The rules that hold for a project.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct PolicyBody {
    project: String,
    /// 0 where nobody has applied any.
    version: u32,
    file: Option<String>,
    hash: Option<String>,
    applied_by: Option<String>,
    applied_at: Option<String>,
    source: Option<String>,
    rules: Vec<PolicyRuleBody>,
    /// As far as they are remembered, the one that holds last.
    versions: Vec<PolicyVersionBody>,
}

#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct PolicyRuleBody {
    file: String,
    line: u32,
    /// What it matches; everything if nothing is said.
    matches: String,
    says: Vec<&'static str>,
}

#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct PolicyVersionBody {
    version: u32,
    file: String,
    hash: String,
    applied_by: String,
    applied_at: String,
}

impl PolicyBody {
    pub(crate) fn new(project: &str, versions: &[Arc<AppliedPolicy>]) -> Self {
        let current = versions.last();
        let rules = current.iter().flat_map(|applied| &applied.policy.rules);
        Self {
            project: project.to_owned(),
            version: current.map_or(0, |applied| applied.version),
            file: current.map(|applied| applied.policy.file.clone()),
            hash: current.map(|applied| hash(applied)),
            applied_by: current.map(|applied| applied.applied_by.clone()),
            applied_at: current.map(|applied| time(applied.at)),
            source: current.map(|applied| applied.source.to_string()),
            rules: rules.map(|rule| rule_body(current.map_or("", |applied| &applied.policy.file), rule)).collect(),
            versions: versions.iter().map(|applied| version_body(applied)).collect(),
        }
    }
}

fn hash(applied: &AppliedPolicy) -> String {
    applied.policy.hash().iter().map(|byte| format!("{byte:02x}")).collect()
}

fn version_body(applied: &AppliedPolicy) -> PolicyVersionBody {
    PolicyVersionBody {
        version: applied.version,
        file: applied.policy.file.clone(),
        hash: hash(applied),
        applied_by: applied.applied_by.clone(),
        applied_at: time(applied.at),
    }
}

fn rule_body(file: &str, rule: &PolicyRule) -> PolicyRuleBody {
    PolicyRuleBody {
        file: file.to_owned(),
        line: rule.place.line,
        matches: matches(&rule.matches),
        says: rule.fields(),
    }
}

fn matches(of: &PolicyMatch) -> String {
    let named = [("workflow", &of.workflow), ("step", &of.step), ("output", &of.output), ("input", &of.input)];
    let named = named.into_iter().filter_map(|(name, value)| value.as_ref().map(|value| format!("{name} {value}")));
    let labels = of.labels.iter().map(|(name, value)| format!("{name}={value}"));
    let bytes = of.bytes.iter().map(|range| match range.most {
        u64::MAX => format!("at least {} bytes", range.least),
        most => format!("{} to {most} bytes", range.least),
    });
    named.chain(labels).chain(bytes).collect::<Vec<_>>().join(", ")
}

/// What the rules say of the data of a run.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct RunRulesBody {
    run: String,
    project: String,
    /// The version of the project's policy, where there is one.
    version: Option<u32>,
    data: Vec<DataRulesBody>,
}

/// What the rules say of an output or an input, whatever its size turns out to be; each rule by file and line.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct DataRulesBody {
    /// `STEP.OUTPUT` or `inputs.NAME`.
    data: String,
    confined_by: Vec<String>,
    /// The only sites where it may be; nothing if it may be anywhere.
    sites: Option<Vec<String>>,
    push: &'static str,
    push_rule: Option<String>,
    /// Why it does not go by way of the bucket, or straight.
    bucket_closed: Option<String>,
    direct_closed: Option<String>,
    /// Why it is encrypted in the bucket.
    encrypted: Option<String>,
    /// Which rule says when its time is over.
    expires: Option<String>,
}

impl RunRulesBody {
    pub(crate) fn new(view: &RunRulesView) -> Self {
        Self {
            run: view.run.to_string(),
            project: view.project.clone(),
            version: view.version,
            data: view.data.iter().map(DataRulesBody::new).collect(),
        }
    }
}

impl DataRulesBody {
    fn new(view: &DataRulesView) -> Self {
        use atoll_model::placement::PushMode;
        Self {
            data: view.data.clone(),
            confined_by: view.confined_by.clone(),
            sites: view.sites.as_ref().map(|sites| sites.iter().map(ToString::to_string).collect()),
            push: match view.push {
                PushMode::WhenNeeded => "when-needed",
                PushMode::Eager => "eager",
                PushMode::Never => "never",
                PushMode::OnSuccess => "on-success",
            },
            push_rule: view.push_rule.clone(),
            bucket_closed: view.bucket_closed.clone(),
            direct_closed: view.direct_closed.clone(),
            encrypted: view.encrypted.clone(),
            expires: view.expires.clone(),
        }
    }
}
