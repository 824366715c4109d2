//! Sites.

use std::collections::BTreeMap;

use atoll_model::resources::Capacity;
use control_plane_core::view::SiteView;
use serde::Serialize;
use utoipa::ToSchema;

use super::{site_state, time};

#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct SitesBody {
    pub(crate) sites: Vec<SiteBody>,
}

/// A site and its agent.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct SiteBody {
    site: String,
    /// `expected`, `ready`, `syncing`, `suspect`, `disconnected`, `lost`, `draining`, `revoked` or `quarantined`.
    state: &'static str,
    labels: BTreeMap<String, String>,
    agent_version: Option<String>,
    connected_since: Option<String>,
    last_heard: Option<String>,
    capacity: CapacityBody,
    free: CapacityBody,
    running: u64,
    queued: u64,
    /// How long work waits there for a batch system, as far as was seen; null where there is none.
    batch_wait_seconds: Option<f64>,
    store: StoreBody,
    /// Why it takes no work, if it does not.
    reason: Option<String>,
    /// What somebody should look into: a clock that is off, silence together with many others.
    warning: Option<String>,
}

#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct CapacityBody {
    cpus: f64,
    memory_bytes: u64,
    disk_free_bytes: u64,
    /// How many, by kind.
    gpus: BTreeMap<String, u32>,
    /// What else the site has a number of, by name.
    named: BTreeMap<String, f64>,
}

#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct StoreBody {
    objects: u64,
    bytes: u64,
}

impl CapacityBody {
    fn new(capacity: &Capacity) -> Self {
        Self {
            cpus: f64::from(capacity.cpu_millis) / 1_000.0,
            memory_bytes: capacity.memory_bytes,
            disk_free_bytes: capacity.disk_free_bytes,
            gpus: capacity.gpus.clone(),
            named: capacity.named.iter().map(|(name, millis)| (name.clone(), f64::from(*millis) / 1_000.0)).collect(),
        }
    }
}

impl SiteBody {
    pub(crate) fn new(view: &SiteView) -> Self {
        Self {
            site: view.site.to_string(),
            state: site_state(view.state),
            labels: view.labels.clone(),
            agent_version: view.agent_version.clone(),
            connected_since: view.connected_since.map(time),
            last_heard: view.last_heard.map(time),
            capacity: CapacityBody::new(&view.capacity),
            free: CapacityBody::new(&view.free),
            running: view.running,
            queued: view.queued,
            batch_wait_seconds: view.batch_wait.map(|wait| wait.as_secs_f64()),
            store: StoreBody { objects: view.store_objects, bytes: view.store_bytes },
            reason: view.reason.clone(),
            warning: view.warning.clone(),
        }
    }
}
