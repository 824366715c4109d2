//! The process that works on a journal until it is stopped, and the one that looks at what is left.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use storage_sync_journal::{Backend, Journal, OpenError, Opened, Options, open};

use crate::payload::{self, Claim, Kind};
use crate::random::Random;

/// Exit status of a check that found the journal damaged and said so.
pub const DAMAGED: i32 = 10;
/// Exit status of a check that found something acknowledged missing or wrong.
pub const LOST: i32 = 20;

/// What was acknowledged before a process stopped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Acknowledged {
    /// The last batch that stood there when the process began.
    pub start: u64,
    /// The last batch that it acknowledged.
    pub last: u64,
    pub run: u64,
}

impl Acknowledged {
    fn line(self) -> String {
        format!("{:020} {:020} {:020}\n", self.start, self.last, self.run)
    }

    /// The last whole line of what a process wrote.
    pub fn read(bytes: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(bytes).ok()?;
        let end = text.rfind('\n')?;
        let mut words = text[..end].rsplit('\n').next()?.split(' ').map(|word| word.parse().ok());
        Some(Self { start: words.next()??, last: words.next()??, run: words.next()?? })
    }
}

pub fn options(directory: &Path, backend: Backend) -> Options {
    Options { ballast_bytes: 0, patience: Duration::from_secs(10), ..Options::new(directory, backend, 1) }
}

/// Appends, makes durable and acknowledges until `operations` are done or somebody stops it.
///
/// # Errors
/// If the journal holds anything that was not written, or fails.
pub fn work(home: &Path, backend: Backend, run: u64, operations: u64) -> Result<()> {
    let mut random = Random::new(run);
    let directory = home.join("journal");
    let mut acks = OpenOptions::new().create(true).append(true).open(home.join("acknowledged"))?;
    let opened = open(options(&directory, backend))?;
    let start = check_contents(&opened)?;
    let mut journal = opened.journal;
    let mut last = start;
    acks.write_all(Acknowledged { start, last, run }.line().as_bytes())?;
    for _ in 0..operations {
        if random.one_in(30) {
            drop(journal);
            let opened = open(options(&directory, backend))?;
            ensure!(check_contents(&opened)? == last, "a clean close lost something");
            journal = opened.journal;
        } else if random.one_in(12) {
            let length = random.below(300_000) as usize;
            journal.checkpoint(&payload::make(Claim { kind: Kind::Checkpoint, run, seq: last }, length))?;
        } else {
            last = append_some(&mut journal, &mut random, run, last)?;
            journal.barrier()?;
        }
        acks.write_all(Acknowledged { start, last, run }.line().as_bytes())?;
    }
    Ok(())
}

fn append_some(journal: &mut Journal, random: &mut Random, run: u64, mut last: u64) -> Result<u64> {
    for _ in 0..=random.below(4) {
        let most = [2_000, 2_000, 2_000, 40_000, 40_000, 600_000][random.below(6) as usize];
        let claim = Claim { kind: Kind::Batch, run, seq: last + 1 };
        let seq = journal.append(&payload::make(claim, random.below(most) as usize))?;
        last += 1;
        ensure!(seq.0 == last, "batch {last} was numbered {seq}");
    }
    Ok(last)
}

/// Checks every byte of what a journal holds, and returns its last batch.
fn check_contents(opened: &Opened) -> Result<u64> {
    let mut last = 0;
    if let Some((seq, state)) = &opened.checkpoint {
        payload::check(state, Kind::Checkpoint, seq.0)?;
        last = seq.0;
    }
    for (seq, batch) in &opened.batches {
        ensure!(seq.0 == last + 1, "{seq} follows batch {last}");
        payload::check(batch, Kind::Batch, seq.0)?;
        last = seq.0;
    }
    Ok(last)
}

/// Opens what was left, and holds it against what was acknowledged. The exit status says what was found.
pub fn check(directory: &Path, backend: Backend, acknowledged: Acknowledged) -> i32 {
    let opened = match open(options(directory, backend)) {
        Ok(opened) => opened,
        Err(OpenError::Damaged { fault, .. }) => {
            println!("damaged: {fault}");
            return DAMAGED;
        }
        Err(error) => {
            println!("damaged, in another way: {error:?}");
            return DAMAGED;
        }
    };
    match find_lost(&opened, acknowledged) {
        Ok(last) => {
            println!("sound up to batch {last}; {:?}", opened.repaired);
            0
        }
        Err(error) => {
            println!("LOST: {error:#}");
            LOST
        }
    }
}

fn find_lost(opened: &Opened, acknowledged: Acknowledged) -> Result<u64> {
    let last = check_contents(opened)?;
    if last < acknowledged.last {
        bail!("it ends with batch {last}, and {} was acknowledged", acknowledged.last);
    }
    for (seq, batch) in &opened.batches {
        let run = payload::check(batch, Kind::Batch, seq.0)?;
        let ours = seq.0 > acknowledged.start && seq.0 <= acknowledged.last;
        ensure!(!ours || run == acknowledged.run, "{seq} is of run {run}, not of {}", acknowledged.run);
    }
    Ok(last)
}

/// Runs a command to its end, and kills it if that does not come.
///
/// # Errors
/// If it can't be started or does not end in time.
pub fn run_within(command: &mut Command, patience: Duration) -> Result<Output> {
    let output = tempfile::tempfile()?;
    let mut child = command.stdout(output.try_clone()?).stderr(output.try_clone()?).spawn()?;
    let start = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if start.elapsed() > patience {
            child.kill()?;
            child.wait()?;
            bail!("{command:?} did not end within {patience:?}: {}", text_of(output)?);
        }
        std::thread::park_timeout(Duration::from_millis(2));
    };
    Ok(Output { status, stdout: text_of(output)?.into_bytes(), stderr: Vec::new() })
}

fn text_of(mut file: File) -> Result<String> {
    use std::io::Seek;
    let mut bytes = Vec::new();
    file.rewind()?;
    file.read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Copies a directory with everything in it.
///
/// # Errors
/// If a file can't be copied.
pub fn copy_directory(from: &Path, to: &Path) -> Result<()> {
    std::fs::create_dir_all(to)?;
    for entry in std::fs::read_dir(from).with_context(|| from.display().to_string())? {
        let entry = entry?;
        let target: PathBuf = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy_directory(&entry.path(), &target)?;
        } else {
            std::fs::copy(entry.path(), target)?;
        }
    }
    Ok(())
}
