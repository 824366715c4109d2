//! A process of its own for the journal's tests: it is killed, cut off and given damaged files.

use std::io::{BufRead as _, Read as _, Write as _};
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use contract_tests::journal_child::{Acknowledged, check, options, work};
use contract_tests::journals::Database;
use control_plane_postgres::PostgresJournal;
use storage_sync_journal::{Backend, open};

fn main() -> Result<ExitCode> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["work", home, backend, run, operations] => {
            work(Path::new(home), backend.parse()?, run.parse()?, operations.parse()?)?;
            Ok(ExitCode::SUCCESS)
        }
        ["check", directory, backend, start, last, run] => {
            let acknowledged = Acknowledged { start: start.parse()?, last: last.parse()?, run: run.parse()? };
            let code = check(Path::new(directory), backend.parse()?, acknowledged);
            Ok(ExitCode::from(u8::try_from(code)?))
        }
        ["hold", directory, backend] => {
            let backend: Backend = backend.parse()?;
            let held = open(options(Path::new(directory), backend))?;
            println!("held");
            std::io::stdout().flush()?;
            std::io::stdin().read_to_end(&mut Vec::new()).context("waiting")?;
            drop(held);
            Ok(ExitCode::SUCCESS)
        }
        ["lead", address] => {
            lead(address)?;
            Ok(ExitCode::SUCCESS)
        }
        ["full-disk", directory, backend] => {
            contract_tests::full_disk::survive(Path::new(directory), backend.parse()?)?;
            Ok(ExitCode::SUCCESS)
        }
        other => bail!("unknown arguments {other:?}"),
    }
}

/// Leads, and says for each line that it is told whether it may act.
fn lead(address: &str) -> Result<()> {
    let (journal, _, standby) = PostgresJournal::open(address.parse()?, Database::member("child"), 1)?;
    let mut said = std::io::stdout();
    writeln!(said, "leads under {}", journal.epoch())?;
    for line in std::io::stdin().lock().lines() {
        line?;
        match journal.may_act() {
            Ok(()) => writeln!(said, "may act")?,
            Err(error) => writeln!(said, "{error}")?,
        }
    }
    drop((journal, standby));
    Ok(())
}
