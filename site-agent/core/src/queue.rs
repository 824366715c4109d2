//! Which items of the queue wait for what, and which may start: by priority, and in order of arrival.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound::{Excluded, Unbounded};

use atoll_model::id::{ObjectId, RunId};
use atoll_model::limits::AGEING;
use atoll_model::time::Timestamp;

use crate::state::{AttemptKey, StepKey};

/// An item of the queue, by its order of arrival.
pub(crate) type Place = (u64, StepKey);

/// Items that wait, and the reverse: what each is waited for by.
#[derive(Debug, Default)]
pub(crate) struct Waiting {
    items: BTreeMap<Place, Waits>,
    by_object: BTreeMap<ObjectId, BTreeSet<Place>>,
    by_attempt: BTreeMap<AttemptKey, BTreeSet<Place>>,
}

/// What an item waits for.
#[derive(Debug, Default, Clone)]
pub(crate) struct Waits {
    pub(crate) objects: BTreeSet<ObjectId>,
    pub(crate) attempts: BTreeSet<AttemptKey>,
}

impl Waits {
    pub(crate) fn is_empty(&self) -> bool {
        self.objects.is_empty() && self.attempts.is_empty()
    }
}

impl Waiting {
    pub(crate) fn insert(&mut self, place: Place, waits: Waits) {
        for object in &waits.objects {
            self.by_object.entry(*object).or_default().insert(place);
        }
        for attempt in &waits.attempts {
            self.by_attempt.entry(*attempt).or_default().insert(place);
        }
        self.items.insert(place, waits);
    }

    /// Takes an item out; the objects that nobody waits for any more.
    pub(crate) fn remove(&mut self, place: Place) -> Vec<ObjectId> {
        let Some(waits) = self.items.remove(&place) else { return Vec::new() };
        for attempt in &waits.attempts {
            remove_from(&mut self.by_attempt, attempt, place);
        }
        waits.objects.into_iter().filter(|object| remove_from(&mut self.by_object, object, place)).collect()
    }

    pub(crate) fn contains(&self, place: Place) -> bool {
        self.items.contains_key(&place)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    pub(crate) fn for_object(&self, object: ObjectId) -> Vec<Place> {
        self.by_object.get(&object).into_iter().flatten().copied().collect()
    }

    pub(crate) fn for_attempt(&self, attempt: AttemptKey) -> Vec<Place> {
        self.by_attempt.get(&attempt).into_iter().flatten().copied().collect()
    }

    pub(crate) fn is_waited_for(&self, object: ObjectId) -> bool {
        self.by_object.contains_key(&object)
    }

    pub(crate) fn of_run(&self, run: RunId) -> Vec<Place> {
        self.items.keys().filter(|(_, (candidate, _))| *candidate == run).copied().collect()
    }
}

/// Removes the place from the set of the key; whether the set is empty now, and gone.
fn remove_from<K: Ord + Copy>(index: &mut BTreeMap<K, BTreeSet<Place>>, key: &K, place: Place) -> bool {
    let Some(places) = index.get_mut(key) else { return false };
    places.remove(&place);
    let empty = places.is_empty();
    if empty {
        index.remove(key);
    }
    empty
}

/// Items that lack nothing but room or a lease. Only the first of each step is looked at: all of a step ask for the same,
/// but for memory that has grown.
#[derive(Debug, Default)]
pub(crate) struct Ready {
    lines: BTreeMap<StepKey, Line>,
    levels: BTreeMap<Reverse<i16>, Level>,
}

/// What is ready of a step.
#[derive(Debug)]
struct Line {
    priority: i16,
    orders: BTreeSet<u64>,
}

/// What is ready of one priority.
#[derive(Debug, Default)]
struct Level {
    heads: BTreeMap<u64, StepKey>,
    /// Since when others were started in its stead.
    passed_since: Option<Timestamp>,
}

/// The turn of what has this priority.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Turn {
    pub(crate) priority: i16,
    /// It comes before its time, because others were started in its stead for long: it is worth one start.
    pub(crate) by_age: bool,
}

impl Ready {
    pub(crate) fn insert(&mut self, (order, step): Place, priority: i16) {
        let line = self.lines.entry(step).or_insert_with(|| Line { priority, orders: BTreeSet::new() });
        let head = line.orders.first().copied();
        line.orders.insert(order);
        if head.is_none_or(|head| order < head) {
            let heads = &mut self.levels.entry(Reverse(line.priority)).or_default().heads;
            if let Some(head) = head {
                heads.remove(&head);
            }
            heads.insert(order, step);
        }
    }

    pub(crate) fn remove(&mut self, (order, step): Place) {
        let Some(line) = self.lines.get_mut(&step) else { return };
        line.orders.remove(&order);
        let level = Reverse(line.priority);
        let heads = &mut self.levels.get_mut(&level).expect("what is ready has a level").heads;
        if heads.remove(&order).is_some()
            && let Some(next) = line.orders.first()
        {
            heads.insert(*next, step);
        }
        if heads.is_empty() {
            self.levels.remove(&level);
        }
        if line.orders.is_empty() {
            self.lines.remove(&step);
        }
    }

    pub(crate) fn contains(&self, (order, step): Place) -> bool {
        self.lines.get(&step).is_some_and(|line| line.orders.contains(&order))
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.levels.is_empty()
    }

    /// In which order what is ready is looked at. What is passed over for [`AGEING`] counts one more.
    pub(crate) fn turns(&self, now: Timestamp) -> Vec<Turn> {
        let mut turns = Vec::new();
        for (Reverse(priority), level) in &self.levels {
            let passed = level.passed_since.map_or(0, |since| now.saturating_since(since).as_secs() / AGEING.as_secs());
            let rank = i64::from(*priority);
            if passed > 0 {
                let aged = rank.saturating_add_unsigned(passed);
                turns.push((Reverse(aged), Turn { priority: *priority, by_age: true }));
            }
            turns.push((Reverse(rank), Turn { priority: *priority, by_age: false }));
        }
        // Of those that rank alike the higher priority stays before.
        turns.sort_by_key(|(rank, _)| *rank);
        turns.into_iter().map(|(_, turn)| turn).collect()
    }

    /// Something of this priority was started: what is below it was passed over.
    pub(crate) fn served(&mut self, priority: i16, now: Timestamp) {
        if let Some(level) = self.levels.get_mut(&Reverse(priority)) {
            level.passed_since = None;
        }
        for level in self.levels.range_mut((Excluded(Reverse(priority)), Unbounded)).map(|(_, level)| level) {
            level.passed_since.get_or_insert(now);
        }
    }

    /// The first item of this priority, after `order`, of a step whose first item it is.
    pub(crate) fn head_after(&self, priority: i16, order: u64) -> Option<Place> {
        let heads = &self.levels.get(&Reverse(priority))?.heads;
        heads.range(order + 1..).next().map(|(order, step)| (*order, *step))
    }

    /// The first item of each step.
    pub(crate) fn heads(&self) -> impl Iterator<Item = Place> {
        self.levels.values().flat_map(|level| level.heads.iter().map(|(order, step)| (*order, *step)))
    }

    pub(crate) fn of_run(&self, run: RunId) -> Vec<Place> {
        let lines = self.lines.iter().filter(|((candidate, _), _)| *candidate == run);
        lines.flat_map(|(step, line)| line.orders.iter().map(|order| (*order, *step))).collect()
    }
}
