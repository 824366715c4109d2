//! What is still to be looked at. It follows from the state, and is rebuilt from it after a restart.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use atoll_model::elements::ElementSet;
use atoll_model::id::{ExecutionId, ObjectId, RunId, SiteId, StepIndex, TransferId};
use atoll_model::time::Timestamp;

use crate::engine::limits::Limit;
use crate::event::RequestId;
use crate::fact::ClaimId;
use crate::fair::FairQueue;
use crate::finished::FinishedRun;

pub(crate) type StepKey = (RunId, StepIndex);

/// How often it is looked whether a site can take or has again a copy that none could or had.
const LOOK_AGAIN: Duration = Duration::from_secs(60);

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
    pub(crate) room: BTreeMap<SiteId, FairQueue>,
    /// The one that is being asked.
    pub(crate) turn: Option<Turn>,
    /// Steps that wait because of a limit.
    pub(crate) limited: BTreeMap<Limit, FairQueue>,
    /// Limits under which something has ended.
    pub(crate) loosened: BTreeSet<Limit>,
    /// Steps that were looked at since the last event because a limit may allow more.
    pub(crate) looks: u32,
    /// More than a limit allows, that went on when it was set, or when an agent brought it back.
    pub(crate) tolerated: BTreeMap<Limit, u64>,
    /// Steps that no site can run at present, and whether that may be because of their data.
    pub(crate) stuck: BTreeMap<StepKey, bool>,
    /// Sites that may have room again.
    pub(crate) roomy: BTreeMap<SiteId, Round>,
    /// What was out at a site when nobody could be given more.
    pub(crate) full_at: BTreeMap<SiteId, u32>,
    /// Executions of steps with `cache` for which no result was there to be taken, of those that wait for a site.
    pub(crate) looked_up: BTreeMap<StepKey, ElementSet>,
    /// Placed executions whose objects may be there now.
    pub(crate) arrived: BTreeSet<ExecutionId>,
    /// Objects that somebody waits for, and whose whereabouts changed.
    pub(crate) replan: BTreeSet<ObjectId>,
    /// Objects that somebody waited for, and maybe nobody does any more.
    pub(crate) unwanted: BTreeSet<ObjectId>,
    /// Objects that may not be needed in the bucket any more.
    pub(crate) sweep: BTreeSet<ObjectId>,
    /// Objects of which rules may want more copies, and those of which they do and none could be had yet.
    pub(crate) to_copy: BTreeSet<ObjectId>,
    pub(crate) lacking: Later,
    /// Who could not take a copy last, and why, of objects that lack one.
    pub(crate) copy_failures: BTreeMap<ObjectId, (SiteId, Arc<str>)>,
    /// What stays in the bucket because no site has it.
    pub(crate) last_copies: Later,
    /// Objects whose time may be over, and those of which it is.
    pub(crate) to_expire: BTreeSet<ObjectId>,
    pub(crate) expired: Expired,
    /// Directories that hold what was swept: each is looked at once after all of it.
    pub(crate) sweep_around: BTreeSet<ObjectId>,
    /// Runs that may have ended.
    pub(crate) ending: BTreeSet<RunId>,
    /// Runs that have ended and stay in memory, oldest first, with what each takes there.
    pub(crate) finished: BTreeMap<(Timestamp, RunId), u64>,
    pub(crate) finished_bytes: u64,
    /// Runs that the history is to hold before they are forgotten.
    pub(crate) retiring: BTreeMap<RunId, FinishedRun>,
    /// Sites to which something is to be sent.
    pub(crate) touched: BTreeSet<SiteId>,
    /// Executions at a site that read an object which is not known to be there.
    pub(crate) wants: Wants,
    /// Requests that are answered when an object is in the bucket.
    pub(crate) clients: BTreeMap<ObjectId, Vec<Taker>>,
    /// What the bucket was asked and has not answered: to delete the object, or whether this push brought it in. A
    /// second deletion could take away what came after the first.
    pub(crate) asked_of_bucket: BTreeMap<ObjectId, Option<TransferId>>,
    /// What the process before this one may have asked the bucket to delete.
    pub(crate) deleted_before: BTreeSet<ObjectId>,
    timers: BTreeSet<(Timestamp, Timer)>,
}

/// Somebody who waits for an object of a run.
#[derive(Debug, Clone)]
pub(crate) struct Taker {
    pub(crate) request: RequestId,
    pub(crate) run: RunId,
    pub(crate) until: Timestamp,
    /// The project whose key it goes into the bucket by, where no rule on the object itself is known to say so.
    pub(crate) encrypt: Option<Arc<str>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Timer {
    /// An execution of the step may be tried again.
    Retry(RunId, StepIndex),
    /// Look at when the site was last heard.
    Liveness(SiteId),
    /// A hold on the object ends, or its push is to be asked for again.
    Object(ObjectId),
    /// The run may be forgotten.
    Retire(RunId),
    /// What a rule holds of a forgotten run is held no longer, or its time is over.
    Claim(ClaimId),
    /// The time of what the run has made may be over.
    Expire(RunId),
    /// What has expired, and is still somewhere, may go now.
    Expired,
    /// The site may be asked for more of it.
    ExpiredAt(SiteId),
    /// A result may be taken no longer.
    Results,
    /// Sites may have again what stays in the bucket because none had.
    LastCopies,
    /// Sites may take copies that are wanted.
    Copies,
    /// Work off the agenda.
    Wake,
    /// A repository is to be imported by the clock.
    Repositories,
}

impl Agenda {
    pub(crate) fn set(&mut self, at: Timestamp, timer: Timer) {
        self.timers.insert((at, timer));
    }

    /// Somebody wants a copy of it, at a site or in the bucket, that cannot be had now, or is on its way.
    pub(crate) fn look_for_copy(&mut self, object: ObjectId, now: Timestamp) {
        if self.lacking.add(object) {
            self.set(now + LOOK_AGAIN, Timer::Copies);
        }
    }

    /// Sites may take copies that they could not.
    pub(crate) fn look_at_lacking(&mut self) {
        self.to_copy.append(&mut self.lacking.objects);
    }

    /// It stays in the bucket until a site has it.
    pub(crate) fn look_for_other_copy(&mut self, object: ObjectId, now: Timestamp) {
        if self.last_copies.add(object) {
            self.set(now + LOOK_AGAIN, Timer::LastCopies);
        }
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

    /// An execution waits for nothing at the site that it was given to.
    pub(crate) fn unwant(&mut self, execution: ExecutionId) {
        self.unwanted.extend(self.wants.remove(execution));
    }

    /// Executions at the site have ended: there may be room.
    pub(crate) fn has_room(&mut self, site: SiteId) {
        self.roomy.entry(site).or_default();
    }

    /// Somebody came who could be served at the site at once, were it its turn.
    pub(crate) fn ask_at(&mut self, site: SiteId) {
        self.roomy.entry(site).or_default().began = true;
    }

    /// Whether anybody waits for room at the site.
    pub(crate) fn is_contended(&self, site: SiteId) -> bool {
        self.room.get(&site).is_some_and(|queue| !queue.is_empty())
            || self.roomy.get(&site).is_some_and(|round| !round.held.is_empty())
    }

    /// Steps that no site could run, and for which something has changed: their data, or what `matters` says.
    pub(crate) fn take_stuck(&mut self, matters: impl Fn(StepKey) -> bool) -> Vec<StepKey> {
        self.stuck.extract_if(.., |step, by_data| *by_data || matters(*step)).map(|(step, _)| step).collect()
    }

    pub(crate) fn forget_run(&mut self, run: RunId) {
        self.frontier.remove(&run);
        self.stuck.retain(|(stuck, _), _| *stuck != run);
        self.looked_up.retain(|(looked_up, _), _| *looked_up != run);
    }
}

/// Objects that are all looked at again when their one timer ends.
#[derive(Debug, Default)]
pub(crate) struct Later {
    objects: BTreeSet<ObjectId>,
    is_timed: bool,
}

impl Later {
    /// Whether the timer is to be set.
    fn add(&mut self, object: ObjectId) -> bool {
        self.objects.insert(object);
        !std::mem::replace(&mut self.is_timed, true)
    }

    /// The timer has ended.
    pub(crate) fn take(&mut self) -> BTreeSet<ObjectId> {
        self.is_timed = false;
        std::mem::take(&mut self.objects)
    }

    pub(crate) fn has(&self, object: ObjectId) -> bool {
        self.objects.contains(&object)
    }

    pub(crate) fn objects(&self) -> impl Iterator<Item = &ObjectId> {
        self.objects.iter()
    }

    pub(crate) fn remove(&mut self, object: ObjectId) {
        self.objects.remove(&object);
    }
}

/// What is there of objects whose time is over.
#[derive(Debug, Default)]
pub(crate) struct Expired {
    pub(crate) objects: BTreeMap<ObjectId, Leaving>,
    /// What sites were asked to let go of since the timer was set.
    pub(crate) asked: BTreeMap<SiteId, Asked>,
    pub(crate) is_timed: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Leaving {
    /// Somewhere it still is.
    Going,
    /// Somebody is to decide.
    Asking,
    /// No copy is known since then; one that was about to go may have been used, and stay.
    Gone(Timestamp),
}

#[derive(Debug, Default)]
pub(crate) struct Asked {
    pub(crate) objects: BTreeSet<ObjectId>,
    /// The last time.
    pub(crate) at: Timestamp,
    /// A site keeps one question in mind at a time.
    pub(crate) is_open: bool,
    /// There was more than went into one question.
    pub(crate) has_more: bool,
}

/// Those who wait for room at a site are asked in their turns, until there is none or nobody is left.
#[derive(Debug, Default)]
pub(crate) struct Round {
    /// Whether it has begun: it goes on down to the last room. Before, it is worth the trouble only with some.
    pub(crate) began: bool,
    /// Asked already: they would rather wait for another site, or ask for more than there is.
    pub(crate) held: Vec<StepKey>,
}

/// The turn of a step that waited for room at a site.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Turn {
    pub(crate) site: SiteId,
    /// Executions that it may give there before it is the turn of others.
    pub(crate) left: u32,
}

/// A queue in which everything stands once: the highest priority first, and in order of arrival.
#[derive(Debug, Default)]
pub(crate) struct Queue {
    order: BTreeMap<Reverse<i16>, VecDeque<StepKey>>,
    members: BTreeSet<StepKey>,
}

impl Queue {
    pub(crate) fn push(&mut self, step: StepKey, priority: i16) {
        if self.members.insert(step) {
            self.order.entry(Reverse(priority)).or_default().push_back(step);
        }
    }

    pub(crate) fn pop(&mut self) -> Option<StepKey> {
        let mut first = self.order.first_entry()?;
        let step = first.get_mut().pop_front().expect("a priority at which nothing stands is not in the queue");
        if first.get().is_empty() {
            first.remove();
        }
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

    /// What it waited for and nobody else does.
    fn remove(&mut self, execution: ExecutionId) -> Vec<ObjectId> {
        if self.by_execution.is_empty() {
            return Vec::new();
        }
        let Some((site, mut objects)) = self.by_execution.remove(&execution) else { return Vec::new() };
        objects.retain(|object| {
            let Some(wanted) = self.by_object.get_mut(object) else { return true };
            wanted.remove(&(site, execution));
            let is_last = wanted.is_empty();
            if is_last {
                self.by_object.remove(object);
            }
            is_last
        });
        objects
    }

    /// What an execution read at its site that was not known to be there.
    pub(crate) fn lacked_by(&self, execution: ExecutionId) -> &[ObjectId] {
        self.by_execution.get(&execution).map_or(&[], |(_, objects)| objects)
    }

    pub(crate) fn has(&self, object: ObjectId) -> bool {
        self.by_object.contains_key(&object)
    }

    pub(crate) fn of(&self, object: ObjectId) -> impl Iterator<Item = (SiteId, ExecutionId)> + '_ {
        self.by_object.get(&object).into_iter().flatten().copied()
    }

    /// Executions at the site that wait for the object.
    pub(crate) fn at(&self, object: ObjectId, site: SiteId) -> impl Iterator<Item = ExecutionId> + '_ {
        let first = ExecutionId { run: RunId::from_bits(0), step: StepIndex(0), element: 0 };
        let wanted = self.by_object.get(&object).into_iter().flat_map(move |wanted| wanted.range((site, first)..));
        wanted.take_while(move |(at, _)| *at == site).map(|(_, execution)| *execution)
    }

    pub(crate) fn objects(&self) -> impl Iterator<Item = ObjectId> + '_ {
        self.by_object.keys().copied()
    }
}
