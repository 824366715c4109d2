//! A control plane and its sites.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;
use tempfile::TempDir;

use crate::link::Link;
use crate::process::{Output, atoll};

/// Long enough for a busy machine; nothing waits this long unless something is wrong.
const PATIENCE: Duration = Duration::from_secs(90);
const LOOK_AGAIN: Duration = Duration::from_millis(15);

/// How an installation is made.
#[derive(Debug, Clone, Default)]
pub struct Options {
    pub sites: Vec<&'static str>,
    /// A bucket elsewhere; nothing means a directory.
    pub bucket: Option<String>,
    /// Further settings of the control plane's process.
    pub environment: Vec<(String, String)>,
    pub server_arguments: Vec<String>,
    pub agent_arguments: Vec<String>,
    /// Further arguments of the agent of one site.
    pub site_arguments: BTreeMap<&'static str, Vec<String>>,
    /// Further settings of the agent of one site.
    pub site_environment: BTreeMap<&'static str, Vec<(&'static str, String)>>,
    /// Where the control plane keeps its data, if not in the installation's own folder.
    pub server_directory: Option<PathBuf>,
    /// Where a site keeps its data, if not in the installation's own folder.
    pub site_directories: BTreeMap<&'static str, PathBuf>,
}

/// A running installation; everything ends when it is dropped.
#[derive(Debug)]
pub struct Cluster {
    directory: TempDir,
    options: Options,
    server: Option<Child>,
    url: String,
    token: String,
    listen: SocketAddr,
    agent_listen: SocketAddr,
    sites: BTreeMap<&'static str, Site>,
}

#[derive(Debug)]
pub struct Site {
    pub link: Link,
    pub directory: PathBuf,
    agent: Option<Child>,
}

/// A run that was submitted.
#[derive(Debug, Clone)]
pub struct Run {
    pub id: String,
}

impl Cluster {
    /// Two sites, `edge` and `hpc`, and a directory as the bucket.
    ///
    /// # Errors
    /// When something does not start.
    pub fn two_sites() -> Result<Self> {
        Self::start(Options { sites: vec!["edge", "hpc"], ..Options::default() })
    }

    /// # Errors
    /// When something does not start.
    pub fn start(options: Options) -> Result<Self> {
        let directory = tempfile::Builder::new().prefix("atoll-e2e-").tempdir()?;
        let any: SocketAddr = ([127, 0, 0, 1], 0).into();
        let sites = options.sites.clone();
        let mut cluster = Self {
            directory,
            options,
            server: None,
            url: String::new(),
            token: String::new(),
            listen: any,
            agent_listen: any,
            sites: BTreeMap::new(),
        };
        cluster.start_server()?;
        for site in sites {
            cluster.add_site(site)?;
        }
        Ok(cluster)
    }

    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    pub fn url(&self) -> &str {
        &self.url
    }

    pub fn token(&self) -> &str {
        &self.token
    }

    pub fn bucket_directory(&self) -> PathBuf {
        self.directory().join("bucket")
    }

    pub fn site(&self, site: &str) -> &Site {
        &self.sites[site]
    }

    pub fn server_pid(&self) -> Option<u32> {
        self.server.as_ref().map(Child::id)
    }

    pub fn agent_pid(&self, site: &str) -> Option<u32> {
        self.sites[site].agent.as_ref().map(Child::id)
    }

    /// # Errors
    /// When it does not come up.
    pub fn start_server(&mut self) -> Result<()> {
        let data = self.options.server_directory.clone().unwrap_or_else(|| self.directory().join("server"));
        let ready_file = self.directory().join("server-ready.json");
        if ready_file.exists() {
            std::fs::remove_file(&ready_file)?;
        }
        let bucket = self.options.bucket.clone().unwrap_or_else(|| self.bucket_directory().display().to_string());
        let mut command = atoll(&["server", "--data-dir"]);
        command.arg(&data).arg("--ready-file").arg(&ready_file).args(["--bucket", &bucket]);
        command.args(["--listen", &self.listen.to_string(), "--agent-listen", &self.agent_listen.to_string()]);
        command.args(&self.options.server_arguments).envs(self.options.environment.clone());
        let mut child = self.log_to(&mut command, "server")?.spawn()?;
        let ready: Value = wait_for("the control plane", || {
            if let Some(status) = child.try_wait()? {
                bail!("the control plane ended: {status}\n{}", self.log("server"));
            }
            let text = std::fs::read(&ready_file).ok();
            Ok(text.and_then(|text| serde_json::from_slice(&text).ok()))
        })?;
        self.server = Some(child);
        let text = |name: &str| ready[name].as_str().map(str::to_owned).with_context(|| format!("{name} in {ready}"));
        self.url = text("url")?;
        self.token = text("token")?;
        self.agent_listen = text("agent_addr")?.parse()?;
        let address = self.url.split("://").nth(1).context("an address in the url")?;
        self.listen = address.trim_end_matches('/').parse()?;
        for site in self.sites.values() {
            site.link.set_target(self.agent_listen);
        }
        Ok(())
    }

    /// Starts it with further arguments, now and later.
    ///
    /// # Errors
    /// When it does not come up.
    pub fn start_server_with(&mut self, arguments: &[&str]) -> Result<()> {
        self.options.server_arguments.extend(arguments.iter().map(|argument| (*argument).to_owned()));
        self.start_server()
    }

    fn add_site(&mut self, name: &'static str) -> Result<()> {
        let default = self.directory().join("sites").join(name);
        let directory = self.options.site_directories.get(name).cloned().unwrap_or(default);
        std::fs::create_dir_all(&directory)?;
        let token = self.call(&["site", "token", "create", name, "--ttl", "10m", "--json"])?.json()?;
        let token = token["token"].as_str().context("a token")?.to_owned();
        let joined = Output::of(atoll(&["agent", "join", &token, "--data-dir"]).arg(&directory))?;
        ensure!(joined.code == 0, "{name} cannot join: {}{}", joined.stdout, joined.stderr);
        let link = Link::new(self.agent_listen)?;
        self.sites.insert(name, Site { link, directory, agent: None });
        self.start_agent(name)?;
        self.wait_for_site(name, "ready")
    }

    /// # Errors
    /// When it cannot be started.
    pub fn start_agent(&mut self, name: &str) -> Result<()> {
        let site = &self.sites[name];
        let mut command = atoll(&["agent", "run", "--data-dir"]);
        command.arg(&site.directory).args(["--server", &site.link.address().to_string(), "--import-root", "/"]);
        command.args(&self.options.agent_arguments);
        command.args(self.options.site_arguments.get(name).into_iter().flatten());
        command.envs(self.options.site_environment.get(name).cloned().unwrap_or_default());
        let child = self.log_to(&mut command, name)?.spawn()?;
        let (key, _) = self
            .options
            .sites
            .iter()
            .map(|site| (*site, ()))
            .find(|(site, ())| *site == name)
            .context("a known site")?;
        self.sites.get_mut(key).context("a known site")?.agent = Some(child);
        Ok(())
    }

    /// `kill -9`, and waits until it is gone.
    ///
    /// # Errors
    /// When there is no such process.
    pub fn kill_server(&mut self) -> Result<()> {
        kill(self.server.take().context("a running control plane")?)
    }

    /// `kill -9`, and waits until it is gone.
    ///
    /// # Errors
    /// When there is no such process.
    pub fn kill_agent(&mut self, site: &str) -> Result<()> {
        let site = self.sites.get_mut(site).context("a known site")?;
        kill(site.agent.take().context("a running agent")?)
    }

    /// Asks the agent to end (SIGTERM), and waits.
    ///
    /// # Errors
    /// When there is no such process, or it does not end.
    pub fn stop_agent(&mut self, site: &str) -> Result<()> {
        let site = self.sites.get_mut(site).context("a known site")?;
        let mut agent = site.agent.take().context("a running agent")?;
        let status = Command::new("kill").arg(agent.id().to_string()).status()?;
        ensure!(status.success(), "kill: {status}");
        wait_for("the agent's end", || Ok(agent.try_wait()?))?;
        Ok(())
    }

    /// Waits until the control plane has ended by itself; how it did.
    ///
    /// # Errors
    /// When there is no such process, or it does not end.
    pub fn wait_for_server_end(&mut self) -> Result<ExitStatus> {
        let mut server = self.server.take().context("a running control plane")?;
        let ended = wait_for("the control plane's end", || Ok(server.try_wait()?));
        if ended.is_err() {
            kill(server)?;
        }
        ended
    }

    /// Waits until the agent has ended by itself; how it did.
    ///
    /// # Errors
    /// When there is no such process, or it does not end.
    pub fn wait_for_agent_end(&mut self, site: &str) -> Result<ExitStatus> {
        let site = self.sites.get_mut(site).context("a known site")?;
        let mut agent = site.agent.take().context("a running agent")?;
        let ended = wait_for("the agent's end", || Ok(agent.try_wait()?));
        if ended.is_err() {
            kill(agent)?;
        }
        ended
    }

    /// # Errors
    /// When the site does not reach the state.
    pub fn wait_for_site(&self, name: &str, state: &str) -> Result<()> {
        wait_for(&format!("{name} to be {state}"), || {
            let output = self.call(&["sites", "--json"])?;
            let Ok(document) = output.json() else { return Ok(None) };
            let sites = document["sites"].as_array().cloned().unwrap_or_default();
            Ok(sites.iter().any(|site| site["site"] == name && site["state"] == state).then_some(()))
        })
    }

    /// Calls the command line against this installation.
    ///
    /// # Errors
    /// When the binary cannot be started.
    pub fn call(&self, arguments: &[&str]) -> Result<Output> {
        Output::of(&mut self.command(arguments))
    }

    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = atoll(arguments);
        command.env("ATOLL_URL", &self.url).env("ATOLL_TOKEN", &self.token);
        command
    }

    /// Submits a workflow and does not wait.
    ///
    /// # Errors
    /// When it is refused.
    pub fn submit(&self, workflow: &str, inputs: &[&str]) -> Result<Run> {
        let file = self.workflow_file(workflow)?;
        let mut command = self.command(&["run", "--json"]);
        command.arg(&file);
        for input in inputs {
            command.args(["-i", input]);
        }
        let document = Output::of(&mut command)?.json()?;
        Ok(Run { id: document["run"].as_str().context("the run's id")?.to_owned() })
    }

    /// Submits a workflow and waits for its end; the run as `atoll show` prints it.
    ///
    /// # Errors
    /// When it is refused or does not end.
    pub fn run(&self, workflow: &str, inputs: &[&str]) -> Result<Value> {
        let run = self.submit(workflow, inputs)?;
        self.wait_for_end(&run)
    }

    /// # Errors
    /// When the run does not end.
    pub fn wait_for_end(&self, run: &Run) -> Result<Value> {
        self.wait_for_run(run, |shown| matches!(shown["state"].as_str(), Some("succeeded" | "failed" | "cancelled")))
    }

    /// Waits until the run, as `atoll show` prints it, is as wanted.
    ///
    /// # Errors
    /// When it never is.
    pub fn wait_for_run(&self, run: &Run, wanted: impl Fn(&Value) -> bool) -> Result<Value> {
        let waited = wait_for(&run.id, || {
            let Ok(shown) = self.show(run) else { return Ok(None) };
            Ok(wanted(&shown).then_some(shown))
        });
        waited.with_context(|| format!("{:?}", self.show(run)))
    }

    /// # Errors
    /// When the control plane cannot be reached.
    pub fn show(&self, run: &Run) -> Result<Value> {
        self.call(&["show", &run.id, "--json"])?.json()
    }

    /// The ledger's entries of a run.
    ///
    /// # Errors
    /// When the control plane cannot be reached.
    pub fn ledger(&self, run: &Run) -> Result<Vec<Value>> {
        let document = self.call(&["ledger", "--run", &run.id, "--json"])?.json()?;
        document["entries"].as_array().cloned().context("entries")
    }

    /// Files in the directory that is the bucket, leaving out folders.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn bucket_objects(&self) -> Result<Vec<PathBuf>> {
        let mut found = Vec::new();
        let mut folders = vec![self.bucket_directory()];
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(&folder)? {
                let path = entry?.path();
                if path.is_dir() { folders.push(path) } else { found.push(path) }
            }
        }
        Ok(found)
    }

    /// Waits until something is so.
    ///
    /// # Errors
    /// When it never is.
    pub fn eventually(&self, what: &str, mut is_so: impl FnMut() -> Result<bool>) -> Result<()> {
        wait_for(what, || Ok(is_so()?.then_some(())))
    }

    /// Waits until nothing is left in the bucket.
    ///
    /// # Errors
    /// When something stays.
    pub fn wait_for_empty_bucket(&self) -> Result<()> {
        wait_for("the bucket to be empty", || Ok(self.bucket_objects()?.is_empty().then_some(())))
            .with_context(|| format!("{:?}", self.bucket_objects()))
    }

    /// What a process of this installation has logged.
    pub fn log(&self, name: &str) -> String {
        std::fs::read_to_string(self.directory().join(format!("{name}.log"))).unwrap_or_default()
    }

    fn workflow_file(&self, workflow: &str) -> Result<PathBuf> {
        if workflow.contains('\n') {
            let name = format!(
                "workflow-{:x}.yaml",
                workflow.bytes().fold(5_381u64, |hash, byte| hash.wrapping_mul(33) ^ u64::from(byte))
            );
            let path = self.directory().join(name);
            std::fs::write(&path, workflow)?;
            Ok(path)
        } else {
            Ok(PathBuf::from(workflow))
        }
    }

    fn log_to<'a>(&self, command: &'a mut Command, name: &str) -> Result<&'a mut Command> {
        let path = self.directory().join(format!("{name}.log"));
        let log = std::fs::OpenOptions::new().create(true).append(true).open(path)?;
        Ok(command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log))
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let mut children: Vec<Child> = self.sites.values_mut().filter_map(|site| site.agent.take()).collect();
        children.extend(self.server.take());
        for child in &mut children {
            // Whatever has ended already needs no end.
            let _ = child.kill();
            let _ = child.wait();
        }
        for site in self.sites.values() {
            // The shims outlive their agent by design; this ends those of this installation.
            let stopped = Output::of(atoll(&["agent", "stop-work", "--data-dir"]).arg(&site.directory));
            if let Ok(output) = stopped
                && output.code != 0
            {
                eprintln!("stop-work of {}: {}", site.directory.display(), output.stderr);
            }
        }
        if std::thread::panicking() {
            eprintln!("---- log of the control plane\n{}", tail(&self.log("server")));
            for site in self.sites.keys() {
                eprintln!("---- log of {site}\n{}", tail(&self.log(site)));
            }
        }
    }
}

fn tail(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(40)..].join("\n")
}

fn kill(mut child: Child) -> Result<()> {
    child.kill()?;
    child.wait()?;
    Ok(())
}

/// Looks again and again until there is something.
///
/// # Errors
/// When there is nothing for too long, or looking fails.
pub fn wait_for<T>(what: &str, mut look: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look()? {
            return Ok(found);
        }
        ensure!(Instant::now() < deadline, "waited in vain for {what}");
        std::thread::sleep(LOOK_AGAIN);
    }
}
