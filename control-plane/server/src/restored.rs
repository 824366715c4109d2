//! Tells a journal that it is a copy of an earlier time.

use std::path::Path;

use anyhow::{Context as _, bail, ensure};
use control_plane_core::{Command, ControlPlane, Event, Fact, Request, RequestId};
use control_plane_postgres::{Contents, Member, PostgresJournal};
use storage_sync_journal::{Backend, Opened, Options};

use crate::config::Store;
use crate::driver::{JOURNAL_FORMAT, Log, recover, wall_clock};
use crate::identity::Authority;

/// Notes in the journal of a server that does not run that it was restored from a backup: nothing is given out after the
/// next start before every site has told what it has done since, or counts as lost. How many sites those are.
///
/// # Errors
/// When there is no journal, it is in use or damaged, or cannot be written.
pub fn note_restored(store: &Store, data_dir: &Path) -> anyhow::Result<usize> {
    match store {
        Store::Sled => embedded(Backend::Sled, data_dir),
        Store::Redb => embedded(Backend::Redb, data_dir),
        Store::Postgres(address) => {
            let authority = Authority::open(data_dir)?;
            let member = Member {
                name: "the one who has restored it".to_owned(),
                api_url: String::new(),
                agent_address: String::new(),
                authority: authority.fingerprint_hex(),
            };
            let opened = PostgresJournal::open(address.clone(), member, JOURNAL_FORMAT);
            let (mut journal, contents, _) = opened.with_context(|| format!("cannot use {address}"))?;
            let Contents { checkpoint, batches, format } = contents;
            ensure!(checkpoint.is_some() || !batches.is_empty(), "{address} holds no installation");
            let core = recover(control_plane_core::Config::default(), format, checkpoint, &batches, wall_clock())?;
            note(core, &mut journal)
        }
    }
}

fn embedded(backend: Backend, data_dir: &Path) -> anyhow::Result<usize> {
    let directory = data_dir.join("journal");
    ensure!(directory.join("CURRENT").exists(), "{} holds no journal of a server", data_dir.display());
    let opened = storage_sync_journal::open(Options::new(directory, backend, JOURNAL_FORMAT))?;
    let Opened { mut journal, checkpoint, batches, format, .. } = opened;
    let core = recover(control_plane_core::Config::default(), format, checkpoint, &batches, wall_clock())?;
    note(core, &mut journal)
}

fn note(mut core: ControlPlane, journal: &mut dyn Log) -> anyhow::Result<usize> {
    let event = Event::Request { request: RequestId(0), body: Request::NoteRestored };
    let step = core.handle(event, wall_clock());
    let refused = step.commands.iter().find_map(|command| match command {
        Command::Reply { result: Err(rejection), .. } => Some(rejection.to_string()),
        Command::Reply { .. }
        | Command::Send { .. }
        | Command::Close { .. }
        | Command::DeleteFromBucket { .. }
        | Command::LookInBucket { .. }
        | Command::KeepRun { .. } => None,
    });
    if let Some(reason) = refused {
        bail!(reason);
    }
    let mut bytes = Vec::new();
    let mut awaited = 0;
    for fact in &step.facts {
        postcard::to_io(fact, &mut bytes).context("a fact cannot be encoded")?;
        if let Fact::SetBack { sites, .. } = fact {
            awaited = sites.len();
        }
    }
    journal.append(&bytes)?;
    journal.barrier()?;
    Ok(awaited)
}
