//! Kubernetes: an attempt is a Job with one pod, which runs the shim from the volume that it shares with the agent. Jobs are
//! named by their token, so that submitting one again makes no second, and found again by their labels.

mod client;
mod job;
mod rows;
mod volume;
mod volumes;

use std::fmt;
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{Event, Pod};
use k8s_openapi::jiff::Timestamp;
use kube::api::{DeleteParams, ListParams, PostParams};
use kube::{Api, Client};
use tokio::runtime::{Builder, Runtime};

pub(crate) use self::client::{connect, said};
pub(crate) use self::job::trial;
use self::rows::Seen;
pub(crate) use self::volume::on_volume;
use super::system::{BatchSystem, Limits, NewJob, NotSubmitted, Request, Row, Sought};
use crate::config::KubernetesSettings;
use crate::shim::job::evidence::{KUBERNETES_JOB, OfJob};

/// How long the API may take for an answer.
const PATIENCE: Duration = Duration::from_secs(60);
/// What a cluster, its clouds and its devices tell a pod of itself and of who it is.
const PASSED: [&str; 5] = ["KUBERNETES_", "AWS_", "AZURE_", "GOOGLE_", "NVIDIA_"];

/// A Kubernetes cluster, as its site's administrator has it used.
pub(super) struct Kubernetes {
    settings: KubernetesSettings,
    /// Whose Jobs they are: those of another agent in the same namespace are not this one's.
    agent: String,
    data_dir: PathBuf,
    namespace: String,
    client: Client,
    runtime: Own,
}

impl fmt::Debug for Kubernetes {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Kubernetes").field("namespace", &self.namespace).finish_non_exhaustive()
    }
}

impl Kubernetes {
    /// # Errors
    /// When nothing says where the cluster is, or who the agent is there.
    pub(super) fn open(settings: KubernetesSettings, agent: String, data_dir: PathBuf) -> anyhow::Result<Self> {
        let runtime = Own(Some(Builder::new_current_thread().enable_all().build()?));
        // Who calls this may be of another runtime, and not wait here.
        let connected = thread::scope(|scope| scope.spawn(|| runtime.block_on(connect(&settings))).join());
        let (client, namespace) = connected.map_err(|_| anyhow::anyhow!("the way to the cluster cannot be made"))??;
        Ok(Self { settings, agent, data_dir, namespace, client, runtime })
    }

    fn jobs(&self) -> Api<Job> {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    fn ask<T>(&self, question: impl Future<Output = kube::Result<T>>) -> Result<T, Trouble> {
        let answer = self.runtime.block_on(async { tokio::time::timeout(PATIENCE, question).await });
        answer.map_err(|_| Trouble::Late)?.map_err(Trouble::Said)
    }

    async fn see(&self) -> kube::Result<Seen> {
        let own = ListParams::default().labels(&job::selector(&self.agent));
        let jobs = self.jobs().list(&own).await?.items;
        let pods = Api::<Pod>::namespaced(self.client.clone(), &self.namespace).list(&own).await?.items;
        let mut seen = Seen { jobs, pods, refusals: Vec::new() };
        if seen.has_podless() {
            seen.refusals = self.refusals().await?;
        }
        Ok(seen)
    }

    /// Why Jobs of the namespace have got no pod.
    async fn refusals(&self) -> kube::Result<Vec<Event>> {
        let of_jobs = ListParams::default().fields("involvedObject.kind=Job,reason=FailedCreate");
        match Api::namespaced(self.client.clone(), &self.namespace).list(&of_jobs).await {
            Ok(events) => Ok(events.items),
            // Who may not know why is told that it has none.
            Err(kube::Error::Api(status)) if status.code == 403 => Ok(Vec::new()),
            Err(error) => Err(error),
        }
    }
}

/// A runtime of its own: calls come from one thread, and wait for their answer whatever becomes of the agent's.
struct Own(Option<Runtime>);

impl Own {
    fn block_on<F: Future>(&self, question: F) -> F::Output {
        self.0.as_ref().expect("it is there until it is dropped").block_on(question)
    }
}

impl Drop for Own {
    fn drop(&mut self) {
        // Nobody waits for it, wherever this happens.
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

/// Why there is no answer, or none that is wanted.
enum Trouble {
    Late,
    Said(kube::Error),
}

impl Trouble {
    fn words(&self) -> String {
        match self {
            Self::Late => format!("no answer within {} s", PATIENCE.as_secs()),
            Self::Said(error) => said(error),
        }
    }

    /// Whether there may be a Job although its submission failed, and whether there ever will be one.
    fn judged(&self) -> NotSubmitted {
        let words = self.words();
        match self {
            Self::Said(kube::Error::Api(status)) => match status.code {
                401 | 429 => NotSubmitted::Later(words),
                403 if words.contains("exceeded quota") => NotSubmitted::Later(words),
                400..=499 => NotSubmitted::Refused(words),
                _ => NotSubmitted::Unclear(words),
            },
            Self::Said(error) if client::is_unreached(error) => NotSubmitted::Later(words),
            Self::Said(_) | Self::Late => NotSubmitted::Unclear(words),
        }
    }

    fn has_code(&self, code: u16) -> bool {
        matches!(self, Self::Said(kube::Error::Api(status)) if status.code == code)
    }
}

impl BatchSystem for Kubernetes {
    fn title(&self) -> &str {
        "Kubernetes"
    }

    fn place(&self) -> String {
        format!("namespace {}", self.namespace)
    }

    fn limits(&self) -> Limits {
        Limits {
            poll: self.settings.poll(),
            jobs_max: self.settings.jobs_max as usize,
            together_max: 1,
            forgotten_after: self.settings.forgotten_after(),
        }
    }

    fn of_job(&self) -> OfJob {
        OfJob { number: KUBERNETES_JOB.to_owned(), passed: PASSED.map(str::to_owned).to_vec() }
    }

    fn request(&self, new: &NewJob<'_>) -> Request {
        let job = job::job(&self.settings, &self.agent, &self.data_dir, new);
        let input = serde_json::to_string(&job).expect("a Job has names and numbers only");
        Request { input, ..Request::default() }
    }

    fn number(&self, number: &str, _index: usize, _count: usize) -> String {
        number.to_owned()
    }

    fn submit(&self, request: &Request) -> Result<String, NotSubmitted> {
        let job: Job =
            serde_json::from_str(&request.input).map_err(|error| NotSubmitted::Refused(error.to_string()))?;
        let name = job.metadata.name.clone().unwrap_or_default();
        match self.ask(self.jobs().create(&PostParams::default(), &job)) {
            Ok(_) => Ok(name),
            // Its answer was lost: nobody else has a Job of this name.
            Err(trouble) if trouble.has_code(409) => Ok(name),
            Err(trouble) => Err(trouble.judged()),
        }
    }

    fn cancel(&self, jobs: &[String], _name: &str) -> Result<(), String> {
        for job in jobs {
            match self.ask(self.jobs().delete(job, &DeleteParams::background())) {
                Ok(_) => {}
                Err(trouble) if trouble.has_code(404) => {}
                Err(trouble) => return Err(trouble.words()),
            }
        }
        Ok(())
    }

    fn list(&self, sought: &[Sought]) -> Result<Vec<Row>, String> {
        let seen = self.ask(self.see()).map_err(|trouble| trouble.words())?;
        let image_patience = Duration::from_secs(self.settings.image_seconds);
        Ok(seen.rows(sought, image_patience, Timestamp::now()))
    }
}
