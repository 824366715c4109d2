//! The thread that makes inputs and actions ready.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, Sender, TryRecvError};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use atoll_model::id::ObjectId;
use atoll_model::session::{FailureReason, StepTemplate};
use atoll_model::value::ObjectRef;
use site_agent_core::Event;
use storage_sync_engine::store::{Entry, Lent, SiteStore, StoreError};

use super::actions::{Actions, ReadyAction};
use super::components::Components;
use super::deployed::Ledger;
use super::environments::Environments;
use super::images::{Images, LetGo};
use super::making::{Made, Name, State};
use super::staging::{Stage, StagingFailure, full_message};
use super::{Executor, Job, LetActionsGo, LocalOptions, Order, Tell};
use crate::shim::account::Account;
use crate::shim::protocol::Key;

/// What was made ready for an attempt.
pub(crate) struct Staged {
    pub(super) action: Option<ReadyAction>,
    pub(super) result: Result<Option<Lent>, StagingFailure>,
}

pub(super) enum Preparation {
    Stage(Staging),
    /// What some wait for is there, or cannot be had.
    Installed(Made<PathBuf>),
    Pulled(Made<String>),
    Compiled(Made<ObjectId>),
    /// What was to go is gone, or stays.
    ImagesLetGo(Vec<LetGo>),
    /// A container could not be started.
    DoubtImages,
    /// An execution of it is certain to come.
    MakeReady(Arc<StepTemplate>),
    Locate(ObjectRef),
    LetActionsGo(LetActionsGo),
    /// To be handed on once everything that was asked for before is ready.
    Release(Job),
}

/// An attempt that is to be made ready.
pub(super) struct Staging {
    pub(super) key: Key,
    pub(super) entries: Vec<Entry>,
    pub(super) template: Arc<StepTemplate>,
    /// Who it is for, if not for this process's own user.
    pub(super) account: Option<Account>,
}

/// Why an action is not ready yet, or never will be.
enum Lack {
    Waits(Name),
    Failed(StagingFailure),
}

/// Who waits for something to be made.
enum Waiter {
    Attempt(Staging),
    Order(Arc<StepTemplate>),
}

fn had<T>(state: State<T>) -> Result<T, Lack> {
    match state {
        State::Ready(made) => Ok(made),
        State::InWork(name) => Err(Lack::Waits(name)),
        State::Failed(message) => Err(unusable(message)),
    }
}

fn unusable(message: String) -> Lack {
    Lack::Failed(StagingFailure::new(FailureReason::NotExecutable, message))
}

fn environments(options: &LocalOptions, preparations: &Sender<Preparation>) -> anyhow::Result<Option<Environments>> {
    let Some(interpreter) = options.python.clone() else { return Ok(None) };
    let tell = teller(preparations, Preparation::Installed);
    Ok(Some(Environments::open(&options.data_dir, interpreter, options.accounts.clone(), tell)?))
}

fn images(options: &LocalOptions, preparations: &Sender<Preparation>) -> anyhow::Result<Option<Images>> {
    let Some(engine) = options.engine.clone() else { return Ok(None) };
    let told = teller(preparations, Preparation::Pulled);
    Ok(Some(Images::open(&options.data_dir, engine, told, teller(preparations, Preparation::ImagesLetGo))?))
}

/// Takes what a thread has made to the one that has others wait for it.
fn teller<T: 'static>(
    preparations: &Sender<Preparation>,
    told: impl Fn(T) -> Preparation + Send + Sync + 'static,
) -> Arc<dyn Fn(T) + Send + Sync> {
    let preparations = Mutex::new(preparations.clone());
    // The thread that takes it ends with the agent.
    Arc::new(move |made| {
        let preparations = preparations.lock().unwrap_or_else(PoisonError::into_inner);
        let _ = preparations.send(told(made));
    })
}

/// Makes inputs and actions ready, and looks for objects, in order.
pub(super) struct Preparer {
    stage: Arc<Stage>,
    actions: Actions,
    /// Where the site has a Python.
    environments: Option<Environments>,
    /// Where the site has what starts containers.
    images: Option<Images>,
    /// Where the site has what runs components.
    components: Option<Components>,
    /// What waits for something to be made.
    waiting: HashMap<Name, Vec<Waiter>>,
    /// Orders to make actions ready, for when nothing else is to be done.
    ahead: VecDeque<Arc<StepTemplate>>,
    ledger: Ledger,
    store: SiteStore,
    executor: Executor,
    tell: Tell,
    jobs: Sender<Job>,
}

impl Preparer {
    /// `preparations` is how it is told of what was made.
    pub(super) fn open(
        options: &LocalOptions,
        stage: &Arc<Stage>,
        (executor, jobs): (&Executor, &Sender<Job>),
        preparations: &Sender<Preparation>,
    ) -> anyhow::Result<Self> {
        let compiled = |runner| Components::new(runner, teller(preparations, Preparation::Compiled));
        Ok(Self {
            stage: Arc::clone(stage),
            actions: Actions::open(options.store.clone(), &options.data_dir)?,
            environments: environments(options, preparations)?,
            images: images(options, preparations)?,
            components: options.components.clone().map(compiled),
            waiting: HashMap::new(),
            ahead: VecDeque::new(),
            ledger: options.ledger.clone(),
            store: options.store.clone(),
            executor: executor.clone(),
            tell: Arc::clone(&options.tell),
            jobs: jobs.clone(),
        })
    }

    pub(super) fn run(mut self, preparations: &Receiver<Preparation>) {
        loop {
            let next = match preparations.try_recv() {
                Err(TryRecvError::Empty) => match self.ahead.pop_front() {
                    Some(template) => {
                        self.make_ready(template);
                        continue;
                    }
                    None => preparations.recv().ok(),
                },
                next => next.ok(),
            };
            let Some(preparation) = next else { return };
            self.take(preparation);
        }
    }

    fn take(&mut self, preparation: Preparation) {
        match preparation {
            Preparation::Stage(staging) => self.stage(staging),
            Preparation::MakeReady(template) => self.ahead.push_back(template),
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
            Preparation::ImagesLetGo(ended) => {
                let bundles: Vec<ObjectId> = ended.iter().flat_map(LetGo::bundles).collect();
                self.images.as_mut().expect("let go by these").let_go_ended(ended);
                bundles.into_iter().for_each(|bundle| self.ledger.gone(bundle));
            }
            Preparation::DoubtImages => self.images.iter_mut().for_each(Images::doubt),
            Preparation::Locate(object) => self.locate(object),
            Preparation::LetActionsGo(LetActionsGo { needed, idle, for_room, then }) => {
                self.let_go(&needed, idle, for_room);
                then();
            }
            Preparation::Release(job) => drop(self.jobs.send(job)),
        }
    }

    /// Lets go of actions that nobody needs and nobody has used for a while, with what was made of them.
    fn let_go(&mut self, needed: &BTreeSet<ObjectId>, idle: Duration, for_room: bool) {
        let going = self.actions.idle(needed, idle);
        let goes = |template: &StepTemplate| template.work.bundle().is_some_and(|bundle| going.contains(&bundle.id));
        // What goes is not made ready again by what was advised before.
        self.ahead.retain(|template| !goes(template));
        let stays = |waiter: &Waiter| !matches!(waiter, Waiter::Order(template) if goes(template));
        self.waiting.values_mut().for_each(|waiters| waiters.retain(stays));
        going.iter().for_each(|bundle| self.ledger.draining(*bundle));
        self.ledger.forget_failed(needed, idle);
        self.actions.let_go(&going);
        if let Some(environments) = &mut self.environments {
            environments.let_go(needed, idle);
        }
        if let Some(components) = self.components.as_mut().filter(|_| for_room) {
            components.let_go(needed, idle);
        }
        let images = self.images.as_mut().filter(|_| for_room);
        let with_images = images.map(|images| images.let_go(needed, idle)).unwrap_or_default();
        going.iter().filter(|bundle| !with_images.contains(bundle)).for_each(|bundle| self.ledger.gone(*bundle));
    }

    fn wait_no_more(&mut self, name: &Name) {
        let waiting = self.waiting.remove(name).unwrap_or_default();
        let only_orders = waiting.iter().all(|waiter| matches!(waiter, Waiter::Order(_)));
        for waiter in waiting {
            match waiter {
                Waiter::Attempt(staging) => self.stage(staging),
                Waiter::Order(template) => self.make_ready(template),
            }
        }
        if only_orders {
            // What was only advised has failed; an execution does not fail by that.
            self.environments.iter_mut().for_each(|environments| environments.forgive(name));
            self.images.iter_mut().for_each(|images| images.forgive(name));
            self.components.iter_mut().for_each(|components| components.forgive(name));
        }
    }

    /// Makes an attempt ready, unless it waits for what its action needs: then it is tried again when that is there.
    fn stage(&mut self, staging: Staging) {
        let staged = match self.action(&staging.template) {
            Ok(action) => self.prepare(&staging, action),
            Err(Lack::Waits(name)) => return self.waiting.entry(name).or_default().push(Waiter::Attempt(staging)),
            Err(Lack::Failed(failure)) => Staged { action: None, result: Err(failure) },
        };
        self.executor.order(Order::Staged(staging.key, staged));
        self.executor.ring();
    }

    /// Makes an action ready for executions that are still to come. What comes of it stands in the ledger.
    fn make_ready(&mut self, template: Arc<StepTemplate>) {
        match self.action(&template) {
            Err(Lack::Waits(name)) => self.waiting.entry(name).or_default().push(Waiter::Order(template)),
            Ok(Some(action)) if action.python().is_some_and(|(_, python)| python.warm.is_some()) => {
                self.executor.order(Order::WarmUp(template, action));
                self.executor.ring();
            }
            Ok(_) | Err(Lack::Failed(_)) => {}
        }
    }

    /// The action of a step, with all that it needs, if it has one.
    fn action(&mut self, template: &StepTemplate) -> Result<Option<ReadyAction>, Lack> {
        let Some(bundle) = template.work.bundle() else { return Ok(None) };
        self.ledger.begin(bundle.id);
        let ready = self.actions.ready(template).map_err(Lack::Failed);
        let ready = ready.and_then(|action| action.map(|action| self.with_all(action, template)).transpose());
        match &ready {
            Ok(_) => self.ledger.ready(bundle.id),
            Err(Lack::Waits(_)) => self.ledger.deploying(bundle.id),
            Err(Lack::Failed(failure)) => self.ledger.failed(bundle.id, &failure.message),
        }
        ready
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
        let bundle = template.work.bundle().zip(action.requirements().map_err(unusable)?);
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
