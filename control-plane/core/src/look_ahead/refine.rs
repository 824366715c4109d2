//! Refinement after Fiduccia and Mattheyses: nodes move one by one to where they save most, worse moves included, each
//! at most once in a pass; then the pass is taken back to where it was best.

use std::collections::BinaryHeap;

use super::level::Level;

/// Moves that did not fit and are tried again when something has left the site.
const RETRIED: usize = 16;

/// A partition of one level that is being changed.
#[derive(Debug, Clone)]
pub(super) struct Parts<'a> {
    level: &'a Level,
    caps: &'a [u64],
    pub(super) site_of: Vec<u8>,
    pub(super) loads: Vec<u64>,
    /// Readers of each net at each site.
    readers: Vec<u32>,
    pub(super) cut: i64,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Candidate {
    gain: i64,
    /// Of those that save as much, the one to the emptiest site.
    room: u64,
    node: u32,
    to: u8,
    stamp: u32,
}

/// What is better about a partition: first that it keeps the bounds, then that it moves fewer bytes, then balance.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Quality {
    pub(super) excess: u64,
    pub(super) cut: i64,
    pub(super) highest: u64,
}

impl<'a> Parts<'a> {
    pub(super) fn new(level: &'a Level, caps: &'a [u64], spent: &[u64], site_of: Vec<u8>) -> Self {
        let sites = caps.len();
        let mut loads = spent.to_vec();
        for (weight, site) in level.weights.iter().zip(&site_of) {
            loads[usize::from(*site)] += weight;
        }
        let mut readers = vec![0; level.nets.len() * sites];
        for (net, counts) in level.nets.iter().zip(readers.chunks_exact_mut(sites)) {
            net.readers.iter().for_each(|reader| counts[usize::from(site_of[*reader as usize])] += 1);
        }
        let mut parts = Self { level, caps, site_of, loads, readers, cut: 0 };
        parts.cut = (0..level.nets.len()).map(|net| parts.cut_of(net)).sum();
        parts
    }

    fn cut_of(&self, net: usize) -> i64 {
        let crossing = (0..self.caps.len()).filter(|site| self.reads(net, *site) > 0 && !self.has(net, *site)).count();
        crossing as i64 * self.bytes(net)
    }

    fn bytes(&self, net: usize) -> i64 {
        i64::try_from(self.level.nets[net].bytes).unwrap_or(i64::MAX / 1_024)
    }

    fn reads(&self, net: usize, site: usize) -> u32 {
        self.readers[net * self.caps.len() + site]
    }

    fn has(&self, net: usize, site: usize) -> bool {
        let net = &self.level.nets[net];
        net.at.contains(site) || net.maker.is_some_and(|maker| usize::from(self.site_of[maker as usize]) == site)
    }

    pub(super) fn quality(&self) -> Quality {
        let over = |(load, cap): (&u64, &u64)| load.saturating_sub(*cap);
        Quality {
            excess: self.loads.iter().zip(self.caps).map(over).sum(),
            cut: self.cut,
            highest: self.loads.iter().copied().max().unwrap_or(0),
        }
    }

    /// Bytes that a move would save.
    pub(super) fn gain(&self, node: usize, to: usize) -> i64 {
        let from = usize::from(self.site_of[node]);
        let mut gain = 0;
        for net in self.level.nets_of[node].iter().map(|net| *net as usize) {
            let known = &self.level.nets[net];
            let bytes = self.bytes(net);
            if known.maker == Some(node as u32) {
                gain += if self.reads(net, to) > 0 && !known.at.contains(to) { bytes } else { 0 };
                gain -= if self.reads(net, from) > 0 && !known.at.contains(from) { bytes } else { 0 };
            } else {
                gain += if self.reads(net, from) == 1 && !self.has(net, from) { bytes } else { 0 };
                gain -= if self.reads(net, to) == 0 && !self.has(net, to) { bytes } else { 0 };
            }
        }
        gain
    }

    /// Moves a node; the nets for whose pins something is different now.
    pub(super) fn shift(&mut self, node: usize, to: usize, changed: &mut Vec<u32>) {
        let from = usize::from(self.site_of[node]);
        self.cut -= self.gain(node, to);
        self.loads[from] -= self.level.weights[node];
        self.loads[to] += self.level.weights[node];
        let sites = self.caps.len();
        for net in &self.level.nets_of[node] {
            let base = *net as usize * sites;
            if self.level.nets[*net as usize].maker == Some(node as u32) {
                changed.push(*net);
                continue;
            }
            self.readers[base + from] -= 1;
            self.readers[base + to] += 1;
            if self.readers[base + from] <= 1 || self.readers[base + to] <= 2 {
                changed.push(*net);
            }
        }
        self.site_of[node] = to as u8;
    }

    fn fits(&self, node: usize, to: usize) -> bool {
        self.loads[to] + self.level.weights[node] <= self.caps[to]
    }

    /// The best move of a node, whether there is room for it or not.
    fn candidate(&self, node: usize, stamp: u32) -> Option<Candidate> {
        let targets = (0..self.caps.len())
            .filter(|to| *to != usize::from(self.site_of[node]) && self.level.sites[node].contains(*to));
        let candidates = targets.map(|to| Candidate {
            gain: self.gain(node, to),
            room: self.caps[to].saturating_sub(self.loads[to]),
            node: node as u32,
            to: to as u8,
            stamp,
        });
        // One that there is room for, if any.
        candidates.max_by_key(|candidate| {
            (self.fits(node, usize::from(candidate.to)), candidate.gain, candidate.room, candidate.to)
        })
    }

    /// Passes until one brings nothing.
    pub(super) fn refine(&mut self, passes: usize) {
        for _ in 0..passes {
            if !self.pass() {
                return;
            }
        }
    }

    /// One pass; whether the partition is better than before.
    fn pass(&mut self) -> bool {
        let nodes = self.level.len();
        let mut stamps = vec![0_u32; nodes];
        let mut locked = vec![false; nodes];
        let mut heap: BinaryHeap<Candidate> = (0..nodes).filter_map(|node| self.candidate(node, 0)).collect();
        let before = self.quality();
        let (mut best, mut best_length) = (before, 0);
        let mut moves: Vec<(u32, u8)> = Vec::new();
        let mut blocked: Vec<BinaryHeap<Candidate>> = vec![BinaryHeap::new(); self.caps.len()];
        let mut changed = Vec::new();
        let patience = (nodes / 8).clamp(60, 2_000);
        while let Some(candidate) = heap.pop() {
            let (node, to) = (candidate.node as usize, usize::from(candidate.to));
            if locked[node] || candidate.stamp != stamps[node] {
                continue;
            }
            let from = usize::from(self.site_of[node]);
            let relieves =
                self.loads[from] > self.caps[from] && self.loads[to] + self.level.weights[node] < self.loads[from];
            if !self.fits(node, to) && !relieves {
                blocked[to].push(candidate);
                continue;
            }
            moves.push((candidate.node, self.site_of[node]));
            changed.clear();
            self.shift(node, to, &mut changed);
            locked[node] = true;
            let now = self.quality();
            if now < best {
                (best, best_length) = (now, moves.len());
            } else if moves.len() > best_length + patience {
                break;
            }
            for net in &changed {
                let net = &self.level.nets[*net as usize];
                for pin in net.maker.iter().chain(&net.readers).map(|pin| *pin as usize) {
                    if !locked[pin] {
                        stamps[pin] += 1;
                        heap.extend(self.candidate(pin, stamps[pin]));
                    }
                }
            }
            let mut again = 0;
            while again < RETRIED
                && let Some(candidate) = blocked[from].pop()
            {
                if candidate.stamp == stamps[candidate.node as usize] {
                    again += 1;
                    heap.push(candidate);
                }
            }
        }
        for (node, from) in moves.drain(best_length..).rev() {
            self.shift(node as usize, usize::from(from), &mut changed);
        }
        best < before
    }
}
