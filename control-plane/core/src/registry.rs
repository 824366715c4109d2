//! Actions that people have pushed: versions that never change, each named by the digest of its bundle.

use std::collections::BTreeMap;
use std::sync::Arc;

use atoll_model::action::{ActionKind, ActionReference, BundleSignature, parse};
use atoll_model::id::ObjectId;
use atoll_model::placement::Labels;
use atoll_model::suggestion::did_you_mean;
use atoll_model::time::Timestamp;
use atoll_model::value::ObjectRef;
use atoll_model::workflow::Work;
use serde::{Deserialize, Serialize};

/// A version of an action in a project.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ActionName {
    pub project: String,
    pub reference: ActionReference,
}

/// What was pushed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ActionVersion {
    pub kind: ActionKind,
    pub bundle: ObjectRef,
    /// The text of its `action.yaml`.
    pub manifest: Arc<str>,
    pub description: Option<String>,
    pub labels: Labels,
    /// Verified, at most one of each key.
    pub signatures: Vec<BundleSignature>,
    pub pushed_by: String,
    pub pushed_at: Timestamp,
    pub deprecated: Option<Deprecation>,
}

/// Somebody advises against a version, which works all the same.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Deprecation {
    pub reason: Option<String>,
    pub by: String,
    pub at: Timestamp,
}

/// All versions of all projects.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Registry {
    versions: BTreeMap<ActionName, Arc<ActionVersion>>,
    /// The digests of those that were removed: a version never comes to mean something else.
    removed: BTreeMap<ActionName, ObjectId>,
    /// What follows from the versions: in how many each bundle is, and the bytes of their manifests.
    #[serde(skip)]
    bundles: BTreeMap<ObjectId, u32>,
    #[serde(skip)]
    manifest_bytes: usize,
}

impl Registry {
    pub fn get(&self, name: &ActionName) -> Option<&Arc<ActionVersion>> {
        self.versions.get(name)
    }

    /// In the order of their names, and then of their versions as texts.
    pub fn of_project<'a>(&'a self, project: &'a str) -> impl Iterator<Item = (&'a ActionName, &'a ActionVersion)> {
        let (name, version) = (String::new(), String::new());
        let first = ActionName { project: project.to_owned(), reference: ActionReference { name, version } };
        let versions = self.versions.range(first..).take_while(move |(name, _)| name.project == project);
        versions.map(|(name, version)| (name, &**version))
    }

    /// The action that a step of a run of this project names.
    ///
    /// # Errors
    /// That there is none, and what there is.
    pub fn action(&self, name: &ActionName) -> Result<Work, String> {
        self.action_of(name, ActionKind::Processor)
    }

    /// The action that a step names, or that a source does.
    ///
    /// # Errors
    /// As for [`Self::action`], and where it belongs, if it is of another kind.
    pub fn action_of(&self, name: &ActionName, kind: ActionKind) -> Result<Work, String> {
        let version = self.get(name).ok_or_else(|| self.why_missing(name))?;
        let file = format!("action.yaml of {}", name.reference);
        let manifest = parse(&file, &version.manifest)
            .map_err(|diagnostics| diagnostics.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))?;
        Ok(manifest.of_kind(kind)?.into_work(Some(version.bundle.id), version.bundle.bytes))
    }

    /// Why there is no such version, and what there is.
    pub fn why_missing(&self, name: &ActionName) -> String {
        let ActionName { project, reference } = name;
        if let Some(digest) = self.removed.get(name) {
            return format!("{reference} ({digest}) was removed from project {project}");
        }
        let of_project = || self.of_project(project).map(|(known, _)| &known.reference);
        let versions: Vec<&str> =
            of_project().filter(|known| known.name == reference.name).map(|known| known.version.as_str()).collect();
        if !versions.is_empty() {
            let (name, version) = (&reference.name, &reference.version);
            return format!("{name} has no version {version} in project {project}: it has {}", versions.join(", "));
        }
        let mut names: Vec<&str> = of_project().map(|known| known.name.as_str()).collect();
        names.dedup();
        let help = did_you_mean(&reference.name, names.iter().copied());
        let help = help.unwrap_or_else(|| "nothing was pushed there yet".to_owned());
        format!("there is no action {} in project {project} ({help})", reference.name)
    }

    /// The digest that a removed version had.
    pub(crate) fn removed(&self, name: &ActionName) -> Option<ObjectId> {
        self.removed.get(name).copied()
    }

    /// Whether a version is in this bundle.
    pub(crate) fn holds(&self, bundle: ObjectId) -> bool {
        self.bundles.contains_key(&bundle)
    }

    pub(crate) fn manifest_bytes(&self) -> usize {
        self.manifest_bytes
    }

    pub(crate) fn insert(&mut self, name: ActionName, version: Arc<ActionVersion>) {
        *self.bundles.entry(version.bundle.id).or_default() += 1;
        self.manifest_bytes += version.manifest.len();
        self.removed.remove(&name);
        let former = self.versions.insert(name, version);
        assert!(former.is_none(), "a version is pushed once");
    }

    pub(crate) fn change(&mut self, name: &ActionName, change: impl FnOnce(&mut ActionVersion)) {
        let version = self.versions.get_mut(name).expect("facts name versions that exist");
        change(Arc::make_mut(version));
    }

    pub(crate) fn remove(&mut self, name: &ActionName) -> ObjectId {
        let version = self.versions.remove(name).expect("facts name versions that exist");
        let bundle = version.bundle.id;
        self.manifest_bytes -= version.manifest.len();
        let count = self.bundles.get_mut(&bundle).expect("each version is counted");
        *count -= 1;
        if *count == 0 {
            self.bundles.remove(&bundle);
        }
        self.removed.insert(name.clone(), bundle);
        bundle
    }

    /// Makes what a checkpoint leaves out because it follows from the rest.
    pub(crate) fn restore_derived(&mut self) {
        (self.bundles, self.manifest_bytes) = Default::default();
        for version in self.versions.values() {
            *self.bundles.entry(version.bundle.id).or_default() += 1;
            self.manifest_bytes += version.manifest.len();
        }
    }

    /// # Panics
    /// When what is counted along is not what there is.
    pub(crate) fn check(&self) {
        let mut counted = self.clone();
        counted.restore_derived();
        assert_eq!(counted, *self, "what follows from the versions of actions");
        let both = self.removed.keys().find(|name| self.versions.contains_key(name));
        assert_eq!(both, None, "a version is there, and removed");
    }
}
