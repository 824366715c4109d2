//! Processes full of simulated agents, and how they are told what to do: lines on their standard input and output.

use std::io::Write as _;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use atoll_proto::JoinToken;
use site_agent_daemon::simulated::{self, Attendance};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// Between two looks at how many agents are there: also how exact the measured times are.
const LOOK_INTERVAL: Duration = Duration::from_millis(20);
/// The line after the last token.
const ALL_TOLD: &str = "";
const JOINED: &str = "joined";
const CONNECT: &str = "connect";

/// What such a process does: joins with the tokens, waits for the word, keeps the sessions, and says how many there are.
/// It ends with its standard input.
///
/// # Errors
/// When a token is refused, or an agent is turned away.
pub(super) async fn serve() -> anyhow::Result<()> {
    crate::serve::raise_descriptors()?;
    let mut lines = told();
    let mut tokens = Vec::new();
    while let Some(line) = lines.recv().await.filter(|line| line != ALL_TOLD) {
        tokens.push(line.parse::<JoinToken>()?);
    }
    let agents = simulated::join(&tokens).await?;
    say(JOINED)?;
    if lines.recv().await.as_deref() != Some(CONNECT) {
        return Ok(());
    }
    let (attendance, shutdown) = (Arc::new(Attendance::default()), CancellationToken::new());
    let mut running = JoinSet::new();
    for agent in agents {
        running.spawn(agent.run(Arc::clone(&attendance), shutdown.clone()));
    }
    let mut said = None;
    let mut looks = tokio::time::interval(LOOK_INTERVAL);
    loop {
        tokio::select! {
            _ = looks.tick() => {
                let seen = (attendance.present(), attendance.sessions());
                if said.replace(seen) != Some(seen) {
                    say(&format!("{} {}", seen.0, seen.1))?;
                }
            }
            Some(end) = running.join_next() => bail!("an agent has ended: {}", end?),
            line = lines.recv() => if line.is_none() {
                break;
            },
        }
    }
    shutdown.cancel();
    running.join_all().await;
    Ok(())
}

/// The lines of standard input, which only a thread can wait for.
fn told() -> mpsc::Receiver<String> {
    let (sender, lines) = mpsc::channel(64);
    std::thread::spawn(move || {
        for line in std::io::stdin().lines() {
            let Ok(line) = line else { return };
            if sender.blocking_send(line).is_err() {
                return;
            }
        }
    });
    lines
}

fn say(line: &str) -> std::io::Result<()> {
    let mut output = std::io::stdout().lock();
    writeln!(output, "{line}")?;
    output.flush()
}

/// Processes that hold the agents of one installation.
#[derive(Debug)]
pub(super) struct Fleet {
    processes: Vec<Process>,
}

#[derive(Debug)]
struct Process {
    child: Child,
    input: ChildStdin,
    output: Lines<BufReader<ChildStdout>>,
    seen: Seen,
}

/// What the processes of a fleet have said last, in sum.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Seen {
    pub(super) present: u64,
    /// Sessions that were made so far.
    pub(super) sessions: u64,
}

impl Fleet {
    /// Starts the processes and has an agent join with each token.
    ///
    /// # Errors
    /// When one does not start, or cannot join.
    pub(super) async fn join(tokens: &[String], processes: u32) -> anyhow::Result<Self> {
        let each = tokens.len().div_ceil(processes.max(1) as usize).max(1);
        let started = tokens.chunks(each).map(Process::start);
        let mut fleet = Self { processes: futures::future::try_join_all(started).await? };
        let joined = fleet.processes.iter_mut().map(Process::joined);
        futures::future::try_join_all(joined).await?;
        Ok(fleet)
    }

    /// Has every agent connect; they stay as long as this lives.
    ///
    /// # Errors
    /// When a process has ended.
    pub(super) async fn connect(&mut self) -> anyhow::Result<()> {
        for process in &mut self.processes {
            process
                .input
                .write_all(format!("{CONNECT}\n").as_bytes())
                .await
                .context("a process of agents has ended")?;
        }
        Ok(())
    }

    pub(super) fn seen(&self) -> Seen {
        self.processes.iter().fold(Seen::default(), |sum, process| Seen {
            present: sum.present + process.seen.present,
            sessions: sum.sessions + process.seen.sessions,
        })
    }

    /// Waits until so many are there, after so many sessions in all.
    ///
    /// # Errors
    /// When a process has ended, or it takes too long.
    pub(super) async fn wait_for(&mut self, wanted: Seen, patience: Duration) -> anyhow::Result<()> {
        let deadline = tokio::time::Instant::now() + patience;
        loop {
            let seen = self.seen();
            if seen.present == wanted.present && seen.sessions >= wanted.sessions {
                return Ok(());
            }
            match tokio::time::timeout_at(deadline, self.hear()).await {
                Ok(heard) => heard?,
                Err(_) => bail!("only {} of {} agents have a session", seen.present, wanted.present),
            }
        }
    }

    /// Takes in the next line of any of the processes.
    async fn hear(&mut self) -> anyhow::Result<()> {
        let next = self.processes.iter_mut().map(|process| Box::pin(process.hear()));
        futures::future::select_all(next).await.0
    }

    /// Takes in what has been said until now.
    ///
    /// # Errors
    /// When a process has ended.
    pub(super) async fn catch_up(&mut self) -> anyhow::Result<()> {
        while let Ok(heard) = tokio::time::timeout(2 * LOOK_INTERVAL, self.hear()).await {
            heard?;
        }
        Ok(())
    }

    /// Ends the processes.
    pub(super) async fn stop(self) {
        for mut process in self.processes {
            drop(process.input);
            // One that has ended already is what is wanted.
            let _ = process.child.wait().await;
        }
    }
}

impl Process {
    async fn start(tokens: &[String]) -> anyhow::Result<Self> {
        let binary = std::env::current_exe().context("this program has no path")?;
        let mut child = Command::new(binary)
            .args(["bench", "fleet"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .context("cannot start a process of agents")?;
        let mut input = child.stdin.take().context("its standard input")?;
        let output = child.stdout.take().context("its standard output")?;
        let told = format!("{}\n{ALL_TOLD}\n", tokens.join("\n"));
        input.write_all(told.as_bytes()).await.context("a process of agents has ended")?;
        Ok(Self { child, input, output: BufReader::new(output).lines(), seen: Seen::default() })
    }

    async fn joined(&mut self) -> anyhow::Result<()> {
        let line = self.output.next_line().await?;
        if line.as_deref() != Some(JOINED) {
            bail!("the agents could not join");
        }
        Ok(())
    }

    async fn hear(&mut self) -> anyhow::Result<()> {
        let line = self.output.next_line().await?.context("a process of agents has ended")?;
        let (present, sessions) = line.split_once(' ').context("a process of agents says something else")?;
        self.seen = Seen { present: present.parse()?, sessions: sessions.parse()? };
        Ok(())
    }
}
