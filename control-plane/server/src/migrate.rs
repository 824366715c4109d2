//! Moves an installation from the data directory of one server into a database that several share.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail, ensure};
use control_plane_core::ControlPlane;
use control_plane_core::view::RunFilter;
use control_plane_postgres::{Address, Contents, Member, PostgresJournal, Standby};
use storage_sync_journal::{Backend, Opened, Options};

use crate::config::Store;
use crate::driver::{JOURNAL_FORMAT, recover, wall_clock};
use crate::history::{FileHistory, History as _, PostgresHistory};
use crate::identity::Authority;

/// Runs of the history that are moved with one transaction.
const AT_ONCE: usize = 64;

/// What was moved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moved {
    /// Of the state, encoded.
    pub state_bytes: usize,
    /// Of the history.
    pub runs: u64,
}

/// Takes an installation out of the data directory of a server that does not run. The directory stays as it is; a server
/// that is started with it and the database goes on where the other has stopped.
///
/// # Errors
/// When the directory is in use or damaged, holds no installation, or the database holds one already.
pub fn migrate(from: &Store, data_dir: &Path, to: &Address) -> anyhow::Result<Moved> {
    let core = read(from, data_dir)?;
    let authority = Authority::open(data_dir)?;
    let member = || Member {
        name: format!("the migration of {}", data_dir.display()),
        api_url: String::new(),
        agent_address: String::new(),
        authority: authority.fingerprint_hex(),
    };
    let opened = PostgresJournal::open(to.clone(), member(), JOURNAL_FORMAT);
    let (mut journal, before, standby) = opened.with_context(|| format!("cannot use {to}"))?;
    if before.checkpoint.is_some() || !before.batches.is_empty() {
        bail!("{to} holds an installation already; choose another schema with schema=NAME, or drop it");
    }
    // The history first: a run that is in neither place would be lost, and one in both is shown once.
    let runs = move_history(data_dir, PostgresHistory::new(to.clone(), standby.fence()))?;
    let state = postcard::to_stdvec(&core.snapshot()).context("the state cannot be encoded")?;
    journal.checkpoint(&state)?;
    drop(journal);
    let (_, Contents { checkpoint, batches, format }) = Standby::open(to.clone(), member(), JOURNAL_FORMAT)?;
    let found = recover(control_plane_core::Config::default(), format, checkpoint, &batches, wall_clock())?;
    ensure!(found.snapshot() == core.snapshot(), "{to} holds something else than was written");
    Ok(Moved { state_bytes: state.len(), runs })
}

fn read(from: &Store, data_dir: &Path) -> anyhow::Result<ControlPlane> {
    let backend = match from {
        Store::Sled => Backend::Sled,
        Store::Redb => Backend::Redb,
        Store::Postgres(_) => bail!("what is moved is in a data directory: --from sled:DIRECTORY or redb:DIRECTORY"),
    };
    let directory: PathBuf = data_dir.join("journal");
    ensure!(directory.join("CURRENT").exists(), "{} holds no journal of a server", data_dir.display());
    let opened = storage_sync_journal::open(Options::new(directory, backend, JOURNAL_FORMAT))?;
    let Opened { checkpoint, batches, format, .. } = opened;
    Ok(recover(control_plane_core::Config::default(), format, checkpoint, &batches, wall_clock())?)
}

fn move_history(data_dir: &Path, target: PostgresHistory) -> anyhow::Result<u64> {
    if !FileHistory::path(data_dir).exists() {
        return Ok(0);
    }
    let source = FileHistory::open(data_dir)?;
    let mut filter = RunFilter { limit: Some(AT_ONCE), ..RunFilter::default() };
    let mut moved = 0;
    loop {
        let views = source.runs(&filter)?;
        let Some(last) = views.last() else { return Ok(moved) };
        filter.before = Some(last.place());
        let mut runs = Vec::new();
        for view in &views {
            runs.extend(source.run(view.run)?);
        }
        target.keep(&runs)?;
        moved += runs.len() as u64;
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a panic is a failed test")]

    use super::*;

    #[test]
    fn what_is_no_data_directory_is_refused_before_anything_is_made() {
        let directory = tempfile::tempdir().unwrap();
        let to = "postgres://nobody@127.0.0.1:1/nothing".parse().unwrap();
        let error = migrate(&Store::Sled, directory.path(), &to).unwrap_err().to_string();
        assert!(error.contains("holds no journal"), "{error}");
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
    }
}
