//! Actions that are to be there before an execution is. The control plane's orders are advice: each is carried out as far as
//! the site's own policy lets it and there is room, and nothing of it holds up or fails an execution.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use atoll_model::id::{ObjectId, RunId};
use atoll_model::limits::{DEPLOYED_REASON_CHARS_MAX, DEPLOYED_TOLD_MAX};
use atoll_model::session::{
    CONTAINER_RUNTIME, Deployed, DeployedState, PYTHON_RUNTIME, SiteCommand, StepTemplate, TemplateWork, WASM_RUNTIME,
};
use atoll_model::time::Timestamp;

use crate::agent::{Agent, Step, execution};
use crate::command::Command;
use crate::fact::Fact;
use crate::state::{StepKey, Terms};

#[derive(Debug, Default)]
pub(crate) struct Ahead {
    orders: BTreeMap<StepKey, Order>,
    /// Orders to look at before the event is done with.
    woken: BTreeSet<StepKey>,
    /// Whether something has changed that is told of.
    has_news: bool,
}

/// How far an order is. There is none for one that waits until the site takes work again, or has room.
#[derive(Debug)]
struct Order {
    bundle: ObjectId,
    progress: Progress,
    since: Timestamp,
}

#[derive(Debug, PartialEq, Eq)]
enum Progress {
    /// Its bundle is looked for or fetched. The message is why it has not come, if that is for long.
    Waits(Option<String>),
    /// It is not to be had at this site, as things are.
    Refused(String),
    /// The shell was asked, and has told nothing of it yet.
    Asked,
    /// What becomes of it, the shell tells.
    Told,
}

impl Progress {
    /// What is told of it, unless the shell does.
    fn state(&self) -> Option<DeployedState> {
        match self {
            Self::Waits(None) | Self::Asked => Some(DeployedState::Deploying),
            Self::Waits(Some(why)) | Self::Refused(why) => {
                Some(DeployedState::Failed(why.chars().take(DEPLOYED_REASON_CHARS_MAX).collect()))
            }
            Self::Told => None,
        }
    }
}

impl Ahead {
    /// Takes note of what commands order and end, before they are accepted. Returns bundles that perhaps nobody waits for then.
    pub(crate) fn take(
        &mut self,
        known: &BTreeMap<StepKey, Arc<StepTemplate>>,
        commands: &[SiteCommand],
    ) -> Vec<ObjectId> {
        let mut unwanted = Vec::new();
        for command in commands {
            match command {
                SiteCommand::MakeReady(template) => {
                    let key = (template.run, template.step);
                    if known.get(&key).is_some_and(|known| **known != **template) {
                        unwanted.extend(self.orders.remove(&key).map(|order| order.bundle));
                    }
                    self.woken.insert(key);
                }
                SiteCommand::Forget { run } => unwanted.extend(self.forget(*run)),
                SiteCommand::Prepare(_)
                | SiteCommand::Dispatch(_)
                | SiteCommand::Cancel { .. }
                | SiteCommand::Push { .. }
                | SiteCommand::CancelPush { .. }
                | SiteCommand::Evict { .. }
                | SiteCommand::ProposeEviction { .. }
                | SiteCommand::Verify { .. }
                | SiteCommand::Delegate(_)
                | SiteCommand::Withdraw { .. }
                | SiteCommand::Replicate { .. }
                | SiteCommand::Unknown { .. } => {}
            }
        }
        unwanted
    }

    fn forget(&mut self, run: RunId) -> Vec<ObjectId> {
        let of_run: Vec<StepKey> = self.orders.keys().filter(|(of, _)| *of == run).copied().collect();
        of_run.iter().filter_map(|key| self.orders.remove(key)).map(|order| order.bundle).collect()
    }

    /// Whether an order waits for the object.
    pub(crate) fn waits_for(&self, object: ObjectId) -> bool {
        self.waiting_for(object).next().is_some()
    }

    fn waiting_for(&self, object: ObjectId) -> impl Iterator<Item = StepKey> {
        let waits = move |order: &Order| order.bundle == object && matches!(order.progress, Progress::Waits(_));
        self.orders.iter().filter(move |(_, order)| waits(order)).map(|(key, _)| *key)
    }

    /// The object is in the store now.
    pub(crate) fn arrived(&mut self, object: ObjectId) {
        let waiting: Vec<StepKey> = self.waiting_for(object).collect();
        self.woken.extend(waiting);
    }

    /// The object has not come for long, or nobody gives it out. It is tried again.
    pub(crate) fn fetch_failed(&mut self, object: ObjectId, message: &str, now: Timestamp) {
        let waiting: Vec<StepKey> = self.waiting_for(object).collect();
        for key in waiting {
            self.note(key, object, Progress::Waits(Some(message.to_owned())), now);
        }
    }

    fn note(&mut self, key: StepKey, bundle: ObjectId, progress: Progress, now: Timestamp) {
        let alike = self.orders.get(&key).filter(|known| known.progress.state() == progress.state());
        let since = alike.map(|known| known.since);
        self.has_news |= since.is_none();
        self.orders.insert(key, Order { bundle, progress, since: since.unwrap_or(now) });
    }

    /// What the shell tells of, it is believed from now on.
    fn heard(&mut self, deployed: &[Deployed]) {
        let told: BTreeSet<ObjectId> = deployed.iter().map(|deployed| deployed.bundle).collect();
        for order in self.orders.values_mut() {
            if order.progress == Progress::Asked && told.contains(&order.bundle) {
                order.progress = Progress::Told;
            }
        }
    }
}

impl Agent {
    /// Goes on with an order that was woken; whether there was one.
    pub(crate) fn look_ahead(&mut self, now: Timestamp, step: &mut Step) -> bool {
        let Some(key) = self.ahead.woken.pop_first() else { return false };
        let Some(template) = self.state.ahead.get(&key).cloned() else { return true };
        let Some(bundle) = template.work.bundle() else { return true };
        let progress = self.ahead.orders.get(&key).map(|order| &order.progress);
        if matches!(progress, Some(Progress::Asked | Progress::Told)) {
            return true;
        }
        if self.makes_nothing_ready() {
            self.ahead.orders.remove(&key);
            self.cancel_fetches(&[bundle.id], step);
        } else if let Some(reason) = self.never_ready(&template) {
            self.ahead.note(key, bundle.id, Progress::Refused(reason), now);
            self.cancel_fetches(&[bundle.id], step);
        } else if self.stage.is_present(bundle.id) {
            self.ahead.note(key, bundle.id, Progress::Asked, now);
            step.commands.push(Command::MakeReady { template });
        } else {
            if !matches!(progress, Some(Progress::Waits(_))) {
                self.ahead.note(key, bundle.id, Progress::Waits(None), now);
            }
            self.need(bundle, execution(key, 0), step);
        }
        true
    }

    /// After a restart, and whenever something was measured: what stands still may go on.
    pub(crate) fn wake_orders(&mut self) {
        self.ahead.woken.extend(self.state.ahead.keys());
    }

    /// What the shell tells has just been measured.
    pub(crate) fn hear_of_deployed(&mut self, before: &[Deployed]) {
        self.ahead.has_news |= self.measured.deployed != before;
        self.ahead.heard(&self.measured.deployed);
        self.wake_orders();
    }

    /// The control plane knows of none of them, and will not say when their runs have ended.
    pub(crate) fn forget_orders(&mut self, step: &mut Step) {
        if self.state.ahead.is_empty() {
            return;
        }
        let unwanted: Vec<ObjectId> =
            std::mem::take(&mut self.ahead.orders).values().map(|order| order.bundle).collect();
        self.ahead.has_news = true;
        self.decide(step, Fact::OrdersForgotten);
        self.cancel_fetches(&unwanted, step);
    }

    /// Tells of what has changed before the next heartbeat is due.
    pub(crate) fn tell_of_deployed(&mut self, now: Timestamp, step: &mut Step) {
        if std::mem::take(&mut self.ahead.has_news) {
            self.send_heartbeat(now, step);
        }
    }

    /// What the shell tells of, and before it what it was not asked for yet.
    pub(crate) fn deployed(&self) -> Vec<Deployed> {
        let told: BTreeSet<ObjectId> = self.measured.deployed.iter().map(|deployed| deployed.bundle).collect();
        let mut own: BTreeMap<ObjectId, Deployed> = BTreeMap::new();
        for Order { bundle, progress, since } in self.ahead.orders.values() {
            if let Some(state) = progress.state().filter(|_| !told.contains(bundle)) {
                own.entry(*bundle).or_insert(Deployed { bundle: *bundle, state, since: *since });
            }
        }
        let mut all: Vec<Deployed> = own.into_values().chain(self.measured.deployed.iter().cloned()).collect();
        all.sort_by_key(|deployed| std::cmp::Reverse(deployed.since));
        all.truncate(DEPLOYED_TOLD_MAX);
        all
    }

    /// The bundles of orders. They stay where there is room; where there is not, only what an execution needs stays: an order
    /// that was carried out once is not carried out again.
    pub(crate) fn ordered_bundles(&self) -> impl Iterator<Item = ObjectId> {
        let stay = self.shortage() == 0;
        self.state.ahead.values().filter(move |_| stay).filter_map(|template| Some(template.work.bundle()?.id))
    }

    /// Whether the site is no place to make anything ready at present.
    fn makes_nothing_ready(&self) -> bool {
        self.closed().is_some() || self.shortage() > 0
    }

    /// Why no execution of the step could run here, as things are.
    fn never_ready(&self, template: &StepTemplate) -> Option<String> {
        let runtime = match &template.work {
            TemplateWork::Python { .. } => Some(PYTHON_RUNTIME),
            TemplateWork::Container { .. } => Some(CONTAINER_RUNTIME),
            TemplateWork::Wasm { .. } => Some(WASM_RUNTIME),
            TemplateWork::Command { .. }
            | TemplateWork::SignedCommand { .. }
            | TemplateWork::Script(_)
            | TemplateWork::Import { .. }
            | TemplateWork::Export { .. }
            | TemplateWork::Null => None,
        };
        if let Some(runtime) = runtime.filter(|runtime| !self.config.runtimes.iter().any(|known| known == runtime)) {
            return Some(format!("the site has nothing that runs actions with the runtime `{runtime}`"));
        }
        self.config.policy.refuses_run(template).or_else(|| self.refuses_size(template, &Terms::default()))
    }
}
