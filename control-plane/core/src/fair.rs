//! Who is next among steps that wait for the same: by priority, then by fair share between projects and between the runs
//! of each, then by age. A step stands here once, however many of its executions wait, and each move costs a few look-ups
//! in ordered maps.
//!
//! Shares are start-time fair queueing: what is served moves on in virtual time by what it got over its weight, and who
//! comes back after a while begins where those who are being served are. So nobody saves up turns, and nobody who comes
//! late waits for more than one turn of each of the others.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use atoll_model::id::{RunId, StepIndex};
use atoll_model::limits;
use atoll_model::time::Timestamp;

use crate::agenda::StepKey;

/// Virtual time of one execution at a share of 1.
const UNIT: u64 = 1 << 20;

/// What decides when it is the turn of a step.
#[derive(Debug, Clone)]
pub(crate) struct Standing {
    pub(crate) priority: i16,
    pub(crate) project: Arc<str>,
    /// Of the project.
    pub(crate) share: u32,
}

#[derive(Debug, Default)]
pub(crate) struct FairQueue {
    levels: BTreeMap<Reverse<i16>, Level>,
    members: BTreeMap<StepKey, (i16, Arc<str>)>,
    arrivals: u64,
}

/// Steps of one priority.
#[derive(Debug)]
struct Level {
    /// When one of them was last served, or the first one came.
    since: Timestamp,
    projects: Shares<Arc<str>>,
    runs: BTreeMap<Arc<str>, Shares<RunId>>,
    steps: BTreeMap<RunId, VecDeque<StepIndex>>,
}

impl FairQueue {
    pub(crate) fn len(&self) -> usize {
        self.members.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    pub(crate) fn push(&mut self, step: StepKey, standing: &Standing, now: Timestamp) {
        if self.members.contains_key(&step) {
            return;
        }
        self.members.insert(step, (standing.priority, Arc::clone(&standing.project)));
        self.arrivals += 1;
        let level = self.levels.entry(Reverse(standing.priority)).or_insert_with(|| Level::new(now));
        if level.steps.is_empty() {
            level.since = now;
        }
        level.push(step, &standing.project, self.arrivals);
    }

    /// The step whose turn it is.
    pub(crate) fn first(&self, now: Timestamp) -> Option<StepKey> {
        let aged = |(Reverse(priority), level): &(&Reverse<i16>, &Level)| {
            let waited = now.saturating_since(level.since).as_secs() / limits::AGEING.as_secs();
            (i64::from(*priority) + i64::try_from(waited).unwrap_or(i64::MAX / 2), *priority)
        };
        let (_, level) = self.levels.iter().filter(|(_, level)| !level.steps.is_empty()).max_by_key(aged)?;
        level.first()
    }

    /// Takes the step whose turn it is. It is charged with what it got by [`Self::charge`].
    pub(crate) fn pop(&mut self, now: Timestamp) -> Option<StepKey> {
        let step = self.first(now)?;
        self.remove(step);
        Some(step)
    }

    fn remove(&mut self, step: StepKey) {
        let (priority, project) = self.members.remove(&step).expect("what is taken out stands here");
        self.levels.get_mut(&Reverse(priority)).expect("members stand in a level").remove(step, &project);
    }

    /// Nobody is behind or before anybody any more.
    pub(crate) fn forget_shares(&mut self) {
        if self.members.is_empty() {
            self.levels.clear();
        }
    }

    /// Takes a run's steps out.
    pub(crate) fn take_run(&mut self, run: RunId) -> Vec<StepKey> {
        let steps: Vec<_> = self.members.range((run, StepIndex(0))..=(run, StepIndex(u16::MAX))).collect();
        let steps: Vec<_> = steps.into_iter().map(|(step, _)| *step).collect();
        steps.iter().for_each(|step| self.remove(*step));
        steps
    }

    /// So many executions of the step got what they waited for.
    pub(crate) fn charge(&mut self, run: RunId, standing: &Standing, count: u32, now: Timestamp) {
        let Some(level) = self.levels.get_mut(&Reverse(standing.priority)) else { return };
        level.since = now;
        let cost = UNIT.saturating_mul(u64::from(count));
        level.projects.charge(&standing.project, cost / u64::from(standing.share.max(1)));
        if let Some(runs) = level.runs.get_mut(&standing.project) {
            runs.charge(&run, cost);
        }
    }
}

impl Level {
    fn new(now: Timestamp) -> Self {
        Self { since: now, projects: Shares::default(), runs: BTreeMap::new(), steps: BTreeMap::new() }
    }

    fn push(&mut self, (run, step): StepKey, project: &Arc<str>, arrival: u64) {
        self.projects.insert(project, arrival);
        self.runs.entry(Arc::clone(project)).or_default().insert(&run, arrival);
        self.steps.entry(run).or_default().push_back(step);
    }

    fn first(&self) -> Option<StepKey> {
        let run = *self.runs.get(self.projects.first()?)?.first()?;
        Some((run, *self.steps.get(&run)?.front()?))
    }

    fn remove(&mut self, (run, step): StepKey, project: &Arc<str>) {
        let Some(steps) = self.steps.get_mut(&run) else { return };
        steps.retain(|waiting| *waiting != step);
        if !steps.is_empty() {
            return;
        }
        self.steps.remove(&run);
        let Some(runs) = self.runs.get_mut(project) else { return };
        runs.remove(&run);
        if runs.first().is_none() {
            self.projects.remove(project);
        }
    }
}

/// Those who share something, the one who had least of it first.
#[derive(Debug)]
struct Shares<K> {
    order: BTreeSet<(u64, u64, K)>,
    known: BTreeMap<K, Tag>,
    /// Where whoever was served last had begun.
    clock: u64,
}

#[derive(Debug, Clone, Copy)]
struct Tag {
    /// Virtual time.
    at: u64,
    arrival: u64,
    waits: bool,
}

impl<K> Default for Shares<K> {
    fn default() -> Self {
        Self { order: BTreeSet::new(), known: BTreeMap::new(), clock: 0 }
    }
}

impl<K: Ord + Clone> Shares<K> {
    fn insert(&mut self, who: &K, arrival: u64) {
        if self.known.len() > 16 + 2 * self.order.len() {
            let clock = self.clock;
            self.known.retain(|_, tag| tag.waits || tag.at > clock);
        }
        let fresh = Tag { at: self.clock, arrival, waits: false };
        let tag = self.known.entry(who.clone()).or_insert(fresh);
        if !tag.waits {
            *tag = Tag { at: tag.at.max(self.clock), arrival, waits: true };
            self.order.insert((tag.at, tag.arrival, who.clone()));
        }
    }

    fn first(&self) -> Option<&K> {
        self.order.first().map(|(_, _, who)| who)
    }

    /// Does not wait any more. What it is ahead of others is remembered until they are there too.
    fn remove(&mut self, who: &K) {
        if let Some(tag) = self.known.get_mut(who).filter(|tag| tag.waits) {
            tag.waits = false;
            self.order.remove(&(tag.at, tag.arrival, who.clone()));
        }
    }

    fn charge(&mut self, who: &K, cost: u64) {
        let Some(tag) = self.known.get_mut(who) else { return };
        self.clock = self.clock.max(tag.at);
        let before = *tag;
        tag.at = tag.at.saturating_add(cost);
        let after = *tag;
        if before.waits {
            self.order.remove(&(before.at, before.arrival, who.clone()));
            self.order.insert((after.at, after.arrival, who.clone()));
        }
    }
}
