//! Versions of actions.

use std::collections::BTreeMap;

use atoll_model::session::DeployedState;
use control_plane_core::view::DeployedView;
use control_plane_core::{ActionName, ActionVersion, Deprecation, Origin};
use serde::Serialize;
use utoipa::ToSchema;

use super::time;

#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ActionsBody {
    /// By name, and then as they were pushed.
    pub(crate) actions: Vec<ActionBody>,
}

/// A version of an action.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ActionBody {
    action: String,
    version: String,
    project: String,
    /// Of its bundle (`b3:…`).
    digest: String,
    bytes: u64,
    /// `processor`.
    kind: &'static str,
    description: Option<String>,
    labels: BTreeMap<String, String>,
    pushed_by: String,
    pushed_at: String,
    /// Public keys whose holders have signed it.
    signed_by: Vec<String>,
    deprecated: Option<DeprecationBody>,
    /// Where it came from, if it was imported.
    origin: Option<OriginBody>,
    /// The text of its `action.yaml`, where one version was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    manifest: Option<String>,
    /// Sites that have it, or make it ready, where one version was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    sites: Option<Vec<DeployedBody>>,
}

/// How far an action is at a site, as its agent has told last.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct DeployedBody {
    site: String,
    /// `deploying`, `ready`, `failed` or `draining`.
    state: &'static str,
    /// Why it has failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    since: String,
}

impl DeployedBody {
    fn new(view: DeployedView) -> Self {
        let (state, reason) = match view.state {
            DeployedState::Deploying => ("deploying", None),
            DeployedState::Ready => ("ready", None),
            DeployedState::Failed(reason) => ("failed", Some(reason)),
            DeployedState::Draining => ("draining", None),
        };
        Self { site: view.site.to_string(), state, reason, since: time(view.since) }
    }
}

/// The place in a repository that a version came from first.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct OriginBody {
    repository: String,
    url: String,
    commit: String,
    /// Of its folder.
    path: String,
}

/// That somebody advises against it.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct DeprecationBody {
    reason: Option<String>,
    by: String,
    at: String,
}

impl ActionBody {
    pub(crate) fn new(name: &ActionName, version: &ActionVersion, origin: Option<&Origin>) -> Self {
        let deprecation = |Deprecation { reason, by, at }: &Deprecation| DeprecationBody {
            reason: reason.clone(),
            by: by.clone(),
            at: time(*at),
        };
        Self {
            action: name.reference.name.clone(),
            version: name.reference.version.clone(),
            project: name.project.clone(),
            digest: version.bundle.id.to_string(),
            bytes: version.bundle.bytes,
            kind: version.kind.as_str(),
            description: version.description.clone(),
            labels: version.labels.clone(),
            pushed_by: version.pushed_by.clone(),
            pushed_at: time(version.pushed_at),
            signed_by: version.signatures.iter().map(|signature| signature.key.to_string()).collect(),
            deprecated: version.deprecated.as_ref().map(deprecation),
            origin: origin.cloned().map(|Origin { repository, url, commit, path }| OriginBody {
                repository,
                url,
                commit,
                path,
            }),
            manifest: None,
            sites: None,
        }
    }

    pub(crate) fn whole(
        name: &ActionName,
        version: &ActionVersion,
        origin: Option<&Origin>,
        deployed: Vec<DeployedView>,
    ) -> Self {
        let sites = deployed.into_iter().map(DeployedBody::new).collect();
        Self { manifest: Some(version.manifest.to_string()), sites: Some(sites), ..Self::new(name, version, origin) }
    }
}
