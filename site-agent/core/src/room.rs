//! Room: what of each node's CPU and memory is given to executions, and how many may queue behind those that run.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::time::Duration;

use atoll_model::id::RunId;
use atoll_model::resources::{Capacity, Resources};

use crate::config::{AHEAD, AHEAD_MAX, Pilots, SHORT};
use crate::event::{Node, NodeId};
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
    /// It takes over the room of one that ends: of those of its kind that have room of their own there are so many.
    Ahead(u32),
}

/// The room of all nodes. An execution has room on one of them: what is free on two is never added up.
#[derive(Debug)]
pub(crate) struct Room {
    nodes: BTreeMap<NodeId, NodeRoom>,
    pilots: Option<Pilots>,
    are_pilots_barred: bool,
}

/// On which nodes an execution may run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Where {
    Anywhere,
    /// Where the agent is, or what its machine stands for.
    Home,
    /// On nodes that come when they are wanted.
    Pilots,
}

/// The room of one node.
#[derive(Debug, Default)]
struct NodeRoom {
    /// As it was told, by which is found which GPUs are meant.
    offered: Capacity,
    capacity: Cost,
    used: Cost,
    kinds: BTreeMap<Kind, InFlight>,
    is_open: bool,
}

/// Executions that take the same: those of one step, but where the memory of some has grown since they ran out of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Kind {
    step: StepKey,
    memory_bytes: Option<u64>,
}

impl Kind {
    pub(crate) fn new(step: StepKey, resources: &Resources) -> Self {
        Self { step, memory_bytes: resources.memory_bytes }
    }
}

/// Executions of one kind that have started and not ended.
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
    pub(crate) fn new(home: &Capacity, pilots: Option<Pilots>, others: &BTreeMap<NodeId, Node>) -> Self {
        let mut room = Self { nodes: BTreeMap::new(), pilots, are_pilots_barred: false };
        room.set(NodeId::HOME, home, true);
        room.set_others(others);
        room
    }

    fn set(&mut self, id: NodeId, capacity: &Capacity, is_open: bool) {
        let node = self.nodes.entry(id).or_default();
        node.capacity = Cost {
            cpu_millis: capacity.cpu_millis.into(),
            memory_bytes: capacity.memory_bytes,
            others: capacity.others(),
            has_own: false,
        };
        (node.offered, node.is_open) = (capacity.clone(), is_open);
    }

    /// These are all nodes beside the agent's own. One that is gone while something is taken to run there has no room until
    /// that has ended.
    pub(crate) fn set_others(&mut self, others: &BTreeMap<NodeId, Node>) {
        for (id, node) in &mut self.nodes {
            if *id != NodeId::HOME && !others.contains_key(id) {
                (node.offered, node.capacity, node.is_open) = (Capacity::default(), Cost::default(), false);
            }
        }
        self.nodes.retain(|id, node| *id == NodeId::HOME || others.contains_key(id) || !node.is_empty());
        for (id, node) in others {
            self.set(*id, &node.capacity, node.is_open);
        }
    }

    /// What the site offers: the agent's own machine, as measured now, and all other nodes.
    pub(crate) fn offered(&self, home: &Capacity) -> Capacity {
        if self.pilots.is_some() {
            // They are part of what home stands for.
            return home.clone();
        }
        let mut all = home.clone();
        for (_, node) in self.nodes.iter().filter(|(id, _)| **id != NodeId::HOME) {
            all.cpu_millis = all.cpu_millis.saturating_add(node.offered.cpu_millis);
            all.memory_bytes = all.memory_bytes.saturating_add(node.offered.memory_bytes);
            for (counted, more) in [(&mut all.gpus, &node.offered.gpus), (&mut all.named, &node.offered.named)] {
                for (name, more) in more {
                    let count = counted.entry(name.clone()).or_default();
                    *count = count.saturating_add(*more);
                }
            }
        }
        all
    }

    /// Where an execution may run that asks for this; one that is for a job of its own may not run in a pilot.
    pub(crate) fn place(&self, resources: &Resources, is_for_job: bool) -> Where {
        match &self.pilots {
            _ if resources.is_for_batch_system() => Where::Home,
            None => Where::Anywhere,
            Some(pilots) if !is_for_job && !self.are_pilots_barred && pilots.are_for(resources) => Where::Pilots,
            Some(_) => Where::Home,
        }
    }

    pub(crate) fn bar_pilots(&mut self, barred: bool) {
        self.are_pilots_barred = barred;
    }

    /// How many pilots so many executions would fill, of as many as there may be.
    pub(crate) fn pilots_for(&self, executions: u32, resources: &Resources) -> u32 {
        let Some(pilots) = &self.pilots else { return 0 };
        let each = (pilots.capacity.cpu_millis / resources.cpu_millis.max(1)).max(1);
        executions.div_ceil(each).min(pilots.max)
    }

    /// Most pilots that there may be.
    pub(crate) fn pilots_max(&self) -> u32 {
        self.pilots.as_ref().map_or(0, |pilots| pilots.max)
    }

    /// Whether it would fit if nothing else ran.
    pub(crate) fn could_fit(&self, resources: &Resources, place: Where) -> bool {
        place == Where::Pilots
            || self.candidates(place).any(|(_, node)| node.capacity.has_room(&Cost::default(), &node.cost(resources)))
    }

    fn candidates(&self, place: Where) -> impl Iterator<Item = (NodeId, &NodeRoom)> {
        let is_meant = move |id: NodeId| match place {
            Where::Anywhere => true,
            Where::Home => id == NodeId::HOME,
            Where::Pilots => id != NodeId::HOME,
        };
        self.nodes.iter().map(|(id, node)| (*id, node)).filter(move |(id, _)| is_meant(*id))
    }

    /// Reserves room for one more of a step on the node that has most free, or a place behind those of it that run if they are
    /// short.
    pub(crate) fn admit(
        &mut self,
        step: StepKey,
        resources: &Resources,
        place: Where,
        may_queue: bool,
    ) -> Option<(NodeId, Admission)> {
        let kind = Kind::new(step, resources);
        let open = || self.candidates(place).filter(|(_, node)| node.is_open);
        let with_room = open().filter(|(_, node)| node.has_room(kind, resources));
        let free = with_room.max_by_key(|(id, node)| (node.free_cpu_millis(), Reverse(*id)));
        if let Some((id, _)) = free {
            self.nodes.get_mut(&id)?.let_in(kind, resources);
            return Some((id, Admission::Own));
        }
        let queues = open().filter_map(|(id, node)| Some((node.place_behind(kind).filter(|_| may_queue)?, id)));
        let (_, id) = queues.min()?;
        let entry = self.nodes.get_mut(&id)?.kinds.get_mut(&kind)?;
        entry.ahead += 1;
        Some((id, Admission::Ahead(entry.own)))
    }

    /// Takes in one that was found running after a restart: it is there whether it fits or not.
    pub(crate) fn take_in(&mut self, step: StepKey, node: NodeId, resources: &Resources) {
        self.nodes.entry(node).or_default().let_in(Kind::new(step, resources), resources);
    }

    /// One of a kind has ended, after running for this long.
    pub(crate) fn release(&mut self, kind: Kind, node: NodeId, ran: Option<Duration>) {
        let room = self.nodes.get_mut(&node).expect("what ends was let in");
        room.release(kind, ran);
    }

    /// Drops what was learnt of the steps of a run that is forgotten, but for those of which something runs.
    pub(crate) fn forget(&mut self, run: RunId) {
        for node in self.nodes.values_mut() {
            node.kinds.retain(|kind, entry| kind.step.0 != run || entry.own > 0);
        }
    }

    /// Asserts that what is used is the sum of what was let in.
    pub(crate) fn check(&self, started: usize) {
        let count: usize = self.nodes.values().map(NodeRoom::check).sum();
        assert_eq!(count, started, "whatever runs was let in once");
    }
}

impl Pilots {
    /// Whether what asks for this is short, and each of them has as much.
    fn are_for(&self, resources: &Resources) -> bool {
        resources.time.is_some_and(|time| time <= self.short)
            && self.capacity.cpu_millis >= resources.cpu_millis
            && self.capacity.memory_bytes >= resources.memory_bytes.unwrap_or(0)
            && self.capacity.lacks(resources).is_none()
    }
}

impl NodeRoom {
    /// What an execution takes that asks for this. What asks for GPUs that are not there takes more than there is.
    fn cost(&self, resources: &Resources) -> Cost {
        let others = resources.others(&self.offered);
        Cost {
            cpu_millis: if others.is_some() { resources.cpu_millis_in_all().into() } else { u64::from(u32::MAX) + 1 },
            memory_bytes: resources.memory_bytes_in_all().unwrap_or(0),
            others: others.unwrap_or_default(),
            has_own: resources.gpus.is_some(),
        }
    }

    fn is_empty(&self) -> bool {
        self.kinds.values().all(|entry| entry.own == 0)
    }

    fn free_cpu_millis(&self) -> u64 {
        self.capacity.cpu_millis.saturating_sub(self.used.cpu_millis)
    }

    fn has_room(&self, kind: Kind, resources: &Resources) -> bool {
        match self.kinds.get(&kind).filter(|entry| entry.own > 0) {
            Some(entry) => self.capacity.has_room(&self.used, &entry.cost),
            None => self.capacity.has_room(&self.used, &self.cost(resources)),
        }
    }

    fn let_in(&mut self, kind: Kind, resources: &Resources) {
        let cost = self.cost(resources);
        let entry = self.kinds.entry(kind).or_default();
        if entry.own == 0 {
            entry.cost = cost;
        }
        entry.own += 1;
        self.used.add(&entry.cost);
    }

    /// How many wait behind each thousand that run, if one more may.
    fn place_behind(&self, kind: Kind) -> Option<u64> {
        let entry =
            self.kinds.get(&kind).filter(|entry| !entry.cost.has_own && entry.ahead < entry.own * entry.depth())?;
        Some(u64::from(entry.ahead) * 1_000 / u64::from(entry.own))
    }

    fn release(&mut self, kind: Kind, ran: Option<Duration>) {
        let entry = self.kinds.get_mut(&kind).expect("what ends was let in");
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

    /// Asserts that what is used is the sum of what was let in; how many that is.
    fn check(&self) -> usize {
        let mut used = Cost::default();
        let mut count = 0;
        for entry in self.kinds.values() {
            (0..entry.own).for_each(|_| used.add(&entry.cost));
            count += (entry.own + entry.ahead) as usize;
            assert!(entry.own > 0 || entry.ahead == 0, "nothing queues behind nothing");
        }
        assert_eq!(used, self.used, "the room used is what executions hold");
        count
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
