//! Further machines of a site, each with a network of its own, and the folders of this one.

use std::fs;
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};

use anyhow::{Context as _, Result, ensure};

use crate::cluster::wait_for;
use crate::process::{Output, binary};

/// A network namespace that reaches this one, in which workers run. It ends when it is dropped, and what runs in it.
#[derive(Debug)]
pub struct Machine {
    namespace: String,
    net: String,
    log: std::path::PathBuf,
    worker: Option<Child>,
}

impl Machine {
    /// A machine of this number (1 to 9), whose worker logs to this folder; nothing, loudly, where this user is not root.
    ///
    /// # Errors
    /// When it cannot be made.
    ///
    /// # Panics
    /// Under CI, which is root.
    pub fn new(number: u8, folder: &Path) -> Result<Option<Self>> {
        let is_root = Output::of(Command::new("id").arg("-u"))?.stdout.trim() == "0";
        let has_programs = Output::of(Command::new("sh").args(["-c", "command -v ip nsenter"]))?.code == 0;
        if !is_root || !has_programs {
            eprintln!("SKIPPED: no network namespaces, or not root");
            assert!(std::env::var_os("CI").is_none(), "CI has both");
            return Ok(None);
        }
        let namespace = format!("atwk{}x{number}", std::process::id());
        let net = format!("10.8{number}.{}", std::process::id() % 250);
        let log = folder.join(format!("worker-{number}.log"));
        let machine = Self { namespace, net, log, worker: None };
        let (namespace, net, outer) = (&machine.namespace, &machine.net, machine.outer());
        ip(&format!("netns add {namespace}"))?;
        ip(&format!("link add {outer} type veth peer name eth0 netns {namespace}"))?;
        ip(&format!("addr add {net}.1/24 dev {outer}"))?;
        ip(&format!("link set {outer} up"))?;
        ip(&format!("-n {namespace} addr add {net}.2/24 dev eth0"))?;
        ip(&format!("-n {namespace} link set eth0 up"))?;
        ip(&format!("-n {namespace} link set lo up"))?;
        ip(&format!("-n {namespace} route add default via {net}.1"))?;
        Ok(Some(machine))
    }

    fn outer(&self) -> String {
        let number = self.namespace.rsplit('x').next().unwrap_or_default();
        format!("atw{}x{number}", std::process::id() % 100_000)
    }

    /// Where the machine reaches this one.
    pub fn gateway(&self) -> String {
        format!("{}.1", self.net)
    }

    /// What tells processes of this machine from others.
    ///
    /// # Errors
    /// When the namespace is gone.
    pub fn network(&self) -> Result<String> {
        use std::os::unix::fs::MetadataExt as _;
        Ok(format!("net:[{}]", fs::metadata(format!("/run/netns/{}", self.namespace))?.ino()))
    }

    /// Starts `atoll worker` with two CPUs for the agent of this data directory.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start_worker(&mut self, data_dir: &Path, arguments: &[&str]) -> Result<()> {
        let log = fs::OpenOptions::new().create(true).append(true).open(&self.log)?;
        // Not `ip netns exec`, which would hide the control groups.
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/run/netns/{}", self.namespace)).arg("--").arg(binary());
        command.args(["worker", "--cpus", "2", "--memory", "1GiB", "--name", &self.namespace, "--data-dir"]);
        command.arg(data_dir).args(arguments);
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        self.worker = Some(command.spawn()?);
        Ok(())
    }

    /// `kill -9`. What its shims run goes on for a while.
    ///
    /// # Errors
    /// When there is none.
    pub fn kill_worker(&mut self) -> Result<()> {
        let mut worker = self.worker.take().context("a running worker")?;
        worker.kill()?;
        worker.wait()?;
        Ok(())
    }

    /// Asks the worker to end (SIGTERM).
    ///
    /// # Errors
    /// When there is none.
    pub fn stop_worker(&mut self) -> Result<()> {
        let worker = self.worker.as_ref().context("a running worker")?;
        let status = Command::new("kill").arg(worker.id().to_string()).status()?;
        ensure!(status.success(), "kill: {status}");
        Ok(())
    }

    /// Waits until the worker has ended by itself; how it did.
    ///
    /// # Errors
    /// When it does not.
    pub fn wait_for_worker_end(&mut self) -> Result<ExitStatus> {
        let mut worker = self.worker.take().context("a running worker")?;
        let ended = wait_for("the worker's end", || Ok(worker.try_wait()?));
        if ended.is_err() {
            // It has failed the test; it is not to outlive it.
            worker.kill()?;
            worker.wait()?;
        }
        ended.with_context(|| self.log())
    }

    /// What its worker has said.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }
}

/// A port that nothing listens at now.
///
/// # Errors
/// When there is none.
pub fn free_port() -> Result<u16> {
    Ok(TcpListener::bind("0.0.0.0:0")?.local_addr()?.port())
}

fn ip(arguments: &str) -> Result<()> {
    let output = Output::of(Command::new("ip").args(arguments.split(' ')))?;
    ensure!(output.code == 0, "ip {arguments}: {}", output.stderr);
    Ok(())
}

impl Drop for Machine {
    fn drop(&mut self) {
        if let Some(mut worker) = self.worker.take() {
            // One that has ended already needs no end.
            let _ = worker.kill();
            let _ = worker.wait();
        }
        if std::thread::panicking() {
            eprintln!("---- log of the worker in {}\n{}", self.namespace, self.log());
        }
        let outer = self.outer();
        if let Err(error) = ip(&format!("link del {outer}")).and_then(|()| ip(&format!("netns del {}", self.namespace)))
        {
            eprintln!("the network of {} was left behind: {error:#}", self.namespace);
        }
    }
}
