//! What an attempt is as a Job.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use k8s_openapi::api::batch::v1::{Job, JobSpec};
use k8s_openapi::api::core::v1::{
    Capabilities, Container, EnvVar, LocalObjectReference, PodSecurityContext, PodSpec, PodTemplateSpec,
    ResourceRequirements, SeccompProfile, SecurityContext, Toleration, VolumeMount,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::super::system::{NewJob, SHIM_BYTES, TIME_MARGIN, words};
use super::volumes::{self, hidden, mounts};
use crate::config::{KubernetesSettings, TolerationSettings};
use crate::shim::job::evidence::{Asked, KUBERNETES_JOB};
use crate::shim::protocol::Common;

pub(super) const AGENT: &str = "atoll/agent";
pub(super) const TOKEN: &str = "atoll/token";
const STEP: &str = "atoll/step";
/// The name of the one container.
pub(super) const CONTAINER: &str = "atoll";
/// A label is no longer.
const LABEL_MAX: usize = 63;

/// What the Jobs and pods of this agent are found by.
pub(super) fn selector(agent: &str) -> String {
    format!("{AGENT}={agent}")
}

/// The name of the Job, and of nobody else's.
fn name(token: &str) -> String {
    format!("atoll-{token}")
}

/// `data_dir` is that of the agent.
pub(super) fn job(settings: &KubernetesSettings, agent: &str, data_dir: &Path, new: &NewJob<'_>) -> Job {
    let step = new.batch.name.strip_prefix("atoll.").unwrap_or(&new.batch.name);
    let step = step.rsplit_once('.').map_or(step, |(label, _)| label);
    // There is one of them: its place in the batch is the first.
    let words: Vec<String> = words(new).into_iter().chain(["0".to_owned()]).collect();
    let mut labels = settings.labels.clone();
    labels.insert("app.kubernetes.io/managed-by".to_owned(), "atoll".to_owned());
    labels.insert(AGENT.to_owned(), agent.to_owned());
    labels.insert(TOKEN.to_owned(), new.token.to_owned());
    labels.insert(STEP.to_owned(), label(step));
    let hidden = hidden(settings, data_dir);
    let mounts = mounts(settings, new.folder.path(), &hidden);
    let resources = resources(settings, new.common, &new.batch.asked);
    let container = container(settings, &name(new.token), words, resources, mounts);
    let mut pod = pod(settings, container, &new.batch.asked, &hidden);
    // Counted from where a node has taken the pod: what it waited before is not the step's time.
    pod.active_deadline_seconds = new
        .common
        .time
        .map(|time| i64::try_from(time.saturating_add(TIME_MARGIN).as_millis().div_ceil(1_000)).unwrap_or(i64::MAX));
    of_pod(settings, name(new.token), labels, pod)
}

/// A Job as all others are, for a cluster that is asked whether it would take one.
pub(crate) fn trial(settings: &KubernetesSettings, data_dir: &Path, agent: &str) -> Job {
    let name = name("doctor");
    let hidden = hidden(settings, data_dir);
    let mounts = mounts(settings, &data_dir.join("jobs"), &hidden);
    let words = vec!["/bin/true".to_owned()];
    let container = container(settings, &name, words, ResourceRequirements::default(), mounts);
    let labels = [(AGENT.to_owned(), label(agent))].into_iter().chain(settings.labels.clone()).collect();
    of_pod(settings, name, labels, pod(settings, container, &Asked::default(), &hidden))
}

fn of_pod(settings: &KubernetesSettings, name: String, labels: BTreeMap<String, String>, pod: PodSpec) -> Job {
    let metadata = |name: Option<String>| ObjectMeta {
        name,
        labels: Some(labels.clone()),
        annotations: Some(settings.annotations.clone()),
        ..ObjectMeta::default()
    };
    let spec = JobSpec {
        // Trying again is for the step's `retry`.
        backoff_limit: Some(0),
        completions: Some(1),
        parallelism: Some(1),
        ttl_seconds_after_finished: Some(i32::try_from(settings.keep_seconds).unwrap_or(i32::MAX)),
        template: PodTemplateSpec { metadata: Some(metadata(None)), spec: Some(pod) },
        ..JobSpec::default()
    };
    Job { metadata: metadata(Some(name)), spec: Some(spec), ..Job::default() }
}

fn pod(settings: &KubernetesSettings, container: Container, asked: &Asked, hidden: &[PathBuf]) -> PodSpec {
    let mut nodes = settings.node_selector.clone();
    if let Some(kind) = asked.gpu_kind.as_ref().filter(|_| asked.gpus > 0) {
        nodes.insert(settings.gpu_kind_label.clone(), kind.clone());
    }
    let user = settings.user.unwrap_or_else(|| rustix::process::geteuid().as_raw());
    let group = settings.group.unwrap_or_else(|| rustix::process::getegid().as_raw());
    let secret = |name: &String| LocalObjectReference { name: name.clone() };
    PodSpec {
        containers: vec![container],
        restart_policy: Some("Never".to_owned()),
        // The rights of the agent are not those of what it runs.
        automount_service_account_token: Some(settings.service_account.is_some()),
        service_account_name: settings.service_account.clone(),
        enable_service_links: Some(false),
        image_pull_secrets: Some(settings.image_pull_secrets.iter().map(secret).collect()),
        node_selector: Some(nodes),
        tolerations: Some(settings.tolerations.iter().map(toleration).collect()),
        priority_class_name: settings.priority_class.clone(),
        security_context: Some(PodSecurityContext {
            run_as_user: Some(user.into()),
            run_as_group: Some(group.into()),
            run_as_non_root: Some(user != 0),
            seccomp_profile: Some(SeccompProfile { type_: "RuntimeDefault".to_owned(), ..Default::default() }),
            ..PodSecurityContext::default()
        }),
        volumes: Some(volumes::volumes(settings, hidden)),
        ..PodSpec::default()
    }
}

fn container(
    settings: &KubernetesSettings,
    name: &str,
    words: Vec<String>,
    resources: ResourceRequirements,
    mounts: Vec<VolumeMount>,
) -> Container {
    Container {
        name: CONTAINER.to_owned(),
        image: Some(settings.image.clone()),
        image_pull_policy: settings.image_pull_policy.clone(),
        command: Some(words),
        env: Some(vec![EnvVar { name: KUBERNETES_JOB.to_owned(), value: Some(name.to_owned()), ..EnvVar::default() }]),
        resources: Some(resources),
        // So that what it said before it was a shim is known to the API.
        termination_message_policy: Some("FallbackToLogsOnError".to_owned()),
        security_context: Some(SecurityContext {
            allow_privilege_escalation: Some(false),
            capabilities: Some(Capabilities { drop: Some(vec!["ALL".to_owned()]), ..Capabilities::default() }),
            ..SecurityContext::default()
        }),
        volume_mounts: Some(mounts),
        ..Container::default()
    }
}

/// What is asked for is what is given: a step gets no less because others want more, and no more.
fn resources(settings: &KubernetesSettings, common: &Common, asked: &Asked) -> ResourceRequirements {
    let mut amounts = BTreeMap::new();
    if let Some(millis) = common.cpu_millis {
        amounts.insert("cpu".to_owned(), Quantity(format!("{millis}m")));
    }
    if let Some(bytes) = common.memory_bytes {
        let mebibytes = bytes.saturating_add(SHIM_BYTES).div_ceil(1 << 20);
        amounts.insert("memory".to_owned(), Quantity(format!("{mebibytes}Mi")));
    }
    if asked.gpus > 0 {
        amounts.insert(settings.gpu_resource.clone(), Quantity(asked.gpus.to_string()));
    }
    amounts.extend(asked.named.iter().map(|(name, count)| (name.clone(), Quantity(count.to_string()))));
    ResourceRequirements { requests: Some(amounts.clone()), limits: Some(amounts), claims: None }
}

fn toleration(said: &TolerationSettings) -> Toleration {
    Toleration {
        key: said.key.clone(),
        operator: said.operator.clone(),
        value: said.value.clone(),
        effect: said.effect.clone(),
        toleration_seconds: None,
    }
}

/// As the value of a label: letters and digits at both ends, and not too many.
fn label(text: &str) -> String {
    let plain = |letter: char| if letter.is_ascii_alphanumeric() || "-_.".contains(letter) { letter } else { '_' };
    let text: String = text.chars().map(plain).take(LABEL_MAX).collect();
    text.trim_matches(|letter: char| !letter.is_ascii_alphanumeric()).to_owned()
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test that fails here has failed")]

    use std::time::Duration;

    use atoll_model::time::Timestamp;
    use serde_json::{Value, json};

    use super::super::super::system::Becomes;
    use super::*;
    use crate::config::ShimProgram;
    use crate::shim::job::evidence::{Batch, JobsFolder, OfJob, VERSION};

    fn made(settings: &KubernetesSettings, common: &Common, asked: Asked) -> Value {
        let name = "atoll.flood.model__.t1".to_owned();
        let (keys, of_job) = (Vec::new(), OfJob::default());
        let batch = Batch { version: VERSION, name, keys, at: Timestamp::ZERO, job: None, asked, of_job };
        let program = ShimProgram { program: "/data/bin/atoll".into(), arguments: vec!["shim".to_owned()] };
        let folder = JobsFolder::new("/data/jobs".into());
        let new = NewJob { becomes: Becomes::Shim(&program), folder: &folder, token: "t1", batch: &batch, common };
        serde_json::to_value(job(settings, "agent_1", Path::new("/data"), &new)).unwrap()
    }

    fn settings() -> KubernetesSettings {
        KubernetesSettings {
            image: "debian:12".to_owned(),
            volume_claim: "atoll".to_owned(),
            mount_path: Some("/data".into()),
            ..KubernetesSettings::default()
        }
    }

    #[test]
    fn limits_are_passed_on_and_the_shim_has_room_beside_them() {
        let time = Some(Duration::from_millis(60_500));
        let common = Common { memory_bytes: Some(100 << 20), cpu_millis: Some(250), time, ..Common::default() };
        let asked = Asked {
            gpus: 2,
            gpu_kind: Some("a100".to_owned()),
            named: [("example.com/fpga".to_owned(), 1)].into(),
            ..Asked::default()
        };
        let job = made(&settings(), &common, asked);
        let pod = &job["spec"]["template"]["spec"];
        let amounts = json!({"cpu": "250m", "memory": "116Mi", "nvidia.com/gpu": "2", "example.com/fpga": "1"});
        let resources = &pod["containers"][0]["resources"];
        assert_eq!((&resources["limits"], &resources["requests"]), (&amounts, &amounts));
        assert_eq!(pod["activeDeadlineSeconds"], 121);
        assert_eq!(pod["nodeSelector"], json!({"nvidia.com/gpu.product": "a100"}));
        let plain = made(&settings(), &Common::default(), Asked::default());
        assert_eq!(plain["spec"]["template"]["spec"]["containers"][0]["resources"]["limits"], json!({}));
    }

    #[test]
    fn a_job_is_named_by_its_token_runs_once_and_has_none_of_the_agent_s_rights() {
        let job = made(&settings(), &Common::default(), Asked::default());
        assert_eq!(job["metadata"]["name"], "atoll-t1");
        assert_eq!(job["metadata"]["labels"]["atoll/step"], "flood.model");
        assert_eq!(job["spec"]["template"]["metadata"]["labels"]["atoll/token"], "t1");
        assert_eq!((&job["spec"]["backoffLimit"], &job["spec"]["ttlSecondsAfterFinished"]), (&json!(0), &json!(3_600)));
        let pod = &job["spec"]["template"]["spec"];
        assert_eq!((&pod["restartPolicy"], &pod["automountServiceAccountToken"]), (&json!("Never"), &json!(false)));
        let words = ["/data/bin/atoll", "shim", "job", "/data/jobs", "t1", "0"];
        assert_eq!(pod["containers"][0]["command"], json!(words));
        assert_eq!(pod["containers"][0]["env"][0]["value"], "atoll-t1");
        assert_eq!(pod["volumes"][0]["persistentVolumeClaim"]["claimName"], "atoll");
    }

    #[test]
    fn who_a_pod_is_for_the_cluster_is_named_by_the_administrator() {
        let said = KubernetesSettings {
            service_account: Some("reader".to_owned()),
            tolerations: vec![TolerationSettings { key: Some("batch".to_owned()), ..TolerationSettings::default() }],
            labels: [("team".to_owned(), "hydro".to_owned())].into(),
            priority_class: Some("low".to_owned()),
            user: Some(0),
            sub_path: Some("atoll".to_owned()),
            ..settings()
        };
        let job = made(&said, &Common::default(), Asked::default());
        let pod = &job["spec"]["template"]["spec"];
        assert_eq!(
            (&pod["serviceAccountName"], &pod["automountServiceAccountToken"]),
            (&json!("reader"), &json!(true))
        );
        assert_eq!((&pod["tolerations"][0]["key"], &pod["priorityClassName"]), (&json!("batch"), &json!("low")));
        assert_eq!(job["spec"]["template"]["metadata"]["labels"]["team"], "hydro");
        assert_eq!(pod["securityContext"]["runAsNonRoot"], false);
        assert_eq!(pod["containers"][0]["volumeMounts"][0]["subPath"], "atoll");
    }
}
