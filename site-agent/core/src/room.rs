//! Room: what of the site's CPU and memory is given to executions, and how many may queue behind those that run.

use std::collections::BTreeMap;
use std::time::Duration;

use atoll_model::id::RunId;
use atoll_model::resources::{Capacity, Resources};

use crate::config::{AHEAD, AHEAD_MAX, SHORT};
use crate::state::StepKey;

/// What one execution takes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Cost {
    cpu_millis: u64,
    memory_bytes: u64,
    /// GPUs and what else there is a number of, in thousandths.
    others: BTreeMap<String, u64>,
    /// Whether it has something of its own, which those that wait behind it cannot take over.
    has_own: bool,
}

impl Cost {
    /// Whether so much more fits beside what is used.
    fn has_room(&self, used: &Self, more: &Self) -> bool {
        let of = |others: &BTreeMap<String, u64>, name: &str| others.get(name).copied().unwrap_or(0);
        used.cpu_millis + more.cpu_millis <= self.cpu_millis
            && used.memory_bytes + more.memory_bytes <= self.memory_bytes
            && more.others.iter().all(|(name, more)| of(&used.others, name) + more <= of(&self.others, name))
    }

    fn add(&mut self, more: &Self) {
        self.cpu_millis += more.cpu_millis;
        self.memory_bytes += more.memory_bytes;
        for (name, more) in &more.others {
            *self.others.entry(name.clone()).or_default() += more;
        }
    }

    fn subtract(&mut self, less: &Self) {
        self.cpu_millis -= less.cpu_millis;
        self.memory_bytes -= less.memory_bytes;
        for (name, less) in &less.others {
            let left = self.others.get_mut(name).expect("what is given back was taken");
            *left -= less;
            if *left == 0 {
                self.others.remove(name);
            }
        }
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
    /// As it was told, by which is found which GPUs are meant.
    offered: Capacity,
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
        let (offered, none) = (Capacity::default(), Cost::default());
        let mut room = Self { offered, capacity: none.clone(), used: none, steps: BTreeMap::new() };
        room.set_capacity(capacity);
        room
    }

    /// What an execution takes that asks for this. What asks for GPUs that are not there takes more than there is.
    pub(crate) fn cost(&self, resources: &Resources) -> Cost {
        let others = resources.others(&self.offered);
        Cost {
            cpu_millis: if others.is_some() { resources.cpu_millis.into() } else { u64::from(u32::MAX) + 1 },
            memory_bytes: resources.memory_bytes.unwrap_or(0),
            others: others.unwrap_or_default(),
            has_own: resources.gpus.is_some(),
        }
    }

    pub(crate) fn set_capacity(&mut self, capacity: &Capacity) {
        self.capacity = Cost {
            cpu_millis: capacity.cpu_millis.into(),
            memory_bytes: capacity.memory_bytes,
            others: capacity.others(),
            has_own: false,
        };
        self.offered = capacity.clone();
    }

    /// Whether it would fit if nothing else ran.
    pub(crate) fn could_fit(&self, cost: &Cost) -> bool {
        self.capacity.has_room(&Cost::default(), cost)
    }

    /// Reserves room for one more of a step, or a place behind those of it that run if they are short.
    pub(crate) fn admit(&mut self, step: StepKey, cost: &Cost, may_queue: bool) -> Option<Admission> {
        let entry = self.steps.entry(step).or_default();
        if entry.own == 0 {
            entry.cost.clone_from(cost);
        }
        if self.capacity.has_room(&self.used, &entry.cost) {
            entry.own += 1;
            self.used.add(&entry.cost);
            return Some(Admission::Own);
        }
        if may_queue && !entry.cost.has_own && entry.ahead < entry.own * entry.depth() {
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
        self.used.add(&entry.cost);
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
        self.used.subtract(&entry.cost);
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
            (0..entry.own).for_each(|_| used.add(&entry.cost));
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
