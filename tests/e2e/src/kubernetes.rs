//! A Kubernetes cluster that is played: an API that the real `kubectl` talks to, one node, Jobs that are processes.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use tempfile::TempDir;

use crate::cluster::wait_for;
use crate::process::Output;
use crate::{Cluster, Options};

/// It ends, with all that it runs, when it is dropped.
#[derive(Debug)]
pub struct KubernetesCluster {
    folder: TempDir,
    server: Child,
}

impl KubernetesCluster {
    /// # Errors
    /// When it does not start, or there is no `kubectl`.
    pub fn start() -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("atoll-kube-").tempdir()?;
        let program = Path::new(env!("CARGO_MANIFEST_DIR")).join("../parts/kube_stand_in.py");
        let log = std::fs::File::create(folder.path().join("stand-in.log"))?;
        let server = Command::new("python3")
            .arg(program)
            .arg(folder.path())
            .stdin(Stdio::null())
            .stderr(log)
            .spawn()
            .context("the stand-in of a cluster")?;
        let cluster = Self { folder, server };
        wait_for("the cluster's API", || Ok(cluster.kubeconfig().exists().then_some(())))?;
        Ok(cluster)
    }

    pub fn kubeconfig(&self) -> PathBuf {
        self.folder.path().join("kubeconfig")
    }

    /// Has something go wrong, as the stand-in names it.
    ///
    /// # Errors
    /// When the order cannot be left.
    pub fn order(&self, name: &str) -> Result<()> {
        Ok(std::fs::write(self.folder.path().join(name), "")?)
    }

    /// # Errors
    /// When it had not been ordered.
    pub fn end_of(&self, name: &str) -> Result<()> {
        Ok(std::fs::remove_file(self.folder.path().join(name))?)
    }

    /// The configuration of an agent whose executions are Jobs of this cluster; `settings` are further lines of
    /// `[kubernetes]`.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn agent_config(&self, settings: &str) -> Result<PathBuf> {
        let path = self.folder.path().join("agent.toml");
        let image = if settings.contains("image =") { "" } else { "image = \"debian:12\"\n" };
        let kubeconfig = self.kubeconfig();
        let text = format!(
            "executor = \"kubernetes\"\ncpus = 400\nmemory = \"100GiB\"\n[kubernetes]\nkubeconfig = \"{}\"\npoll_seconds = 1\nvolume_claim = \"atoll\"\n{image}{settings}\n",
            kubeconfig.display()
        );
        std::fs::write(&path, text)?;
        Ok(path)
    }

    /// A site `cloud` whose executions are Jobs of it.
    ///
    /// # Errors
    /// When it does not start.
    pub fn site(&self, settings: &str) -> Result<Cluster> {
        let config = self.agent_config(settings)?.display().to_string();
        let site_arguments = [("cloud", vec!["--config".to_owned(), config])].into();
        Cluster::start(Options { sites: vec!["cloud"], site_arguments, ..Options::default() })
    }

    /// What `kubectl` says.
    ///
    /// # Errors
    /// When it fails.
    pub fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        let mut command = Command::new("kubectl");
        // What it has found out about a server it keeps at home, by the server's address.
        command.args(arguments).env("KUBECONFIG", self.kubeconfig()).env("HOME", self.folder.path());
        let output = Output::of(&mut command)?;
        ensure!(output.code == 0, "kubectl {arguments:?}: {}{}", output.stdout, output.stderr);
        Ok(output.stdout)
    }

    /// All of a kind that have a label of the agent.
    ///
    /// # Errors
    /// When `kubectl` fails.
    pub fn of_agent(&self, kind: &str) -> Result<Vec<Value>> {
        let said = self.kubectl(&["get", kind, "-l", "app.kubernetes.io/managed-by=atoll", "-o", "json"])?;
        let listed: Value = serde_json::from_str(&said)?;
        Ok(listed["items"].as_array().cloned().unwrap_or_default())
    }
}

impl Drop for KubernetesCluster {
    fn drop(&mut self) {
        // It ends what it runs before it ends itself; one that has ended needs neither.
        let _ = Command::new("kill").arg(self.server.id().to_string()).status();
        let _ = self.server.wait();
    }
}
