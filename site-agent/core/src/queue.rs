//! Which items of the queue wait for what, and which may start, in order of arrival.

use std::collections::{BTreeMap, BTreeSet};

use atoll_model::id::{ObjectId, RunId};

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

/// Items that lack nothing but room or a lease. Only the first of each step is looked at: all of a step ask for the same.
#[derive(Debug, Default)]
pub(crate) struct Ready {
    by_step: BTreeMap<StepKey, BTreeSet<u64>>,
    heads: BTreeMap<u64, StepKey>,
}

impl Ready {
    pub(crate) fn insert(&mut self, (order, step): Place) {
        let orders = self.by_step.entry(step).or_default();
        let head = orders.first().copied();
        orders.insert(order);
        if head.is_none_or(|head| order < head) {
            if let Some(head) = head {
                self.heads.remove(&head);
            }
            self.heads.insert(order, step);
        }
    }

    pub(crate) fn remove(&mut self, (order, step): Place) {
        let Some(orders) = self.by_step.get_mut(&step) else { return };
        orders.remove(&order);
        if self.heads.remove(&order).is_some()
            && let Some(next) = orders.first()
        {
            self.heads.insert(*next, step);
        }
        if orders.is_empty() {
            self.by_step.remove(&step);
        }
    }

    pub(crate) fn contains(&self, (order, step): Place) -> bool {
        self.by_step.get(&step).is_some_and(|orders| orders.contains(&order))
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.heads.is_empty()
    }

    /// The first item, after `order`, of a step whose first item it is.
    pub(crate) fn head_after(&self, order: u64) -> Option<Place> {
        self.heads.range(order + 1..).next().map(|(order, step)| (*order, *step))
    }

    pub(crate) fn of_run(&self, run: RunId) -> Vec<Place> {
        let steps = self.by_step.iter().filter(|((candidate, _), _)| *candidate == run);
        steps.flat_map(|(step, orders)| orders.iter().map(|order| (*order, *step))).collect()
    }
}
