//! The Kubernetes cluster that the site's Jobs go to: whether its API answers, what the agent may do there, the volume, and
//! whether a Job as they are would be taken.

use std::path::Path;
use std::time::Duration;

use k8s_openapi::api::authorization::v1::{ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec};
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::PersistentVolumeClaim;
use kube::api::PostParams;
use kube::{Api, Client};

use crate::config::KubernetesSettings;
use crate::doctor::report::Check;
use crate::executor::batch::kubernetes::{connect, said, trial};

const API: &str = "kubernetes";
const RIGHTS: &str = "kubernetes-rights";
const VOLUME: &str = "kubernetes-volume";
const JOB: &str = "kubernetes-job";
const PATIENCE: Duration = Duration::from_secs(15);
/// What an agent does with what.
const NEEDED: [(&str, &str, &str); 4] =
    [("batch", "jobs", "create"), ("batch", "jobs", "list"), ("batch", "jobs", "delete"), ("", "pods", "list")];
/// Who may use a volume from several nodes.
const SHARED: [&str; 1] = ["ReadWriteMany"];

pub(super) async fn look(settings: &KubernetesSettings, data_dir: &Path) -> Vec<Check> {
    let (client, namespace) = match connect(settings).await {
        Ok(connected) => connected,
        Err(error) => {
            let advice = "name the file that says where the cluster is: `kubeconfig` under [kubernetes], or run the agent as a pod with a service account";
            return vec![Check::problem(API, format!("{:#}", anyhow::Error::new(error)), advice)];
        }
    };
    let version = match within(client.apiserver_version()).await {
        Ok(version) => version.git_version,
        Err(why) => {
            let advice =
                "have the cluster's API answer from here: its address and its certificate are in the kubeconfig";
            return vec![Check::problem(API, format!("Kubernetes: {why}"), advice)];
        }
    };
    let found = Check::ok(API, format!("Kubernetes {version} answers, Jobs go to namespace {namespace}"));
    let trial = trial(settings, data_dir, "doctor");
    let (rights, volume, job) = tokio::join!(
        rights(&client, &namespace),
        volume(&client, &namespace, settings),
        job(&client, &namespace, &trial)
    );
    vec![found, rights, volume, job]
}

async fn within<T>(question: impl Future<Output = kube::Result<T>>) -> Result<T, String> {
    match tokio::time::timeout(PATIENCE, question).await {
        Ok(answer) => answer.map_err(|error| said(&error)),
        Err(_) => Err(format!("no answer within {} s", PATIENCE.as_secs())),
    }
}

async fn rights(client: &Client, namespace: &str) -> Check {
    let advice = "give the agent's service account the role of deploy/kubernetes/agent.yaml in this namespace";
    let mut missing = Vec::new();
    for (group, resource, verb) in NEEDED {
        match may(client, namespace, (group, resource, verb)).await {
            Ok(true) => {}
            Ok(false) => missing.push(format!("{verb} {resource}")),
            Err(why) => return Check::problem(RIGHTS, format!("what the agent may do is not said: {why}"), advice),
        }
    }
    if missing.is_empty() {
        return Check::ok(RIGHTS, "the agent may create, list and delete Jobs and list pods");
    }
    Check::problem(RIGHTS, format!("in namespace {namespace} the agent may not {}", missing.join(", ")), advice)
}

async fn may(client: &Client, namespace: &str, (group, resource, verb): (&str, &str, &str)) -> Result<bool, String> {
    let attributes = ResourceAttributes {
        group: Some(group.to_owned()),
        namespace: Some(namespace.to_owned()),
        resource: Some(resource.to_owned()),
        verb: Some(verb.to_owned()),
        ..ResourceAttributes::default()
    };
    let spec = SelfSubjectAccessReviewSpec { resource_attributes: Some(attributes), ..Default::default() };
    let review = SelfSubjectAccessReview { spec, ..SelfSubjectAccessReview::default() };
    let answer = within(Api::all(client.clone()).create(&PostParams::default(), &review)).await?;
    Ok(answer.status.is_some_and(|status| status.allowed))
}

async fn volume(client: &Client, namespace: &str, settings: &KubernetesSettings) -> Check {
    let name = &settings.volume_claim;
    let claims: Api<PersistentVolumeClaim> = Api::namespaced(client.clone(), namespace);
    match within(claims.get_opt(name)).await {
        Ok(Some(claim)) => judge_volume(name, &claim),
        Ok(None) => {
            let advice = "make it, or name another: `volume_claim` under [kubernetes]";
            Check::problem(VOLUME, format!("there is no volume claim {name} in namespace {namespace}"), advice)
        }
        Err(why) => {
            let advice = "let the agent's service account get persistentvolumeclaims: only this check needs it";
            Check::warning(VOLUME, format!("the volume claim {name} cannot be looked at: {why}"), advice)
        }
    }
}

fn judge_volume(name: &str, claim: &PersistentVolumeClaim) -> Check {
    let modes: Vec<&str> =
        claim.spec.iter().flat_map(|spec| spec.access_modes.iter().flatten()).map(String::as_str).collect();
    let found = format!("the volume claim {name} is {}", modes.join(", "));
    if modes.iter().any(|mode| SHARED.contains(mode)) {
        return Check::ok(VOLUME, found);
    }
    let advice = "use a claim with accessModes: [ReadWriteMany], or keep agent and pods on one node by `node_selector`";
    Check::warning(VOLUME, format!("{found}: only pods of one node can use it"), advice)
}

/// The API goes through all that it would with a Job, and keeps nothing.
async fn job(client: &Client, namespace: &str, trial: &Job) -> Check {
    let jobs: Api<Job> = Api::namespaced(client.clone(), namespace);
    match within(jobs.create(&PostParams { dry_run: true, ..PostParams::default() }, trial)).await {
        Ok(_) => Check::ok(JOB, "a Job would be taken; whether nodes get its image the first one shows"),
        Err(why) => {
            let advice = "set under [kubernetes] what the cluster wants of Jobs, or have its administrator allow them";
            Check::problem(JOB, format!("a Job would not be taken: {why}"), advice)
        }
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test that fails here has failed")]

    use serde_json::json;

    use super::*;
    use crate::doctor::report::CheckState;

    #[test]
    fn a_volume_of_one_node_is_told_from_one_of_many() {
        let claim = |mode: &str| serde_json::from_value(json!({"spec": {"accessModes": [mode]}})).unwrap();
        assert_eq!(judge_volume("atoll", &claim("ReadWriteMany")).state, CheckState::Ok);
        let one = judge_volume("atoll", &claim("ReadWriteOnce"));
        assert_eq!((one.state, one.advice.is_some()), (CheckState::Warning, true));
        assert_eq!(one.found, "the volume claim atoll is ReadWriteOnce: only pods of one node can use it");
    }

    #[tokio::test]
    async fn a_cluster_that_nobody_can_reach_is_a_problem_with_what_to_do() {
        let kubeconfig = Some("/no/such/kubeconfig".into());
        let settings = KubernetesSettings { kubeconfig, ..KubernetesSettings::default() };
        let checks = look(&settings, Path::new("/data")).await;
        let [check] = checks.as_slice() else { panic!("one check: {checks:?}") };
        assert_eq!((check.name, check.state), ("kubernetes", CheckState::Problem));
        assert!(check.found.contains("/no/such/kubeconfig") && check.advice.is_some(), "{check:?}");
    }
}
