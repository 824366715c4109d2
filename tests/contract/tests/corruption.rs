//! Damaged files: bits flipped, files cut short, pages zeroed, in every file of a journal. Whatever is done to it, a journal
//! opens with all that was acknowledged, or says what is wrong; it never shows a wrong or shorter past as if it were whole.
#![expect(clippy::unwrap_used, reason = "a failed assertion is the result of a test")]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use contract_tests::journal_child::{Acknowledged, DAMAGED, LOST, copy_directory, run_within};
use contract_tests::random::Random;
use storage_sync_journal::Backend;

const CHILD: &str = env!("CARGO_BIN_EXE_journal-child");
const FLIPS: usize = 260;
const CUTS: usize = 120;
const ZEROED_PAGES: usize = 60;

#[derive(Debug, Default)]
struct Tally {
    recovered: usize,
    reported: usize,
    undetected: usize,
    by_message: BTreeMap<String, usize>,
}

#[derive(Clone, Copy, Debug)]
enum Damage {
    Flip,
    Cut,
    Zero,
}

/// Files of a journal, those that hold more more often.
fn files_below(directory: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            files.extend(files_below(&entry.path())?);
        } else if entry.metadata()?.len() > 0 {
            files.push(entry.path());
        }
    }
    files.sort();
    Ok(files)
}

fn damage(file: &Path, damage: Damage, random: &mut Random) -> Result<String> {
    let mut bytes = fs::read(file)?;
    let place = random.below(bytes.len() as u64) as usize;
    match damage {
        Damage::Flip => bytes[place] ^= 1 << random.below(8),
        Damage::Cut => bytes.truncate(place),
        Damage::Zero => {
            let start = place / 4096 * 4096;
            let end = bytes.len().min(start + 4096);
            bytes[start..end].fill(0);
        }
    }
    fs::write(file, bytes)?;
    Ok(format!("{damage:?} at {place} of {}", file.file_name().unwrap_or_default().to_string_lossy()))
}

fn damage_every_file(backend: Backend) -> Result<()> {
    let scratch = tempfile::tempdir()?;
    let mut random = Random::new(31 + backend as u64);
    let mut tally = Tally::default();
    let sound = sound_journal(scratch.path(), backend)?;
    let acknowledged = Acknowledged::read(&fs::read(sound.join("acknowledged"))?).context("no line")?;
    ensure!(acknowledged.last > 20, "only {} batches", acknowledged.last);
    let trial = scratch.path().join("trial");
    let kinds = [(Damage::Flip, FLIPS), (Damage::Cut, CUTS), (Damage::Zero, ZEROED_PAGES)];
    for (kind, trials) in kinds {
        for number in 0..trials {
            copy_directory(&sound.join("journal"), &trial)?;
            let files = files_below(&trial)?;
            // Half of the trials go to the file that holds the records, the others to all in turn.
            let largest = files.iter().max_by_key(|file| fs::metadata(file).map_or(0, |file| file.len()));
            let file = if number % 2 == 0 { largest.context("no file")? } else { &files[number / 2 % files.len()] };
            let what = damage(file, kind, &mut random)?;
            tally.try_to_open(&trial, backend, acknowledged, &what)?;
            fs::remove_dir_all(&trial)?;
        }
    }
    for (message, times) in &tally.by_message {
        println!("  {times:>4} {message}");
    }
    let Tally { recovered, reported, undetected, .. } = tally;
    println!(
        "corruption on {backend}: {} trials, {recovered} lost nothing, {reported} reported, {undetected} undetected",
        recovered + reported + undetected
    );
    assert_eq!(undetected, 0, "corruption on {backend}");
    Ok(())
}

/// A journal that was worked on and left by a clean close.
fn sound_journal(scratch: &Path, backend: Backend) -> Result<PathBuf> {
    let home = scratch.join("sound");
    fs::create_dir(&home)?;
    let mut command = Command::new(CHILD);
    command.arg("work").arg(&home).args([backend.to_string(), "5".to_owned(), "25".to_owned()]);
    let output = run_within(&mut command, Duration::from_secs(60))?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    Ok(home)
}

impl Tally {
    fn try_to_open(&mut self, trial: &Path, backend: Backend, acknowledged: Acknowledged, what: &str) -> Result<()> {
        let Acknowledged { start, last, run } = acknowledged;
        let mut command = Command::new(CHILD);
        command.env("RUST_BACKTRACE", "0").arg("check").arg(trial).arg(backend.to_string());
        command.args([start.to_string(), last.to_string(), run.to_string()]);
        let output = run_within(&mut command, Duration::from_secs(60)).context(what.to_owned())?;
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        let message = said.lines().rev().find(|line| !line.is_empty()).unwrap_or_default();
        match output.status.code() {
            Some(0) => self.recovered += 1,
            Some(DAMAGED) => self.reported += 1,
            Some(LOST) => {
                self.undetected += 1;
                println!("{backend}: {what}: {said}");
            }
            other => bail!("{backend}: {what}: the process ended with {other:?}: {said}"),
        }
        let message: String = message.chars().filter(|letter| !letter.is_ascii_digit()).take(90).collect();
        *self.by_message.entry(message).or_default() += 1;
        Ok(())
    }
}

#[test]
fn a16_a_damaged_journal_on_sled_is_recovered_or_reported() {
    damage_every_file(Backend::Sled).unwrap();
}

#[test]
fn a16_a_damaged_journal_on_redb_is_recovered_or_reported() {
    damage_every_file(Backend::Redb).unwrap();
}
