//! A whole installation on this machine: a control plane and its sites, each a process of its own, joined with real
//! tokens. What `atoll dev` keeps up and `atoll bench` measures.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, bail};
use atoll_model::workflow::{BUCKET_SCHEMES, WEB_SCHEMES};
use serde::{Deserialize, Serialize};
use tokio::process::{Child, ChildStdin, Command};

/// Set for the processes of an installation: they end when their standard input does, so that none is left behind
/// whatever becomes of the process that started them.
pub(crate) const SUPERVISED: &str = "ATOLL_SUPERVISED";
/// The join token on its way to `atoll agent join -`, because command lines are public.
const JOIN_TIMEOUT: Duration = Duration::from_secs(60);
const START_TIMEOUT: Duration = Duration::from_secs(60);
/// After this long the processes that were asked to end are ended.
const STOP_TIMEOUT: Duration = Duration::from_secs(20);
/// A process that was up for this long before it ended is started again at once; others wait this long.
const RESTART_PAUSE: Duration = Duration::from_secs(1);

/// What to start.
#[derive(Debug, Clone)]
pub(crate) struct Options {
    pub(crate) directory: PathBuf,
    pub(crate) sites: Vec<String>,
    pub(crate) listen: SocketAddr,
    pub(crate) bucket: Option<String>,
    pub(crate) store: Option<String>,
    /// Further arguments of each `atoll agent run`.
    pub(crate) agent_arguments: Vec<String>,
}

/// What the server's ready file says.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct ServerReady {
    pub(crate) url: String,
    pub(crate) agent_addr: String,
    pub(crate) token: String,
}

/// Addresses that a later start of the same directory takes again, so that the sites find their control plane.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Addresses {
    listen: Option<SocketAddr>,
    agent_listen: Option<SocketAddr>,
}

#[derive(Debug)]
pub(crate) struct Installation {
    options: Options,
    ready: ServerReady,
    server: Process,
    agents: BTreeMap<String, Process>,
}

#[derive(Debug)]
struct Process {
    child: Child,
    /// Open as long as the process is to run; kept apart, because waiting for a child closes what it holds.
    life: Option<ChildStdin>,
    pid: u32,
}

impl Installation {
    /// Starts the control plane and every site, and returns when each site is ready for work.
    ///
    /// # Errors
    /// When a process does not start; the message names its log.
    pub(crate) async fn start(options: Options) -> anyhow::Result<Self> {
        for folder in ["server", "bucket", "logs", "sites"] {
            let path = options.directory.join(folder);
            std::fs::create_dir_all(&path).with_context(|| format!("cannot make the folder {}", path.display()))?;
        }
        let addresses = read_addresses(&options.directory);
        let listen =
            if options.listen.port() == 0 { addresses.listen.unwrap_or(options.listen) } else { options.listen };
        let agent_listen = addresses.agent_listen.unwrap_or(SocketAddr::from(([127, 0, 0, 1], 0)));
        let started = start_server(&options, listen, agent_listen).await;
        let (server, ready) = match started {
            Ok(started) => started,
            // Somebody else may have taken the ports meanwhile; the sites are told the new ones.
            Err(_) if options.listen.port() == 0 && addresses.listen.is_some() => {
                start_server(&options, options.listen, SocketAddr::from(([127, 0, 0, 1], 0))).await?
            }
            Err(error) => return Err(error),
        };
        let mut installation = Self { options, ready, server, agents: BTreeMap::new() };
        installation.write_addresses()?;
        for site in installation.options.sites.clone() {
            installation.join_site(&site).await?;
            let agent = installation.start_agent(&site)?;
            installation.agents.insert(site, agent);
        }
        installation.wait_for_sites().await?;
        Ok(installation)
    }

    pub(crate) fn url(&self) -> &str {
        &self.ready.url
    }

    pub(crate) fn token(&self) -> &str {
        &self.ready.token
    }

    pub(crate) fn directory(&self) -> &Path {
        &self.options.directory
    }

    pub(crate) fn server_pid(&self) -> u32 {
        self.server.pid
    }

    /// Process ids of the agents, by site.
    pub(crate) fn agent_pids(&self) -> BTreeMap<String, u32> {
        self.agents.iter().map(|(site, agent)| (site.clone(), agent.pid)).collect()
    }

    /// Waits until one of the processes ends, and starts it again. Returns what happened, for people.
    ///
    /// # Errors
    /// When it cannot be started again.
    pub(crate) async fn supervise(&mut self) -> anyhow::Result<String> {
        let ended = self.next_end().await;
        tokio::time::sleep(RESTART_PAUSE).await;
        match ended {
            None => {
                self.restart_server().await?;
                Ok(format!("the control plane had ended; it is up again (process {})", self.server.pid))
            }
            Some(site) => {
                let agent = self.start_agent(&site)?;
                let message = format!("the agent of {site} had ended; it is up again (process {})", agent.pid);
                self.agents.insert(site, agent);
                Ok(message)
            }
        }
    }

    /// Ends the control plane without a warning and starts it again. How long the start took, recovery included.
    ///
    /// # Errors
    /// When it cannot be started again.
    pub(crate) async fn kill_server(&mut self) -> anyhow::Result<Duration> {
        self.server.child.kill().await.context("cannot end the control plane")?;
        let began = std::time::Instant::now();
        self.restart_server().await?;
        Ok(began.elapsed())
    }

    async fn restart_server(&mut self) -> anyhow::Result<()> {
        let listen = socket_address(&self.ready.url)?;
        let agent_listen: SocketAddr = self.ready.agent_addr.parse().context("the server's agent address")?;
        (self.server, self.ready) = start_server(&self.options, listen, agent_listen).await?;
        Ok(())
    }

    /// Which process ended: the server (nothing), or the agent of a site.
    async fn next_end(&mut self) -> Option<String> {
        let agents = self.agents.iter_mut().map(|(site, agent)| {
            Box::pin(async move {
                // An error means that somebody else has waited for it: it is gone as well.
                let _ = agent.child.wait().await;
                site.clone()
            })
        });
        let agents: Vec<_> = agents.collect();
        if agents.is_empty() {
            let _ = self.server.child.wait().await;
            return None;
        }
        tokio::select! {
            _ = self.server.child.wait() => None,
            (site, _, _) = futures::future::select_all(agents) => Some(site),
        }
    }

    /// Asks every process to end, agents first, waits, and ends by force what has not ended in time.
    pub(crate) async fn stop(mut self) {
        let agents = std::mem::take(&mut self.agents);
        let stops = agents.into_values().map(Process::stop);
        futures::future::join_all(stops).await;
        self.server.stop().await;
    }

    fn write_addresses(&self) -> anyhow::Result<()> {
        let addresses = Addresses {
            listen: Some(socket_address(&self.ready.url)?),
            agent_listen: Some(self.ready.agent_addr.parse().context("the server's agent address")?),
        };
        let path = self.options.directory.join("addresses.json");
        std::fs::write(&path, serde_json::to_vec(&addresses)?)
            .with_context(|| format!("cannot write {}", path.display()))
    }

    fn site_directory(&self, site: &str) -> PathBuf {
        self.options.directory.join("sites").join(site)
    }

    async fn join_site(&self, site: &str) -> anyhow::Result<()> {
        let directory = self.site_directory(site);
        if site_agent_daemon::is_joined(&directory) {
            return Ok(());
        }
        std::fs::create_dir_all(&directory)
            .with_context(|| format!("cannot make the folder {}", directory.display()))?;
        let client = crate::client::Client::new(&self.ready.url, &self.ready.token)?;
        let token = client
            .create_site_token(site, Duration::from_secs(600), &BTreeMap::from([("dev".to_owned(), "true".to_owned())]))
            .await?;
        let mut command = self.command(&["agent", "join", "-", "--data-dir"]);
        command.arg(&directory).stdin(Stdio::piped());
        let mut child =
            self.log_to(&mut command, &format!("{site}-join"))?.spawn().context("cannot start the agent's join")?;
        let mut input = child.stdin.take().context("the agent's standard input")?;
        tokio::io::AsyncWriteExt::write_all(&mut input, token.as_bytes())
            .await
            .context("cannot hand over the token")?;
        drop(input);
        let status =
            tokio::time::timeout(JOIN_TIMEOUT, child.wait()).await.context("the site did not join in time")??;
        if !status.success() {
            bail!("{site} could not join; its log is {}", self.log_path(&format!("{site}-join")).display());
        }
        Ok(())
    }

    fn start_agent(&self, site: &str) -> anyhow::Result<Process> {
        let mut command = self.command(&["agent", "run", "--data-dir"]);
        command.arg(self.site_directory(site));
        command.args(["--server", &self.ready.agent_addr, "--import-root", "/", "--stop-work-on-exit"]);
        for scheme in WEB_SCHEMES.iter().chain(&BUCKET_SCHEMES) {
            command.args(["--import-url", &format!("{scheme}://")]);
        }
        command.args(["--export-to", "/"]);
        for scheme in BUCKET_SCHEMES {
            command.args(["--export-to", &format!("{scheme}://")]);
        }
        command.args(&self.options.agent_arguments);
        supervised(&mut command);
        let child =
            self.log_to(&mut command, site)?.spawn().with_context(|| format!("cannot start the agent of {site}"))?;
        Process::new(child)
    }

    async fn wait_for_sites(&mut self) -> anyhow::Result<()> {
        let client = crate::client::Client::new(&self.ready.url, &self.ready.token)?;
        let deadline = tokio::time::Instant::now() + START_TIMEOUT;
        loop {
            let ready = client.ready_sites().await.unwrap_or_default();
            if self.options.sites.iter().all(|site| ready.contains(site)) {
                return Ok(());
            }
            for (site, agent) in &mut self.agents {
                if let Some(status) = agent.child.try_wait()? {
                    let log = self.options.directory.join("logs").join(format!("{site}.log"));
                    bail!("the agent of {site} ended ({status}); its log is {}", log.display());
                }
            }
            if tokio::time::Instant::now() > deadline {
                bail!(
                    "the sites are not ready after {} s; the logs are in {}",
                    START_TIMEOUT.as_secs(),
                    self.options.directory.join("logs").display()
                );
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    fn command(&self, arguments: &[&str]) -> Command {
        own_command(arguments)
    }

    fn log_path(&self, name: &str) -> PathBuf {
        self.options.directory.join("logs").join(format!("{name}.log"))
    }

    fn log_to<'a>(&self, command: &'a mut Command, name: &str) -> anyhow::Result<&'a mut Command> {
        log_to(command, &self.log_path(name))
    }
}

impl Process {
    fn new(mut child: Child) -> anyhow::Result<Self> {
        let pid = child.id().context("the process has ended already")?;
        let life = child.stdin.take();
        Ok(Self { child, life, pid })
    }

    /// Closes its standard input, which asks a supervised process to end; after a while ends it by force.
    async fn stop(mut self) {
        drop(self.life.take());
        if tokio::time::timeout(STOP_TIMEOUT, self.child.wait()).await.is_err() {
            // It may have ended in this very moment; either way nothing is left.
            let _ = self.child.kill().await;
        }
    }
}

async fn start_server(
    options: &Options,
    listen: SocketAddr,
    agent_listen: SocketAddr,
) -> anyhow::Result<(Process, ServerReady)> {
    let directory = options.directory.join("server");
    let ready_file = directory.join("ready.json");
    match std::fs::remove_file(&ready_file) {
        Ok(()) => {}
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(error).with_context(|| format!("cannot remove {}", ready_file.display())),
    }
    let bucket = options.bucket.clone().unwrap_or_else(|| options.directory.join("bucket").display().to_string());
    let mut command = own_command(&["server", "--plain-http", "--data-dir"]);
    command.arg(&directory).arg("--ready-file").arg(&ready_file).args(["--bucket", &bucket]);
    command.args(["--listen", &listen.to_string(), "--agent-listen", &agent_listen.to_string()]);
    if let Some(store) = &options.store {
        command.args(["--store", store]);
    }
    supervised(&mut command);
    let log = options.directory.join("logs").join("server.log");
    let mut child = log_to(&mut command, &log)?.spawn().context("cannot start the control plane")?;
    let deadline = tokio::time::Instant::now() + START_TIMEOUT;
    loop {
        if let Some(status) = child.try_wait()? {
            bail!("the control plane ended ({status}); its log is {}\n{}", log.display(), last_lines(&log));
        }
        if let Ok(text) = std::fs::read(&ready_file) {
            let ready = serde_json::from_slice(&text).context("the server's ready file")?;
            return Ok((Process::new(child)?, ready));
        }
        if tokio::time::Instant::now() > deadline {
            let _ = child.kill().await;
            bail!("the control plane is not up after {} s; its log is {}", START_TIMEOUT.as_secs(), log.display());
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

fn own_command(arguments: &[&str]) -> Command {
    let binary = std::env::current_exe().unwrap_or_else(|_| PathBuf::from("atoll"));
    let mut command = Command::new(binary);
    command.args(arguments).env_remove("ATOLL_URL").env_remove("ATOLL_TOKEN").kill_on_drop(true);
    command
}

/// A process group of its own keeps a terminal's Ctrl-C from it: it is stopped in order, by its standard input.
fn supervised(command: &mut Command) {
    command.env(SUPERVISED, "1").stdin(Stdio::piped()).process_group(0);
}

fn log_to<'a>(command: &'a mut Command, path: &Path) -> anyhow::Result<&'a mut Command> {
    let log = std::fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(path)
        .with_context(|| format!("cannot write {}", path.display()))?;
    Ok(command.stdout(log.try_clone()?).stderr(log))
}

fn last_lines(path: &Path) -> String {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let lines: Vec<&str> = text.lines().rev().take(5).collect();
    lines.into_iter().rev().collect::<Vec<_>>().join("\n")
}

fn read_addresses(directory: &Path) -> Addresses {
    std::fs::read(directory.join("addresses.json"))
        .ok()
        .and_then(|text| serde_json::from_slice(&text).ok())
        .unwrap_or_default()
}

fn socket_address(url: &str) -> anyhow::Result<SocketAddr> {
    let rest = url.split("://").nth(1).unwrap_or(url);
    rest.trim_end_matches('/').parse().with_context(|| format!("{url:?} names no address"))
}
