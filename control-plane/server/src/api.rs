//! The HTTP API for people. Handlers decide nothing: they read what was sent, ask the core, and show what it says.

mod actions;
mod archive;
mod audited;
mod auth;
mod data;
mod deployments;
pub(crate) mod error;
mod events;
mod executions;
mod extract;
pub(crate) mod listener;
mod log_lines;
mod logs;
mod objects;
mod outputs;
mod policies;
mod probes;
mod projects;
mod repositories;
mod runs;
mod simulation;
mod sites;
mod standby;
mod submit;
mod surroundings;
#[cfg(test)]
mod tests;
pub(crate) mod tokens;
pub(crate) mod uploads;
pub(crate) mod views;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::middleware::{from_fn, from_fn_with_state};
use storage_sync_engine::bucket::Bucket;
use tokio::sync::mpsc;
use tokio_util::task::TaskTracker;
use utoipa::OpenApi;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::admission::Admission;
use crate::agents::Logs;
use crate::audit::Audit;
use crate::driver::Handle;
use crate::history::History;
use crate::keys::Keys;
use crate::repositories::Imports;
use crate::telemetry::{Meters, Traced};
use auth::BearerToken;
use error::ApiError;
use tokens::ApiTokens;

/// Largest JSON body: a workflow file of the largest size, its actions' manifests, and values for its inputs.
const BODY_BYTES_MAX: usize = 4 * atoll_model::limits::WORKFLOW_BYTES_MAX;
/// How long an object that a person asked for stays in the bucket for him.
const CLIENT_HOLD: Duration = Duration::from_secs(3_600);

/// What handlers work with.
#[derive(Debug)]
pub(crate) struct App {
    pub(crate) handle: Handle,
    /// Runs that have left the core's memory.
    pub(crate) history: Arc<dyn History>,
    pub(crate) bucket: Bucket,
    pub(crate) keys: Keys,
    pub(crate) tokens: ApiTokens,
    pub(crate) admission: Admission,
    pub(crate) audit: Audit,
    pub(crate) meters: Arc<Meters>,
    /// The logs that sites hold.
    pub(crate) logs: Logs,
    pub(crate) joining: Joining,
    /// Everything that goes on beside the answers.
    pub(crate) tasks: TaskTracker,
    pub(crate) traced: Option<mpsc::Sender<Traced>>,
    /// What goes on with repositories.
    pub(crate) imports: Imports,
    /// Uploads whose digest is not known beforehand wait here.
    pub(crate) spool: PathBuf,
}

/// What a join token says beside its secret.
#[derive(Debug, Clone)]
pub(crate) struct Joining {
    /// `https://host:port` of the listener for agents.
    pub(crate) url: String,
    pub(crate) ca_sha256: [u8; 32],
}

#[derive(OpenApi)]
#[openapi(
    info(title = "Atoll", description = "Workflows across many sites from one control plane."),
    modifiers(&BearerToken),
    security(("token" = []))
)]
struct Document;

/// The routes, and the document that describes them: made from the same list.
fn routes() -> (Router<Arc<App>>, utoipa::openapi::OpenApi) {
    let api = OpenApiRouter::new()
        .routes(routes!(runs::list, submit::submit))
        .routes(routes!(runs::show))
        .routes(routes!(runs::cancel))
        .routes(routes!(events::events))
        .routes(routes!(logs::run))
        .routes(routes!(logs::execution))
        .routes(routes!(outputs::list))
        .routes(routes!(outputs::download))
        .routes(routes!(executions::show))
        .routes(routes!(executions::why))
        .routes(routes!(executions::resolve))
        .routes(routes!(data::object))
        .routes(routes!(data::ledger))
        .routes(routes!(objects::list))
        .routes(routes!(objects::pin))
        .routes(routes!(objects::unpin))
        .routes(routes!(objects::evict))
        .routes(routes!(objects::expire))
        .routes(routes!(objects::push))
        .routes(routes!(objects::content))
        .routes(routes!(objects::verify, objects::verification))
        .routes(routes!(sites::list))
        .routes(routes!(sites::show, sites::remove))
        .routes(routes!(sites::drain))
        .routes(routes!(sites::undrain))
        .routes(routes!(sites::revoke))
        .routes(routes!(sites::declare_lost))
        .routes(routes!(sites::create_token))
        .routes(routes!(projects::list))
        .routes(routes!(projects::show, projects::set))
        .routes(routes!(policies::show, policies::apply))
        .routes(routes!(policies::of_run))
        .routes(routes!(simulation::simulate))
        .routes(routes!(actions::list, actions::push))
        .routes(routes!(actions::show, actions::remove))
        .routes(routes!(actions::deprecate))
        .routes(routes!(repositories::list, repositories::add))
        .routes(routes!(repositories::show, repositories::remove))
        .routes(routes!(repositories::scan))
        .routes(routes!(repositories::import))
        .routes(routes!(repositories::cancel))
        .routes(routes!(repositories::log))
        .routes(routes!(deployments::list, deployments::deploy))
        .routes(routes!(deployments::show, deployments::undeploy))
        .routes(routes!(submit::plan))
        .routes(routes!(submit::check))
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .routes(routes!(uploads::upload));
    let open = OpenApiRouter::new().routes(routes!(probes::openapi));
    let root = OpenApiRouter::new().routes(routes!(probes::health)).routes(routes!(probes::metrics));
    OpenApiRouter::with_openapi(Document::openapi())
        .nest("/api/v1", api)
        .nest("/api/v1", open)
        .merge(root)
        .split_for_parts()
}

/// Everything that is served to people.
pub(crate) fn router(app: Arc<App>) -> Router {
    let (router, _) = routes();
    router
        .layer(from_fn_with_state(Arc::clone(&app), standby::name_leader))
        .layer(from_fn_with_state(Arc::clone(&app), auth::require_token))
        .layer(from_fn(auth::guard_answers))
        .method_not_allowed_fallback(|| async { ApiError::MethodNotAllowed })
        .fallback(|| async { ApiError::NoSuchRoute })
        .with_state(app)
}

/// The document that describes the routes.
pub(crate) fn openapi() -> utoipa::openapi::OpenApi {
    routes().1
}
