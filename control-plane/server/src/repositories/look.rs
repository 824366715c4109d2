//! One look at a repository: fetched, listed, laid out, each folder checked and packed, and what is new pushed.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use atoll_model::action::{ActionReference, Manifest};
use atoll_model::id::ObjectId;
use atoll_model::limits::{
    BUNDLE_BYTES_MAX, IMPORT_TIME_MAX, PACKED_AT_ONCE, REPOSITORY_ACTIONS_MAX, REPOSITORY_BYTES_MAX,
};
use atoll_model::time::Timestamp;
use control_plane_core::{
    ActionName, ActionVersion, EndedImport, Finding, FoundAction, ImportMode, ImportOrder, ImportOutcome, ImportReport,
    Origin, Rejection, Request,
};
use futures::StreamExt as _;
use storage_sync_engine::action_folder::{ActionFolderError, PackedAction, pack_action};
use storage_sync_engine::stream::Packed;

use super::Settings;
use super::git::{Git, GitError};
use super::log::ImportLog;
use super::tree::Tree;
use crate::api::App;
use crate::api::error::ApiError;
use crate::api::uploads::take_bundle;

/// Who asks where nobody does.
pub(super) const CLOCK: &str = "the clock";

/// What one look works with.
#[derive(Clone, Copy)]
pub(super) struct Looking<'a> {
    pub(super) app: &'a App,
    pub(super) settings: &'a Settings,
    pub(super) order: &'a ImportOrder,
    pub(super) log: &'a Arc<ImportLog>,
}

/// Why a repository cannot be looked at as a whole.
#[derive(Debug, thiserror::Error)]
enum LookError {
    #[error(transparent)]
    Git(#[from] GitError),
    #[error("the server cannot make a folder for it: {0}")]
    Folder(#[source] std::io::Error),
    #[error("commit {commit} has no folder {subdir}")]
    NoSubdir { commit: String, subdir: String },
    #[error("it has {bytes} bytes, more than {REPOSITORY_BYTES_MAX}: name the folder with the actions (`--subdir`)")]
    TooLarge { bytes: u64 },
    #[error("it has {folders} folders of actions, more than {REPOSITORY_ACTIONS_MAX}: name one folder (`--subdir`)")]
    TooMany { folders: usize },
    #[error(transparent)]
    Core(#[from] Rejection),
}

/// What is known by now.
#[derive(Default)]
struct Seen {
    commit: Option<String>,
    actions: Vec<FoundAction>,
}

/// A folder that was read.
struct Checked {
    path: String,
    packed: Result<PackedAction, Finding>,
}

impl Looking<'_> {
    /// What was found, whatever comes of it.
    pub(super) async fn look(&self) -> ImportReport {
        let mut seen = Seen::default();
        let outcome = match tokio::time::timeout(IMPORT_TIME_MAX, self.go_through(&mut seen)).await {
            Ok(Ok(())) => ImportOutcome::Done,
            Ok(Err(error)) => ImportOutcome::Failed(error.to_string()),
            Err(_) => {
                let minutes = IMPORT_TIME_MAX.as_secs() / 60;
                ImportOutcome::Failed(format!("it was not done after {minutes} minutes, and was ended"))
            }
        };
        match &outcome {
            ImportOutcome::Failed(message) => self.log.say(&format!("failed: {message}")),
            ImportOutcome::Done | ImportOutcome::Cancelled { .. } => self.log.say("done"),
        }
        let Seen { commit, actions } = seen;
        ImportReport { commit, outcome, actions, log: self.log.text() }
    }

    async fn go_through(&self, seen: &mut Seen) -> Result<(), LookError> {
        let ImportOrder { repository, source, import, imported } = self.order;
        let by = import.by.as_deref().unwrap_or(CLOCK);
        self.log.say(&format!("{} of {}, asked for by {by}", import.mode.as_str(), source.url));
        let folder = tempfile::tempdir_in(&self.settings.folder).map_err(LookError::Folder)?;
        let of = (&source.url, repository.project.as_str());
        let git = Git::new(&self.settings.git, of, folder.path(), REPOSITORY_BYTES_MAX, self.log)?;
        let commit = git.fetch(source).await?;
        self.log.say(&format!("{} is at commit {commit}", source.branch().unwrap_or("HEAD")));
        seen.commit = Some(commit.clone());
        if let Some(EndedImport { report, .. }) = imported.as_deref()
            && import.by.is_none()
            && report.commit.as_ref() == Some(&commit)
        {
            self.log.say("which was imported before");
            seen.actions.clone_from(&report.actions);
            let is_known = |action: &mut FoundAction| {
                if action.finding == Finding::Imported {
                    action.finding = Finding::Known;
                }
            };
            seen.actions.iter_mut().for_each(is_known);
            return Ok(());
        }
        let tree = self.list(&git, &commit).await?;
        let laid_out = folder.path().join("files");
        std::fs::create_dir(&laid_out).map_err(LookError::Folder)?;
        if !tree.folders.is_empty() {
            git.check_out(&commit, source.subdir(), &laid_out).await?;
        }
        let mut known = BTreeMap::new();
        let mut checked = futures::stream::iter(tree.folders)
            .map(|(path, fault)| check(laid_out.clone(), path, fault))
            .buffered(PACKED_AT_ONCE);
        while let Some(checked) = checked.next().await {
            let found = self.settle(&commit, checked, &mut known).await?;
            self.tell(&found);
            seen.actions.push(found);
        }
        // What was laid out may be large.
        tokio::task::spawn_blocking(move || drop(folder));
        Ok(())
    }

    async fn list(&self, git: &Git, commit: &str) -> Result<Tree, LookError> {
        let subdir = self.order.source.subdir();
        let arguments = ["-r", "-z", "-l", "--full-tree", commit, "--", subdir.unwrap_or(".")];
        let arguments = if subdir.is_some() { &arguments[..] } else { &arguments[..5] };
        let tree = Tree::read(&git.run("ls-tree", arguments).await?);
        if let Some(subdir) = subdir.filter(|_| tree.files == 0) {
            return Err(LookError::NoSubdir { commit: commit.to_owned(), subdir: subdir.to_owned() });
        }
        if tree.bytes > REPOSITORY_BYTES_MAX {
            return Err(LookError::TooLarge { bytes: tree.bytes });
        }
        if tree.folders.len() > REPOSITORY_ACTIONS_MAX {
            return Err(LookError::TooMany { folders: tree.folders.len() });
        }
        let count = tree.folders.len();
        self.log.say(&format!("{} files, {} bytes, {count} folders of actions", tree.files, tree.bytes));
        Ok(tree)
    }

    /// Says what a folder is beside what is known, and pushes it if it is new.
    async fn settle(
        &self,
        commit: &str,
        Checked { path, packed }: Checked,
        known: &mut BTreeMap<ActionReference, (ObjectId, String)>,
    ) -> Result<FoundAction, LookError> {
        let PackedAction { manifest, text, bundle } = match packed {
            Ok(packed) => packed,
            Err(finding) => return Ok(FoundAction { path, action: None, digest: None, finding }),
        };
        let reference = ActionReference { name: manifest.name.clone(), version: manifest.version.clone() };
        let found = |path: &str, digest: ObjectId, finding| FoundAction {
            path: path.to_owned(),
            action: Some(reference.clone()),
            digest: Some(digest),
            finding,
        };
        let digest = bundle.object().id;
        if let Some((other, place)) = known.get(&reference).filter(|(other, _)| *other != digest) {
            let message =
                format!("{reference} is in {place} too, with other content ({other}): give one another version");
            return Ok(found(&path, digest, Finding::Failed(message)));
        }
        known.insert(reference.clone(), (digest, path.clone()));
        let project = self.order.repository.project.clone();
        let name = ActionName { project, reference: reference.clone() };
        let origin = Origin {
            repository: self.order.repository.name.clone(),
            url: self.order.source.url.to_string(),
            commit: commit.to_owned(),
            path: path.clone(),
        };
        let (asked, place) = (name.clone(), origin.clone());
        let finding = self.app.handle.query(move |core| core.finding(&asked, digest, &place)).await?;
        let is_new = finding == Finding::New;
        if self.order.import.mode == ImportMode::Scan || !(is_new || finding == Finding::Known) {
            return Ok(found(&path, digest, finding));
        }
        let finding = match self.push(name, (manifest, text, bundle), origin, is_new).await {
            Ok(()) if is_new => Finding::Imported,
            Ok(()) => Finding::Known,
            Err(error) => Finding::Failed(error.to_string()),
        };
        Ok(found(&path, digest, finding))
    }

    async fn push(
        &self,
        name: ActionName,
        (manifest, text, bundle): (Manifest, String, Packed),
        origin: Origin,
        is_new: bool,
    ) -> Result<(), ApiError> {
        let Manifest { kind, description, labels, .. } = manifest;
        let by = self.order.import.by.clone().unwrap_or_else(|| CLOCK.to_owned());
        let object = match is_new {
            true => take_bundle(self.app, name.project.clone(), bundle).await?,
            false => bundle.object(),
        };
        let version = ActionVersion {
            kind,
            bundle: object,
            manifest: Arc::from(text),
            description,
            labels,
            signatures: Vec::new(),
            pushed_by: by.clone(),
            pushed_at: Timestamp::ZERO,
            deprecated: None,
        };
        let (subject, detail) = (name.reference.to_string(), format!("{} {}", origin.repository, origin.commit));
        let number = self.order.import.number;
        let request = Request::PushImported { number, name, version: Box::new(version), origin: Box::new(origin) };
        let pushed = self.app.handle.request(request).await;
        let outcome = pushed.as_ref().map_or_else(|rejection| format!("refused: {rejection}"), |_| "done".to_owned());
        self.app.audit.record(&by, "import action", &subject, &outcome, Some(&detail));
        Ok(pushed.map(drop)?)
    }

    fn tell(&self, found: &FoundAction) {
        let what = found.action.as_ref().map(|action| format!(" {action}")).unwrap_or_default();
        let place = &found.path;
        match &found.finding {
            Finding::Imported => self.log.say(&format!("{place}:{what} is imported")),
            Finding::Known => self.log.say(&format!("{place}:{what} was there before")),
            Finding::Removed => self.log.say(&format!("{place}:{what} was removed from the project")),
            Finding::New => self.log.say(&format!("{place}:{what} is new")),
            Finding::Failed(message) => self.log.say(&format!("{place}:{what} failed: {message}")),
            Finding::Invalid(faults) => faults.iter().for_each(|fault| self.log.say(&fault.to_string())),
        }
    }
}

/// Reads and packs a folder of what was laid out, on a thread for that.
async fn check(laid_out: PathBuf, path: String, fault: Option<String>) -> Checked {
    if let Some(fault) = fault {
        return Checked { path, packed: Err(Finding::Failed(fault)) };
    }
    let folder = laid_out.join(&path);
    let shown = PathBuf::from(if path == "." { "" } else { &path });
    let packed = tokio::task::spawn_blocking(move || pack_action(&folder, &shown)).await;
    let packed = match packed {
        Ok(Ok(packed)) if packed.bundle.object().bytes > BUNDLE_BYTES_MAX => {
            Err(Finding::Failed(format!("it has more than {BUNDLE_BYTES_MAX} bytes: make data an input")))
        }
        Ok(Ok(packed)) => Ok(packed),
        Ok(Err(ActionFolderError::Invalid(diagnostics))) => Err(Finding::Invalid(diagnostics)),
        Ok(Err(ActionFolderError::Unpackable(error))) => Err(Finding::Failed(format!("it cannot be packed: {error}"))),
        Err(error) => Err(Finding::Failed(format!("it could not be read to its end: {error}"))),
    };
    Checked { path, packed }
}
