//! Making room in the store. The shell finds what nothing uses, the control plane says what of it may go, and only what was
//! not used in the meantime goes: a proposal is worth something within the process that made it, as long as no later one
//! was made.

use std::collections::{BTreeMap, BTreeSet};

use atoll_model::id::{CommandSeq, ObjectId};
use atoll_model::limits::{
    EVICTION_OBJECTS_MAX, EVICTION_PAUSE, EVICTION_PAUSE_MAX, STORE_HIGH_PERCENT, STORE_LOW_PERCENT,
};
use atoll_model::session::{Report, SiteCommand};
use atoll_model::time::Timestamp;
use atoll_model::value::ObjectRef;

use crate::agent::{Agent, Step};
use crate::command::Command;
use crate::fact::Fact;
use crate::readiness::bindings;
use crate::state::{StepKey, Terms};

#[derive(Debug, Default)]
pub(crate) struct MakingRoom {
    phase: Phase,
    proposals: u64,
    /// Looks and questions in a row that came to nothing.
    failures: u32,
    /// Why nothing may go, as it was said last.
    obstacle: Option<String>,
    /// Whether what is looked for, or asked about, was named, and not to make room.
    is_named: bool,
    /// What was named, and not looked for yet.
    named: Vec<ObjectRef>,
    /// What of it is looked for.
    looked_for: BTreeSet<ObjectId>,
    /// What was last asked about.
    asked: Vec<ObjectRef>,
    /// What an earlier process was allowed to let go: this one lets none of it go, and asks again.
    resumed: BTreeSet<CommandSeq>,
    /// Of what may go, what is needed here after all.
    needed: BTreeMap<CommandSeq, Vec<ObjectRef>>,
    /// What was stored anew while it was about to go: it is there, whichever came first.
    stored: BTreeSet<ObjectId>,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Phase {
    #[default]
    Idle,
    /// The shell looks for what may go.
    Looking,
    /// The control plane was asked, under this number.
    Asking(u64),
    /// Nothing may go at present.
    Pausing { until: Timestamp },
}

/// A command of the control plane's about the store.
#[derive(Debug)]
pub(crate) enum StoreOrder {
    Evict { order: CommandSeq, proposal: u64, objects: Vec<ObjectRef>, reason: Option<String> },
    Propose(Vec<ObjectRef>),
    Verify { order: CommandSeq, objects: Vec<ObjectRef> },
    Replicate(ObjectRef),
}

impl StoreOrder {
    /// Those among commands that have numbers from `first`.
    pub(crate) fn among(first: CommandSeq, commands: &[SiteCommand]) -> Vec<Self> {
        let numbered = (first.0..).map(CommandSeq).zip(commands);
        numbered
            .filter_map(|(order, command)| match command {
                SiteCommand::Evict { proposal, objects, refused: _, reason } => {
                    let (objects, reason) = (objects.clone(), reason.clone());
                    Some(Self::Evict { order, proposal: *proposal, objects, reason })
                }
                SiteCommand::ProposeEviction { objects } => Some(Self::Propose(objects.clone())),
                SiteCommand::Verify { objects } => Some(Self::Verify { order, objects: objects.clone() }),
                SiteCommand::Replicate { object, execution: _ } => Some(Self::Replicate(*object)),
                SiteCommand::Prepare(_)
                | SiteCommand::Dispatch(_)
                | SiteCommand::Cancel { .. }
                | SiteCommand::Push { .. }
                | SiteCommand::CancelPush { .. }
                | SiteCommand::Forget { .. }
                | SiteCommand::Delegate(_)
                | SiteCommand::Withdraw { .. }
                | SiteCommand::MakeReady(_)
                | SiteCommand::Unknown { .. } => None,
            })
            .collect()
    }
}

impl MakingRoom {
    /// Why nothing may go, if that is so.
    pub(crate) fn obstacle(&self) -> Option<&str> {
        self.obstacle.as_deref()
    }

    /// Nothing may go, as far as was asked. What was named is no measure of how much there is.
    fn came_to_nothing(&mut self, why: Option<String>, now: Timestamp) {
        if self.is_named {
            self.phase = Phase::Idle;
        } else {
            self.obstacle = why;
            self.pause(now);
        }
    }

    fn pause(&mut self, now: Timestamp) {
        let length = EVICTION_PAUSE.saturating_mul(1 << self.failures.min(16)).min(EVICTION_PAUSE_MAX);
        self.failures += 1;
        self.phase = Phase::Pausing { until: now + length };
    }
}

impl Agent {
    /// Begins to make room where the store has too little, and nothing is under way for it.
    pub(crate) fn make_room(&mut self, now: Timestamp, step: &mut Step) {
        let bytes = self.shortage();
        if bytes == 0 {
            self.making_room.obstacle = None;
            return;
        }
        let is_due = match self.making_room.phase {
            Phase::Idle => true,
            Phase::Pausing { until } => until <= now,
            Phase::Looking | Phase::Asking(_) => false,
        };
        if is_due && self.state.evictions.is_empty() && self.session.may_report() {
            (self.making_room.phase, self.making_room.is_named) = (Phase::Looking, false);
            let actions = self.actions_in_use();
            step.commands.push(Command::FindEvictable { bytes, objects: None, actions });
        }
    }

    /// What was named is to go, as far as it may, whether there is room or not: one question after the other, as the shell
    /// watches over the objects of the last one only.
    fn propose_named(&mut self, step: &mut Step) {
        let is_free = match self.making_room.phase {
            Phase::Idle | Phase::Pausing { .. } => self.state.evictions.is_empty(),
            Phase::Looking | Phase::Asking(_) => false,
        };
        if is_free && !self.making_room.named.is_empty() {
            (self.making_room.phase, self.making_room.is_named) = (Phase::Looking, true);
            let objects = std::mem::take(&mut self.making_room.named);
            self.making_room.looked_for = objects.iter().map(|object| object.id).collect();
            let (objects, actions) = (Some(objects), self.actions_in_use());
            step.commands.push(Command::FindEvictable { bytes: u64::MAX, objects, actions });
        }
    }

    /// Bytes that have to go.
    pub(crate) fn shortage(&self) -> u64 {
        let store = self.measured.store_bytes;
        let over = |used: u64, all: u64| {
            let is_high = all > 0 && used > all / 100 * STORE_HIGH_PERCENT;
            if is_high { used - all / 100 * STORE_LOW_PERCENT } else { 0 }
        };
        let of_policy = self.config.policy.disk.map_or(0, |(most, _)| over(store, most));
        let all = self.config.disk_bytes;
        let of_disk = over(all.saturating_sub(self.measured.capacity.disk_free_bytes), all);
        of_policy.max(of_disk).min(store)
    }

    pub(crate) fn evictable_found(&mut self, mut objects: Vec<ObjectRef>, now: Timestamp, step: &mut Step) {
        let needed = self.needed_here();
        objects.retain(|object| !needed.contains(&object.id));
        if self.making_room.is_named {
            self.note_parts(&objects, step);
        }
        let rest = objects.split_off(objects.len().min(EVICTION_OBJECTS_MAX));
        if self.making_room.is_named {
            self.making_room.named.extend(rest);
        }
        if objects.is_empty() {
            self.making_room.came_to_nothing(Some("all of it is in use, or was lately".to_owned()), now);
            return self.propose_named(step);
        }
        self.making_room.proposals += 1;
        // A number of this process: what an earlier one proposed is not watched any more.
        let proposal = (self.state.incarnation << 32) | self.making_room.proposals;
        self.making_room.phase = Phase::Asking(proposal);
        self.making_room.asked.clone_from(&objects);
        self.decide(step, Fact::RoomAsked { proposal, objects });
    }

    /// With a tree that was named goes what it alone is made of, which nobody else knows of: it is remembered until it is
    /// gone, or is found to stay.
    fn note_parts(&mut self, found: &[ObjectRef], step: &mut Step) {
        let looked_for = std::mem::take(&mut self.making_room.looked_for);
        let is_new =
            |object: &&ObjectRef| !looked_for.contains(&object.id) && !self.state.parts.contains_key(&object.id);
        let new: Vec<ObjectRef> = found.iter().filter(is_new).copied().collect();
        if !new.is_empty() {
            self.decide(step, Fact::PartsNamed { objects: new });
        }
        let found: BTreeSet<ObjectId> = found.iter().map(|object| object.id).collect();
        self.parts_stay(looked_for.difference(&found).copied(), step);
    }

    /// Those among the objects that are parts of what was named are not come back to.
    fn parts_stay(&mut self, objects: impl Iterator<Item = ObjectId>, step: &mut Step) {
        let parts: Vec<ObjectId> = objects.filter(|object| self.state.parts.contains_key(object)).collect();
        if !parts.is_empty() {
            self.decide(step, Fact::PartsStay { objects: parts });
        }
    }

    pub(crate) fn take_store_order(&mut self, order: StoreOrder, now: Timestamp, step: &mut Step) {
        match order {
            StoreOrder::Propose(objects) => {
                self.making_room.named.extend(objects);
                self.propose_named(step);
            }
            StoreOrder::Verify { order, objects } => step.commands.push(Command::Verify { order, objects }),
            StoreOrder::Replicate(object) => self.replicate(object, step),
            StoreOrder::Evict { order, proposal, objects, reason } => {
                let is_current = self.making_room.phase == Phase::Asking(proposal);
                if is_current {
                    let asked = std::mem::take(&mut self.making_room.asked);
                    let may_go: BTreeSet<ObjectId> = objects.iter().map(|object| object.id).collect();
                    let refused = asked.iter().map(|object| object.id).filter(|object| !may_go.contains(object));
                    self.parts_stay(refused, step);
                }
                if is_current && objects.is_empty() {
                    self.making_room.came_to_nothing(reason, now);
                } else if is_current {
                    (self.making_room.phase, self.making_room.failures) = (Phase::Idle, 0);
                    self.making_room.obstacle = None;
                }
                if objects.is_empty() {
                    return self.propose_named(step);
                }
                if !is_current {
                    let report = Report::Evicted { gone: Vec::new(), kept: objects };
                    self.decide(step, Fact::EvictionEnded { order, report });
                    return self.propose_named(step);
                }
                let needed = self.needed_here();
                let (kept, going): (Vec<_>, Vec<_>) =
                    objects.into_iter().partition(|object| needed.contains(&object.id));
                going.iter().for_each(|object| self.stage.forget(object.id));
                self.making_room.needed.insert(order, kept);
                step.commands.push(Command::Evict { order, objects: going });
            }
        }
    }

    pub(crate) fn evicted(
        &mut self,
        order: CommandSeq,
        gone: Vec<ObjectRef>,
        mut kept: Vec<ObjectRef>,
        step: &mut Step,
    ) {
        let Some(objects) = self.state.evictions.get(&order).cloned() else { return };
        kept.extend(self.making_room.needed.remove(&order).unwrap_or_default());
        let stored = &self.making_room.stored;
        let (stored, gone): (Vec<_>, Vec<_>) = gone.into_iter().partition(|object| stored.contains(&object.id));
        kept.extend(stored);
        if !self.making_room.resumed.remove(&order) {
            self.parts_stay(kept.iter().map(|object| object.id), step);
        }
        self.decide(step, Fact::EvictionEnded { order, report: Report::Evicted { gone, kept } });
        for object in objects {
            if self.is_going(object.id) {
                continue;
            }
            self.making_room.stored.remove(&object.id);
            if let Some(object) = self.stage.is_located(object.id) {
                step.commands.push(Command::Locate { object });
            }
        }
        self.propose_named(step);
    }

    pub(crate) fn verified(&mut self, order: CommandSeq, report: Report, step: &mut Step) {
        if self.state.verifications.contains_key(&order) {
            self.decide(step, Fact::VerificationEnded { order, report });
        }
    }

    /// After a restart: nothing goes any more under what an earlier process had proposed; what is gone is told. What is left
    /// of trees is proposed again.
    pub(crate) fn resume_store_orders(&mut self, step: &mut Step) {
        self.making_room.named.extend(self.state.parts.values());
        self.making_room.resumed.extend(self.state.evictions.keys());
        for (order, objects) in &self.state.evictions {
            step.commands.push(Command::Evict { order: *order, objects: objects.clone() });
        }
        for (order, objects) in &self.state.verifications {
            step.commands.push(Command::Verify { order: *order, objects: objects.clone() });
        }
        self.propose_named(step);
    }

    /// Whether the object may be about to go.
    pub(crate) fn is_going(&self, object: ObjectId) -> bool {
        self.state.evictions.values().flatten().any(|going| going.id == object)
    }

    /// The object is in the store now.
    pub(crate) fn note_stored(&mut self, object: ObjectId) {
        if !self.state.evictions.is_empty() && self.is_going(object) {
            self.making_room.stored.insert(object);
        }
    }

    /// Objects that something accepted here reads, or waits for, and as long as there is room bundles that were ordered.
    fn needed_here(&self) -> BTreeSet<ObjectId> {
        let mut needed: BTreeSet<ObjectId> = self.stage.wanted().collect();
        needed.extend(self.ordered_bundles());
        needed.extend(self.state.pushes.values().map(|push| push.object.id));
        for (key, _, item) in self.state.items() {
            self.add_needed(key, &item.terms, &mut needed);
        }
        for ((execution, _), active) in &self.state.active {
            if let Some(terms) = &active.terms {
                self.add_needed((execution.run, execution.step), terms, &mut needed);
            }
        }
        needed
    }

    /// The bundles of actions that run here, or are to, and as long as there is room those that were ordered.
    fn actions_in_use(&self) -> BTreeSet<ObjectId> {
        let waiting = self.state.items().map(|(key, _, item)| (key, item.terms.template));
        let active = self.state.active.iter().filter_map(|((execution, _), active)| {
            let terms = active.terms.as_ref()?;
            Some(((execution.run, execution.step), terms.template))
        });
        let templates = waiting.chain(active).filter_map(|(key, number)| self.state.template(key, number));
        let bundles = templates.filter_map(|template| Some(template.work.bundle()?.id));
        bundles.chain(self.ordered_bundles()).collect()
    }

    fn add_needed(&self, key: StepKey, terms: &Terms, needed: &mut BTreeSet<ObjectId>) {
        let Some(template) = self.state.template(key, terms.template) else { return };
        needed.extend(template.work.bundle().map(|bundle| bundle.id));
        for binding in bindings(template, terms) {
            self.visit_input(binding, &mut |object| {
                needed.insert(object);
            });
        }
    }
}
