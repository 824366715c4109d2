//! Jobs and pods as the API shows them.

#![expect(clippy::unwrap_used, reason = "a test that fails here has failed")]

use serde_json::{Value, json};

use super::*;

const NOW: &str = "2026-11-23T12:00:00Z";
const LONG_AGO: &str = "2026-11-23T11:00:00Z";

fn pod(status: &Value) -> Pod {
    let labels = json!({"atoll/token": "t1"});
    let whole = json!({
        "metadata": {"name": "atoll-t1-x", "labels": labels, "creationTimestamp": LONG_AGO},
        "spec": {"nodeName": "node1", "containers": []},
        "status": status,
    });
    serde_json::from_value(whole).unwrap()
}

fn job(spec: &Value, status: &Value) -> Job {
    let metadata = json!({"name": "atoll-t1", "labels": {"atoll/token": "t1"}});
    let mut spec = spec.clone();
    spec["template"] = json!({});
    serde_json::from_value(json!({"metadata": metadata, "spec": spec, "status": status})).unwrap()
}

fn standing(pod: &Pod) -> (Standing, String) {
    let seen = Seen { jobs: vec![job(&json!({}), &json!({}))], pods: vec![pod.clone()], refusals: Vec::new() };
    let found = seen.rows(&[], Duration::from_secs(300), NOW.parse().unwrap());
    let [row] = found.as_slice() else { panic!("one row: {found:?}") };
    assert_eq!((row.job.as_str(), row.token.as_str(), row.index), ("atoll-t1", "t1", 0));
    (row.standing, row.words.clone())
}

fn check(status: &Value, expected: Standing, words: &str) {
    assert_eq!(standing(&pod(status)), (expected, words.to_owned()), "{status:#}");
}

#[test]
fn what_a_pod_waits_for_is_told_in_words() {
    let message = "0/3 nodes are available: 3 Insufficient cpu.";
    let unschedulable =
        json!([{"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message}]);
    check(
        &json!({"phase": "Pending", "conditions": unschedulable}),
        Standing::Waiting,
        &format!("Pending (Unschedulable: {message})"),
    );
    let creating = json!([{"name": "atoll", "state": {"waiting": {"reason": "ContainerCreating"}},
        "image": "", "imageID": "", "ready": false, "restartCount": 0}]);
    check(
        &json!({"phase": "Pending", "containerStatuses": creating}),
        Standing::Waiting,
        "Pending (ContainerCreating)",
    );
    check(&json!({"phase": "Running"}), Standing::Running, "Running");
}

fn waiting_for(reason: &str, since: &str) -> Standing {
    let state = json!({"waiting": {"reason": reason, "message": "no such image"}});
    let container =
        json!([{"name": "atoll", "state": state, "image": "", "imageID": "", "ready": false, "restartCount": 0}]);
    let (standing, words) =
        standing(&pod(&json!({"phase": "Pending", "startTime": since, "containerStatuses": container})));
    assert_eq!(words, format!("Pending ({reason}: no such image)"));
    standing
}

#[test]
fn an_image_is_waited_for_as_long_as_there_is_hope() {
    assert_eq!(waiting_for("ImagePullBackOff", NOW), Standing::Waiting);
    assert_eq!(waiting_for("ImagePullBackOff", LONG_AGO), Standing::Hopeless);
    assert_eq!(waiting_for("CreateContainerConfigError", LONG_AGO), Standing::Hopeless);
    assert_eq!(waiting_for("InvalidImageName", NOW), Standing::Hopeless);
    assert_eq!(waiting_for("ContainerCreating", LONG_AGO), Standing::Waiting);
}

fn terminated(state: &Value) -> Value {
    json!([{"name": "atoll", "state": {"terminated": state}, "image": "", "imageID": "", "ready": false, "restartCount": 0}])
}

#[test]
fn out_of_memory_eviction_and_time_are_told_apart_from_failure() {
    let killed = terminated(&json!({"exitCode": 137, "reason": "OOMKilled"}));
    check(
        &json!({"phase": "Failed", "containerStatuses": killed}),
        Standing::Over(Over::OutOfMemory),
        "OOMKilled: it used more memory than it may",
    );
    let message = "The node was low on resource: ephemeral-storage.";
    let ended = terminated(&json!({"exitCode": 143, "reason": "Error"}));
    check(
        &json!({"phase": "Failed", "reason": "Evicted", "message": message, "containerStatuses": ended}),
        Standing::Over(Over::Lost),
        &format!("Evicted: {message}"),
    );
    let preempted = json!([{"type": "DisruptionTarget", "status": "True", "reason": "PreemptionByScheduler",
        "message": "default-scheduler: preempting to accommodate a higher priority pod"}]);
    check(
        &json!({"phase": "Failed", "conditions": preempted, "containerStatuses": ended}),
        Standing::Over(Over::Lost),
        "PreemptionByScheduler: default-scheduler: preempting to accommodate a higher priority pod",
    );
    let late = "Pod was active on the node longer than the specified deadline";
    check(
        &json!({"phase": "Failed", "reason": "DeadlineExceeded", "message": late}),
        Standing::Over(Over::TimedOut),
        &format!("DeadlineExceeded: {late}"),
    );
    let failed = terminated(&json!({"exitCode": 127, "reason": "Error", "message": "atoll: not found\n"}));
    check(
        &json!({"phase": "Failed", "containerStatuses": failed}),
        Standing::Over(Over::Ended),
        "Failed, exit code 127: atoll: not found",
    );
}

#[test]
fn a_pod_whose_node_does_not_answer_is_lost() {
    let mut lost = pod(&json!({"phase": "Running"}));
    lost.metadata.deletion_timestamp = Some(Time(NOW.parse().unwrap()));
    assert_eq!(standing(&lost).0, Standing::Running);
    lost.metadata.deletion_timestamp = Some(Time(LONG_AGO.parse().unwrap()));
    assert_eq!(standing(&lost), (Standing::Over(Over::Lost), "Terminating: the node node1 does not answer".to_owned()));
}

#[test]
fn a_job_without_a_pod_waits_or_has_lost_it_and_one_that_is_gone_was_deleted() {
    let of = |jobs: &[Job], sought: &[Sought]| {
        let seen = Seen { jobs: jobs.to_vec(), ..Seen::default() };
        let found = seen.rows(sought, Duration::from_secs(300), NOW.parse().unwrap());
        found.into_iter().map(|row| (row.job, row.standing, row.words)).collect::<Vec<_>>()
    };
    let name = "atoll-t1".to_owned();
    let pending = (name.clone(), Standing::Waiting, "Pending (it has no pod yet)".to_owned());
    assert_eq!(of(&[job(&json!({}), &json!({}))], &[]), [pending]);
    let suspended = (name.clone(), Standing::Waiting, "Suspended".to_owned());
    assert_eq!(of(&[job(&json!({"suspend": true}), &json!({}))], &[]), [suspended]);
    let failed = json!({"conditions": [{"type": "Failed", "status": "True", "reason": "BackoffLimitExceeded"}]});
    let lost =
        (name.clone(), Standing::Over(Over::Lost), "Failed (BackoffLimitExceeded), and its pod is gone".to_owned());
    assert_eq!(of(&[job(&json!({}), &failed)], &[]), [lost]);
    let sought = |job: Option<&str>| {
        let (name, job) = ("atoll.flood.model.t1".to_owned(), job.map(str::to_owned));
        Sought { name, job, elements: vec![0], at: atoll_model::time::Timestamp::ZERO }
    };
    let gone = (name, Standing::Over(Over::Cancelled), "gone: it was deleted".to_owned());
    assert_eq!(of(&[], &[sought(Some("atoll-t1"))]), [gone]);
    assert_eq!(of(&[], &[sought(None)]), []);
}

#[test]
fn a_job_that_gets_no_pod_says_why() {
    let refusal = |message: &str, at: &str| {
        let object = json!({"kind": "Job", "name": "atoll-t1"});
        let whole = json!({"metadata": {}, "involvedObject": object, "message": message, "lastTimestamp": at});
        serde_json::from_value::<Event>(whole).unwrap()
    };
    let refusals = vec![refusal("exceeded quota: compute", NOW), refusal("no service account", LONG_AGO)];
    let seen = Seen { jobs: vec![job(&json!({}), &json!({}))], pods: Vec::new(), refusals };
    assert!(seen.has_podless());
    let rows = seen.rows(&[], Duration::from_secs(300), NOW.parse().unwrap());
    assert_eq!(rows[0].words, "Pending (FailedCreate: exceeded quota: compute)");
    let over = job(&json!({}), &json!({"conditions": [{"type": "Complete", "status": "True"}]}));
    assert!(!Seen { jobs: vec![over], ..Seen::default() }.has_podless());
}
