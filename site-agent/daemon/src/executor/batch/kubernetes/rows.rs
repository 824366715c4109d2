//! What a Job and its pod say of where an attempt stands.

use std::time::Duration;

use k8s_openapi::api::batch::v1::{Job, JobStatus};
use k8s_openapi::api::core::v1::{ContainerState, ContainerStateTerminated, Event, Pod, PodStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use k8s_openapi::jiff::Timestamp;

use super::super::system::{Over, Row, Sought, Standing};
use super::job::{CONTAINER, TOKEN};

/// So much of a message is told to people.
const MESSAGE_MAX: usize = 300;
/// A pod that is to go and is still there so long after its time: its node does not answer.
const GONE_AFTER: Duration = Duration::from_secs(60);
/// What a node says of an image that it will never get.
const NEVER: [&str; 2] = ["ErrImageNeverPull", "InvalidImageName"];
/// … and of a pod that it cannot start now, and tries to again.
const TRYING: [&str; 7] = [
    "ErrImagePull",
    "ImagePullBackOff",
    "ImageInspectError",
    "RegistryUnavailable",
    "CreateContainerConfigError",
    "CreateContainerError",
    "RunContainerError",
];
/// The pod was taken from its node.
const TAKEN: [&str; 8] = [
    "Evicted",
    "NodeLost",
    "NodeShutdown",
    "Shutdown",
    "Terminated",
    "Preempting",
    "NodeAffinity",
    "UnexpectedAdmissionError",
];

/// What the API has of the agent's.
#[derive(Debug, Default)]
pub(super) struct Seen {
    pub jobs: Vec<Job>,
    pub pods: Vec<Pod>,
    /// Why Jobs have got no pod.
    pub refusals: Vec<Event>,
}

impl Seen {
    /// Whether a Job that has not ended has no pod.
    pub(super) fn has_podless(&self) -> bool {
        let holds = |job: &Job, kind| condition_of_job(job.status.as_ref(), kind).is_some();
        let is_over = |job: &Job| holds(job, "Complete") || holds(job, "Failed");
        let mut waiting = self.jobs.iter().filter(|job| !is_over(job));
        waiting.any(|job| token(&job.metadata).is_some_and(|token| self.newest(token).is_none()))
    }

    /// One for each Job of the agent, and for each that was submitted and is gone.
    pub(super) fn rows(&self, sought: &[Sought], image_patience: Duration, now: Timestamp) -> Vec<Row> {
        let row = |token: &str, name: &str, (standing, words): (Standing, String)| Row {
            job: name.to_owned(),
            index: 0,
            standing,
            words,
            token: token.to_owned(),
        };
        let with_pod = |token: &str| self.newest(token).map(|pod| of_pod(pod, image_patience, now));
        let of_jobs = self.jobs.iter().filter_map(|job| {
            let (token, name) = (token(&job.metadata)?, job.metadata.name.as_deref()?);
            Some(row(token, name, with_pod(token).unwrap_or_else(|| of_job(job, self.refusal(name)))))
        });
        // What the API has taken and does not have any more was deleted: it forgets nothing by itself that has not ended.
        let gone = sought.iter().filter_map(|sought| {
            let (token, name) = (sought.name.rsplit('.').next()?, sought.job.as_deref()?);
            let is_there = self.jobs.iter().any(|job| self::token(&job.metadata) == Some(token));
            let deleted = || (Standing::Over(Over::Cancelled), "gone: it was deleted".to_owned());
            (!is_there).then(|| row(token, name, with_pod(token).unwrap_or_else(deleted)))
        });
        of_jobs.chain(gone).collect()
    }

    /// The pod that counts, should there ever have been another.
    fn newest(&self, token: &str) -> Option<&Pod> {
        let own = self.pods.iter().filter(|pod| self::token(&pod.metadata) == Some(token));
        own.max_by_key(|pod| pod.metadata.creation_timestamp.clone())
    }

    /// Why a Job has got no pod, as it was last said.
    fn refusal(&self, job: &str) -> Option<&str> {
        let own = self.refusals.iter().filter(|event| event.involved_object.name.as_deref() == Some(job));
        own.max_by_key(|event| event.last_timestamp.clone())?.message.as_deref()
    }
}

fn token(metadata: &ObjectMeta) -> Option<&str> {
    metadata.labels.as_ref()?.get(TOKEN).map(String::as_str)
}

/// A Job without a pod.
fn of_job(job: &Job, refusal: Option<&str>) -> (Standing, String) {
    let holds = |kind: &str| condition_of_job(job.status.as_ref(), kind);
    if let Some(why) = holds("Failed") {
        return (Standing::Over(Over::Lost), format!("Failed ({why}), and its pod is gone"));
    }
    if holds("Complete").is_some() {
        return (Standing::Over(Over::Ended), "Complete".to_owned());
    }
    if job.spec.as_ref().is_some_and(|spec| spec.suspend == Some(true)) {
        return (Standing::Waiting, "Suspended".to_owned());
    }
    let words = refusal.map_or_else(|| "it has no pod yet".to_owned(), |why| joined(Some("FailedCreate"), Some(why)));
    (Standing::Waiting, format!("Pending ({words})"))
}

fn condition_of_job(status: Option<&JobStatus>, kind: &str) -> Option<String> {
    let mut conditions = status?.conditions.iter().flatten();
    let found = conditions.find(|condition| condition.type_ == kind && condition.status == "True")?;
    Some(joined(found.reason.as_deref(), found.message.as_deref()))
}

fn of_pod(pod: &Pod, image_patience: Duration, now: Timestamp) -> (Standing, String) {
    let nothing = PodStatus::default();
    let status = pod.status.as_ref().unwrap_or(&nothing);
    let phase = status.phase.as_deref().unwrap_or("Pending");
    // A cluster may have put others beside it.
    let own = status.container_statuses.iter().flatten().find(|container| container.name == CONTAINER);
    let state = own.and_then(|container| container.state.as_ref());
    let terminated = state.and_then(|state| state.terminated.as_ref());
    if terminated.is_some() || phase == "Failed" || phase == "Succeeded" {
        return over(status, phase, terminated);
    }
    let is_late = |since: Option<&Time>, patience: Duration| since.is_some_and(|since| elapsed(since, now) > patience);
    if is_late(pod.metadata.deletion_timestamp.as_ref(), GONE_AFTER) {
        let node = pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()).unwrap_or("that it was brought to");
        return (Standing::Over(Over::Lost), format!("Terminating: the node {node} does not answer"));
    }
    if let Some((reason, message)) = state.and_then(waiting) {
        let words = format!("{phase} ({})", joined(Some(reason), message));
        let is_over = TRYING.contains(&reason) && is_late(status.start_time.as_ref(), image_patience);
        let standing = if NEVER.contains(&reason) || is_over { Standing::Hopeless } else { Standing::Waiting };
        return (standing, words);
    }
    match phase {
        "Running" => (Standing::Running, phase.to_owned()),
        "Unknown" => (Standing::Running, format!("{phase} ({})", joined(status.reason.as_deref(), None))),
        _ => (Standing::Waiting, unscheduled(status).unwrap_or_else(|| phase.to_owned())),
    }
}

fn waiting(state: &ContainerState) -> Option<(&str, Option<&str>)> {
    let waiting = state.waiting.as_ref()?;
    Some((waiting.reason.as_deref()?, waiting.message.as_deref()))
}

fn unscheduled(status: &PodStatus) -> Option<String> {
    let mut conditions = status.conditions.iter().flatten();
    let found = conditions.find(|condition| condition.type_ == "PodScheduled" && condition.status == "False")?;
    Some(format!("Pending ({})", joined(found.reason.as_deref(), found.message.as_deref())))
}

/// How a pod ended, and why.
fn over(status: &PodStatus, phase: &str, terminated: Option<&ContainerStateTerminated>) -> (Standing, String) {
    let reason = status.reason.as_deref();
    let mut conditions = status.conditions.iter().flatten();
    let taken = conditions.find(|condition| condition.type_ == "DisruptionTarget" && condition.status == "True");
    let of_container = terminated.and_then(|terminated| terminated.reason.as_deref());
    if reason == Some("DeadlineExceeded") {
        return (Standing::Over(Over::TimedOut), joined(reason, status.message.as_deref()));
    }
    if of_container == Some("OOMKilled") {
        return (Standing::Over(Over::OutOfMemory), "OOMKilled: it used more memory than it may".to_owned());
    }
    if let Some(taken) = taken {
        let reason = reason.or(taken.reason.as_deref());
        let message = status.message.as_deref().or(taken.message.as_deref());
        return (Standing::Over(Over::Lost), joined(reason, message));
    }
    if reason.is_some_and(|reason| TAKEN.contains(&reason)) {
        return (Standing::Over(Over::Lost), joined(reason, status.message.as_deref()));
    }
    let code = terminated.map(|terminated| format!(", exit code {}", terminated.exit_code)).unwrap_or_default();
    let message = terminated.and_then(|terminated| terminated.message.as_deref()).or(status.message.as_deref());
    let words = format!("{phase}{code}");
    (Standing::Over(Over::Ended), joined(Some(&words), message))
}

/// `reason: message`, as far as there is anything.
fn joined(reason: Option<&str>, message: Option<&str>) -> String {
    let reason = reason.filter(|reason| !reason.is_empty()).unwrap_or("no reason is given");
    match message.map(str::trim).filter(|message| !message.is_empty()) {
        Some(message) => {
            let message: String = message.replace('\n', "; ").chars().take(MESSAGE_MAX).collect();
            format!("{reason}: {message}")
        }
        None => reason.to_owned(),
    }
}

fn elapsed(since: &Time, now: Timestamp) -> Duration {
    let seconds = now.as_second().saturating_sub(since.0.as_second());
    Duration::from_secs(u64::try_from(seconds).unwrap_or(0))
}

#[cfg(test)]
mod tests;
