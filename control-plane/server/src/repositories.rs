//! Looks at git repositories that actions come from, as long as the core says that they are to be looked at: whatever was cut
//! off by the end of a process is begun anew by the next. No code of a repository is ever run here
//! (docs/decisions/0014-repositories-and-builds.md).

mod git;
mod log;
mod look;
#[cfg(test)]
mod tests;
mod tree;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context as _;
use atoll_model::limits::IMPORTS_AT_ONCE;
use control_plane_core::{ImportOrder, ImportOutcome, ImportReport, Request};
use tokio::sync::Semaphore;
use tokio::sync::broadcast::error::RecvError;
use tokio::task::{AbortHandle, JoinSet};

pub(crate) use self::log::Imports;
use self::look::Looking;
use crate::api::App;
use crate::config::Git;

/// What the imports of a server share.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    git: Git,
    /// Each import has a folder of its own in it, for as long as it goes on.
    folder: PathBuf,
    at_once: Arc<Semaphore>,
}

impl Settings {
    /// # Errors
    /// When the folder for imports cannot be made empty.
    pub(crate) fn new(git: Git, folder: PathBuf) -> anyhow::Result<Self> {
        make_empty(&folder).with_context(|| format!("cannot make the folder {} empty", folder.display()))?;
        Ok(Self { git, folder, at_once: Arc::new(Semaphore::new(IMPORTS_AT_ONCE)) })
    }
}

/// What the process before this one has left there is of use to nobody; a git of its that has not ended yet may still write
/// there, which does no harm.
fn make_empty(folder: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::DirBuilderExt as _;
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if let Err(error) = std::fs::remove_dir_all(&path) {
            let error = &error as &dyn std::error::Error;
            tracing::warn!(error, path = %path.display(), "what an import has left cannot be removed");
        }
    }
    Ok(())
}

/// Runs until the driver has ended.
pub(crate) async fn import_repositories(app: Arc<App>, settings: Settings) {
    let mut changes = app.handle.changes();
    let mut going_on: BTreeMap<u64, (ImportOrder, AbortHandle)> = BTreeMap::new();
    let mut tasks = JoinSet::new();
    loop {
        let Ok(repositories) = app.handle.query(|core| core.repositories()).await else { return };
        let orders: BTreeMap<u64, ImportOrder> =
            repositories.orders().into_iter().map(|order| (order.import.number, order)).collect();
        going_on.retain(|number, (_, task)| {
            let is_wanted = orders.contains_key(number);
            if !is_wanted {
                task.abort();
            }
            is_wanted
        });
        for (number, order) in orders {
            going_on.entry(number).or_insert_with(|| {
                let task = tasks.spawn(import(Arc::clone(&app), settings.clone(), order.clone()));
                (order, task)
            });
        }
        loop {
            tokio::select! {
                changed = changes.recv() => match changed {
                    Ok(changed) if !changed.concerns_repositories() => {}
                    Ok(_) | Err(RecvError::Lagged(_)) => break,
                    Err(RecvError::Closed) => return,
                },
                Some(ended) = tasks.join_next_with_id() => if let Err(error) = ended && error.is_panic() {
                    let failed = going_on.values().find(|(_, task)| task.id() == error.id());
                    if let Some((order, _)) = failed {
                        tracing::error!(error = &error as &dyn std::error::Error, "an import ended in a panic");
                        report(&app, order, ImportReport::failed("the server made a mistake: its log says which")).await;
                    }
                },
            }
        }
    }
}

async fn import(app: Arc<App>, settings: Settings, order: ImportOrder) {
    let log = app.imports.begin(order.import.number);
    log.say("waits for its turn");
    let permit = Arc::clone(&settings.at_once).acquire_owned().await.expect("nobody closes it");
    let found = Looking { app: &app, settings: &settings, order: &order, log: &log }.look().await;
    drop(permit);
    tracing::info!(
        repository = order.repository.name,
        project = order.repository.project,
        commit = found.commit,
        outcome = ?found.outcome,
        "a repository was looked at"
    );
    report(&app, &order, found).await;
}

async fn report(app: &App, order: &ImportOrder, report: ImportReport) {
    let (name, number) = (order.repository.clone(), order.import.number);
    let by = order.import.by.as_deref().unwrap_or(look::CLOCK);
    let outcome = match &report.outcome {
        ImportOutcome::Done => "done".to_owned(),
        ImportOutcome::Failed(message) => format!("failed: {message}"),
        ImportOutcome::Cancelled { by } => format!("cancelled by {by}"),
    };
    let what = order.import.mode.as_str();
    // What the clock has pushed is noted with each version.
    if order.import.by.is_some() || report.outcome != ImportOutcome::Done {
        app.audit.record(by, &format!("{what} repository"), &name.name, &outcome, report.commit.as_deref());
    }
    let report = Box::new(report);
    // While the server goes down nobody can be told: the next one begins anew.
    let _ = app.handle.request(Request::ImportEnded { name, number, report }).await;
}
