//! Workflows that are deployed: what starts their runs, how far that has come, and what of it must not count twice.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use atoll_model::id::{Attempt, RunId};
use atoll_model::limits::EMITTED_KEYS_KEPT;
use atoll_model::time::Timestamp;
use atoll_model::value::Value;
use atoll_model::workflow::{Step, Workflow};
use indexmap::IndexMap;
use serde::{Deserialize, Serialize};

use crate::view::RunState;

/// A deployed workflow of a project.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct DeploymentName {
    pub project: String,
    pub name: String,
}

/// What is deployed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Deployed {
    pub workflow: Arc<Workflow>,
    /// The text of the file, for export and display.
    pub text: Arc<str>,
    /// What carries its source and its services out, and the run that does.
    pub emitter: Option<(Arc<Workflow>, RunId)>,
    pub by: String,
}

impl Deployed {
    /// The step of what stays that starts runs, if there is one: it is the first.
    pub(crate) fn source(&self) -> Option<&Step> {
        let (emitter, _) = self.emitter.as_ref()?;
        emitter.steps.first().filter(|step| !step.is_service())
    }
}

/// A record that a source has emitted, its types already checked.
#[derive(Debug, Clone, PartialEq)]
pub struct EmittedRecord {
    /// Counted by whoever watches over the attempt, from 1; larger than that of the record before.
    pub number: u64,
    /// The run that it starts, minted by the shell.
    pub run: RunId,
    pub inputs: IndexMap<String, Value>,
    /// How far the source is with this record, as JSON.
    pub offset: Option<Arc<str>>,
    /// No two records with the same key start a run.
    pub key: Option<String>,
}

/// A workflow that is deployed, as the journal knows it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Deployment {
    pub(crate) deployed: Deployed,
    pub(crate) at: Timestamp,
    pub(crate) generation: u32,
    /// It is to be gone when its source is.
    pub(crate) is_leaving: bool,
    /// The run of an earlier generation that has not ended: until then this one emits nothing.
    pub(crate) former: Option<RunId>,
    pub(crate) phase: SourcePhase,
    /// The attempt that has emitted last in this run, and the number of its last record.
    pub(crate) position: Option<(Attempt, u64)>,
    /// Goes with the name from generation to generation, as does what follows.
    pub(crate) offset: Option<Arc<str>>,
    /// Keys of the last records, oldest first.
    pub(crate) keys: VecDeque<String>,
    pub(crate) emitted: u64,
    pub(crate) emitted_at: Option<Timestamp>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) enum SourcePhase {
    /// Its run was not submitted: there is no source, or the former has not ended.
    Waiting,
    Begun,
    Ended {
        state: RunState,
        message: Option<String>,
        at: Timestamp,
    },
}

impl Deployment {
    /// The run in which a source of it lives, if one does.
    pub(crate) fn live_run(&self) -> Option<RunId> {
        let own = self.deployed.emitter.as_ref().filter(|_| self.phase == SourcePhase::Begun);
        self.former.or(own.map(|(_, run)| *run))
    }

    /// The name of the action that is its source.
    fn action(&self) -> Option<&str> {
        action_of(&self.deployed)
    }
}

fn action_of(deployed: &Deployed) -> Option<&str> {
    Some(&deployed.source()?.work.action()?.name)
}

/// What is deployed in all projects.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Deployments {
    known: BTreeMap<DeploymentName, Arc<Deployment>>,
}

impl Deployments {
    pub(crate) fn get(&self, name: &DeploymentName) -> Option<&Deployment> {
        self.known.get(name).map(|known| &**known)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&DeploymentName, &Deployment)> {
        self.known.iter().map(|(name, known)| (name, &**known))
    }

    pub(crate) fn len(&self) -> usize {
        self.known.len()
    }

    /// The deployment whose source lives in this run.
    pub(crate) fn of_run(&self, run: RunId) -> Option<(&DeploymentName, &Deployment)> {
        self.iter().find(|(_, deployment)| deployment.live_run() == Some(run))
    }

    pub(crate) fn deploy(&mut self, name: &DeploymentName, deployed: &Deployed, at: Timestamp) {
        let former = self.known.get(name);
        // What was to be gone begins from the start, as does another source.
        let kept = former.filter(|former| !former.is_leaving && former.action() == action_of(deployed));
        let deployment = Deployment {
            deployed: deployed.clone(),
            at,
            generation: former.map_or(1, |former| former.generation + 1),
            is_leaving: false,
            former: former.and_then(|former| former.live_run()),
            phase: SourcePhase::Waiting,
            position: None,
            offset: kept.and_then(|former| former.offset.clone()),
            keys: kept.map(|former| former.keys.clone()).unwrap_or_default(),
            emitted: kept.map_or(0, |former| former.emitted),
            emitted_at: kept.and_then(|former| former.emitted_at),
        };
        self.known.insert(name.clone(), Arc::new(deployment));
    }

    pub(crate) fn begin(&mut self, name: &DeploymentName) {
        let deployment = self.get_mut(name);
        (deployment.phase, deployment.position) = (SourcePhase::Begun, None);
    }

    pub(crate) fn end(&mut self, name: &DeploymentName, run: RunId, ended: SourcePhase) {
        let deployment = self.get_mut(name);
        if deployment.former == Some(run) { deployment.former = None } else { deployment.phase = ended }
    }

    pub(crate) fn emit(&mut self, name: &DeploymentName, emission: &Emission, at: Timestamp) {
        let deployment = self.get_mut(name);
        deployment.position = Some((emission.attempt, emission.number));
        if emission.offset.is_some() {
            deployment.offset.clone_from(&emission.offset);
        }
        if emission.run.is_some() {
            deployment.emitted += 1;
            deployment.emitted_at = Some(at);
            deployment.keys.extend(emission.key.clone());
            let excess = deployment.keys.len().saturating_sub(EMITTED_KEYS_KEPT);
            deployment.keys.drain(..excess);
        }
    }

    pub(crate) fn leave(&mut self, name: &DeploymentName) {
        self.get_mut(name).is_leaving = true;
    }

    pub(crate) fn remove(&mut self, name: &DeploymentName) {
        self.known.remove(name).expect("facts name deployments that exist");
    }

    fn get_mut(&mut self, name: &DeploymentName) -> &mut Deployment {
        Arc::make_mut(self.known.get_mut(name).expect("facts name deployments that exist"))
    }
}

/// A record that was taken in.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Emission {
    pub attempt: Attempt,
    pub number: u64,
    pub offset: Option<Arc<str>>,
    pub key: Option<String>,
    /// Nothing if a record with the same key has started one.
    pub run: Option<RunId>,
}
