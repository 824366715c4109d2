//! When everything would have ended: units start in the order of their ranks as soon as what they read is there and the
//! site has processors left.

use std::cmp::Reverse;
use std::collections::{BTreeSet, BinaryHeap};

use super::graph::{Graph, SiteSet};

/// What schedules of one graph have in common.
#[derive(Debug)]
pub struct Scheduler<'a> {
    pub(super) graph: &'a Graph,
    /// The time from the start of a unit to the end of the last one that waits for it, borders aside.
    pub ranks: Vec<u64>,
    successors: Vec<Vec<u32>>,
    made: Vec<Vec<u32>>,
    read: Vec<Vec<u32>>,
    /// Each unit after those it needs.
    order: Vec<u32>,
}

/// A unit's times, from the beginning of the schedule.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Times {
    pub start: u64,
    pub end: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Occurrence {
    /// Before arrivals, so that processors are free for what arrives at the same time.
    Ended(u32),
    Arrived(u32),
}

impl<'a> Scheduler<'a> {
    pub fn new(graph: &'a Graph) -> Self {
        let units = graph.units.len();
        let mut successors = vec![Vec::new(); units];
        for (number, unit) in (0..).zip(&graph.units) {
            unit.needs.iter().for_each(|need| successors[*need as usize].push(number));
        }
        let (mut made, mut read) = (vec![Vec::new(); units], vec![Vec::new(); units]);
        for (number, item) in (0..).zip(&graph.items) {
            item.maker.iter().for_each(|maker| made[*maker as usize].push(number));
            item.readers.iter().for_each(|reader| read[*reader as usize].push(number));
        }
        let mut left: Vec<_> = graph.units.iter().map(|unit| unit.needs.len()).collect();
        let mut order: Vec<u32> = (0..).zip(&left).filter(|(_, left)| **left == 0).map(|(unit, _)| unit).collect();
        let mut next = 0;
        while let Some(unit) = order.get(next).copied() {
            next += 1;
            for successor in &successors[unit as usize] {
                left[*successor as usize] -= 1;
                if left[*successor as usize] == 0 {
                    order.push(*successor);
                }
            }
        }
        assert_eq!(order.len(), units, "needs have no cycle");
        let mut ranks = vec![0; units];
        for unit in order.iter().rev().map(|unit| *unit as usize) {
            let after = successors[unit].iter().map(|successor| ranks[*successor as usize]).max().unwrap_or(0);
            ranks[unit] = graph.units[unit].micros + after;
        }
        Self { graph, ranks, successors, made, read, order }
    }

    /// Units, each after those it needs.
    pub fn order(&self) -> &[u32] {
        &self.order
    }

    /// When the last unit would have ended.
    pub fn makespan(&self, site_of: &[u8]) -> u64 {
        self.times(site_of).iter().map(|times| times.end).max().unwrap_or(0)
    }

    pub fn times(&self, site_of: &[u8]) -> Vec<Times> {
        let graph = self.graph;
        let sites = graph.sites.len();
        let mut times = vec![Times::default(); graph.units.len()];
        let mut left: Vec<_> = graph.units.iter().map(|unit| unit.needs.len()).collect();
        let mut free: Vec<u64> = graph.sites.iter().map(|site| u64::from(site.cpu_millis)).collect();
        let mut waiting: Vec<BTreeSet<(Reverse<u64>, u32)>> = vec![BTreeSet::new(); sites];
        let mut arrivals = vec![None; graph.items.len() * sites];
        let mut heap = BinaryHeap::new();
        for unit in self.order.iter().take_while(|unit| left[**unit as usize] == 0) {
            let at = self.arrival(*unit, 0, site_of, &times, &mut arrivals);
            heap.push(Reverse((at, Occurrence::Arrived(*unit))));
        }
        while let Some(Reverse((now, occurrence))) = heap.pop() {
            let site = match occurrence {
                Occurrence::Arrived(unit) => {
                    let site = usize::from(site_of[unit as usize]);
                    waiting[site].insert((Reverse(self.ranks[unit as usize]), unit));
                    site
                }
                Occurrence::Ended(unit) => {
                    let site = usize::from(site_of[unit as usize]);
                    free[site] += self.processors(unit, site);
                    for successor in &self.successors[unit as usize] {
                        left[*successor as usize] -= 1;
                        if left[*successor as usize] == 0 {
                            let at = self.arrival(*successor, now, site_of, &times, &mut arrivals);
                            heap.push(Reverse((at, Occurrence::Arrived(*successor))));
                        }
                    }
                    site
                }
            };
            if heap.peek().is_some_and(|Reverse((at, _))| *at == now) {
                // What happens at the same time is known before anything starts there.
                let Some(Reverse((_, next))) = heap.peek() else { continue };
                let (Occurrence::Ended(unit) | Occurrence::Arrived(unit)) = next;
                if usize::from(site_of[*unit as usize]) == site {
                    continue;
                }
            }
            while let Some((rank, unit)) = waiting[site].first().copied() {
                let processors = self.processors(unit, site);
                if processors > free[site] {
                    break;
                }
                waiting[site].remove(&(rank, unit));
                free[site] -= processors;
                let end = now + graph.units[unit as usize].micros;
                times[unit as usize] = Times { start: now, end };
                heap.push(Reverse((end, Occurrence::Ended(unit))));
            }
        }
        times
    }

    /// A unit that asks for more than there is takes all there is.
    fn processors(&self, unit: u32, site: usize) -> u64 {
        u64::from(self.graph.units[unit as usize].cpu_millis.min(self.graph.sites[site].cpu_millis))
    }

    /// When what a unit reads is at its site; each item is sent there once, when its maker ends.
    fn arrival(&self, unit: u32, now: u64, site_of: &[u8], times: &[Times], arrivals: &mut [Option<u64>]) -> u64 {
        let site = usize::from(site_of[unit as usize]);
        let settled = self.graph.units[unit as usize].sites == SiteSet::only(site);
        let mut at = if settled { now } else { now.max(self.graph.sites[site].busy_micros) };
        for number in self.read[unit as usize].iter().map(|number| *number as usize) {
            let item = &self.graph.items[number];
            let made_here = item.maker.is_some_and(|maker| usize::from(site_of[maker as usize]) == site);
            if made_here || item.at.contains(site) {
                continue;
            }
            let known = &mut arrivals[number * self.graph.sites.len() + site];
            let there = known.get_or_insert_with(|| {
                let since = item.maker.map_or(0, |maker| times[maker as usize].end);
                since + self.graph.links.micros(item.bytes)
            });
            at = at.max(*there);
        }
        at
    }

    /// Items that a unit makes, then those that it reads.
    pub fn items_of(&self, unit: u32) -> (&[u32], &[u32]) {
        (&self.made[unit as usize], &self.read[unit as usize])
    }
}
