//! Threads beside the executor's, of which one takes in outputs; slow things get one of their own.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::Duration;

use atoll_model::session::StepTemplate;
use atoll_model::value::{ObjectKind, ObjectRef};
use atoll_telemetry::Work;
use site_agent_core::Event;
use storage_sync_engine::store::{Entry, SealId, SiteStore};
use tokio_util::sync::CancellationToken;

use super::attempts::Attempts;
use super::collect::{self, Collection};
use super::exports::{Export, ExportRules};
use super::imports::Import;
use super::preparing::{Preparation, Preparer, Staging};
use super::recovery::conclude;
use super::slots::LostSlot;
use super::staging::{Stage, full_message};
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
        let preparer = Preparer::open(options, &stage, (executor, &jobs), &preparations)?;
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

    pub(super) fn make_ready(&self, template: Arc<StepTemplate>) {
        let _ = self.preparations.send(Preparation::MakeReady(template));
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
