//! The slots of a site: which of them live, and which is next.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::io;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use atoll_model::action::Warm;
use site_agent_core::event::NodeId;

use super::LocalOptions;
use super::cgroups::AgentCgroups;
use super::slot::{Shim, ShimError, Slot, SlotState, StepKey};
use crate::config::ShimProgram;
use crate::nodes::Nodes;
use crate::shim::protocol::{Common, Hello, Isolation, Key, Setup, SlotCgroups, SlotSetup, ToShim, WARMS_UP};
use crate::shim::{make_private, remove_whatever};

/// So many workers wait at most, if other work needs a slot; then the one goes that has waited longest.
const WARM_IDLE_MAX: usize = 8;

/// In a slot on another machine: the name of that machine's worker.
const WORKER: &str = "worker";
/// Where a slot is of whose machine nothing is known any more.
pub(super) const NOWHERE: NodeId = NodeId(u32::MAX);

/// Tells workers apart.
pub(super) type Warmth = u64;

/// The worker that executions call which have this in common, if they call one.
pub(super) fn warmth(common: &Common) -> Option<Warmth> {
    let mut hasher = DefaultHasher::new();
    common.worker.is_some().then(|| {
        common.of_worker().hash(&mut hasher);
        hasher.finish()
    })
}

/// What a slot must be for executions that have this in common.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wanted {
    /// The machine that it is on.
    pub(super) node: NodeId,
    /// The worker that they call.
    pub(super) warmth: Option<Warmth>,
    pub(super) confined: bool,
    /// Without namespaces of its own.
    pub(super) plain: bool,
    /// Of the protocol that its shim speaks, at least.
    pub(super) version: u8,
}

impl Wanted {
    pub(super) fn by(common: &Common, node: NodeId) -> Self {
        Self {
            node,
            warmth: warmth(common),
            confined: common.confined,
            plain: common.container.is_some(),
            version: common.version(),
        }
    }
}

#[derive(Debug)]
pub(super) struct Slots {
    folder: PathBuf,
    processes_max: Option<u32>,
    data_dir: PathBuf,
    program: ShimProgram,
    cgroups: AgentCgroups,
    slots: BTreeMap<u32, Slot>,
    complained: bool,
    nodes: Option<Nodes>,
}

/// A slot whose shim has gone.
#[derive(Debug)]
pub(super) struct LostSlot {
    pub number: u32,
    pub node: NodeId,
    pub path: PathBuf,
    pub cgroups: SlotCgroups,
}

impl Slots {
    pub(super) fn open(options: &LocalOptions, nodes: Option<Nodes>) -> anyhow::Result<Self> {
        let folder = options.slots_dir.clone();
        make_private(&folder)?;
        make_private(&options.data_dir.join("scripts"))?;
        let mut slots = BTreeMap::new();
        for entry in std::fs::read_dir(&folder)? {
            if let Some(number) = entry?.file_name().to_str().and_then(|name| name.parse().ok()) {
                let mut slot = Slot::new(&folder, number);
                if let Some(worker) = worker_of(&slot.path)? {
                    slot.node = nodes.as_ref().and_then(|nodes| nodes.named(&worker)).unwrap_or(NOWHERE);
                }
                slots.insert(number, slot);
            }
        }
        let cgroups = AgentCgroups::make(&options.data_dir);
        let (memory, cpu) = cgroups.limits();
        if !(memory && cpu) {
            tracing::warn!(
                memory,
                cpu,
                "this agent may not make control groups: limits are those that a process inherits"
            );
        }
        let (data_dir, program) = (options.data_dir.clone(), options.program.clone());
        let processes_max = options.isolation.settings.processes;
        Ok(Self { folder, processes_max, data_dir, program, cgroups, slots, complained: false, nodes })
    }

    pub(super) fn all_mut(&mut self) -> impl Iterator<Item = &mut Slot> {
        self.slots.values_mut()
    }

    pub(super) fn cgroups_of(&self, number: u32) -> SlotCgroups {
        self.cgroups.for_slot(number)
    }

    pub(super) fn live(&self) -> impl Iterator<Item = u32> + '_ {
        self.slots.values().filter(|slot| slot.shim().is_some()).map(|slot| slot.number)
    }

    pub(super) fn path(&self, number: u32) -> PathBuf {
        self.folder.join(number.to_string())
    }

    pub(super) fn shim(&self, number: u32) -> Option<&Shim> {
        self.slots.get(&number).and_then(Slot::shim)
    }

    pub(super) fn shim_mut(&mut self, number: u32) -> Option<&mut Shim> {
        self.slots.get_mut(&number).and_then(Slot::shim_mut)
    }

    /// The end of an attempt is durable elsewhere: neither the slot's shim nor its next one need remember it.
    pub(super) fn forget(&mut self, number: u32, key: Key) {
        match self.slots.get_mut(&number) {
            Some(Slot { state: SlotState::Live(shim), .. }) => shim.forget(key),
            Some(slot) => drop(slot.forgotten.insert(key)),
            None => {}
        }
    }

    pub(super) fn isolation(&self, number: u32) -> Option<Isolation> {
        self.shim(number).and_then(|shim| shim.isolation)
    }

    /// The slot for an attempt: the one with the least to do of those with work of its step if these are as many as the
    /// step has room for (`ahead`), else one that has nothing to do, if need be a new one.
    /// Of idle ones, one whose worker waits for just this is taken first, and one that no worker waits in before one in
    /// which another does.
    pub(super) fn choose(&mut self, step: StepKey, ahead: Option<u32>, wanted: Wanted) -> Result<u32, ShimError> {
        if let Some(lanes) = ahead {
            let of_step = self.of_node(wanted.node).filter_map(|slot| {
                let queue = &slot.shim().filter(|shim| shim.suits(wanted))?.handed;
                // What a slot is handed is of one step but where steps take turns, so the first is nearly always one.
                queue.iter().any(|(_, handed)| *handed == step).then_some((queue.len(), slot.number))
            });
            let (count, least) = of_step.fold((0, None), |(count, least), one| {
                (count + 1, Some(least.map_or(one, |least: (usize, u32)| least.min(one))))
            });
            if let Some((_, number)) = least.filter(|_| count >= lanes) {
                return Ok(number);
            }
        }
        if let Some(number) = self.idle(wanted) {
            return Ok(number);
        }
        self.open_slot(wanted)
    }

    /// A slot with a new shim.
    fn open_slot(&mut self, wanted: Wanted) -> Result<u32, ShimError> {
        let is_empty = |slot: &&Slot| matches!(slot.state, SlotState::Empty);
        let empty = self.of_node(wanted.node).find(is_empty).map(|slot| slot.number);
        let number =
            empty.unwrap_or_else(|| (0..).find(|number| !self.slots.contains_key(number)).expect("numbers do not end"));
        self.start(number, wanted)?;
        Ok(number)
    }

    /// Has as many workers wait at this machine for executions that have this in common as are to wait at any time; those count
    /// that are there. None is started in place of another.
    pub(super) fn warm_up(&mut self, common: &Common) -> Result<(), ShimError> {
        let wanted = Wanted::by(common, NodeId::HOME);
        let wanted = Wanted { version: wanted.version.max(WARMS_UP), ..wanted };
        let shims = || self.of_node(NodeId::HOME).filter_map(|slot| Some((slot.number, slot.shim()?)));
        let there = shims().filter(|(_, shim)| shim.warmth == wanted.warmth).count();
        let is_cold = |shim: &Shim| shim.is_idle() && !shim.asked_back && shim.warmth.is_none() && shim.suits(wanted);
        let mut cold: Vec<u32> = shims().filter(|(_, shim)| is_cold(shim)).map(|(number, _)| number).collect();
        let most = common.warm.map_or(0, |warm| warm.min as usize).min(WARM_IDLE_MAX);
        for _ in there..most {
            let number = cold.pop().map_or_else(|| self.open_slot(wanted), Ok)?;
            self.shim_mut(number).into_iter().for_each(|shim| shim.warm_up(common));
        }
        Ok(())
    }

    fn idle(&self, wanted: Wanted) -> Option<u32> {
        let idle = || {
            self.of_node(wanted.node).filter_map(|slot| {
                let can_take = |shim: &&Shim| shim.is_idle() && !shim.asked_back && shim.suits(wanted);
                Some((slot.number, slot.shim().filter(can_take)?))
            })
        };
        let (mut cold, mut others) = (None, 0);
        for (number, shim) in idle() {
            match shim.warmth {
                warm if warm.is_some() && warm == wanted.warmth => return Some(number),
                None => cold = cold.or(Some(number)),
                Some(_) => others += 1,
            }
        }
        let longest_idle = || idle().min_by_key(|(_, shim)| shim.idle_since).map(|(number, _)| number);
        cold.or_else(|| (others >= WARM_IDLE_MAX).then(longest_idle).flatten())
    }

    fn of_node(&self, node: NodeId) -> impl Iterator<Item = &Slot> {
        self.slots.values().filter(move |slot| slot.node == node)
    }

    fn start(&mut self, number: u32, wanted: Wanted) -> Result<(), ShimError> {
        let is_here = wanted.node == NodeId::HOME;
        let setup = Setup {
            slot: self.path(number),
            read_only: if self.folder.starts_with(&self.data_dir) {
                vec![self.data_dir.clone()]
            } else {
                vec![self.data_dir.clone(), self.folder.clone()]
            },
            hidden: ["identity", "journal", "workers"].map(|name| self.data_dir.join(name)).to_vec(),
            no_namespace: wanted.plain,
            // Another machine has its own.
            cgroups: if is_here { self.cgroups.for_slot(number) } else { SlotCgroups::default() },
        };
        let (confined, processes_max) = (wanted.confined, self.processes_max);
        let slot = self.slots.entry(number).or_insert_with(|| Slot::new(&self.folder, number));
        let nodes = self.nodes.as_ref().filter(|_| !is_here);
        let Some(nodes) = nodes else {
            return slot.start(&self.program, &SlotSetup { setup, confined, processes_max, leash: None });
        };
        slot.node = wanted.node;
        let leash = Some(nodes.leash());
        start_elsewhere(slot, nodes, &SlotSetup { setup, confined, processes_max, leash })
    }

    pub(super) fn node(&self, number: u32) -> NodeId {
        self.slots.get(&number).map_or(NodeId::HOME, |slot| slot.node)
    }

    /// A shim on another machine is connected again.
    pub(super) fn go_on(&mut self, number: u32, stream: UnixStream) -> io::Result<()> {
        self.slots.get_mut(&number).map_or(Ok(()), |slot| slot.go_on(stream))
    }

    /// Slots on other machines in which nothing lives and nothing is to be cleared.
    pub(super) fn empty_elsewhere(&self) -> impl Iterator<Item = (u32, NodeId)> + '_ {
        let empty = self.slots.values().filter(|slot| matches!(slot.state, SlotState::Empty));
        empty.filter(|slot| slot.node != NodeId::HOME).map(|slot| (slot.number, slot.node))
    }

    /// Whether anything of a machine lives, or is looked for.
    pub(super) fn is_in_use(&self, node: NodeId) -> bool {
        self.of_node(node).any(|slot| !matches!(slot.state, SlotState::Empty))
    }

    /// A slot of a machine that is gone holds what is still taken in: the next agent need not wait for it.
    pub(super) fn forget_worker(&self, number: u32) -> io::Result<()> {
        remove_whatever(&self.path(number).join(WORKER))
    }

    /// Takes a slot out of the list; its folder is the caller's to remove.
    pub(super) fn remove(&mut self, number: u32) -> Option<PathBuf> {
        self.slots.remove(&number).map(|slot| slot.path)
    }

    /// Says to shims elsewhere that they are not forgotten, and to those of machines in `leaving` that they may go as soon as
    /// they have nothing to do.
    pub(super) fn keep_in_touch(&mut self, leaving: &BTreeSet<NodeId>) {
        for slot in self.slots.values_mut().filter(|slot| slot.node != NodeId::HOME) {
            let SlotState::Live(shim) = &mut slot.state else { continue };
            if leaving.contains(&slot.node) && shim.is_idle() && !shim.is_found {
                // It is asked again: it stays as long as it knows of an end that it may not forget.
                shim.asked_back = true;
                shim.say(&ToShim::Quit);
            } else {
                shim.say(&ToShim::Forget(Vec::new()));
            }
        }
    }

    pub(super) fn greeted(&mut self, number: u32, hello: &Hello) {
        if !self.complained && !hello.complaints.is_empty() {
            // Said once: it is the same for every slot of this machine.
            self.complained = true;
            for complaint in &hello.complaints {
                tracing::warn!(complaint, "executions are isolated less than they could be");
            }
        }
        if let Some(shim) = self.shim_mut(number) {
            shim.isolation = Some(hello.isolation);
        }
    }

    /// Lets shims go that have had nothing to do for long, and those in which a worker waits after another time.
    pub(super) fn let_idle_go(&mut self, idle_max: Duration, warm_max: Duration) {
        let now = Instant::now();
        let mut idle: Vec<&mut Shim> = self.slots.values_mut().filter_map(Slot::shim_mut).collect();
        idle.retain(|shim| shim.is_idle() && !shim.asked_back);
        // Who has waited least waits on.
        idle.sort_by_key(|shim| std::cmp::Reverse(shim.idle_since));
        let mut alike: BTreeMap<Warmth, u32> = BTreeMap::new();
        for shim in idle {
            let idle = now.saturating_duration_since(shim.idle_since);
            let goes = match shim.warmth {
                None => idle >= idle_max,
                Some(warmth) => {
                    let before = alike.entry(warmth).or_default();
                    *before += 1;
                    is_spare(shim.warm.unwrap_or_default(), *before - 1, idle, warm_max)
                }
            };
            if goes {
                shim.asked_back = true;
                shim.say(&ToShim::Quit);
            }
        }
    }

    /// Takes a slot out of use whose shim has gone.
    pub(super) fn lose(&mut self, number: u32) -> Option<LostSlot> {
        let node = self.node(number);
        let cgroups = if node == NodeId::HOME { self.cgroups.for_slot(number) } else { SlotCgroups::default() };
        let slot = self.slots.get_mut(&number)?;
        let SlotState::Live(shim) = &mut slot.state else { return None };
        // What it is of a machine that cannot be reached is not known yet.
        let expected = (shim.asked_back && shim.is_idle()) || node != NodeId::HOME;
        shim.bury();
        if let (false, words) = (expected, slot.last_words()) {
            tracing::error!(slot = number, words, "a shim has died");
        }
        slot.state = SlotState::Clearing;
        Some(LostSlot { number, node, path: slot.path.clone(), cgroups })
    }

    pub(super) fn cleared(&mut self, number: u32) {
        if self.node(number) == NodeId::HOME {
            self.cgroups.remove_slot(number);
        }
        if let Some(slot) = self.slots.get_mut(&number) {
            slot.state = SlotState::Empty;
        }
    }
}

/// Has a shim started by the worker of another machine.
fn start_elsewhere(slot: &mut Slot, nodes: &Nodes, setup: &SlotSetup) -> Result<(), ShimError> {
    let prepare = |path: &Path| {
        let path = path.to_owned();
        move |source| ShimError::Prepare { path, source }
    };
    let known = nodes.known().remove(&slot.node);
    if let Some(worker) = &known {
        make_private(&slot.path).map_err(prepare(&slot.path))?;
        std::fs::write(slot.path.join(WORKER), &worker.name).map_err(prepare(&slot.path))?;
    }
    let stream = nodes.start_shim((slot.number, &slot.path), slot.node, setup, &slot.forgotten);
    slot.begin(stream.map_err(prepare(&slot.path))?, None, setup)?;
    if let (Some(shim), Some(worker)) = (slot.shim_mut(), known) {
        shim.set_version(worker.version);
    }
    Ok(())
}

/// The worker of a slot that is on another machine.
///
/// # Errors
/// When it cannot be read.
pub(super) fn worker_of(slot: &Path) -> io::Result<Option<String>> {
    match std::fs::read_to_string(slot.join(WORKER)) {
        Ok(name) => Ok(Some(name)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Whether a worker need not wait any longer before which so many like it wait.
fn is_spare(warm: Warm, before: u32, idle: Duration, idle_max: Duration) -> bool {
    before >= warm.min && (warm.max.is_some_and(|max| before >= max) || idle >= warm.lasts.unwrap_or(idle_max))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn so_many_workers_wait_as_their_action_says_and_for_as_long() {
        let (short, long) = (Duration::from_secs(59), Duration::from_secs(61));
        let spare = |warm, before, idle| is_spare(warm, before, idle, Duration::from_secs(60));
        assert!(!spare(Warm::default(), 0, short) && spare(Warm::default(), 0, long));
        let warm = Warm { min: 1, max: Some(2), lasts: None };
        assert_eq!([0, 1, 2].map(|before| spare(warm, before, short)), [false, false, true]);
        assert_eq!([0, 1, 2].map(|before| spare(warm, before, long)), [false, true, true]);
        let lasting = Warm { lasts: Some(Duration::from_secs(3600)), ..Warm::default() };
        assert!(!spare(lasting, 7, long));
    }
}
