//! Room: what of the site's CPU and memory is given to executions, and how many may queue behind those that run.

use std::collections::BTreeMap;
use std::time::Duration;

use atoll_model::id::RunId;
use atoll_model::resources::{Capacity, Resources};

use crate::config::{AHEAD, AHEAD_MAX, SHORT};
use crate::state::StepKey;

/// What one execution takes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Cost {
    cpu_millis: u64,
    memory_bytes: u64,
}

impl From<&Resources> for Cost {
    fn from(resources: &Resources) -> Self {
        Self { cpu_millis: resources.cpu_millis.into(), memory_bytes: resources.memory_bytes.unwrap_or(0) }
    }
}

/// How an execution was let in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Admission {
    /// It has room of its own.
    Own,
    /// It takes over the room of one that ends: of those of its step that have room of their own there are so many.
    Ahead(u32),
}

#[derive(Debug)]
pub(crate) struct Room {
    capacity: Cost,
    used: Cost,
    steps: BTreeMap<StepKey, InFlight>,
}

/// Executions of one step that have started and not ended.
#[derive(Debug, Default)]
struct InFlight {
    cost: Cost,
    /// Those that have room of their own.
    own: u32,
    /// Those that wait behind them.
    ahead: u32,
    /// Mean run time, learnt; recent ones count most.
    run_micros: Option<u64>,
}

impl Room {
    pub(crate) fn new(capacity: &Capacity) -> Self {
        let mut room = Self { capacity: Cost::default(), used: Cost::default(), steps: BTreeMap::new() };
        room.set_capacity(capacity);
        room
    }

    pub(crate) fn set_capacity(&mut self, capacity: &Capacity) {
        self.capacity = Cost { cpu_millis: capacity.cpu_millis.into(), memory_bytes: capacity.memory_bytes };
    }

    /// Whether it would fit if nothing else ran.
    pub(crate) fn could_fit(&self, cost: Cost) -> bool {
        cost.cpu_millis <= self.capacity.cpu_millis && cost.memory_bytes <= self.capacity.memory_bytes
    }

    /// Reserves room for one more of a step, or a place behind those of it that run if they are short.
    pub(crate) fn admit(&mut self, step: StepKey, cost: Cost, may_queue: bool) -> Option<Admission> {
        let room = self.used;
        let (capacity, entry) = (self.capacity, self.steps.entry(step).or_default());
        if entry.own == 0 {
            entry.cost = cost;
        }
        let fits = room.cpu_millis + entry.cost.cpu_millis <= capacity.cpu_millis
            && room.memory_bytes + entry.cost.memory_bytes <= capacity.memory_bytes;
        if fits {
            entry.own += 1;
            self.used.cpu_millis += entry.cost.cpu_millis;
            self.used.memory_bytes += entry.cost.memory_bytes;
            return Some(Admission::Own);
        }
        if may_queue && entry.ahead < entry.own * entry.depth() {
            entry.ahead += 1;
            return Some(Admission::Ahead(entry.own));
        }
        None
    }

    /// Takes in one that was found running after a restart: it is there whether it fits or not.
    pub(crate) fn take_in(&mut self, step: StepKey, cost: Cost) {
        let entry = self.steps.entry(step).or_default();
        if entry.own == 0 {
            entry.cost = cost;
        }
        entry.own += 1;
        self.used.cpu_millis += entry.cost.cpu_millis;
        self.used.memory_bytes += entry.cost.memory_bytes;
    }

    /// One of a step has ended, after running for this long.
    pub(crate) fn release(&mut self, step: StepKey, ran: Option<Duration>) {
        let entry = self.steps.get_mut(&step).expect("what ends was let in");
        if let Some(ran) = ran {
            let ran = u64::try_from(ran.as_micros()).unwrap_or(u64::MAX);
            entry.run_micros = Some(entry.run_micros.map_or(ran, |mean| mean - mean / 8 + ran / 8));
        }
        if entry.ahead > 0 {
            entry.ahead -= 1;
            return;
        }
        entry.own -= 1;
        self.used.cpu_millis -= entry.cost.cpu_millis;
        self.used.memory_bytes -= entry.cost.memory_bytes;
    }

    /// Drops what was learnt of the steps of a run that is forgotten, but for those of which something runs.
    pub(crate) fn forget(&mut self, run: RunId) {
        self.steps.retain(|(of, _), entry| *of != run || entry.own > 0);
    }

    /// Asserts that what is used is the sum of what was let in.
    pub(crate) fn check(&self, started: usize) {
        let mut used = Cost::default();
        let mut count = 0;
        for entry in self.steps.values() {
            used.cpu_millis += entry.cost.cpu_millis * u64::from(entry.own);
            used.memory_bytes += entry.cost.memory_bytes * u64::from(entry.own);
            count += (entry.own + entry.ahead) as usize;
            assert!(entry.own > 0 || entry.ahead == 0, "nothing queues behind nothing");
        }
        assert_eq!(used, self.used, "the room used is what executions hold");
        assert_eq!(count, started, "whatever runs was let in once");
    }
}

impl InFlight {
    /// How many may queue behind each one that runs.
    fn depth(&self) -> u32 {
        match self.run_micros {
            Some(micros) if u128::from(micros) < SHORT.as_micros() => {
                u32::try_from(AHEAD.as_micros() / u128::from(micros.max(1))).unwrap_or(u32::MAX).min(AHEAD_MAX)
            }
            Some(_) | None => 0,
        }
    }
}
