//! Slots on other machines: workers that come and go, and the shims that are found there again.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write as _;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use site_agent_core::Event;
use site_agent_core::event::{Node, NodeId};

use super::attempts::{Phase, Place};
use super::gpus::HeldGpus;
use super::slot::Slot;
use super::{Executor, LOOK_INTERVAL, Local, Order, Tell, recovery};
use crate::clock::wall_clock;
use crate::executor::batch::{Crew, Pilots, PilotsOptions};
use crate::nodes::{HubError, Known, Nodes, NodesOptions, Reached, Tidings};
use crate::shim::protocol::{self, End, Hello, Key, ToShim};
use crate::shim::remove_whatever;

/// How long after a worker said that it leaves something may still be on its way to it.
const LEAVING_MIN: Duration = Duration::from_secs(1);
/// How often it is looked whether one that leaves may go.
const LEAVING_LOOK_INTERVAL: Duration = Duration::from_millis(100);

/// Listens for workers, of which the executor is told.
///
/// # Errors
/// When that cannot be.
pub(super) fn start(options: NodesOptions, executor: &Executor) -> Result<Nodes, HubError> {
    let executor = Mutex::new(executor.clone());
    Nodes::start(options, move |tidings| {
        let executor = executor.lock().unwrap_or_else(PoisonError::into_inner);
        executor.order(Order::OfNodes(tidings));
        executor.ring();
    })
}

/// Looks after workers that are jobs, if there may be any.
///
/// # Errors
/// When what is noted of them cannot be read.
pub(super) fn start_pilots(
    options: Option<PilotsOptions>,
    nodes: Option<&Nodes>,
    tell: &Tell,
) -> anyhow::Result<Option<Pilots>> {
    let crew = nodes.map(|nodes| Joined { nodes: nodes.clone(), tell: Arc::clone(tell) });
    options.zip(crew).map(|(options, crew)| Pilots::start(options, crew)).transpose()
}

struct Joined {
    nodes: Nodes,
    tell: Tell,
}

impl Crew for Joined {
    fn has_joined(&self, name: &str) -> bool {
        self.nodes.has_joined(name)
    }

    fn barred(&self, barred: bool) {
        (self.tell)(vec![Event::PilotsBarred { barred }]);
    }
}

/// What the executor knows of other machines.
#[derive(Debug, Default)]
pub(super) struct Elsewhere {
    pub(super) nodes: Option<Nodes>,
    pub(super) known: BTreeMap<NodeId, Known>,
    /// Those that leave, and since when.
    leaving: BTreeMap<NodeId, Instant>,
    /// Those that go for want of work, and since when they have none.
    idle: BTreeMap<NodeId, Instant>,
    gpus: BTreeMap<NodeId, HeldGpus>,
}

impl Elsewhere {
    pub(super) fn new(nodes: Option<Nodes>) -> Self {
        let known = nodes.as_ref().map(Nodes::known).unwrap_or_default();
        let leaving = known.iter().filter(|(_, worker)| worker.is_leaving).map(|(id, _)| (*id, Instant::now()));
        Self { leaving: leaving.collect(), nodes, known, ..Self::default() }
    }

    /// As the core knows them.
    pub(super) fn of_core(&self) -> BTreeMap<NodeId, Node> {
        self.known.iter().map(|(id, known)| (*id, known.node.clone())).collect()
    }

    /// Whether anything can be started there.
    pub(super) fn has(&self, node: NodeId) -> bool {
        node == NodeId::HOME || self.known.contains_key(&node)
    }

    /// Whether nothing that has not begun there is to begin there.
    pub(super) fn is_leaving(&self, node: NodeId) -> bool {
        self.leaving.contains_key(&node)
    }

    /// How often it is looked after.
    pub(super) fn interval(&self) -> Duration {
        match &self.nodes {
            Some(_) if !self.leaving.is_empty() => LEAVING_LOOK_INTERVAL,
            Some(nodes) => LOOK_INTERVAL.min(nodes.leash() / 4),
            None => LOOK_INTERVAL,
        }
    }

    pub(super) fn release_gpus(&mut self, key: Key) {
        self.gpus.values_mut().for_each(|gpus| gpus.release(key));
    }
}

impl Local {
    pub(super) fn hear_of_nodes(&mut self, tidings: Tidings) {
        match tidings {
            Tidings::Reached { slot, how: Reached::Gone(ended) } => self.cleared(slot, ended),
            Tidings::Reached { slot, how: Reached::Shim(stream) } => {
                if let Err(error) = self.slots.go_on(slot, stream) {
                    tracing::warn!(slot, %error, "a shim that was found again cannot be spoken to");
                    self.look_elsewhere(slot);
                }
            }
            Tidings::Changed(known) => {
                let now = Instant::now();
                self.elsewhere.leaving.retain(|id, _| known.get(id).is_some_and(|worker| worker.is_leaving));
                for (id, _) in known.iter().filter(|(_, worker)| worker.is_leaving) {
                    self.elsewhere.leaving.entry(*id).or_insert(now);
                }
                let gpus_of = |id: &NodeId| known.get(id).map(|worker| &worker.gpus);
                let former = std::mem::take(&mut self.elsewhere.gpus);
                let same = |id: &NodeId| gpus_of(id) == self.elsewhere.known.get(id).map(|worker| &worker.gpus);
                self.elsewhere.gpus = former.into_iter().filter(|(id, _)| same(id)).collect();
                self.elsewhere.known = known;
                self.events.push(Event::NodesChanged { nodes: self.elsewhere.of_core() });
            }
        }
    }

    /// Has the shim of a slot on another machine looked for.
    pub(super) fn look_elsewhere(&mut self, slot: u32) {
        if let Some(nodes) = &self.elsewhere.nodes {
            nodes.reach(slot, &self.slots.path(slot), self.slots.node(slot));
        }
    }

    /// A shim that was found again says what it has: what it has not, and was handed, it has never heard of.
    pub(super) fn found_again(&mut self, number: u32, hello: Hello) {
        let place = Place::Slot(number);
        let running = hello.running.map(|(key, at)| {
            self.attempts.log_at(key, self.slots.path(number), true);
            self.events.push(Event::Started { execution: key.execution, attempt: key.attempt, at });
            key
        });
        let lasting: Vec<Key> = running.into_iter().chain(hello.queued).collect();
        let told_to_end = |key: &Key| self.attempts.get(*key).is_some_and(|known| known.killed);
        let to_end: Vec<Key> = lasting.iter().copied().filter(told_to_end).collect();
        if let Some(shim) = self.slots.shim_mut(number) {
            shim.handed.extend(lasting.iter().map(|key| (*key, (key.execution.run, key.execution.step))));
            to_end.into_iter().for_each(|key| shim.say(&ToShim::Kill(key)));
        }
        self.take_in_ends(number, hello.ended);
        let is_missing = |key: &Key| {
            let known = self.attempts.get(*key);
            known.is_some_and(|known| known.place == Some(place) && matches!(known.phase, Phase::Handed { .. }))
                && !lasting.contains(key)
        };
        let missing: Vec<Key> = self.attempts.keys().filter(is_missing).collect();
        missing.into_iter().for_each(|key| self.hand_again(key));
    }

    /// An attempt whose machine is gone, and that has not begun there.
    pub(super) fn forsaken(&mut self, key: Key) {
        self.release_gpus(key);
        let why = "the worker that was to run it is lost, or has left";
        let end: End = recovery::interrupted(wall_clock(), why.to_owned());
        if let Some(known) = self.attempts.get_mut(key) {
            known.phase = Phase::Ended { left: end.left.clone(), ran: None };
        }
        let (execution, attempt) = (key.execution, key.attempt);
        self.events.push(Event::Exited { execution, attempt, exit: recovery::exit(&end, 0), stored: None });
    }

    pub(super) fn release_gpus(&mut self, key: Key) {
        self.gpus.release(key);
        self.elsewhere.release_gpus(key);
    }

    /// The GPUs of a machine.
    pub(super) fn gpus_of(&mut self, node: NodeId) -> std::io::Result<&mut HeldGpus> {
        if node == NodeId::HOME {
            return Ok(&mut self.gpus);
        }
        let elsewhere = &mut self.elsewhere;
        if !elsewhere.gpus.contains_key(&node) {
            let (name, kinds) = elsewhere
                .known
                .get(&node)
                .map_or_else(Default::default, |worker| (worker.name.as_str(), worker.gpus.clone()));
            let folder = self.surroundings.data_dir().join("workers").join(format!("gpus-{}", plain(name)));
            let there = |key: &Key| self.attempts.get(*key).is_some_and(|known| known.node == node);
            let held = HeldGpus::open(&folder, kinds, self.attempts.keys().filter(there))?;
            elsewhere.gpus.insert(node, held);
        }
        Ok(elsewhere.gpus.get_mut(&node).expect("it is there now"))
    }

    pub(super) fn look_after_nodes_if_due(&mut self, at: &mut Instant) {
        let now = Instant::now();
        *at = (*at).min(now + self.elsewhere.interval());
        if now >= *at {
            self.look_after_nodes();
            *at = now + self.elsewhere.interval();
        }
    }

    /// Keeps in touch with shims elsewhere, lets workers go that leave, and clears away what belonged to those that are gone.
    fn look_after_nodes(&mut self) {
        let Some(nodes) = self.elsewhere.nodes.clone() else { return };
        let leaving: BTreeSet<NodeId> = self.elsewhere.leaving.keys().copied().collect();
        self.slots.keep_in_touch(&leaving);
        let (attempts, slots) = (&self.attempts, &self.slots);
        let unfinished = |node: NodeId| {
            let is_there = |key| attempts.get(key).is_some_and(|known| known.node == node && known.is_unfinished());
            attempts.keys().any(is_there)
        };
        let done = self.elsewhere.leaving.iter().filter(|(_, since)| since.elapsed() >= LEAVING_MIN);
        let done: Vec<NodeId> =
            done.map(|(id, _)| *id).filter(|id| !slots.is_in_use(*id) && !unfinished(*id)).collect();
        for node in done {
            self.elsewhere.leaving.remove(&node);
            nodes.bid_farewell(node);
        }
        self.let_idle_nodes_go(&nodes);
        let gone = self.slots.empty_elsewhere().filter(|(_, node)| !self.elsewhere.has(*node));
        let gone: Vec<u32> = gone.map(|(number, _)| number).collect();
        for number in gone {
            let holds = |key| self.attempts.get(key).is_some_and(|known| known.place == Some(Place::Slot(number)));
            let removed = if self.attempts.keys().any(holds) {
                self.slots.forget_worker(number)
            } else {
                self.slots.remove(number).map_or(Ok(()), |path| remove_whatever(&path))
            };
            if let Err(error) = removed {
                tracing::warn!(slot = number, %error, "a slot of a worker that is gone cannot be removed");
            }
        }
    }
}

impl Local {
    /// Has workers leave that have had nothing to do for as long as they wait for work.
    fn let_idle_nodes_go(&mut self, nodes: &Nodes) {
        let (attempts, elsewhere) = (&self.attempts, &mut self.elsewhere);
        let waits = |known: &Known| known.idle.filter(|_| known.node.is_open);
        if elsewhere.known.values().all(|known| waits(known).is_none()) {
            return elsewhere.idle.clear();
        }
        let unfinished = |key| attempts.get(key).filter(|known| known.is_unfinished()).map(|known| known.node);
        let busy: BTreeSet<NodeId> = attempts.keys().filter_map(unfinished).collect();
        let is_idle = |id: &NodeId| !busy.contains(id) && elsewhere.known.contains_key(id);
        elsewhere.idle.retain(|id, _| is_idle(id));
        for (id, known) in elsewhere.known.iter().filter(|(id, _)| !busy.contains(id)) {
            let since = *elsewhere.idle.entry(*id).or_insert_with(Instant::now);
            if waits(known).is_some_and(|idle| since.elapsed() >= idle) {
                nodes.let_leave(*id);
            }
        }
    }
}

/// As the name of a folder.
fn plain(name: &str) -> String {
    name.chars()
        .map(|letter| if letter.is_ascii_alphanumeric() || "-_".contains(letter) { letter } else { '_' })
        .collect()
}

/// What was found in all slots that are on other machines: nothing is begun before it is known what runs there.
pub(super) struct Hearing<'a> {
    nodes: &'a Nodes,
    orders: &'a Receiver<Order>,
    heard: BTreeMap<u32, Reached>,
}

impl<'a> Hearing<'a> {
    /// Waits until each worker has answered for its slots, or is lost.
    pub(super) fn begin<'b>(
        nodes: &'a Nodes,
        orders: &'a Receiver<Order>,
        slots: impl Iterator<Item = &'b Slot>,
    ) -> anyhow::Result<Self> {
        let mut missing = BTreeSet::new();
        for slot in slots.filter(|slot| slot.node != NodeId::HOME) {
            nodes.reach(slot.number, &slot.path, slot.node);
            missing.insert(slot.number);
        }
        if !missing.is_empty() {
            tracing::info!(slots = missing.len(), "the agent hears its workers first");
        }
        let mut hearing = Self { nodes, orders, heard: BTreeMap::new() };
        hearing.wait_for(missing)?;
        Ok(hearing)
    }

    /// What a live shim has, or how the attempts of the slot have ended.
    pub(super) fn hear(&mut self, slot: &mut Slot) -> anyhow::Result<Result<Hello, Vec<(Key, End)>>> {
        loop {
            let stream = match self.heard.remove(&slot.number) {
                Some(Reached::Gone(ended)) => return Ok(Err(ended)),
                Some(Reached::Shim(stream)) => stream,
                None => {
                    self.nodes.reach(slot.number, &slot.path, slot.node);
                    self.wait_for(BTreeSet::from([slot.number]))?;
                    continue;
                }
            };
            match slot.greet(stream) {
                Ok(Some(hello)) => return Ok(Ok(hello)),
                // Its worker went away meanwhile.
                Ok(None) => {}
                Err(error) => tracing::warn!(slot = slot.number, %error, "a shim on another machine is asked again"),
            }
        }
    }

    fn wait_for(&mut self, mut missing: BTreeSet<u32>) -> anyhow::Result<()> {
        while !missing.is_empty() {
            match self.orders.recv_timeout(self.nodes.leash() / 4) {
                Ok(Order::OfNodes(Tidings::Reached { slot, how })) => {
                    missing.remove(&slot);
                    self.heard.insert(slot, how);
                }
                Ok(_) | Err(RecvTimeoutError::Timeout) => {}
                Err(error @ RecvTimeoutError::Disconnected) => return Err(error.into()),
            }
            self.keep_in_touch();
        }
        Ok(())
    }

    /// Those that have answered are not to give up while others are waited for.
    fn keep_in_touch(&mut self) {
        let mut word = Vec::new();
        protocol::encode(&ToShim::Forget(Vec::new()), &mut word);
        for reached in self.heard.values_mut() {
            if let Reached::Shim(stream) = reached {
                // One that is gone is found out when it is to greet.
                let _ = stream.write_all(&word);
            }
        }
    }
}
