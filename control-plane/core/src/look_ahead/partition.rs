//! A multilevel partition: clusters of units that have much in common are distributed first, then ever smaller ones, with
//! a refinement at each level. What is minimised is bytes that cross a border, each item once for each site that reads it.

use super::graph::Graph;
use super::level::Level;
use super::random::Random;
use super::refine::{Parts, Quality};

/// Clusters that are distributed at the coarsest level, for each site.
const COARSEST_PER_SITE: usize = 15;
/// Passes of refinement at one level.
const PASSES: usize = 8;

/// Nodes beyond which growing, whose time is quadratic, is left out where coarsening came to nothing.
const GROWN_MAX: usize = 1_000;

/// Ways to begin at the coarsest level.
#[derive(Debug, Clone, Copy)]
enum Beginning {
    /// One site after the other is filled with what has most in common with what it has.
    Growing,
    /// The same, by what is in common for each second of run time.
    GrowingDensely,
    Scattered,
}

/// The best partition of several, each begun elsewhere, with no more run time at a site than its cap as far as possible.
pub(super) fn partition(graph: &Graph, level: &Level, caps: &[u64], tries: usize, seed: u64) -> (Quality, Vec<u8>) {
    let mut best: Option<(Quality, Vec<u8>)> = None;
    let mut random = Random::new(seed);
    for _ in 0..tries.max(1) {
        let found = cycle(graph, level, caps, None, &mut random);
        if best.as_ref().is_none_or(|best| found < *best) {
            best = Some(found);
        }
    }
    let mut best = best.expect("at least one was made");
    for _ in 0..tries / 2 {
        // Again, among clusters that do not straddle the parts of the best.
        let found = cycle(graph, level, caps, Some(&best.1), &mut random);
        if found < best {
            best = found;
        }
    }
    best
}

/// Improves a partition that there is.
pub(super) fn improve(graph: &Graph, level: &Level, caps: &[u64], site_of: Vec<u8>) -> (Quality, Vec<u8>) {
    let mut parts = Parts::new(level, caps, &spent(graph), site_of);
    parts.refine(PASSES);
    (parts.quality(), parts.site_of)
}

fn spent(graph: &Graph) -> Vec<u64> {
    graph.sites.iter().map(|site| site.spent_micros).collect()
}

/// Down to the coarsest level and up again.
fn cycle(
    graph: &Graph,
    finest: &Level,
    caps: &[u64],
    within: Option<&Vec<u8>>,
    random: &mut Random,
) -> (Quality, Vec<u8>) {
    let spent = spent(graph);
    let smallest = COARSEST_PER_SITE * caps.len();
    let weight_max = caps.iter().copied().max().unwrap_or(0) / 3;
    let mut finer: Vec<(Level, Vec<u32>)> = Vec::new();
    let mut known = within.cloned();
    let mut level = finest.clone();
    while level.len() > smallest {
        let masked = known.as_ref().map(|known| level.kept_within(known));
        let Some((coarser, cluster_of)) = masked.as_ref().unwrap_or(&level).coarsen(weight_max, random) else { break };
        let coarser = coarser.allowed_as(&level, &cluster_of);
        known = known.map(|known| coarse_sites(&known, &cluster_of, coarser.len()));
        finer.push((std::mem::replace(&mut level, coarser), cluster_of));
    }
    let mut site_of = match known {
        Some(known) => {
            let mut parts = Parts::new(&level, caps, &spent, known);
            parts.refine(PASSES);
            parts.site_of
        }
        None => begin(&level, caps, &spent, random),
    };
    for (level, cluster_of) in finer.iter().rev() {
        site_of = cluster_of.iter().map(|cluster| site_of[*cluster as usize]).collect();
        let mut parts = Parts::new(level, caps, &spent, site_of);
        parts.refine(PASSES);
        site_of = parts.site_of;
    }
    let parts = Parts::new(finest, caps, &spent, site_of);
    (parts.quality(), parts.site_of)
}

fn coarse_sites(site_of: &[u8], cluster_of: &[u32], clusters: usize) -> Vec<u8> {
    let mut coarse = vec![0; clusters];
    for (site, cluster) in site_of.iter().zip(cluster_of) {
        coarse[*cluster as usize] = *site;
    }
    coarse
}

/// The best of some beginnings.
fn begin(level: &Level, caps: &[u64], spent: &[u64], random: &mut Random) -> Vec<u8> {
    let mut best: Option<(Quality, Vec<u8>)> = None;
    for beginning in [Beginning::Growing, Beginning::GrowingDensely, Beginning::Scattered, Beginning::GrowingDensely] {
        let site_of = match beginning {
            Beginning::Growing if level.len() <= GROWN_MAX => grow(level, caps, spent, false, random),
            Beginning::GrowingDensely if level.len() <= GROWN_MAX => grow(level, caps, spent, true, random),
            Beginning::Growing | Beginning::GrowingDensely | Beginning::Scattered => {
                scatter(level, caps, spent, random)
            }
        };
        let mut parts = Parts::new(level, caps, spent, site_of);
        parts.refine(PASSES);
        let found = (parts.quality(), parts.site_of);
        if best.as_ref().is_none_or(|best| found < *best) {
            best = Some(found);
        }
    }
    best.expect("some were made").1
}

/// Each node to the site with most room in proportion to its cap.
fn scatter(level: &Level, caps: &[u64], spent: &[u64], random: &mut Random) -> Vec<u8> {
    let mut loads = spent.to_vec();
    let mut order = random.order(level.len());
    order.sort_by_key(|node| std::cmp::Reverse(level.weights[*node]));
    let mut site_of = vec![0; level.len()];
    for node in order {
        let site = roomiest(level, node, caps, &loads);
        loads[site] += level.weights[node];
        site_of[node] = site as u8;
    }
    site_of
}

fn roomiest(level: &Level, node: usize, caps: &[u64], loads: &[u64]) -> usize {
    let allowed = (0..caps.len()).filter(|site| level.sites[node].contains(*site));
    let room = |site: &usize| (i128::from(caps[*site]) - i128::from(loads[*site]), std::cmp::Reverse(*site));
    allowed.max_by_key(room).unwrap_or(0)
}

/// Fills one site after the other, from a node that is drawn, with the neighbours of what is there.
fn grow(level: &Level, caps: &[u64], spent: &[u64], densely: bool, random: &mut Random) -> Vec<u8> {
    const NOWHERE: u8 = u8::MAX;
    let total: u64 = level.weights.iter().sum::<u64>() + spent.iter().sum::<u64>();
    let all_caps: u64 = caps.iter().sum::<u64>().max(1);
    let mut site_of = vec![NOWHERE; level.len()];
    let mut loads = spent.to_vec();
    let order = random.order(level.len());
    // The last one takes what is left.
    let first = random.below(caps.len());
    for site in (0..caps.len() - 1).map(|site| (site + first) % caps.len()) {
        let share = (u128::from(total) * u128::from(caps[site]) / u128::from(all_caps)) as u64;
        let goal = if random.below(2) == 0 { caps[site] } else { share };
        let mut ties = vec![0_i64; level.len()];
        loop {
            let free = order.iter().copied().filter(|node| {
                let fits = loads[site] + level.weights[*node] <= goal;
                site_of[*node] == NOWHERE && fits && level.sites[*node].contains(site)
            });
            let weighed = |node: &usize| {
                let weight = if densely { level.weights[*node] / 1_000 + 1 } else { 1 };
                i128::from(ties[*node]) * 1_000_000 / i128::from(weight)
            };
            let Some(node) = free.max_by_key(weighed) else { break };
            site_of[node] = site as u8;
            loads[site] += level.weights[node];
            for net in level.nets_of[node].iter().map(|net| &level.nets[*net as usize]) {
                let bytes = i64::try_from(net.bytes).unwrap_or(i64::MAX / 1_024);
                let pins = net.maker.iter().chain(&net.readers);
                pins.for_each(|pin| ties[*pin as usize] = ties[*pin as usize].saturating_add(bytes));
            }
        }
    }
    let last = (first + caps.len() - 1) % caps.len();
    for (node, site_of) in site_of.iter_mut().enumerate().filter(|(_, site)| **site == NOWHERE) {
        let there = level.sites[node].contains(last) && loads[last] + level.weights[node] <= caps[last];
        let site = if there { last } else { roomiest(level, node, caps, &loads) };
        loads[site] += level.weights[node];
        *site_of = site as u8;
    }
    site_of
}
