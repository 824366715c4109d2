//! `atoll server journal`: looks into the journal of a server that does not run.

use std::io::Write as _;
use std::path::PathBuf;

use clap::{Args, Subcommand};
use control_plane_server::config::Store;
use control_plane_server::journal::{Figures, LookError, Problem, StoredJournal, Verification};
use serde_json::json;

use super::usage;
use crate::failure::Failure;
use crate::output::{self, end_if_nobody_reads, outln};

/// Only while no server uses the data directory.
#[derive(Debug, Subcommand)]
pub(crate) enum JournalCommand {
    /// Read all of it as a start would, and say where it is damaged.
    Verify(JournalArguments),
    /// Print its facts since the last checkpoint, one JSON document a line: `{"batch","number","fact"}`. What was decided
    /// before is in the checkpoint as a state, and is not printed.
    Export(JournalArguments),
    /// Say how much of what it holds.
    Stats(JournalArguments),
    /// Note that it is a copy of an earlier time, restored from a backup: after the next start nothing is given out before
    /// every site has told what it has done since.
    Restored(JournalArguments),
}

#[derive(Debug, Args)]
pub(crate) struct JournalArguments {
    /// The server's configuration, which names its data directory.
    #[arg(long)]
    config: Option<PathBuf>,
    #[arg(long)]
    data_dir: Option<PathBuf>,
    /// Where the journal is, if not in the data directory: postgres://…
    #[arg(long)]
    store: Option<String>,
    /// Print one JSON document.
    #[arg(long)]
    json: bool,
}

pub(crate) fn journal(command: JournalCommand) -> anyhow::Result<()> {
    match command {
        JournalCommand::Verify(arguments) => verify(&arguments),
        JournalCommand::Export(arguments) => export(&arguments),
        JournalCommand::Stats(arguments) => stats(&arguments),
        JournalCommand::Restored(arguments) => restored(&arguments),
    }
}

fn config(arguments: &JournalArguments) -> anyhow::Result<control_plane_server::Config> {
    let (data_dir, store) = (arguments.data_dir.clone(), arguments.store.clone());
    let flags =
        control_plane_server::config::Flags { data_dir, store, ..control_plane_server::config::Flags::default() };
    control_plane_server::Config::load(arguments.config.as_deref(), flags).map_err(usage)
}

fn read(arguments: &JournalArguments) -> anyhow::Result<StoredJournal> {
    let config = config(arguments)?;
    let read = match config.store {
        // The client of the database has a runtime of its own, and this is on a thread of one.
        Store::Postgres(address) => std::thread::spawn(move || StoredJournal::read_shared(&address)).join(),
        Store::Sled | Store::Redb => Ok(StoredJournal::read(&config.data_dir)),
    };
    let read = read.map_err(|_| anyhow::anyhow!("the journal could not be read"))?;
    read.map_err(|error| match error {
        LookError::Absent(_) | LookError::NotAt(_) => Failure::Usage(error.to_string()).into(),
        LookError::Open(error) => anyhow::Error::new(error),
        LookError::OpenShared(error) => anyhow::Error::new(error),
    })
}

fn restored(arguments: &JournalArguments) -> anyhow::Result<()> {
    let config = config(arguments)?;
    let noting =
        std::thread::spawn(move || control_plane_server::note_restored(&config.store, &config.data_dir)).join();
    let sites = noting.map_err(|_| anyhow::anyhow!("the journal could not be written"))??;
    if arguments.json {
        output::json(&json!({ "sites": sites }));
    } else {
        outln!("after the next start, {sites} sites are asked what they have done since the backup;");
        outln!("nothing is given out before they have told, or count as lost");
    }
    Ok(())
}

fn damaged(problem: &Problem) -> anyhow::Error {
    Failure::Failed(format!("the journal is damaged at {problem}")).into()
}

fn verify(arguments: &JournalArguments) -> anyhow::Result<()> {
    let found = read(arguments)?.verify();
    if arguments.json {
        output::json(&json!(found));
    } else {
        describe(&found);
    }
    found.problem.as_ref().map_or(Ok(()), |problem| Err(damaged(problem)))
}

fn describe(found: &Verification) {
    outln!("{:<14} {}", "journal", found.location);
    outln!("{:<14} {}", "format", found.format);
    match found.checkpoint_batch {
        Some(batch) => outln!("{:<14} stands for all up to batch {batch}", "checkpoint"),
        None => outln!("{:<14} none", "checkpoint"),
    }
    outln!("{:<14} {} with {} facts, the last is batch {}", "batches", found.batches, found.facts, found.last_batch);
    if let Some(batch) = found.torn_batch {
        outln!("{:<14} batch {batch}, which nobody was told of, is not whole; the next start cuts it", "torn");
    }
    outln!("{:<14} {}", "sound", if found.sound { "yes" } else { "no" });
}

fn export(arguments: &JournalArguments) -> anyhow::Result<()> {
    let journal = read(arguments)?;
    let mut out = std::io::BufWriter::new(std::io::stdout().lock());
    for fact in journal.facts() {
        let line = match fact {
            Ok(fact) => serde_json::to_string(&fact)?,
            Err(problem) => {
                end_if_nobody_reads(out.flush());
                return Err(damaged(&problem));
            }
        };
        end_if_nobody_reads(writeln!(out, "{line}"));
    }
    end_if_nobody_reads(out.flush());
    if let Some(batch) = journal.checkpoint_batch() {
        eprintln!("what was decided up to batch {batch} is in the checkpoint, as a state, and not among these facts");
    }
    // What is behind the damage is missing from what was printed.
    journal.damage().map_or(Ok(()), |problem| Err(damaged(&problem)))
}

fn stats(arguments: &JournalArguments) -> anyhow::Result<()> {
    let Figures { problem, .. } = &read_figures(arguments)?;
    problem.as_ref().map_or(Ok(()), |problem| Err(damaged(problem)))
}

fn read_figures(arguments: &JournalArguments) -> anyhow::Result<Figures> {
    let figures = read(arguments)?.figures();
    if arguments.json {
        output::json(&json!(figures));
        return Ok(figures);
    }
    let identity = figures.journal.as_deref().unwrap_or("–");
    outln!("{:<14} {} ({identity})", "journal", figures.location);
    outln!("{:<14} {}, generation {}, format {}", "store", figures.store, figures.generation, figures.format);
    if let Some(batch) = figures.checkpoint_batch {
        outln!("{:<14} {} bytes, up to batch {batch}", "checkpoint", figures.checkpoint_bytes);
    }
    outln!(
        "{:<14} {} of {} bytes, up to batch {}",
        "batches",
        figures.batches,
        figures.batch_bytes,
        figures.last_batch
    );
    outln!("{:<14} {} of what lives, {} on disk", "bytes", figures.live_bytes, figures.disk_bytes);
    outln!("{:<14} {}", "facts", figures.facts);
    for (kind, count) in &figures.facts_by_kind {
        outln!("{:<14} {count:>10} {kind}", "");
    }
    Ok(figures)
}
