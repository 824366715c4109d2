//! The folders of actions: made of their bundles once for all executions, kept, and let go when room is needed. One thread has
//! them all to itself. Everything here blocks.

use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use atoll_model::action::{MANIFEST_NAME, MANIFEST_NAMES, Manifest, parse};
use atoll_model::id::ObjectId;
use atoll_model::session::{FailureReason, StepTemplate, TemplateWork};
use atoll_model::value::ObjectRef;
use site_agent_core::command::StartInput;
use storage_sync_engine::store::{Entry, SiteStore, Source, StoreError};

use super::services::name_of;
use super::staging::{StagingFailure, full_message};
use crate::shim::log::boot_id;
use crate::shim::make_private;

/// Says since which start of the machine the folders are there.
const BOOT: &str = "boot";

pub(super) struct Actions {
    store: SiteStore,
    home: PathBuf,
    /// Those that were used by this process, and when they were last.
    used: HashMap<ObjectId, Used>,
    opened: Instant,
}

struct Used {
    at: Instant,
    /// What `action.yaml` in it says, where that was asked.
    manifest: Option<Arc<Manifest>>,
}

/// An action as it stands for an execution.
#[derive(Debug, Clone)]
pub(crate) struct ReadyAction {
    pub(super) folder: PathBuf,
    /// Of an action of which nothing is run but what it says itself.
    pub(super) manifest: Option<Arc<Manifest>>,
    /// The folder of the programs that were installed for it, where it names packages.
    pub(super) programs: Option<PathBuf>,
    /// What the site's engine knows its image as, where it runs in one.
    pub(super) image: Option<String>,
}

impl Actions {
    /// Finds the folders that earlier processes have made. What is in one has not been synced: after another start of the
    /// machine it may lack something, and is made anew.
    pub(super) fn open(store: SiteStore, data_dir: &Path) -> io::Result<Self> {
        let home = data_dir.join("actions");
        make_private(&home)?;
        let actions = Self { store, home, used: HashMap::new(), opened: Instant::now() };
        let (boot, place) = (boot_id()?, actions.home.join(BOOT));
        let is_other = match fs::read_to_string(&place) {
            Ok(known) => known != boot,
            // Made by an agent that did not write it down, whose executions may still go on.
            Err(error) if error.kind() == io::ErrorKind::NotFound => false,
            Err(error) => return Err(error),
        };
        for folder in actions.folders()? {
            let is_whole = bundle_of(&folder).is_some();
            if is_other || !is_whole {
                actions.remove(&folder);
            }
        }
        fs::write(&place, boot)?;
        Ok(actions)
    }

    /// The folder of an action. Its bundle is in the store.
    pub(super) fn ready(&mut self, template: &StepTemplate) -> Result<Option<ReadyAction>, StagingFailure> {
        let Some(bundle) = template.work.bundle() else { return Ok(None) };
        let folder = self.folder(bundle)?;
        let used = self.used.entry(bundle.id).or_insert(Used { at: Instant::now(), manifest: None });
        used.at = Instant::now();
        let manifest = match &template.work {
            TemplateWork::Command { .. } if name_of(template).is_none() => None,
            TemplateWork::Command { .. }
            | TemplateWork::SignedCommand { .. }
            | TemplateWork::Python { .. }
            | TemplateWork::Container { .. }
            | TemplateWork::Wasm { .. } => {
                let manifest = match &used.manifest {
                    Some(manifest) => Arc::clone(manifest),
                    None => Arc::new(read_manifest(&folder)?),
                };
                used.manifest = Some(Arc::clone(&manifest));
                Some(manifest)
            }
            TemplateWork::Script(_)
            | TemplateWork::Import { .. }
            | TemplateWork::Null
            | TemplateWork::Export { .. } => None,
        };
        Ok(Some(ReadyAction { folder, manifest, programs: None, image: None }))
    }

    fn folder(&self, bundle: ObjectRef) -> Result<PathBuf, StagingFailure> {
        let home = self.home.join(bundle.id.hex());
        let folder = home.join("action");
        if folder.exists() {
            return Ok(folder);
        }
        let failed = |error: io::Error| {
            let full = error.kind() == io::ErrorKind::StorageFull;
            let reason = if full { FailureReason::NoSpace } else { FailureReason::Agent };
            StagingFailure::new(reason, format!("the action cannot be made ready in {}: {error}", home.display()))
        };
        let of_store = |error: StoreError| StagingFailure::of_store(&error);
        let in_work = self.home.join(format!("{}.in-work", bundle.id.hex()));
        for leftover in [&in_work, &home] {
            self.store.take_back(leftover).map_err(of_store)?;
        }
        let entry = Entry { path: PathBuf::from("action"), source: Source::Tree(bundle.id) };
        self.store.materialise(&in_work, &[entry]).map_err(of_store)?;
        fs::rename(&in_work, &home).map_err(failed)?;
        Ok(folder)
    }

    /// Those that nobody needs and nobody has used for a while.
    pub(super) fn idle(&self, needed: &BTreeSet<ObjectId>, idle: Duration) -> Vec<ObjectId> {
        let folders = self.folders().unwrap_or_else(|error| {
            tracing::warn!(folder = %self.home.display(), %error, "the folders of actions cannot be listed");
            Vec::new()
        });
        let is_idle = |bundle: &ObjectId| {
            let used_at = self.used.get(bundle).map_or(self.opened, |used| used.at);
            !needed.contains(bundle) && used_at.elapsed() >= idle
        };
        folders.iter().filter_map(|folder| bundle_of(folder)).filter(is_idle).collect()
    }

    /// Lets go of folders, so that the store can let go of what is in them.
    pub(super) fn let_go(&mut self, bundles: &[ObjectId]) {
        for bundle in bundles {
            self.remove(&self.home.join(bundle.hex()));
            self.used.remove(bundle);
        }
    }

    fn folders(&self) -> io::Result<Vec<PathBuf>> {
        let mut folders = Vec::new();
        for entry in fs::read_dir(&self.home)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                folders.push(entry.path());
            }
        }
        Ok(folders)
    }

    fn remove(&self, folder: &Path) {
        if let Err(error) = self.store.take_back(folder) {
            tracing::warn!(folder = %folder.display(), error = full_message(&error), "the folder of an action stays");
        }
    }
}

/// The bundle that a folder was made of; nothing for one that was never finished.
fn bundle_of(folder: &Path) -> Option<ObjectId> {
    format!("b3:{}", folder.file_name()?.to_str()?).parse().ok()
}

fn read_manifest(folder: &Path) -> Result<Manifest, StagingFailure> {
    let unusable = |message: String| StagingFailure::new(FailureReason::NotExecutable, message);
    let name = MANIFEST_NAMES.into_iter().find(|name| folder.join(name).exists()).unwrap_or(MANIFEST_NAME);
    let text = fs::read_to_string(folder.join(name))
        .map_err(|error| unusable(format!("the {name} of the action cannot be read: {error}")))?;
    parse(name, &text).map_err(|diagnostics| {
        let problems: Vec<String> = diagnostics.iter().map(ToString::to_string).collect();
        unusable(problems.join("; "))
    })
}

impl ReadyAction {
    /// Why this is not what was signed: a signature is one for `action.yaml` too.
    pub(super) fn differs_from(&self, template: &StepTemplate, inputs: &[StartInput]) -> Option<String> {
        let manifest = self.manifest.as_ref()?;
        if let TemplateWork::SignedCommand { command, .. } = &template.work
            && *command != manifest.command
        {
            return Some(format!("{command:?} is to be run, and {:?} was signed", manifest.command));
        }
        let unknown = inputs.iter().find(|input| !manifest.inputs.contains_key(&input.name))?;
        Some(format!("it is given the input {}, and its action.yaml has none of that name", unknown.name))
    }
}

#[cfg(test)]
mod tests {
    use atoll_model::id::{RunId, StepIndex};
    use atoll_model::session::Origin;
    use atoll_model::value::Value;
    use site_agent_core::command::StartValue;

    use super::*;

    const MANIFEST: &str = "name: a\nversion: '1'\ncommand: [sh, main.sh]\ninputs: { text: string }\n";

    struct Site {
        folder: tempfile::TempDir,
        store: SiteStore,
    }

    impl Site {
        fn new() -> Self {
            let folder = tempfile::tempdir().expect("a temporary directory");
            let store = SiteStore::open(&folder.path().join("store")).expect("a store");
            Self { folder, store }
        }

        fn actions(&self) -> Actions {
            Actions::open(self.store.clone(), self.folder.path()).expect("the folders of actions")
        }

        /// A bundle in the store, which shares nothing with others.
        fn bundle(&self, program: &str) -> ObjectRef {
            let folder = self.folder.path().join("to be stored");
            fs::create_dir(&folder).expect("a directory");
            fs::write(folder.join(MANIFEST_NAME), format!("{MANIFEST}description: {program}\n")).expect("a file");
            fs::write(folder.join("main.sh"), program).expect("a file");
            self.store.ingest(&folder).expect("it can be stored").object
        }
    }

    fn template(work: TemplateWork) -> StepTemplate {
        StepTemplate {
            run: RunId::from_bits(1),
            step: StepIndex(0),
            step_name: "a".to_owned(),
            workflow: "w".to_owned(),
            work,
            resources: Default::default(),
            outputs: Vec::new(),
            bindings: Vec::new(),
            environment: Vec::new(),
            start: Default::default(),
            on_disconnect: Default::default(),
            priority: 0,
            origin: Origin::default(),
        }
    }

    fn plain(bundle: ObjectRef) -> StepTemplate {
        template(TemplateWork::Command { command: vec!["sh".to_owned()], bundle: Some(bundle) })
    }

    fn folder(actions: &mut Actions, bundle: ObjectRef) -> PathBuf {
        actions.ready(&plain(bundle)).expect("it can be made").expect("it has a bundle").folder
    }

    #[test]
    fn a_folder_is_made_once_and_found_again() {
        let site = Site::new();
        let bundle = site.bundle("true");
        let made = folder(&mut site.actions(), bundle);
        assert_eq!(fs::read_to_string(made.join("main.sh")).expect("it is there"), "true");
        fs::write(made.join("mark"), "").expect("a file");
        let mut again = site.actions();
        assert_eq!(folder(&mut again, bundle), made);
        assert!(made.join("mark").exists());
    }

    #[test]
    fn what_was_not_finished_or_stands_since_another_start_of_the_machine_is_made_anew() {
        let site = Site::new();
        let bundle = site.bundle("true");
        let made = folder(&mut site.actions(), bundle);
        let unfinished = site.folder.path().join("actions").join(format!("{}.in-work", "1".repeat(64)));
        fs::create_dir(&unfinished).expect("a directory");
        fs::write(made.join("mark"), "").expect("a file");
        fs::write(site.folder.path().join("actions").join(BOOT), "another").expect("a file");
        let mut actions = site.actions();
        assert!(!unfinished.exists() && !made.exists());
        assert_eq!(folder(&mut actions, bundle), made);
        assert!(!made.join("mark").exists());
    }

    #[test]
    fn folders_go_when_nobody_needs_them_and_their_bundles_can_go_then() {
        let site = Site::new();
        let (kept, idle) = (site.bundle("true"), site.bundle("false"));
        let mut actions = site.actions();
        let (kept_folder, idle_folder) = (folder(&mut actions, kept), folder(&mut actions, idle));
        let needed = BTreeSet::from([kept.id]);
        assert!(actions.idle(&needed, Duration::from_secs(3_600)).is_empty(), "it was used lately");
        let may_go = |object: ObjectRef| site.store.evictable_of(&[object]).expect("a look").len();
        assert_eq!(may_go(idle), 0, "its files are lent");
        let found = actions.idle(&needed, Duration::ZERO);
        assert_eq!(found, [idle.id]);
        actions.let_go(&found);
        assert!(!idle_folder.exists() && kept_folder.exists());
        assert!(may_go(idle) > 0);
        assert_eq!(folder(&mut actions, idle), idle_folder, "and is made again");
    }

    #[test]
    fn of_what_was_signed_nothing_else_is_run_than_it_says() {
        let site = Site::new();
        let bundle = site.bundle("true");
        let mut actions = site.actions();
        let mut differs = |command: &[&str], inputs: &[&str]| {
            let command = command.iter().map(|word| (*word).to_owned()).collect();
            let template = template(TemplateWork::SignedCommand { command, bundle, signatures: Vec::new() });
            let ready = actions.ready(&template).expect("it can be made").expect("it has a bundle");
            let value = || StartValue::Value(Value::Integer(1));
            let inputs: Vec<StartInput> =
                inputs.iter().map(|name| StartInput { name: (*name).to_owned(), value: value() }).collect();
            ready.differs_from(&template, &inputs)
        };
        assert_eq!(differs(&["sh", "main.sh"], &["text"]), None);
        let other = differs(&["sh", "-c", "something else"], &["text"]).expect("another command");
        assert!(other.contains("was signed"), "{other}");
        let more = differs(&["sh", "main.sh"], &["text", "LD_PRELOAD"]).expect("an input that it has not");
        assert!(more.contains("LD_PRELOAD"), "{more}");
    }
}
