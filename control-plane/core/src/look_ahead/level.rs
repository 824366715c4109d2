//! One level of a multilevel partition: a hypergraph whose nets are items and whose nodes are units, or clusters of them.

use std::collections::BTreeMap;

use super::graph::{Graph, Item, SiteSet};
use super::random::Random;

/// Items with more readers say little about who belongs to whom.
const PINS_WEIGHED_MAX: usize = 200;

#[derive(Debug, Clone)]
pub(super) struct Level {
    pub(super) weights: Vec<u64>,
    pub(super) sites: Vec<SiteSet>,
    pub(super) nets: Vec<Item>,
    /// Nets that a node makes or reads.
    pub(super) nets_of: Vec<Vec<u32>>,
}

impl Level {
    pub(super) fn new(graph: &Graph) -> Self {
        // One byte more for each: of two partitions that move as many bytes, the one that moves fewer items is better.
        let nets = graph.items.iter().map(|item| Item { bytes: item.bytes + 1, ..item.clone() });
        let weights = graph.units.iter().map(|unit| unit.micros).collect();
        Self::with(weights, graph.units.iter().map(|unit| unit.sites).collect(), nets)
    }

    /// Nets that nobody reads elsewhere whatever happens are left out, and those that are alike are made one.
    fn with(weights: Vec<u64>, sites: Vec<SiteSet>, nets: impl Iterator<Item = Item>) -> Self {
        let mut alike: BTreeMap<(Option<u32>, SiteSet, Vec<u32>), u64> = BTreeMap::new();
        for mut net in nets {
            net.readers.sort_unstable();
            net.readers.dedup();
            net.readers.retain(|reader| Some(*reader) != net.maker);
            if !net.readers.is_empty() {
                *alike.entry((net.maker, net.at, net.readers)).or_default() += net.bytes;
            }
        }
        let nets: Vec<_> =
            alike.into_iter().map(|((maker, at, readers), bytes)| Item { maker, at, readers, bytes }).collect();
        let mut nets_of = vec![Vec::new(); weights.len()];
        for (number, net) in (0..).zip(&nets) {
            net.maker.iter().chain(&net.readers).for_each(|node| nets_of[*node as usize].push(number));
        }
        Self { weights, sites, nets, nets_of }
    }

    pub(super) fn len(&self) -> usize {
        self.weights.len()
    }

    /// A level of clusters of at most two nodes each that have much in common, and the cluster of each node; nothing if
    /// hardly any go together.
    pub(super) fn coarsen(&self, weight_max: u64, random: &mut Random) -> Option<(Self, Vec<u32>)> {
        let mut cluster_of = vec![u32::MAX; self.len()];
        let mut weights = Vec::new();
        let mut sites: Vec<SiteSet> = Vec::new();
        let mut scores = vec![0.0; self.len()];
        // By the first net: the last node that no neighbour was found for.
        let mut alone: BTreeMap<Option<u32>, usize> = BTreeMap::new();
        for node in random.order(self.len()) {
            if cluster_of[node] != u32::MAX {
                continue;
            }
            let (mut weight, mut allowed) = (self.weights[node], self.sites[node]);
            let partner = self.partner(node, &cluster_of, weight_max, &mut scores);
            if partner.is_none()
                && let Some(twin) = alone.insert(self.nets_of[node].first().copied(), node)
                && weight + weights[cluster_of[twin] as usize] <= weight_max
                && !allowed.both(sites[cluster_of[twin] as usize]).is_empty()
            {
                // Both hang on the same item of many readers, or on nothing.
                alone.remove(&self.nets_of[node].first().copied());
                let cluster = cluster_of[twin] as usize;
                cluster_of[node] = cluster_of[twin];
                weights[cluster] += weight;
                sites[cluster] = sites[cluster].both(allowed);
                continue;
            }
            cluster_of[node] = u32::try_from(weights.len()).expect("as many as units");
            if let Some(partner) = partner {
                cluster_of[partner] = cluster_of[node];
                weight += self.weights[partner];
                allowed = allowed.both(self.sites[partner]);
            }
            weights.push(weight);
            sites.push(allowed);
        }
        if weights.len() * 20 > self.len() * 19 {
            return None;
        }
        let mapped = self.nets.iter().map(|net| Item {
            maker: net.maker.map(|maker| cluster_of[maker as usize]),
            at: net.at,
            readers: net.readers.iter().map(|reader| cluster_of[*reader as usize]).collect(),
            bytes: net.bytes,
        });
        let level = Self::with(weights, sites, mapped);
        Some((level, cluster_of))
    }

    /// The same, with each node bound to where it is.
    pub(super) fn kept_within(&self, site_of: &[u8]) -> Self {
        Self { sites: site_of.iter().map(|site| SiteSet::only(usize::from(*site))).collect(), ..self.clone() }
    }

    /// The same clusters, each allowed where all its nodes are.
    pub(super) fn allowed_as(mut self, finer: &Self, cluster_of: &[u32]) -> Self {
        let mut sites = vec![None; self.len()];
        for (allowed, cluster) in finer.sites.iter().zip(cluster_of) {
            let known: &mut Option<SiteSet> = &mut sites[*cluster as usize];
            *known = Some(known.map_or(*allowed, |known| known.both(*allowed)));
        }
        self.sites = sites.into_iter().map(Option::unwrap_or_default).collect();
        self
    }

    /// The free neighbour that a node has most bytes in common with.
    fn partner(&self, node: usize, cluster_of: &[u32], weight_max: u64, scores: &mut [f64]) -> Option<usize> {
        let mut touched = Vec::new();
        for net in self.nets_of[node].iter().map(|net| &self.nets[*net as usize]) {
            if net.readers.len() > PINS_WEIGHED_MAX {
                continue;
            }
            let share = net.bytes as f64 / net.readers.len() as f64;
            for other in net.maker.iter().chain(&net.readers).map(|other| *other as usize) {
                let is_free = other != node && cluster_of[other] == u32::MAX;
                let fits = self.weights[node] + self.weights[other] <= weight_max;
                if is_free && fits && !self.sites[node].both(self.sites[other]).is_empty() {
                    if scores[other] == 0.0 {
                        touched.push(other);
                    }
                    scores[other] += share;
                }
            }
        }
        let best =
            touched.iter().copied().reduce(|best, other| if scores[other] > scores[best] { other } else { best });
        touched.iter().for_each(|other| scores[*other] = 0.0);
        best
    }
}
