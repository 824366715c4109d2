//! Real Slurm clusters, each in a network namespace of its own.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use tempfile::TempDir;

use crate::process::Output;

/// What a cluster consists of.
const PROGRAMS: &str = "slurmctld munged nsenter";

/// A cluster that ends when it is dropped, and everything that runs in it.
#[derive(Debug)]
pub struct SlurmCluster {
    directory: TempDir,
    name: String,
    namespace: String,
    gateway: String,
}

impl SlurmCluster {
    /// A cluster of this name with one node; nothing, loudly, where Slurm is not installed or this user is not root. Clusters with
    /// different places (1 to 20) run beside each other.
    ///
    /// # Errors
    /// When it does not start.
    ///
    /// # Panics
    /// Under CI, which has Slurm.
    pub fn start(name: &str, place: u8) -> Result<Option<Self>> {
        Self::start_with(name, place, PROGRAMS, &[])
    }

    /// A cluster of so many nodes, which are daemons of this machine.
    ///
    /// # Errors
    /// When it does not start.
    ///
    /// # Panics
    /// Under CI, which has Slurm.
    pub fn start_of(name: &str, place: u8, nodes: u8) -> Result<Option<Self>> {
        Self::start_with(name, place, PROGRAMS, &[("NODES", &nodes.to_string())])
    }

    /// A cluster with accounting: a slurmdbd and its database are killed and started by name too.
    ///
    /// # Errors
    /// When it does not start.
    ///
    /// # Panics
    /// Under CI, which has all of it.
    pub fn start_accounted(name: &str, place: u8) -> Result<Option<Self>> {
        let programs = format!("{PROGRAMS} slurmdbd mariadbd");
        Self::start_with(name, place, &programs, &[("ACCOUNTING", "yes")])
    }

    fn start_with(name: &str, place: u8, programs: &str, variables: &[(&str, &str)]) -> Result<Option<Self>> {
        let is_root = Output::of(Command::new("id").arg("-u"))?.stdout.trim() == "0";
        // Of several names it succeeds if any is there.
        let each = format!("for program in {programs}; do command -v $program || exit 1; done");
        let has_slurm = Output::of(Command::new("sh").args(["-c", &each]))?.code == 0;
        if !is_root || !has_slurm {
            eprintln!("SKIPPED: one of {programs} is missing, or this user is not root; tests/run.sh installs them");
            assert!(std::env::var_os("CI").is_none(), "CI has {programs}");
            return Ok(None);
        }
        // The path of a socket is short, and a job's slot may be entered by nobody but its user.
        let directory = tempfile::Builder::new().prefix("atoll-slurm-").tempdir()?;
        Command::new("chmod").arg("755").arg(directory.path()).status()?;
        let namespace = format!("atsl{}x{place}", std::process::id());
        let net = free_network(place)?;
        let gateway = format!("{net}.1");
        let cluster = Self { directory, name: name.to_owned(), namespace, gateway };
        let address = cluster.enter_network(&net, place)?;
        let at = cluster.path().display().to_string();
        let said = cluster.directory.path().join("said");
        script_with("slurm-up.sh", &[name, &at, &cluster.namespace, &address], &said, variables)?;
        Ok(Some(cluster))
    }

    /// Where its nodes reach this machine.
    pub fn gateway(&self) -> &str {
        &self.gateway
    }

    /// A namespace of its own with an address that this one reaches.
    fn enter_network(&self, net: &str, place: u8) -> Result<String> {
        let namespace = &self.namespace;
        let (outer, inner) = (format!("ats{}x{place}", std::process::id() % 100_000), "eth0");
        ip(&format!("netns add {namespace}"))?;
        ip(&format!("link add {outer} type veth peer name {inner} netns {namespace}"))?;
        ip(&format!("addr add {net}.1/24 dev {outer}"))?;
        ip(&format!("link set {outer} up"))?;
        ip(&format!("-n {namespace} addr add {net}.2/24 dev {inner}"))?;
        ip(&format!("-n {namespace} link set {inner} up"))?;
        ip(&format!("-n {namespace} link set lo up"))?;
        ip(&format!("-n {namespace} route add default via {net}.1"))?;
        Ok(format!("{net}.2"))
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("c")
    }

    /// What `SLURM_CONF` names.
    pub fn conf(&self) -> PathBuf {
        self.path().join("slurm.conf")
    }

    /// The configuration of an agent whose executions are jobs of this cluster; `settings` are further lines of `[slurm]`.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn agent_config(&self, settings: &str) -> Result<PathBuf> {
        let path = self.directory.path().join("agent.toml");
        let conf = self.conf();
        let text = format!(
            "executor = \"slurm\"\ncpus = 400\nmemory = \"100GiB\"\n[slurm]\nconf = \"{}\"\npoll_seconds = 1\n{settings}\n",
            conf.display()
        );
        std::fs::write(&path, text)?;
        Ok(path)
    }

    /// What one of Slurm's commands says.
    ///
    /// # Errors
    /// When it fails.
    pub fn ask(&self, program: &str, arguments: &[&str]) -> Result<String> {
        let mut command = Command::new("timeout");
        command.arg("30").arg(program).args(arguments).env("SLURM_CONF", self.conf());
        let output = Output::of(&mut command)?;
        ensure!(output.code == 0, "{program} {arguments:?}: {}{}", output.stdout, output.stderr);
        Ok(output.stdout)
    }

    /// Brings nodes back that the controller has taken out: it does when numbers of jobs come again that a node knows from
    /// before. What an administrator would do.
    ///
    /// # Errors
    /// When the controller does not answer.
    pub fn resume(&self) -> Result<()> {
        if self.ask("sinfo", &["--noheader", "--format=%T"])?.contains("drain") {
            self.ask("scontrol", &["update", "NodeName=ALL", "State=RESUME"])?;
        }
        Ok(())
    }

    /// The states of the jobs that are in the queue.
    ///
    /// # Errors
    /// When the controller does not answer.
    pub fn queue(&self) -> Result<Vec<String>> {
        let listed = self.ask("squeue", &["--noheader", "--array", "--format=%T"])?;
        Ok(listed.lines().map(str::to_owned).collect())
    }

    /// What the cluster has noted of each job, or element of an array, that has ended, in its own words.
    ///
    /// # Errors
    /// When its notes cannot be read.
    pub fn ended(&self) -> Result<Vec<String>> {
        let path = self.path().join("log/jobcomp.txt");
        let text = if path.exists() { std::fs::read_to_string(path)? } else { String::new() };
        Ok(text.lines().map(str::to_owned).collect())
    }

    /// The states of all jobs in accounting; of an array, those of its elements.
    ///
    /// # Errors
    /// When accounting does not answer.
    pub fn accounted(&self) -> Result<Vec<String>> {
        let said = self.ask("sacct", &["--noheader", "--parsable2", "--allocations", "--format=State"])?;
        Ok(said.lines().map(str::to_owned).collect())
    }

    /// `kill -9` of `slurmctld`, `slurmdbd`, or `slurmd` of the first node, and waits until it is gone.
    ///
    /// # Errors
    /// When it does not run.
    pub fn kill(&self, daemon: &str) -> Result<()> {
        let of = if daemon == "slurmd" { &self.name } else { daemon };
        let pid = std::fs::read_to_string(self.path().join("run").join(format!("{of}.pid")))?;
        let pid = pid.trim();
        ensure!(Command::new("kill").args(["-9", pid]).status()?.success(), "{daemon} does not run");
        let deadline = Instant::now() + Duration::from_secs(20);
        while !is_over(Path::new("/proc").join(pid).join("stat").as_path()) {
            ensure!(Instant::now() < deadline, "{daemon} does not end");
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }

    /// Starts it again; with `-c`, a controller that has forgotten everything.
    ///
    /// # Errors
    /// When it does not start.
    pub fn start_daemon(&self, daemon: &str, arguments: &[&str]) -> Result<()> {
        let at = self.path().display().to_string();
        let arguments: Vec<&str> = [at.as_str(), daemon].into_iter().chain(arguments.iter().copied()).collect();
        script("slurm-daemon.sh", &arguments, &self.directory.path().join("said"))
    }
}

/// Gone, or dead and not yet reaped.
fn is_over(stat: &Path) -> bool {
    let Ok(text) = std::fs::read_to_string(stat) else { return true };
    text.rsplit(") ").next().is_none_or(|rest| rest.starts_with('Z'))
}

/// The first three parts of the addresses of a network of this place. One that a test left behind which was killed is passed
/// over.
fn free_network(place: u8) -> Result<String> {
    let taken = Output::of(Command::new("ip").args(["-brief", "-4", "address"]))?.stdout;
    let nets = (0..12).map(|more| (std::process::id() + more) % 12 * 20 + u32::from(place));
    let net = nets.map(|third| format!("10.79.{third}")).find(|net| !taken.contains(&format!(" {net}.1/")));
    net.context("all networks of this place are taken: `ip link` shows by whom")
}

fn ip(arguments: &str) -> Result<()> {
    let output = Output::of(Command::new("ip").args(arguments.split(' ')))?;
    ensure!(output.code == 0, "ip {arguments}: {}", output.stderr);
    Ok(())
}

fn script(name: &str, arguments: &[&str], said: &Path) -> Result<()> {
    script_with(name, arguments, said, &[])
}

fn script_with(name: &str, arguments: &[&str], said: &Path, variables: &[(&str, &str)]) -> Result<()> {
    let script = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../parts").join(name);
    // To a file: what the script starts keeps its output open for good.
    let log = std::fs::File::create(said)?;
    let mut command = Command::new("bash");
    command
        .arg(script)
        .args(arguments)
        .envs(variables.iter().copied())
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log);
    let status = command.status().with_context(|| format!("cannot run {name}"))?;
    ensure!(status.success(), "{name}: {}", std::fs::read_to_string(said)?);
    Ok(())
}

impl Drop for SlurmCluster {
    fn drop(&mut self) {
        let said = self.directory.path().join("said");
        let ended = script("slurm-down.sh", &["--keep", &self.path().display().to_string()], &said);
        let left = ended.and_then(|()| ip(&format!("netns del {}", self.namespace)));
        if let Err(error) = left {
            eprintln!("the cluster in {} was left behind: {error:#}", self.directory.path().display());
        }
    }
}
