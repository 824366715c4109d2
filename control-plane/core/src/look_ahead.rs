//! Looking ahead over the whole of a run: where the work that is not placed yet should go, so that few bytes cross borders
//! and it ends soon. A pure function from a [`Graph`] to an [`Outlook`], the same every time, in a time that is bounded.
//!
//! Placement by itself sees one step at a time: it leaves work where its data is until a queue is too long, and then cuts
//! wherever it happens to be. Here the graph is partitioned first, with bytes as what a cut costs and run time as what a
//! site carries, and of several partitions the one is taken that a schedule says is best.

mod graph;
mod level;
mod partition;
mod random;
mod refine;
mod schedule;

pub use graph::{Graph, Item, Links, SITES_MAX, Site, SiteSet, Unit};
pub use schedule::{Scheduler, Times};

use level::Level;
use refine::{Parts, Quality};

/// What is to be little.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Aim {
    /// Of partitions that end about as soon as any, the one that moves fewest bytes.
    Time,
    /// Of partitions that move about as few bytes as any, the one that ends soonest.
    Bytes,
}

/// How a whole is to be distributed.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Goal {
    pub aim: Aim,
    /// Of the run time of the whole, what one site may have at most.
    pub share_max: f64,
    /// Time that the search may take, in steps of its innermost loops, roughly: about ten million in a second.
    /// With none, nobody looks ahead.
    pub effort: usize,
}

/// What "about as" means for an [`Aim`].
const TOLERANCE: f64 = 0.05;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outlook {
    /// By unit.
    pub site_of: Vec<u8>,
    pub crossing_bytes: u64,
    pub makespan_micros: u64,
}

/// The distribution that moves fewest bytes under the bound, whatever the time.
pub fn least_bytes(graph: &Graph, share_max: f64, effort: usize) -> Outlook {
    let level = Level::new(graph);
    let (_, site_of) = partition::partition(graph, &level, &caps(graph, share_max), tries(graph, effort), SEED);
    outlook(graph, &Scheduler::new(graph), site_of)
}

const SEED: u64 = 1;

/// The distribution that serves the goal best, of those that were found.
pub fn look_ahead(graph: &Graph, goal: Goal) -> Outlook {
    let level = Level::new(graph);
    let scheduler = Scheduler::new(graph);
    let bounds = caps(graph, goal.share_max);
    let mut found = Vec::new();
    let mut add = |site_of: Vec<u8>| {
        let quality = Parts::new(&level, &bounds, &spent(graph), site_of.clone()).quality();
        found.push((quality, scheduler.makespan(&site_of), site_of));
    };
    let even = 1.0 / graph.sites.len() as f64;
    let shares = [goal.share_max, (goal.share_max + even) / 2.0, even * 1.1, even * 1.02];
    for (number, share) in (0..).zip(shares) {
        let share = share.min(goal.share_max);
        let tries = if number == 0 { tries(graph, goal.effort) } else { tries(graph, goal.effort).div_ceil(4) };
        let (_, site_of) = partition::partition(graph, &level, &caps(graph, share), tries, SEED + number);
        add(partition::improve(graph, &level, &bounds, site_of.clone()).1);
        add(site_of);
    }
    if goal.share_max >= 1.0 {
        for site in 0..graph.sites.len() {
            if graph.units.iter().all(|unit| unit.sites.contains(site)) {
                add(vec![site as u8; graph.units.len()]);
            }
        }
    }
    let excess = found.iter().map(|(quality, ..)| quality.excess).min().unwrap_or(0);
    found.retain(|(quality, ..)| quality.excess <= excess);
    let (cut_limit, best) = choose(goal.aim, found);
    let site_of = polish(&scheduler, &level, &bounds, (cut_limit, goal.effort), best);
    outlook(graph, &scheduler, site_of)
}

/// The best one, and the bytes that it may be made to move at most.
fn choose(aim: Aim, found: Vec<(Quality, u64, Vec<u8>)>) -> (i64, Vec<u8>) {
    let least = found.iter().map(|(quality, ..)| quality.cut).min().unwrap_or(0);
    let soonest = found.iter().map(|(_, makespan, _)| *makespan).min().unwrap_or(0);
    let within = |value: f64, best: f64| value <= best * (1.0 + TOLERANCE);
    let best = match aim {
        Aim::Bytes => found
            .into_iter()
            .filter(|(quality, ..)| within(quality.cut as f64, least as f64))
            .min_by_key(|(quality, makespan, _)| (*makespan, quality.cut)),
        Aim::Time => found
            .into_iter()
            .filter(|(_, makespan, _)| within(*makespan as f64, soonest as f64))
            .min_by_key(|(quality, makespan, _)| (quality.cut, *makespan)),
    };
    let (quality, _, site_of) = best.expect("the best is as good as itself");
    let limit = match aim {
        Aim::Bytes => (least as f64 * (1.0 + TOLERANCE)) as i64,
        Aim::Time => quality.cut,
    };
    (limit, site_of)
}

/// Moves single units as long as it ends sooner by that, within the limits.
fn polish(
    scheduler: &Scheduler<'_>,
    level: &Level,
    bounds: &[u64],
    (cut_limit, effort): (i64, usize),
    site_of: Vec<u8>,
) -> Vec<u8> {
    let graph = scheduler.graph;
    let mut parts = Parts::new(level, bounds, &spent(graph), site_of);
    let excess = parts.quality().excess;
    let mut makespan = scheduler.makespan(&parts.site_of);
    let mut left = effort / size(graph);
    let mut random = random::Random::new(SEED);
    loop {
        let before = makespan;
        for unit in random.order(graph.units.len()) {
            for to in 0..bounds.len() {
                let from = usize::from(parts.site_of[unit]);
                if to == from || !graph.units[unit].sites.contains(to) || parts.cut - parts.gain(unit, to) > cut_limit {
                    continue;
                }
                let Some(fewer) = left.checked_sub(1) else { return parts.site_of };
                left = fewer;
                parts.shift(unit, to, &mut Vec::new());
                let now = scheduler.makespan(&parts.site_of);
                if now < makespan && parts.quality().excess <= excess {
                    makespan = now;
                } else {
                    parts.shift(unit, from, &mut Vec::new());
                }
            }
        }
        if makespan == before {
            return parts.site_of;
        }
    }
}

fn outlook(graph: &Graph, scheduler: &Scheduler<'_>, site_of: Vec<u8>) -> Outlook {
    let crossing_bytes = graph.crossing_bytes(&site_of);
    Outlook { crossing_bytes, makespan_micros: scheduler.makespan(&site_of), site_of }
}

fn caps(graph: &Graph, share: f64) -> Vec<u64> {
    let cap = (graph.micros() as f64 * share.min(1.0)) as u64;
    vec![cap; graph.sites.len()]
}

fn spent(graph: &Graph) -> Vec<u64> {
    graph.sites.iter().map(|site| site.spent_micros).collect()
}

/// Units, what they need, and pins.
fn size(graph: &Graph) -> usize {
    let needs: usize = graph.units.iter().map(|unit| unit.needs.len()).sum();
    let pins: usize = graph.items.iter().map(|item| item.readers.len() + 1).sum();
    (graph.units.len() + needs + pins).max(1)
}

/// Attempts at a partition: many where they cost little.
fn tries(graph: &Graph, effort: usize) -> usize {
    (effort / 100 / size(graph)).clamp(1, 64)
}
