//! What is still to be looked at. It follows from the state, and is rebuilt from it after a restart.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use atoll_model::id::{ExecutionId, ObjectId, RunId, SiteId, StepIndex};
use atoll_model::time::Timestamp;

use crate::event::RequestId;
use crate::finished::FinishedRun;

pub(crate) type StepKey = (RunId, StepIndex);

#[derive(Debug, Default)]
pub(crate) struct Agenda {
    /// Steps that wait for nothing any more.
    pub(crate) expand: VecDeque<StepKey>,
    /// Steps that may be dispatched along with what they wait for.
    pub(crate) chain: VecDeque<StepKey>,
    /// Steps that were not, because enough of their run is out already.
    pub(crate) frontier: BTreeMap<RunId, BTreeSet<StepIndex>>,
    /// Steps with executions that want a site.
    pub(crate) place: Queue,
    /// Steps that wait for room at a site.
    pub(crate) room: BTreeMap<SiteId, Queue>,
    /// Steps that no site can run at present, and whether that may be because of their data.
    pub(crate) stuck: BTreeMap<StepKey, bool>,
    /// Sites that may have room again, and how many of the steps that wait for it are still to be asked.
    roomy: BTreeMap<SiteId, usize>,
    /// Placed executions whose objects may be there now.
    pub(crate) arrived: BTreeSet<ExecutionId>,
    /// Objects that somebody waits for, and whose whereabouts changed.
    pub(crate) replan: BTreeSet<ObjectId>,
    /// Objects that may not be needed in the bucket any more.
    pub(crate) sweep: BTreeSet<ObjectId>,
    /// Directories that hold what was swept: each is looked at once after all of it.
    pub(crate) sweep_around: BTreeSet<ObjectId>,
    /// Runs that may have ended.
    pub(crate) ending: BTreeSet<RunId>,
    /// Runs that the history is to hold before they are forgotten.
    pub(crate) retiring: BTreeMap<RunId, FinishedRun>,
    /// Sites to which something is to be sent.
    pub(crate) touched: BTreeSet<SiteId>,
    /// Executions at a site that read an object which is not known to be there.
    pub(crate) wants: Wants,
    /// Requests that are answered when an object is in the bucket.
    pub(crate) clients: BTreeMap<ObjectId, Vec<(RequestId, RunId, Timestamp)>>,
    timers: BTreeSet<(Timestamp, Timer)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Timer {
    /// An execution of the step may be tried again.
    Retry(RunId, StepIndex),
    /// Look at when the site was last heard.
    Liveness(SiteId),
    /// A hold on the object ends, or its deletion or push is to be asked for again.
    Object(ObjectId),
    /// The run may be forgotten.
    Retire(RunId),
    /// Work off the agenda.
    Wake,
}

impl Agenda {
    pub(crate) fn set(&mut self, at: Timestamp, timer: Timer) {
        self.timers.insert((at, timer));
    }

    pub(crate) fn first_timer(&self) -> Option<Timestamp> {
        self.timers.first().map(|(at, _)| *at)
    }

    pub(crate) fn take_elapsed(&mut self, now: Timestamp) -> Option<Timer> {
        let (at, timer) = *self.timers.first()?;
        if at > now {
            return None;
        }
        self.timers.remove(&(at, timer));
        Some(timer)
    }

    pub(crate) fn wait_for_room(&mut self, site: SiteId, step: StepKey) {
        self.room.entry(site).or_default().push(step);
    }

    pub(crate) fn has_room(&mut self, site: SiteId) {
        self.roomy.insert(site, usize::MAX);
    }

    /// The next step that waits for room at a site where there may be some. Each is asked once: one that would rather
    /// wait for another site goes to the end of the queue.
    pub(crate) fn next_for_room(&mut self, room: impl Fn(SiteId) -> u32) -> Option<StepKey> {
        while let Some(mut entry) = self.roomy.first_entry() {
            let site = *entry.key();
            let queue = self.room.get_mut(&site).filter(|_| room(site) > 0);
            let left = queue.as_ref().map_or(0, |queue| queue.order.len().min(*entry.get()));
            let step = queue.filter(|_| left > 0).and_then(Queue::pop);
            *entry.get_mut() = left.saturating_sub(1);
            if step.is_some() {
                return step;
            }
            entry.remove();
        }
        None
    }

    /// Steps that no site could run because of their data may have one now.
    pub(crate) fn wake_data(&mut self) {
        self.wake(|_| false);
    }

    /// As [`Self::wake_data`], and those steps for which the change of a site matters.
    pub(crate) fn wake(&mut self, matters: impl Fn(StepKey) -> bool) {
        for (step, _) in self.stuck.extract_if(.., |step, by_data| *by_data || matters(*step)) {
            self.place.push(step);
        }
    }

    pub(crate) fn forget_run(&mut self, run: RunId) {
        self.frontier.remove(&run);
        self.stuck.retain(|(stuck, _), _| *stuck != run);
    }
}

/// A queue in which everything stands once.
#[derive(Debug, Default)]
pub(crate) struct Queue {
    order: VecDeque<StepKey>,
    members: BTreeSet<StepKey>,
}

impl Queue {
    pub(crate) fn push(&mut self, step: StepKey) {
        if self.members.insert(step) {
            self.order.push_back(step);
        }
    }

    pub(crate) fn pop(&mut self) -> Option<StepKey> {
        let step = self.order.pop_front()?;
        self.members.remove(&step);
        Some(step)
    }
}

/// Who reads what at which site.
#[derive(Debug, Default)]
pub(crate) struct Wants {
    by_object: BTreeMap<ObjectId, BTreeSet<(SiteId, ExecutionId)>>,
    by_execution: BTreeMap<ExecutionId, (SiteId, Vec<ObjectId>)>,
}

impl Wants {
    pub(crate) fn add(&mut self, object: ObjectId, site: SiteId, execution: ExecutionId) {
        if self.by_object.entry(object).or_default().insert((site, execution)) {
            self.by_execution.entry(execution).or_insert_with(|| (site, Vec::new())).1.push(object);
        }
    }

    pub(crate) fn remove(&mut self, execution: ExecutionId) {
        if self.by_execution.is_empty() {
            return;
        }
        let Some((site, objects)) = self.by_execution.remove(&execution) else { return };
        for object in objects {
            if let Some(wanted) = self.by_object.get_mut(&object) {
                wanted.remove(&(site, execution));
                if wanted.is_empty() {
                    self.by_object.remove(&object);
                }
            }
        }
    }

    pub(crate) fn of(&self, object: ObjectId) -> impl Iterator<Item = (SiteId, ExecutionId)> + '_ {
        self.by_object.get(&object).into_iter().flatten().copied()
    }

    pub(crate) fn is_wanted_at(&self, object: ObjectId, site: SiteId) -> bool {
        let Some(wanted) = self.by_object.get(&object) else { return false };
        let first = ExecutionId { run: RunId::from_bits(0), step: StepIndex(0), element: 0 };
        wanted.range((site, first)..).next().is_some_and(|(at, _)| *at == site)
    }

    pub(crate) fn objects(&self) -> impl Iterator<Item = ObjectId> + '_ {
        self.by_object.keys().copied()
    }
}
