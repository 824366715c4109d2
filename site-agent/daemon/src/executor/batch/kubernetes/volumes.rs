//! What a pod sees of the volume. Few clusters let a pod make namespaces, in which the shim would hide what is the agent's
//! alone: so the pod is made such that it is hidden.

use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::{EmptyDirVolumeSource, PersistentVolumeClaimVolumeSource, Volume, VolumeMount};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use crate::config::KubernetesSettings;

const SHARED: &str = "atoll";
const NOTHING: &str = "nothing";

/// The agent's folders that nobody else is to see.
pub(super) fn hidden(settings: &KubernetesSettings, data_dir: &Path) -> Vec<PathBuf> {
    let own = ["identity", "journal"].map(|name| data_dir.join(name));
    own.into_iter().filter(|folder| settings.protect && folder.is_dir()).collect()
}

pub(super) fn volumes(settings: &KubernetesSettings, hidden: &[PathBuf]) -> Vec<Volume> {
    let claim = PersistentVolumeClaimVolumeSource { claim_name: settings.volume_claim.clone(), ..Default::default() };
    let shared = Volume { name: SHARED.to_owned(), persistent_volume_claim: Some(claim), ..Volume::default() };
    let empty = EmptyDirVolumeSource { size_limit: Some(Quantity("4Ki".to_owned())), ..Default::default() };
    let nothing = Volume { name: NOTHING.to_owned(), empty_dir: Some(empty), ..Volume::default() };
    [shared].into_iter().chain((!hidden.is_empty()).then_some(nothing)).collect()
}

/// The volume, read-only but for the folder of the jobs; in place of what is hidden there is nothing.
pub(super) fn mounts(settings: &KubernetesSettings, jobs: &Path, hidden: &[PathBuf]) -> Vec<VolumeMount> {
    let Some(mount_path) = &settings.mount_path else { return Vec::new() };
    let of_volume = |path: &Path, sub_path: Option<String>, read_only: bool| VolumeMount {
        name: SHARED.to_owned(),
        mount_path: path.display().to_string(),
        sub_path,
        read_only: Some(read_only),
        ..VolumeMount::default()
    };
    let mut mounts = vec![of_volume(mount_path, settings.sub_path.clone(), settings.protect)];
    if let (true, Ok(below)) = (settings.protect, jobs.strip_prefix(mount_path)) {
        let root = settings.sub_path.as_deref().map(Path::new).unwrap_or(Path::new(""));
        mounts.push(of_volume(jobs, Some(root.join(below).display().to_string()), false));
    }
    mounts.extend(hidden.iter().map(|folder| VolumeMount {
        name: NOTHING.to_owned(),
        mount_path: folder.display().to_string(),
        read_only: Some(true),
        ..VolumeMount::default()
    }));
    mounts
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test that fails here has failed")]

    use super::*;

    fn seen(settings: &KubernetesSettings, data_dir: &Path) -> Vec<String> {
        let hidden = hidden(settings, data_dir);
        let shown = |mount: VolumeMount| {
            let of = mount.sub_path.map(|path| format!("/{path}")).unwrap_or_default();
            let way = if mount.read_only == Some(true) { "ro" } else { "rw" };
            format!("{way} {} {}{of}", mount.mount_path, mount.name)
        };
        mounts(settings, &data_dir.join("jobs"), &hidden).into_iter().map(shown).collect()
    }

    #[test]
    fn a_pod_can_write_where_jobs_work_alone_and_does_not_see_who_the_agent_is() {
        let folder = tempfile::tempdir().unwrap();
        let (root, data) = (folder.path().display(), folder.path().join("data"));
        std::fs::create_dir_all(data.join("identity")).unwrap();
        let mount_path = Some(folder.path().to_owned());
        let settings = KubernetesSettings { mount_path, ..KubernetesSettings::default() };
        let expected = [
            format!("ro {root} atoll"),
            format!("rw {root}/data/jobs atoll/data/jobs"),
            format!("ro {root}/data/identity nothing"),
        ];
        assert_eq!(seen(&settings, &data), expected);
        let below = KubernetesSettings { sub_path: Some("site".to_owned()), ..settings.clone() };
        assert_eq!(seen(&below, &data)[1], format!("rw {root}/data/jobs atoll/site/data/jobs"));
        let open = KubernetesSettings { protect: false, ..settings };
        assert_eq!(seen(&open, &data), [format!("rw {root} atoll")]);
    }
}
