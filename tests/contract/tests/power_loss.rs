//! Power loss and `kill -9`: a process appends and acknowledges, is stopped anywhere, and nothing that it acknowledged is
//! missing.
#![expect(clippy::unwrap_used, reason = "a failed assertion is the result of a test")]

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use contract_tests::journal_child::{Acknowledged, DAMAGED, LOST, run_within};
use contract_tests::power_loss::{Disk, Forgets, Log, build_recorder};
use contract_tests::random::Random;
use storage_sync_journal::Backend;

const CHILD: &str = env!("CARGO_BIN_EXE_journal-child");
const RUNS: u64 = 20;
const CUTS_OF_A_RUN: u64 = 10;
const KILLS: u64 = 60;
const PATIENCE: Duration = Duration::from_secs(60);

#[derive(Debug, Default)]
struct Tally {
    rounds: u64,
    at_stake: u64,
    lost: u64,
    damaged: u64,
}

impl Tally {
    fn check(&mut self, directory: &Path, backend: Backend, acknowledged: Acknowledged, what: &str) -> Result<()> {
        self.rounds += 1;
        self.at_stake += acknowledged.last - acknowledged.start;
        let Acknowledged { start, last, run } = acknowledged;
        let mut command = Command::new(CHILD);
        command.arg("check").arg(directory).arg(backend.to_string());
        command.args([start.to_string(), last.to_string(), run.to_string()]);
        let output = run_within(&mut command, PATIENCE)?;
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        match output.status.code() {
            Some(0) => return Ok(()),
            Some(LOST) => self.lost += 1,
            Some(DAMAGED) => self.damaged += 1,
            other => anyhow::bail!("{what}: the check ended with {other:?}: {said}"),
        }
        println!("{backend}: {what}: {said}");
        Ok(())
    }

    fn report(&self, what: &str, backend: Backend) {
        let Self { rounds, at_stake, lost, damaged } = self;
        println!(
            "{what} on {backend}: {rounds} rounds, {at_stake} acknowledged batches, {lost} lost, {damaged} damaged"
        );
        assert_eq!((*lost, *damaged), (0, 0), "{what} on {backend}");
    }
}

fn cut_the_power(backend: Backend, forgets: Forgets) -> Result<()> {
    let scratch = tempfile::tempdir()?;
    let recorder = build_recorder(scratch.path())?;
    let mut random = Random::new(backend as u64 + 100 * forgets as u64);
    let mut tally = Tally::default();
    let mut home = scratch.path().join("home-0");
    std::fs::create_dir(&home)?;
    for run in 1..=RUNS {
        let before = Disk::read(&home)?;
        let log_path = scratch.path().join(format!("log-{run}"));
        let mut command = Command::new(CHILD);
        command.arg("work").arg(&home).args([backend.to_string(), run.to_string(), "40".to_owned()]);
        command.env("LD_PRELOAD", &recorder).env("POWER_LOSS_ROOT", &home).env("POWER_LOSS_LOG", &log_path);
        let output = run_within(&mut command, PATIENCE)?;
        ensure!(output.status.success(), "run {run}: {}", String::from_utf8_lossy(&output.stdout));
        let log = Log::read(&log_path)?;
        ensure!(log.syncs() > 40, "the recorder saw {} syncs only", log.syncs());
        let watched = home.canonicalize()?.join("acknowledged");
        let mut next = None;
        for cut in 0..CUTS_OF_A_RUN {
            let moment = random.below(log.len() as u64 + 1) as usize;
            let mut disk = before.clone();
            let mut acknowledged = Vec::new();
            disk.play(&log, moment, &watched, |line| acknowledged.extend_from_slice(line));
            let left = scratch.path().join(format!("left-{run}-{cut}"));
            disk.cut_power(forgets, &mut random, &left)?;
            // Before the first line nothing was acknowledged by this run, but all that it had found.
            let found = Acknowledged::read(&std::fs::read(home.join("acknowledged"))?).context("no line")?;
            let start = if run == 1 { 0 } else { first_start(&home, run)? };
            let none = Acknowledged { start, last: start, run: found.run };
            let acknowledged = Acknowledged::read(&acknowledged).unwrap_or(none);
            let what = format!("run {run}, operation {moment} of {}", log.len());
            tally.check(&left.join("journal"), backend, acknowledged, &what)?;
            if cut + 1 == CUTS_OF_A_RUN {
                next = Some(left);
            } else {
                std::fs::remove_dir_all(&left)?;
            }
        }
        std::fs::remove_dir_all(&home)?;
        std::fs::remove_file(&log_path)?;
        // The next run works on what the last cut left, and every eighth on an empty disk.
        home = next.context("no cut")?;
        let _ = std::fs::remove_file(home.join("acknowledged"));
        if run % 8 == 0 {
            std::fs::remove_dir_all(&home)?;
            std::fs::create_dir(&home)?;
        }
    }
    tally.report(&format!("power loss ({forgets:?} unsynced forgotten)"), backend);
    Ok(())
}

/// What stood there when run `run` began, as its first line says.
fn first_start(home: &Path, run: u64) -> Result<u64> {
    let text = std::fs::read(home.join("acknowledged"))?;
    let first = text.split_inclusive(|byte| *byte == b'\n').next().context("no line")?;
    let line = Acknowledged::read(first).context("no line")?;
    ensure!(line.run == run, "the lines are of run {}", line.run);
    Ok(line.start)
}

fn kill_at_any_moment(backend: Backend) -> Result<()> {
    let scratch = tempfile::tempdir()?;
    let mut random = Random::new(7 + backend as u64);
    let mut tally = Tally::default();
    for run in 1..=KILLS {
        let acks = scratch.path().join("acknowledged");
        let _ = std::fs::remove_file(&acks);
        let mut child = Command::new(CHILD)
            .arg("work")
            .arg(scratch.path())
            .args([backend.to_string(), run.to_string(), "1000000".to_owned()])
            .stdout(Stdio::null())
            .spawn()?;
        std::thread::park_timeout(Duration::from_millis(5 + random.below(120)));
        child.kill()?;
        let status = child.wait()?;
        ensure!(status.code().is_none(), "run {run} ended by itself: {status}");
        let text = std::fs::read(&acks).unwrap_or_default();
        let acknowledged = Acknowledged::read(&text).unwrap_or_default();
        tally.check(&scratch.path().join("journal"), backend, acknowledged, &format!("kill {run}"))?;
    }
    tally.report("kill -9", backend);
    Ok(())
}

#[test]
fn b1_what_was_acknowledged_survives_power_loss_on_sled() {
    cut_the_power(Backend::Sled, Forgets::All).unwrap();
}

#[test]
fn b1_what_was_acknowledged_survives_power_loss_on_redb() {
    cut_the_power(Backend::Redb, Forgets::All).unwrap();
}

#[test]
fn b1_what_was_acknowledged_survives_power_loss_with_torn_writes_on_sled() {
    cut_the_power(Backend::Sled, Forgets::Some).unwrap();
}

#[test]
fn b1_what_was_acknowledged_survives_power_loss_with_torn_writes_on_redb() {
    cut_the_power(Backend::Redb, Forgets::Some).unwrap();
}

#[test]
fn b2_what_was_acknowledged_survives_kill_9_on_sled() {
    kill_at_any_moment(Backend::Sled).unwrap();
}

#[test]
fn b2_what_was_acknowledged_survives_kill_9_on_redb() {
    kill_at_any_moment(Backend::Redb).unwrap();
}
