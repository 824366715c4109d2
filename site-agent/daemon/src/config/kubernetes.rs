//! How a site's executions become Jobs of its Kubernetes cluster.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;

use super::{ConfigError, ExecutorKind};

/// What the labels begin with by which the agent knows its own Jobs.
pub(crate) const OWN_LABELS: &str = "atoll/";

/// What the administrator of a Kubernetes site says of its Jobs.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct KubernetesSettings {
    /// The file that says where the cluster is; that of the user, or the pod's own service account, if nothing.
    pub kubeconfig: Option<PathBuf>,
    /// Which of the clusters in that file.
    pub context: Option<String>,
    /// Where Jobs are; where the file, or the pod, has its own things if nothing.
    pub namespace: Option<String>,
    /// What the pods are made of. Anything with the C library that the agent runs with.
    pub image: String,
    /// `Always`, `IfNotPresent` or `Never`.
    pub image_pull_policy: Option<String>,
    /// The names of secrets that the registry wants.
    pub image_pull_secrets: Vec<String>,
    /// The claim of the volume that agent and pods share.
    pub volume_claim: String,
    /// Where both have it: the data directory unless given.
    pub mount_path: Option<PathBuf>,
    /// The folder of the volume that is there; its root if nothing.
    pub sub_path: Option<String>,
    /// Whether pods see the agent's files read-only, and who it is not at all. A volume whose server does not trust the
    /// nodes' root cannot be mounted in parts.
    pub protect: bool,
    /// Who the pods are for the cluster and its cloud; nobody if nothing.
    pub service_account: Option<String>,
    pub node_selector: BTreeMap<String, String>,
    pub tolerations: Vec<TolerationSettings>,
    pub labels: BTreeMap<String, String>,
    pub annotations: BTreeMap<String, String>,
    pub priority_class: Option<String>,
    /// The user and the group of the pods' processes; those of the agent, whose files they read, if nothing.
    pub user: Option<u32>,
    pub group: Option<u32>,
    /// What the cluster calls a GPU, and the label of a node that says of which kind its GPUs are.
    pub gpu_resource: String,
    pub gpu_kind_label: String,
    /// How often the API is asked for the agent's Jobs.
    pub poll_seconds: u64,
    /// Most Jobs of the agent in the cluster, running and waiting.
    pub jobs_max: u32,
    /// How long a Job of which neither the API knows nor anything was heard counts as one that may still come.
    pub forgotten_seconds: u64,
    /// How long a node may try to get the image before the execution fails.
    pub image_seconds: u64,
    /// How long Jobs that have ended are kept for people to look at.
    pub keep_seconds: u32,
}

/// A taint that the pods tolerate.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TolerationSettings {
    pub key: Option<String>,
    pub operator: Option<String>,
    pub value: Option<String>,
    pub effect: Option<String>,
}

impl Default for KubernetesSettings {
    fn default() -> Self {
        Self {
            kubeconfig: None,
            context: None,
            namespace: None,
            image: String::new(),
            image_pull_policy: None,
            image_pull_secrets: Vec::new(),
            volume_claim: String::new(),
            mount_path: None,
            sub_path: None,
            protect: true,
            service_account: None,
            node_selector: BTreeMap::new(),
            tolerations: Vec::new(),
            labels: BTreeMap::new(),
            annotations: BTreeMap::new(),
            priority_class: None,
            user: None,
            group: None,
            gpu_resource: "nvidia.com/gpu".to_owned(),
            gpu_kind_label: "nvidia.com/gpu.product".to_owned(),
            poll_seconds: 5,
            jobs_max: 200,
            forgotten_seconds: 600,
            image_seconds: 300,
            keep_seconds: 3_600,
        }
    }
}

impl KubernetesSettings {
    /// Nothing where executions are no Jobs of Kubernetes.
    pub(super) fn of(
        self,
        kind: ExecutorKind,
        data_dir: &Path,
        work_dir: Option<&Path>,
    ) -> Result<Option<Self>, ConfigError> {
        if kind == ExecutorKind::Kubernetes { self.checked(data_dir, work_dir).map(Some) } else { Ok(None) }
    }

    fn checked(mut self, data_dir: &Path, work_dir: Option<&Path>) -> Result<Self, ConfigError> {
        let wrong = |message: String| Err(ConfigError::Kubernetes(message));
        for (name, value) in [("image", &self.image), ("volume_claim", &self.volume_claim)] {
            if value.is_empty() {
                return wrong(format!(
                    "{name} is missing: pods are made of an image, and share a volume with the agent"
                ));
            }
        }
        if self.poll_seconds == 0 || self.jobs_max == 0 {
            return wrong("poll_seconds and jobs_max are at least 1".to_owned());
        }
        if let Some(label) = self.labels.keys().find(|label| label.starts_with(OWN_LABELS)) {
            return wrong(format!("labels: {label} is one by which the agent knows its own Jobs; choose another name"));
        }
        if let Some(policy) = &self.image_pull_policy
            && !["Always", "IfNotPresent", "Never"].contains(&policy.as_str())
        {
            return wrong(format!("image_pull_policy = {policy:?} is none of Always, IfNotPresent and Never"));
        }
        let mount_path = self.mount_path.take().unwrap_or_else(|| data_dir.to_owned());
        let paths = [Some(&mount_path), self.kubeconfig.as_ref()];
        if let Some(path) = paths.into_iter().flatten().find(|path| !path.is_absolute()) {
            return Err(ConfigError::RelativePath(path.clone()));
        }
        let folders = [Some(data_dir), work_dir];
        if let Some(folder) = folders.into_iter().flatten().find(|folder| !folder.starts_with(&mount_path)) {
            let (folder, mount) = (folder.display(), mount_path.display());
            return wrong(format!(
                "{folder} is not on the volume, which is mounted at {mount} (mount_path): pods need it"
            ));
        }
        self.mount_path = Some(mount_path);
        Ok(self)
    }

    pub(crate) fn poll(&self) -> Duration {
        Duration::from_secs(self.poll_seconds)
    }

    pub(crate) fn forgotten_after(&self) -> Duration {
        Duration::from_secs(self.forgotten_seconds)
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test that fails here has failed")]

    use super::super::Config;
    use super::super::tests::load_text;
    use super::*;

    const NEEDED: &str = "executor = 'kubernetes'\n[kubernetes]\nimage = 'debian:12'\nvolume_claim = 'atoll'\n";

    fn load(text: &str) -> Result<Config, ConfigError> {
        load_text(&format!("data_dir = '/volume/data'\n{text}"))
    }

    #[test]
    fn a_site_is_a_kubernetes_site_only_if_it_says_so_and_its_data_are_on_the_volume() {
        assert_eq!(load("[kubernetes]\nimage = 'debian:12'\n").unwrap().kubernetes, None);
        let config = load(NEEDED).unwrap();
        let settings = config.kubernetes.as_ref().unwrap();
        assert_eq!(settings.mount_path.as_deref(), Some(Path::new("/volume/data")));
        assert_eq!((settings.poll_seconds, config.jobs_max()), (5, Some(200)));
        let more =
            format!("{NEEDED}mount_path = '/volume'\n[[kubernetes.tolerations]]\nkey = 'batch'\noperator = 'Exists'\n");
        let settings = load(&more).unwrap().kubernetes.unwrap();
        assert_eq!(settings.mount_path.as_deref(), Some(Path::new("/volume")));
        assert_eq!(settings.tolerations[0].key.as_deref(), Some("batch"));
    }

    #[test]
    fn what_no_pod_could_be_made_of_is_refused_with_what_is_wrong() {
        let error = |text: &str| load(text).unwrap_err().to_string();
        assert!(error("executor = 'kubernetes'\n").contains("kubernetes: image is missing"));
        let elsewhere = error(&format!("{NEEDED}mount_path = '/other'\n"));
        assert!(elsewhere.contains("/volume/data is not on the volume, which is mounted at /other"), "{elsewhere}");
        let work = error(&format!("work_dir = '/scratch'\n{NEEDED}"));
        assert!(work.contains("/scratch is not on the volume"), "{work}");
        for wrong in
            ["poll_seconds = 0", "image_pull_policy = 'Often'", "mount_path = 'x'", "labels = { 'atoll/x' = 'y' }"]
        {
            assert!(load(&format!("{NEEDED}{wrong}\n")).is_err(), "{wrong}");
        }
        assert!(load(&format!("{NEEDED}queue = 'x'\n")).is_err());
    }
}
