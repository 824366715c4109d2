//! Where attempts run: in slots of this machine, whose shims may die, or in jobs.

use std::path::PathBuf;
use std::time::Instant;

use atoll_model::session::FailureReason;

use super::Local;
use super::attempts::{Known, Phase, Place};
use super::slots::Wanted;
use super::staging::full_message;
use crate::shim::protocol::{End, Key};

impl Local {
    /// The slot of an attempt: where it works, and what it leaves is kept.
    pub(super) fn folder(&self, place: Place, key: Key) -> PathBuf {
        match (place, &self.jobs) {
            (Place::Slot(number), _) => self.slots.path(number),
            (Place::Job, Some(jobs)) => jobs.slot(key),
            (Place::Job, None) => unreachable!("only a site with jobs has an attempt in one"),
        }
    }

    pub(super) fn taken_off(&mut self, place: Place, key: Key) {
        let Place::Slot(number) = place else { return };
        if let Some(shim) = self.slots.shim_mut(number) {
            if shim.handed.pop_front_if(|(handed, _)| *handed == key).is_none() {
                shim.handed.retain(|(handed, _)| *handed != key);
            }
            shim.idle_since = Instant::now();
        }
    }

    /// A slot is empty after its shim died: what it had claimed has ended, what it had not goes to another.
    pub(super) fn cleared(&mut self, number: u32, ended: Vec<(Key, End)>) {
        self.take_in_ends(number, ended);
        self.slots.cleared(number);
        let unclaimed: Vec<Key> = self
            .attempts
            .keys()
            .filter(|key| {
                self.attempts.get(*key).is_some_and(|known| {
                    known.place == Some(Place::Slot(number)) && matches!(known.phase, Phase::Handed { .. })
                })
            })
            .collect();
        for key in unclaimed {
            self.hand_again(key);
        }
    }

    /// Takes in what has ended in a slot, as far as it was not told of before.
    pub(super) fn take_in_ends(&mut self, number: u32, ended: Vec<(Key, End)>) {
        for (key, end) in ended {
            match self.attempts.get(key).map(|known| &known.phase) {
                // Over, and told of: the shim died before it heard that it may forget it.
                None => self.slots.forget(number, key),
                Some(Phase::Ended { .. }) => {}
                Some(Phase::Staging { .. } | Phase::Handed { .. } | Phase::Imported { .. }) => {
                    self.ended(Place::Slot(number), key, &end);
                }
            }
        }
    }

    pub(super) fn hand_again(&mut self, key: Key) {
        let Some(Known { step, node, phase: Phase::Handed { order }, killed, .. }) = self.attempts.get_mut(key) else {
            return;
        };
        let (step, node, order) = (*step, *node, order.clone());
        if *killed {
            // The shim died before it heard of it, and it had not begun.
            return self.killed(key);
        }
        if !self.elsewhere.has(node) || self.elsewhere.is_leaving(node) {
            return self.forsaken(key);
        }
        let Some((common, order)) = order else {
            // Of an earlier process of the agent: whether it ran is in no log, so it did not.
            return self.not_started(key, FailureReason::Agent, "the process that was to run it has died".to_owned());
        };
        match self.slots.choose(step, None, Wanted::by(&common, node)) {
            Ok(number) => {
                if let Some(known) = self.attempts.get_mut(key) {
                    known.place = Some(Place::Slot(number));
                }
                if let Some(shim) = self.slots.shim_mut(number) {
                    shim.hand(&common, order, step);
                }
            }
            Err(error) => self.not_started(key, FailureReason::Agent, full_message(&error)),
        }
    }
}
