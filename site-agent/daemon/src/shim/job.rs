//! The shim of one attempt that is a job of a batch system: it finds its order in a folder that it shares with the agent,
//! claims it, runs it as every shim does, and leaves word of the start and of the end there.

pub(crate) mod evidence;

use std::env;
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{AtFlags, Mode, OFlags, Timestamps, UTIME_NOW, openat, statat, syncfs, utimensat};
use rustix::io::Errno;

use super::directory::SlotDirectory;
use super::limits::Limits;
use super::log::SlotLog;
use super::protocol::{End, EndKind, Key, Left, Notice};
use super::runner::Runner;
use super::spent::Spent;
use super::{isolation, own_tmp};
use crate::clock::wall_clock;
use evidence::{
    Batch, CANCEL, CLAIM, Claim, ENDED, EndedNews, JobOrder, JobsFolder, OfJob, STARTED, StartedNews, read_json,
    to_json, write_durably,
};

/// How often it is looked whether the attempt is to end, and the word of its start is touched.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);
const PULSE_INTERVAL: Duration = Duration::from_secs(10);

/// The arguments are the shared folder, the token of what was submitted together, and the place in it.
pub(super) fn main(arguments: &[OsString]) -> ExitCode {
    match run(arguments) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("atoll: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &[OsString]) -> io::Result<ExitCode> {
    let [folder, token, index] = arguments else { return Err(io::Error::other("a job takes three arguments")) };
    // What asks it to end is heard where it is waited for, so that it leaves word of its end first.
    let mut asked = SigSet::empty();
    asked.add(Signal::SIGTERM);
    asked.thread_block()?;
    let asked = SignalFd::with_flags(&asked, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)?;
    let folder = JobsFolder::new(PathBuf::from(folder));
    let token = token.to_string_lossy().into_owned();
    let Some(batch) = read_json::<Batch>(&folder.batches().join(&token))? else {
        return Ok(withdrawn());
    };
    let index: usize = index.to_string_lossy().parse().map_err(io::Error::other)?;
    let key = *batch.keys.get(index).ok_or_else(|| io::Error::other("there is no such place in the batch"))?;
    let slot = folder.slot(key);
    let Some(mut order) = JobOrder::read(&slot)? else { return Ok(withdrawn()) };
    let news = News { folder: File::open(folder.news())?, key };
    let slot = File::open(&slot)?;
    let own = Claim { token, job: variable(&batch.of_job.number), restarts: restarts(), node: node() };
    if is_there(&slot, CANCEL) {
        return Ok(withdrawn());
    }
    match claim(&slot, &own, order.common.synced_claim)? {
        Claimed::Own => {
            order.order.environment.extend(passed_on(&batch.of_job));
            Job { key, slot, news, asked, claim: own, told: false }.run(order)
        }
        Claimed::ByAnother => {
            eprintln!("atoll: another job runs this attempt");
            Ok(ExitCode::SUCCESS)
        }
        Claimed::Before => {
            let message = "its job was begun again by the cluster, and it may start only once".to_owned();
            news.ended(&EndedNews { end: unfinished(EndKind::Interrupted { message }), told: false })?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

fn withdrawn() -> ExitCode {
    eprintln!("atoll: this attempt is no longer wanted");
    ExitCode::SUCCESS
}

/// Who runs an attempt.
enum Claimed {
    Own,
    /// A second copy: its submission was repeated because nobody knew of the first.
    ByAnother,
    /// The same job, which the cluster has begun again though the attempt may start only once (F4).
    Before,
}

fn claim(slot: &File, own: &Claim, at_most_once: bool) -> io::Result<Claimed> {
    let bytes = to_json(own)?;
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    match openat(slot, CLAIM, flags, Mode::from_raw_mode(0o600)) {
        Ok(file) => {
            let mut file = File::from(file);
            file.write_all(&bytes)?;
            file.sync_all()?;
            slot.sync_all()?;
            return Ok(Claimed::Own);
        }
        Err(Errno::EXIST) => {}
        Err(error) => return Err(error.into()),
    }
    let former = File::from(openat(slot, CLAIM, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?);
    let former: Option<Claim> = serde_json::from_reader(former).ok();
    let is_same = former
        .is_some_and(|former| former.token == own.token && former.job == own.job && former.restarts < own.restarts);
    match (is_same, at_most_once) {
        (false, _) => Ok(Claimed::ByAnother),
        (true, true) => Ok(Claimed::Before),
        (true, false) => write_durably(slot, CLAIM, &bytes).map(|()| Claimed::Own),
    }
}

/// What the agent is told, by files. The folder was opened before what runs here saw it read-only.
struct News {
    folder: File,
    key: Key,
}

impl News {
    fn name(&self, what: &str) -> String {
        format!("{}.{what}", self.key.folder())
    }

    fn started(&self, started: &StartedNews) -> io::Result<()> {
        write_durably(&self.folder, &self.name(STARTED), &to_json(started)?)
    }

    fn ended(&self, ended: &EndedNews) -> io::Result<()> {
        write_durably(&self.folder, &self.name(ENDED), &to_json(ended)?)
    }

    /// The job lives, whatever its cluster knows of it.
    fn pulse(&self) {
        let now = rustix::fs::Timespec { tv_sec: 0, tv_nsec: UTIME_NOW };
        let times = Timestamps { last_access: now, last_modification: now };
        // One that is missed is made up for by the next.
        let _ = utimensat(&self.folder, self.name(STARTED), &times, AtFlags::empty());
    }
}

struct Job {
    key: Key,
    slot: File,
    news: News,
    asked: SignalFd,
    claim: Claim,
    /// The cluster has asked it to end.
    told: bool,
}

impl Job {
    fn run(mut self, order: JobOrder) -> io::Result<ExitCode> {
        let JobOrder { setup, mut common, mut order, call, terms, .. } = order;
        common.terms = terms;
        if let Some((worker, inputs)) = call {
            (common.worker, order.inputs) = (Some(worker), inputs);
        }
        nix::sys::prctl::set_child_subreaper(true)?;
        let limits = Limits::of_job();
        let mut complaints = Vec::new();
        let isolation = isolation::isolate(&setup, &mut complaints);
        complaints.iter().for_each(|complaint| eprintln!("atoll: {complaint}"));
        let log = SlotLog::open(&setup.slot)?;
        let slot = SlotDirectory::prepare(&setup.slot)?;
        let own_tmp = own_tmp::own_tmp(&setup, isolation);
        let mut runner = Runner::new(slot, log, limits, std::collections::BTreeMap::new(), own_tmp);
        runner.enqueue(common, vec![order]);
        let mut pulse_at = Instant::now() + PULSE_INTERVAL;
        loop {
            runner.advance(Instant::now());
            for notice in runner.take_notices() {
                match notice {
                    Notice::Started { at, .. } => {
                        self.news.started(&StartedNews { at, claim: self.claim.clone() })?;
                    }
                    Notice::Ended { end, .. } => return self.leave_word(end),
                    Notice::GivenBack { .. } => return Ok(withdrawn()),
                }
            }
            self.hear();
            if self.told || is_there(&self.slot, CANCEL) {
                runner.kill(self.key);
            }
            if Instant::now() >= pulse_at {
                self.news.pulse();
                pulse_at = Instant::now() + PULSE_INTERVAL;
            }
            self.wait(&runner)?;
        }
    }

    fn hear(&mut self) {
        while let Ok(Some(_)) = self.asked.read_signal() {
            self.told = true;
        }
    }

    fn wait(&self, runner: &Runner) -> io::Result<()> {
        let now = Instant::now();
        let left = runner.next_timeout().map_or(LOOK_INTERVAL, |at| at.saturating_duration_since(now));
        let left = left.min(LOOK_INTERVAL);
        let timeout = Timespec { tv_sec: left.as_secs().cast_signed(), tv_nsec: left.subsec_nanos().into() };
        let mut sources = vec![PollFd::from_borrowed_fd(self.asked.as_fd(), PollFlags::IN)];
        sources.extend(runner.sources());
        match poll(&mut sources, Some(&timeout)) {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// The word of the end comes last, after what it tells of is on the disk.
    fn leave_word(mut self, mut end: End) -> io::Result<ExitCode> {
        // What a cluster asks to end is asked with all that it started: the child may be heard of first.
        self.hear();
        let is_own =
            matches!(end.how, EndKind::Code(0) | EndKind::Returned { .. } | EndKind::TimedOut | EndKind::OutOfMemory);
        let is_cancelled = is_there(&self.slot, CANCEL);
        let told = self.told && !is_own && !is_cancelled;
        if !is_own && is_cancelled {
            end.how = EndKind::Killed;
        } else if told {
            end.how = EndKind::Interrupted { message: "the cluster had its job end".to_owned() };
        }
        syncfs(&self.slot)?;
        let code = exit_code(&end.how);
        self.news.ended(&EndedNews { end, told })?;
        Ok(code)
    }
}

/// So that the cluster's own records tell how it ended.
fn exit_code(how: &EndKind) -> ExitCode {
    match how {
        EndKind::Code(code) => ExitCode::from(u8::try_from(*code).unwrap_or(1)),
        EndKind::Signal(signal) => ExitCode::from(u8::try_from(128 + signal).unwrap_or(1)),
        EndKind::Returned { .. } => ExitCode::SUCCESS,
        EndKind::TimedOut
        | EndKind::OutOfMemory
        | EndKind::Killed
        | EndKind::NotStarted { .. }
        | EndKind::Failed { .. }
        | EndKind::Interrupted { .. } => ExitCode::FAILURE,
    }
}

/// An end of which nothing but this is known.
fn unfinished(how: EndKind) -> End {
    let now = wall_clock();
    End { started_at: now, finished_at: now, how, spent: Spent::default(), left: Left::default() }
}

fn is_there(folder: &File, name: impl AsRef<Path>) -> bool {
    statat(folder, name.as_ref(), AtFlags::SYMLINK_NOFOLLOW).is_ok()
}

/// What the cluster tells a job of itself.
fn passed_on(of_job: &OfJob) -> impl Iterator<Item = (Vec<u8>, Vec<u8>)> {
    let is_passed = |name: &[u8]| of_job.passed.iter().any(|begin| name.starts_with(begin.as_bytes()));
    env::vars_os().map(|(name, value)| (name.into_vec(), value.into_vec())).filter(move |(name, _)| is_passed(name))
}

fn variable(name: &str) -> String {
    env::var(name).unwrap_or_default()
}

/// How often the cluster has begun this job again, where it says so.
fn restarts() -> u32 {
    variable("SLURM_RESTART_COUNT").parse().unwrap_or(0)
}

fn node() -> String {
    nix::unistd::gethostname().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test that fails here has failed")]

    use super::*;

    fn claim_of(token: &str, job: &str, restarts: u32) -> Claim {
        Claim { token: token.to_owned(), job: job.to_owned(), restarts, node: "c1".to_owned() }
    }

    #[test]
    fn f2_a_second_copy_of_a_job_does_not_run() {
        let folder = tempfile::tempdir().unwrap();
        let slot = File::open(folder.path()).unwrap();
        assert!(matches!(claim(&slot, &claim_of("a", "1", 0), false).unwrap(), Claimed::Own));
        // Submitted again under another token, or by the same number after the cluster forgot the first.
        for other in [claim_of("b", "2", 0), claim_of("b", "1", 1), claim_of("a", "1", 0), claim_of("a", "2", 1)] {
            assert!(matches!(claim(&slot, &other, false).unwrap(), Claimed::ByAnother), "{other:?}");
        }
    }

    #[test]
    fn f4_a_job_that_its_cluster_begins_again_runs_again_unless_it_may_start_only_once() {
        let folder = tempfile::tempdir().unwrap();
        let slot = File::open(folder.path()).unwrap();
        assert!(matches!(claim(&slot, &claim_of("a", "1", 0), true).unwrap(), Claimed::Own));
        assert!(matches!(claim(&slot, &claim_of("a", "1", 1), true).unwrap(), Claimed::Before));
        assert!(matches!(claim(&slot, &claim_of("a", "1", 1), false).unwrap(), Claimed::Own));
        assert!(matches!(claim(&slot, &claim_of("a", "1", 1), false).unwrap(), Claimed::ByAnother));
    }
}
