//! The programs of a batch system, called by a thread beside: where its server is away they take long to say so.

use std::ffi::OsString;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender};
use std::time::{Duration, Instant};

use super::Heard;
use super::system::{BatchSystem, NotSubmitted, Request, Row, Sought};

/// How long a command may take: without a server they give up by themselves after a few seconds.
const PATIENCE: Duration = Duration::from_secs(60);
const LOOK_AGAIN: Duration = Duration::from_millis(5);
/// What every program is told of who calls it and where.
const OF_ALL: [&str; 5] = ["PATH", "HOME", "USER", "LOGNAME", "TZ"];

/// What is asked of the cluster, one thing at a time.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Call {
    Submit { token: String, request: Request },
    Cancel { jobs: Vec<String>, name: String },
    List(Vec<Sought>),
}

/// What came of it.
#[derive(Debug)]
pub(super) enum Answer {
    Submitted { token: String, result: Result<String, NotSubmitted> },
    Cancelled(Result<(), String>),
    Listed(Result<Vec<Row>, String>),
}

/// Does what is asked for until nobody asks any more.
pub(super) fn run(system: &Arc<dyn BatchSystem>, calls: &Receiver<Call>, answers: &Sender<Heard>) {
    while let Ok(call) = calls.recv() {
        // Who does not wait for the answer has ended.
        let _ = answers.send(Heard::Answer(answer(system.as_ref(), call)));
    }
}

pub(super) fn answer(system: &dyn BatchSystem, call: Call) -> Answer {
    match call {
        Call::Submit { token, request } => Answer::Submitted { token, result: system.submit(&request) },
        Call::Cancel { jobs, name } => Answer::Cancelled(system.cancel(&jobs, &name)),
        Call::List(sought) => Answer::Listed(system.list(&sought)),
    }
}

/// How the programs are called.
#[derive(Debug, Clone)]
pub(super) struct Programs {
    environment: Vec<(OsString, OsString)>,
}

impl Programs {
    /// Programs in a folder, or found by the search path. Jobs may get the environment that they are submitted in: it is no
    /// more of the agent's than what begins with one of these.
    pub(super) fn new(folder: Option<&Path>, prefixes: &[String]) -> Self {
        let is_wanted = |name: &OsString| {
            name.to_str().is_some_and(|name| {
                OF_ALL.contains(&name) || prefixes.iter().any(|prefix| name.starts_with(prefix.as_str()))
            })
        };
        let mut environment: Vec<_> = std::env::vars_os().filter(|(name, _)| is_wanted(name)).collect();
        environment.push(("LC_ALL".into(), "C".into()));
        let mut programs = Self { environment };
        if let Some(folder) = folder {
            programs.look_first_in(folder);
        }
        programs
    }

    fn look_first_in(&mut self, folder: &Path) {
        let former = self.environment.iter().find(|(name, _)| name == "PATH").map(|(_, path)| path.clone());
        let folders: Vec<PathBuf> =
            [folder.to_owned()].into_iter().chain(former.iter().flat_map(std::env::split_paths)).collect();
        // A folder whose name cannot be part of a search path is none that anything is found in.
        if let Ok(path) = std::env::join_paths(folders) {
            self.environment.retain(|(name, _)| name != "PATH");
            self.environment.push(("PATH".into(), path));
        }
    }

    /// With one more variable.
    pub(super) fn with(mut self, name: &str, value: &Path) -> Self {
        self.environment.push((name.into(), value.into()));
        self
    }

    /// What a command answers, however it ends.
    pub(super) fn ask(&self, words: &[String], input: &str) -> io::Result<Output> {
        let (program, arguments) = words.split_first().ok_or_else(|| io::Error::other("the command has no words"))?;
        let mut command = Command::new(program);
        command.args(arguments).env_clear().envs(self.environment.iter().map(|(name, value)| (name, value)));
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|error| io::Error::new(error.kind(), format!("{program} cannot be started: {error}")))?;
        if let Some(mut stdin) = child.stdin.take() {
            // One that ends without reading says why.
            let _ = stdin.write_all(input.as_bytes());
        }
        wait(child)
    }

    /// What a command says that succeeds, else what it complains of.
    pub(super) fn said(&self, words: &[String]) -> Result<String, String> {
        let output = self.ask(words, "").map_err(|error| error.to_string())?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        Err(complaint(&output))
    }
}

/// Waits for a command that may not take for ever.
fn wait(mut child: Child) -> io::Result<Output> {
    let (out, err) = (child.stdout.take(), child.stderr.take());
    let read = |source: Option<Box<dyn Read + Send>>| {
        std::thread::spawn(move || {
            let mut bytes = Vec::new();
            source.map(|mut source| source.read_to_end(&mut bytes)).transpose().map(|_| bytes)
        })
    };
    let out = read(out.map(|out| Box::new(out) as Box<dyn Read + Send>));
    let err = read(err.map(|err| Box::new(err) as Box<dyn Read + Send>));
    let deadline = Instant::now() + PATIENCE;
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if Instant::now() >= deadline {
            // It may have ended meanwhile.
            let _ = child.kill();
            child.wait()?;
            return Err(io::Error::new(io::ErrorKind::TimedOut, format!("no answer within {} s", PATIENCE.as_secs())));
        }
        std::thread::sleep(LOOK_AGAIN);
    };
    let whole = |thread: std::thread::JoinHandle<io::Result<Vec<u8>>>| {
        thread.join().map_err(|_| io::Error::other("what it says cannot be read"))?
    };
    Ok(Output { status, stdout: whole(out)?, stderr: whole(err)? })
}

/// What a command complains of, without the name that each line begins with.
pub(super) fn complaint(output: &Output) -> String {
    let text = if output.stderr.is_empty() { &output.stdout } else { &output.stderr };
    let text = String::from_utf8_lossy(text);
    let lines = text.lines().map(|line| line.rsplit("error: ").next().unwrap_or(line).trim());
    let said = lines.filter(|line| !line.is_empty()).collect::<Vec<_>>().join("; ");
    if said.is_empty() { format!("it ends with {}, and says nothing", output.status) } else { said }
}
