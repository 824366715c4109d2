//! Files and directories that are taken into the store: of this machine, or fetched. Everything here blocks.

use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use atoll_model::session::FailureReason;
use atoll_model::value::{FileName, Value};
use atoll_model::workflow::{Outside, OutsideUrl};
use storage_sync_engine::outside::fetch_outside;
use storage_sync_engine::store::{IngestError, SiteStore, StoreError, Stored};
use tokio_util::sync::CancellationToken;

use super::staging::{StagingFailure, full_message};
use crate::config::Imports;
use crate::shim::{make_private, remove_whatever};

/// What is to be taken in.
#[derive(Debug)]
pub(super) struct Import {
    pub(super) source: Outside,
    pub(super) directory: bool,
}

/// Takes in a file or directory of this machine, which stays where it is.
pub(super) fn take_path(
    store: &SiteStore,
    imports: &Imports,
    path: &str,
    directory: bool,
) -> Result<Stored, StagingFailure> {
    let wanted = Path::new(path);
    if !wanted.is_absolute() {
        return Err(refuse(format!("{path} is not an absolute path")));
    }
    let real = fs::canonicalize(wanted).map_err(|error| refuse(format!("{path} cannot be read: {error}")))?;
    let allowed = |root: &PathBuf| fs::canonicalize(root).is_ok_and(|root| real.starts_with(root));
    if !imports.roots.iter().any(allowed) {
        return Err(refuse(format!(
            "the site does not give {path} away: its administrator lists what it gives under imports"
        )));
    }
    if real.is_dir() != directory {
        let (is, wanted) = if directory { ("a file", "a directory") } else { ("a directory", "a file") };
        return Err(refuse(format!("{path} is {is}, and {wanted} is asked for")));
    }
    let stored = store.import(&real).map_err(|error| not_ingested(&error))?;
    // It keeps the name by which it was asked for, not the one that a link led to.
    let name = wanted.file_name().map(|name| FileName::new(name.as_bytes()));
    Ok(named(stored, name.and_then(Result::ok)))
}

/// Fetches a file or directory into a folder, and takes it in from there.
pub(super) fn fetch(
    store: &SiteStore,
    imports: &Imports,
    url: &OutsideUrl,
    directory: bool,
    folder: &Path,
    given_up: &CancellationToken,
) -> Result<Stored, StagingFailure> {
    let of_agent = |error: &dyn std::error::Error| {
        let message = format!("{}: {}", folder.display(), full_message(error));
        StagingFailure::new(FailureReason::Agent, message)
    };
    if !imports.allows(url) {
        return Err(refuse(format!(
            "the site does not fetch {url}: its administrator lists what it fetches from under import_urls"
        )));
    }
    // An earlier process may have begun.
    remove_whatever(folder).map_err(|error| of_agent(&error))?;
    make_private(folder).map_err(|error| of_agent(&error))?;
    let name = url.file_name().or(url.in_bucket().map(|(bucket, _)| bucket)).unwrap_or("fetched");
    let name = FileName::new(name.as_bytes()).map_err(|error| refuse(format!("{url}: {name:?}: {error}")))?;
    let fetched = folder.join("fetched");
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|error| of_agent(&error))?;
    let rules = imports.clone();
    let fetching = fetch_outside(url, directory, &fetched, move |to| rules.allows(to));
    let ended = runtime.block_on(given_up.run_until_cancelled(fetching));
    match ended {
        None => return Err(refuse(format!("{url} is not asked for any more"))),
        Some(Err(error)) if error.is_no_space() => {
            return Err(StagingFailure::new(FailureReason::NoSpace, full_message(&error)));
        }
        Some(Err(error)) => return Err(refuse(full_message(&error))),
        Some(Ok(())) => {}
    }
    let stored = store.ingest(&fetched).map_err(|error| not_ingested(&error))?;
    Ok(named(stored, Some(name)))
}

fn refuse(message: String) -> StagingFailure {
    StagingFailure::new(FailureReason::ImportFailed, message)
}

fn not_ingested(error: &IngestError) -> StagingFailure {
    match error {
        IngestError::Store(error @ StoreError::NoSpace { .. }) => StagingFailure::of_store(error),
        IngestError::Missing(_) | IngestError::Refused { .. } | IngestError::Changed(_) | IngestError::Store(_) => {
            refuse(full_message(error))
        }
    }
}

fn named(mut stored: Stored, name: Option<FileName>) -> Stored {
    let Some(name) = name else { return stored };
    match &mut stored.value {
        Value::File(file) => file.name = name,
        Value::Directory(tree) => tree.name = name,
        Value::Null
        | Value::Boolean(_)
        | Value::Integer(_)
        | Value::Number(_)
        | Value::String(_)
        | Value::List(_)
        | Value::Object(_) => {}
    }
    stored
}
