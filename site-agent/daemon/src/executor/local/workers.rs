//! Threads beside the executor's: one makes inputs ready, one takes in outputs; slow things get one of their own.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use atoll_model::session::{FailureReason, StepTemplate};
use atoll_model::value::{ObjectKind, ObjectRef};
use atoll_telemetry::Work;
use site_agent_core::Event;
use storage_sync_engine::store::{Entry, Lent, SealId, SiteStore, StoreError};
use tokio_util::sync::CancellationToken;

use super::actions::{Actions, ReadyAction};
use super::attempts::Attempts;
use super::collect::{self, Collection};
use super::components::Components;
use super::environments::Environments;
use super::exports::{Export, ExportRules};
use super::images::Images;
use super::imports::Import;
use super::making::{self, Made, Name, State};
use super::recovery::conclude;
use super::slots::LostSlot;
use super::staging::{Stage, StagingFailure, full_message};
use super::{Executor, Job, LetActionsGo, LocalOptions, Order, Tell, Watch};
use crate::clock::wall_clock;
use crate::shim::account::Account;
use crate::shim::protocol::Key;
use crate::shim::remove_whatever;
use crate::telemetry::Spans;

/// Outputs of so many attempts are made durable together.
const TOGETHER_MAX: usize = 256;
/// Between two tries to end what does not end.
const CLEARING_PAUSE: Duration = Duration::from_secs(1);

/// What was made ready for an attempt.
pub(crate) struct Staged {
    pub(super) action: Option<ReadyAction>,
    pub(super) result: Result<Option<Lent>, StagingFailure>,
}

enum Preparation {
    Stage(Staging),
    /// What some wait for is there, or cannot be had.
    Installed(Made<PathBuf>),
    Pulled(Made<String>),
    Compiled(Made<()>),
    /// A container could not be started.
    DoubtImages,
    Locate(ObjectRef),
    LetActionsGo(LetActionsGo),
    /// To be handed on once everything that was asked for before is ready.
    Release(Job),
}

/// An attempt that is to be made ready.
struct Staging {
    key: Key,
    entries: Vec<Entry>,
    template: Arc<StepTemplate>,
    /// Who it is for, if not for this process's own user.
    account: Option<Account>,
}

pub(super) struct Workers {
    stage: Arc<Stage>,
    executor: Executor,
    preparations: Sender<Preparation>,
    jobs: Sender<Job>,
    failed: CancellationToken,
}

impl Workers {
    pub(super) fn start(options: &LocalOptions, executor: &Executor, attempts: &Attempts) -> anyhow::Result<Self> {
        let (exports, withheld) = (options.exports.clone(), options.withheld.clone());
        let exports = ExportRules { exports, withheld, data_dir: options.data_dir.clone() };
        let stage = Arc::new(Stage::new(options.store.clone(), options.imports.clone(), exports)?);
        let known: BTreeMap<String, Key> = attempts.keys().map(|key| (key.folder(), key)).collect();
        for folder in stage.leftovers()? {
            if !known.contains_key(&folder) {
                stage.take_back(&folder);
            }
        }
        let mut seals: HashMap<Key, Vec<SealId>> = HashMap::new();
        for (seal, claim) in options.store.seals() {
            let of = claim.split('/').next().and_then(|folder| known.get(folder));
            match of.filter(|key| attempts.get(**key).is_some_and(|attempt| attempt.may_collect(&claim))) {
                Some(key) => seals.entry(*key).or_default().push(seal),
                // Its attempt was released by a process before this one, or what it left does not count.
                None => drop_seal(&options.store, seal),
            }
        }
        let (preparations, to_prepare) = channel();
        let (jobs, to_do) = channel();
        let preparer = Preparer {
            stage: Arc::clone(&stage),
            actions: Actions::open(options.store.clone(), &options.data_dir)?,
            environments: environments(options, &preparations)?,
            images: images(options, &preparations)?,
            components: options
                .components
                .clone()
                .map(|runner| Components::new(runner, teller(&preparations, Preparation::Compiled))),
            waiting: HashMap::new(),
            store: options.store.clone(),
            executor: executor.clone(),
            tell: Arc::clone(&options.tell),
            jobs: jobs.clone(),
        };
        let watch = Watch(options.failed.clone());
        thread::Builder::new().name("atoll-staging".to_owned()).spawn(move || {
            let _watch = watch;
            preparer.run(&to_prepare);
        })?;
        let collector = Collector {
            stage: Arc::clone(&stage),
            store: options.store.clone(),
            tell: Arc::clone(&options.tell),
            spans: options.spans.clone(),
            seals,
        };
        let watch = Watch(options.failed.clone());
        thread::Builder::new().name("atoll-outputs".to_owned()).spawn(move || {
            let _watch = watch;
            collector.run(&to_do);
        })?;
        Ok(Self { stage, executor: executor.clone(), preparations, jobs, failed: options.failed.clone() })
    }

    pub(super) fn staged_folder(&self, key: Key) -> PathBuf {
        self.stage.staged(&key.folder())
    }

    pub(super) fn stage(&self, key: Key, entries: Vec<Entry>, template: &Arc<StepTemplate>, account: Option<Account>) {
        let template = Arc::clone(template);
        // The thread ends with this one.
        let _ = self.preparations.send(Preparation::Stage(Staging { key, entries, template, account }));
    }

    pub(super) fn let_actions_go(&self, order: LetActionsGo) {
        // Where it has ended, nothing is to be done any more.
        let _ = self.preparations.send(Preparation::LetActionsGo(order));
    }

    /// Where the inputs of attempts are made ready, each in a folder of its own.
    pub(super) fn staged_home(&self) -> PathBuf {
        self.stage.staged("")
    }

    pub(super) fn doubt_images(&self) {
        let _ = self.preparations.send(Preparation::DoubtImages);
    }

    pub(super) fn locate(&self, object: ObjectRef) {
        let _ = self.preparations.send(Preparation::Locate(object));
    }

    pub(super) fn job(&self, job: Job) {
        let _ = self.jobs.send(job);
    }

    /// Clears up after an attempt once the inputs are ready of those that were to read its sealed outputs.
    pub(super) fn release(&self, job: Job) {
        let _ = self.preparations.send(Preparation::Release(job));
    }

    /// Imports may be large, and hold up nothing else. What is fetched is given up with the token that this returns.
    pub(super) fn import(&self, key: Key, import: Import) -> CancellationToken {
        self.move_outside("atoll-import", move |stage, given_up| {
            Order::Imported(key, stage.import(&key.folder(), &import, given_up))
        })
    }

    /// As [`Self::import`], of what was made ready.
    pub(super) fn export(&self, key: Key, export: Export) -> CancellationToken {
        self.move_outside("atoll-export", move |stage, given_up| {
            Order::Exported(key, stage.export(key, &export, given_up))
        })
    }

    fn move_outside(
        &self,
        name: &str,
        work: impl FnOnce(&Stage, &CancellationToken) -> Order + Send + 'static,
    ) -> CancellationToken {
        let (stage, executor) = (Arc::clone(&self.stage), self.executor.clone());
        let watch = Watch(self.failed.clone());
        let given_up = CancellationToken::new();
        let token = given_up.clone();
        let work = move || {
            let _watch = watch;
            executor.order(work(&stage, &token));
            executor.ring();
        };
        if let Err(error) = thread::Builder::new().name(name.to_owned()).spawn(work) {
            tracing::error!(%error, name, "no thread is to be had");
            self.failed.cancel();
        }
        given_up
    }

    /// Ends what a dead shim has left, concludes how its attempts ended, and gives the slot back.
    pub(super) fn clear(&self, lost: LostSlot) {
        let executor = self.executor.clone();
        let watch = Watch(self.failed.clone());
        let clear = move || {
            let _watch = watch;
            let mut told = false;
            let ended = loop {
                match conclude(&lost.path, &lost.cgroups) {
                    Ok(ended) => break ended,
                    // The slot stays out of use as long as something in it may still run.
                    Err(error) if !std::mem::replace(&mut told, true) => {
                        tracing::error!(slot = lost.number, %error, "a slot cannot be cleared yet");
                    }
                    Err(_) => {}
                }
                thread::sleep(CLEARING_PAUSE);
            };
            executor.order(Order::Cleared { slot: lost.number, ended });
            executor.ring();
        };
        if let Err(error) = thread::Builder::new().name("atoll-clearing".to_owned()).spawn(clear) {
            tracing::error!(%error, "no thread is to be had to clear a slot");
            self.failed.cancel();
        }
    }
}

/// Why an action is not ready yet, or never will be.
enum Lack {
    Waits(Name),
    Failed(String),
}

fn had<T>(state: State<T>) -> Result<T, Lack> {
    match state {
        State::Ready(made) => Ok(made),
        State::InWork(name) => Err(Lack::Waits(name)),
        State::Failed(message) => Err(Lack::Failed(message)),
    }
}

fn environments(options: &LocalOptions, preparations: &Sender<Preparation>) -> anyhow::Result<Option<Environments>> {
    let Some(interpreter) = options.python.clone() else { return Ok(None) };
    let tell = teller(preparations, Preparation::Installed);
    Ok(Some(Environments::open(&options.data_dir, interpreter, options.accounts.clone(), tell)?))
}

fn images(options: &LocalOptions, preparations: &Sender<Preparation>) -> anyhow::Result<Option<Images>> {
    let Some(engine) = options.engine.clone() else { return Ok(None) };
    Ok(Some(Images::open(&options.data_dir, engine, teller(preparations, Preparation::Pulled))?))
}

/// Takes what a thread has made to the one that has others wait for it.
fn teller<T: 'static>(
    preparations: &Sender<Preparation>,
    told: impl Fn(Made<T>) -> Preparation + Send + Sync + 'static,
) -> making::Tell<T> {
    let preparations = Mutex::new(preparations.clone());
    // The thread that takes it ends with the agent.
    Arc::new(move |made| {
        let preparations = preparations.lock().unwrap_or_else(PoisonError::into_inner);
        let _ = preparations.send(told(made));
    })
}

/// Makes inputs and actions ready, and looks for objects, in order.
struct Preparer {
    stage: Arc<Stage>,
    actions: Actions,
    /// Where the site has a Python.
    environments: Option<Environments>,
    /// Where the site has what starts containers.
    images: Option<Images>,
    /// Where the site has what runs components.
    components: Option<Components>,
    /// What waits for something to be made.
    waiting: HashMap<Name, Vec<Staging>>,
    store: SiteStore,
    executor: Executor,
    tell: Tell,
    jobs: Sender<Job>,
}

impl Preparer {
    fn run(mut self, preparations: &Receiver<Preparation>) {
        while let Ok(preparation) = preparations.recv() {
            match preparation {
                Preparation::Stage(staging) => self.stage(staging),
                Preparation::Installed(installed) => {
                    let name = installed.0.clone();
                    self.environments.as_mut().expect("installed by these").installed(installed);
                    self.wait_no_more(&name);
                }
                Preparation::Pulled(pulled) => {
                    let name = pulled.0.clone();
                    self.images.as_mut().expect("pulled by these").pulled(pulled);
                    self.wait_no_more(&name);
                }
                Preparation::Compiled(compiled) => {
                    let name = compiled.0.clone();
                    self.components.as_mut().expect("compiled by these").compiled(compiled);
                    self.wait_no_more(&name);
                }
                Preparation::DoubtImages => self.images.iter_mut().for_each(Images::doubt),
                Preparation::Locate(object) => self.locate(object),
                Preparation::LetActionsGo(LetActionsGo { needed, idle, then }) => {
                    self.actions.let_go(&needed, idle);
                    if let Some(environments) = &mut self.environments {
                        environments.let_go(&needed, idle);
                    }
                    then();
                }
                Preparation::Release(job) => drop(self.jobs.send(job)),
            }
        }
    }

    fn wait_no_more(&mut self, name: &Name) {
        let waiting = self.waiting.remove(name).unwrap_or_default();
        waiting.into_iter().for_each(|staging| self.stage(staging));
    }

    /// Makes an attempt ready, unless it waits for what its action needs: then it is tried again when that is there.
    fn stage(&mut self, staging: Staging) {
        let action = match self.actions.ready(&staging.template) {
            Ok(Some(action)) => match self.with_all(action, &staging.template) {
                Ok(action) => Ok(Some(action)),
                Err(Lack::Waits(name)) => return self.waiting.entry(name).or_default().push(staging),
                Err(Lack::Failed(message)) => Err(StagingFailure::new(FailureReason::NotExecutable, message)),
            },
            ready => ready,
        };
        let staged = match action {
            Ok(action) => self.prepare(&staging, action),
            Err(failure) => Staged { action: None, result: Err(failure) },
        };
        self.executor.order(Order::Staged(staging.key, staged));
        self.executor.ring();
    }

    /// Adds what an action needs beside its folder.
    fn with_all(&mut self, action: ReadyAction, template: &StepTemplate) -> Result<ReadyAction, Lack> {
        let mut action = self.with_packages(action, template)?;
        let Some(bundle) = template.work.bundle() else { return Ok(action) };
        let image = action.container().map(|(_, container)| container.image.clone());
        if let Some((image, images)) = image.zip(self.images.as_mut()) {
            action.image = Some(had(images.ask(&image, &action.folder, bundle.id))?);
        }
        let component = action.component().and_then(|manifest| manifest.command.first());
        if let Some((component, components)) = component.zip(self.components.as_mut()) {
            had(components.ask(component, &action.folder, bundle.id))?;
        }
        Ok(action)
    }

    fn with_packages(&mut self, action: ReadyAction, template: &StepTemplate) -> Result<ReadyAction, Lack> {
        let bundle = template.work.bundle().zip(action.requirements().map_err(Lack::Failed)?);
        let Some(((bundle, requirements), environments)) = bundle.zip(self.environments.as_mut()) else {
            return Ok(action);
        };
        let programs = had(environments.ask(requirements, bundle.id))?;
        Ok(ReadyAction { programs: Some(programs), ..action })
    }

    fn prepare(&self, staging: &Staging, action: Option<ReadyAction>) -> Staged {
        let Staging { key, entries, account, .. } = staging;
        let materialise = || self.stage.materialise(&key.folder(), entries, account.as_ref());
        let lent = (!entries.is_empty()).then(materialise).transpose();
        Staged { action, result: lent }
    }

    fn locate(&self, object: ObjectRef) {
        let mut events = Vec::new();
        let present = match self.store.verify(object) {
            Ok(()) => true,
            Err(StoreError::Damaged { object, message }) => {
                events.push(Event::Damaged { object: object.id, kind: object.kind, message });
                false
            }
            Err(StoreError::NotFound(_)) => false,
            Err(error) => {
                tracing::error!(object = %object.id, error = full_message(&error), "an object cannot be looked for");
                false
            }
        };
        events.push(Event::Located { object, present });
        (self.tell)(events);
    }
}

/// Takes in outputs, and clears up after attempts.
struct Collector {
    stage: Arc<Stage>,
    store: SiteStore,
    tell: Tell,
    spans: Option<Spans>,
    /// Of attempts that are not released.
    seals: HashMap<Key, Vec<SealId>>,
}

impl Collector {
    fn run(mut self, jobs: &Receiver<Job>) {
        let mut together: Vec<Collection> = Vec::new();
        while let Ok(job) = jobs.recv() {
            let mut next = Some(job);
            while let Some(job) = next.take() {
                match job {
                    Job::Collect(collection) => together.push(*collection),
                    other @ (Job::Release { .. } | Job::DropSealed(_)) => {
                        self.take_in(&mut together);
                        self.clear_up(other);
                    }
                }
                if together.len() < TOGETHER_MAX {
                    next = jobs.try_recv().ok();
                }
            }
            self.take_in(&mut together);
        }
    }

    fn take_in(&mut self, together: &mut Vec<Collection>) {
        if !together.is_empty() {
            let sealed = collect::take_in(&self.store, together, &|events| (self.tell)(events));
            self.seals.extend(sealed);
            if let Some(spans) = &self.spans {
                for Collection { template, key, since, .. } in &*together {
                    spans.done(template, *key, Work::Outputs, *since, wall_clock());
                }
            }
            together.clear();
        }
    }

    fn clear_up(&mut self, job: Job) {
        match job {
            Job::Collect(_) => unreachable!("collections are gathered"),
            Job::Release { key, kept, lent, check } => {
                if let Some(lent) = lent.as_ref().filter(|_| check) {
                    let touched = self.stage.touched(lent);
                    if !touched.is_empty() {
                        (self.tell)(touched.into_iter().map(touched_event).collect());
                    }
                }
                if lent.is_some() {
                    self.stage.take_back(&key.folder());
                }
                if let Some(kept) = kept
                    && let Err(error) = remove_whatever(&kept)
                {
                    tracing::warn!(path = %kept.display(), %error, "what an attempt left cannot be removed");
                }
                for seal in self.seals.remove(&key).unwrap_or_default() {
                    drop_seal(&self.store, seal);
                }
            }
            Job::DropSealed(seals) => seals.into_iter().for_each(|seal| drop_seal(&self.store, SealId(seal.0))),
        }
    }
}

fn drop_seal(store: &SiteStore, seal: SealId) {
    if let Err(error) = store.drop_seal(seal) {
        tracing::warn!(seal = seal.0, error = full_message(&error), "a sealed output cannot be dropped");
    }
}

fn touched_event(object: ObjectRef) -> Event {
    let what = if object.kind == ObjectKind::Tree { "a file of the tree" } else { "the file" };
    Event::Damaged {
        object: object.id,
        kind: object.kind,
        message: format!("{what} was changed by an execution that it was lent to"),
    }
}
