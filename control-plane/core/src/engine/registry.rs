//! Versions of actions: pushed, signed, advised against, removed.

use std::sync::Arc;

use atoll_model::action::BundleSignature;
use atoll_model::id::RunId;
use atoll_model::limits::{ACTION_MANIFESTS_BYTES_MAX, ACTION_SIGNATURES_MAX};
use atoll_model::session::TemplateWork;
use atoll_model::value::{ObjectKind, ObjectRef};
use atoll_model::workflow::Action;

use crate::command::{Rejection, Response};
use crate::control_plane::ControlPlane;
use crate::fact::Fact;
use crate::registry::{ActionName, ActionVersion, Deprecation, Registry};
use crate::state::{BucketState, Run, Source};

impl ControlPlane {
    /// Every version that was pushed. Cheap: it is shared until it changes.
    pub fn registry(&self) -> Arc<Registry> {
        Arc::clone(&self.state.registry)
    }

    /// What a run uses that somebody advises against, each with the reason.
    pub fn deprecations(&self, run: RunId) -> Vec<String> {
        let Some(run) = self.state.runs.get(&run) else { return Vec::new() };
        let advised = run.workflow.steps.iter().filter_map(|step| {
            let action = step.work.action()?;
            let deprecation = self.registered(run, action)?.deprecated.as_ref()?;
            let reason = deprecation.reason.as_ref().map(|reason| format!(": {reason}")).unwrap_or_default();
            Some(format!("step {} uses {} {}, which is deprecated{reason}", step.name, action.name, action.version))
        });
        advised.collect()
    }

    /// What agents are to run for an action, with the signatures that its bundle has by now.
    pub(super) fn command_of(&self, run: &Run, action: &Action) -> TemplateWork {
        let command = action.command.clone();
        let signatures = self.signatures_of(run, action);
        match bundle_of(action) {
            Some(bundle) if !signatures.is_empty() => TemplateWork::SignedCommand { command, bundle, signatures },
            bundle => TemplateWork::Command { command, bundle },
        }
    }

    /// As [`Self::command_of`], of an action of which agents are told its bundle alone: what is run stands there.
    pub(super) fn bundled(
        &self,
        run: &Run,
        action: &Action,
        work: impl FnOnce(ObjectRef, Vec<BundleSignature>) -> TemplateWork,
    ) -> TemplateWork {
        match bundle_of(action) {
            Some(bundle) => work(bundle, self.signatures_of(run, action)),
            // Only a workflow that is checked has none, and its steps are not run.
            None => TemplateWork::Null,
        }
    }

    fn signatures_of(&self, run: &Run, action: &Action) -> Vec<BundleSignature> {
        self.registered(run, action).map(|version| version.signatures.clone()).unwrap_or_default()
    }

    /// What was pushed under the name that the action has, if it is the same.
    fn registered(&self, run: &Run, action: &Action) -> Option<&ActionVersion> {
        let bundle = action.bundle?;
        let reference = action.reference();
        let name = ActionName { project: run.project.to_string(), reference };
        self.state.registry.get(&name).map(|version| &**version).filter(|version| version.bundle.id == bundle)
    }

    /// Takes a version in. Pushed again it stays as it is, and gets the signatures that it has not.
    pub(crate) fn push_action(&mut self, name: ActionName, pushed: ActionVersion) -> Result<Response, Rejection> {
        let bundle = pushed.bundle.id;
        let registry = &self.state.registry;
        let (reference, project) = (&name.reference, &name.project);
        let former = registry.get(&name).map(|known| known.bundle.id).or_else(|| registry.removed(&name));
        if let Some(former) = former.filter(|former| *former != bundle) {
            let reason = format!(
                "{reference} of project {project} is {former} and never changes: give what you push ({bundle}) another \
                 version"
            );
            return Err(Rejection::Conflict(reason));
        }
        let in_bucket = self
            .state
            .objects
            .get(&bundle)
            .is_some_and(|known| known.bucket == BucketState::Present && known.reference.kind == ObjectKind::Tree);
        if !in_bucket {
            return Err(Rejection::Invalid(format!("the bundle of {reference} is {bundle}, which was not sent in")));
        }
        if let Some(known) = registry.get(&name) {
            let is_new = |new: &&BundleSignature| known.signatures.iter().all(|signature| signature.key != new.key);
            let new: Vec<BundleSignature> = pushed.signatures.iter().filter(is_new).copied().collect();
            if known.signatures.len() + new.len() > ACTION_SIGNATURES_MAX {
                return Err(Rejection::Invalid(format!("{reference} has {ACTION_SIGNATURES_MAX} signatures at most")));
            }
            for signature in new {
                self.record(Fact::ActionSigned { name: name.clone(), signature });
            }
            return Ok(Response::Done);
        }
        if registry.manifest_bytes() + pushed.manifest.len() > ACTION_MANIFESTS_BYTES_MAX {
            let reason = "no more versions of actions can be kept: remove some that nobody uses";
            return Err(Rejection::Unavailable(reason.to_owned()));
        }
        let version = Arc::new(ActionVersion { pushed_at: self.now, ..pushed });
        self.record(Fact::ActionPushed { name, version });
        Ok(Response::Done)
    }

    pub(crate) fn deprecate_action(
        &mut self,
        name: ActionName,
        advice: Option<(Option<String>, String)>,
    ) -> Result<Response, Rejection> {
        let known = self.known_version(&name)?;
        let said = |known: &Deprecation| (known.reason.clone(), known.by.clone());
        if known.deprecated.as_ref().map(said) == advice {
            // Its answer was lost.
            return Ok(Response::Done);
        }
        let deprecation = advice.map(|(reason, by)| Deprecation { reason, by, at: self.now });
        self.record(Fact::ActionDeprecated { name, deprecation });
        Ok(Response::Done)
    }

    /// Forgets a version that no live run uses; its bundle leaves the bucket with it.
    pub(crate) fn remove_action(&mut self, name: ActionName) -> Result<Response, Rejection> {
        let bundle = self.known_version(&name)?.bundle.id;
        if let Some(deployed) = self.deployed_user(&name) {
            let reason = format!("{} is used by the deployed workflow {}: undeploy it", name.reference, deployed.name);
            return Err(Rejection::Conflict(reason));
        }
        if let Some(run) = self.live_user(&name, bundle) {
            let reason = format!("{} is used by {run}, which has not ended; `deprecate` it meanwhile", name.reference);
            return Err(Rejection::Conflict(reason));
        }
        self.record(Fact::ActionRemoved { name });
        self.agenda.sweep.insert(bundle);
        Ok(Response::Done)
    }

    fn known_version(&self, name: &ActionName) -> Result<&ActionVersion, Rejection> {
        let registry = &self.state.registry;
        let known = registry.get(name).map(|version| &**version);
        known.ok_or_else(|| Rejection::NotFound(registry.why_missing(name)))
    }

    fn live_user(&self, name: &ActionName, bundle: atoll_model::id::ObjectId) -> Option<RunId> {
        let uses = &self.state.objects.get(&bundle)?.uses;
        let uses_it = |run: &&Arc<Run>| {
            let steps = run.workflow.steps.iter();
            let names = |action: &Action| action.reference() == name.reference;
            run.is_live() && *run.project == *name.project && steps.filter_map(|step| step.work.action()).any(names)
        };
        let of_bundle = uses.iter().filter(|usage| matches!(usage.source, Source::Bundle(_)));
        of_bundle.filter_map(|usage| self.state.runs.get(&usage.run)).find(uses_it).map(|run| run.id)
    }
}

fn bundle_of(action: &Action) -> Option<ObjectRef> {
    action.bundle.map(|id| ObjectRef { id, kind: ObjectKind::Tree, bytes: action.bundle_bytes })
}
