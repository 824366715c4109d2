//! What others would have made of a trace: the yardsticks that placement is held against.

use control_plane_core::look_ahead::{self, Graph, Scheduler};

/// A distribution that knows the whole trace beforehand.
#[derive(Debug, Clone, PartialEq)]
pub struct Reference {
    /// By task.
    pub site_of: Vec<u8>,
    pub crossing_bytes: u64,
    pub makespan_seconds: f64,
}

/// Attempts that the partitioner is given: far more than placement takes itself time for.
const EFFORT: usize = 10_000_000;

/// A multilevel partition that cuts the fewest bytes with no more than `share_max` of the run time at any site.
pub fn least_bytes(graph: &Graph, share_max: f64) -> Reference {
    let found = look_ahead::least_bytes(graph, share_max, EFFORT);
    Reference {
        crossing_bytes: found.crossing_bytes,
        makespan_seconds: found.makespan_micros as f64 / 1e6,
        site_of: found.site_of,
    }
}

/// Heterogeneous Earliest Finish Time (Topcuoglu, Hariri, Wu 2002), with insertion; every processor of every site is one
/// of its processors, and only what crosses a border takes time to get there. It knows no bound on what a site may have.
pub fn heft(graph: &Graph) -> Reference {
    let scheduler = Scheduler::new(graph);
    let sites = graph.sites.len();
    let mut position = vec![0; graph.units.len()];
    scheduler.order().iter().enumerate().for_each(|(place, unit)| position[*unit as usize] = place);
    let ranks = upward_ranks(graph, &scheduler);
    let mut order: Vec<usize> = (0..graph.units.len()).collect();
    order.sort_by_key(|unit| (std::cmp::Reverse(ranks[*unit]), position[*unit]));
    let processors = |site: usize| (graph.sites[site].cpu_millis / 1_000).max(1) as usize;
    let mut busy: Vec<Vec<Vec<(u64, u64)>>> = (0..sites).map(|site| vec![Vec::new(); processors(site)]).collect();
    let (mut ends, mut site_of) = (vec![0_u64; graph.units.len()], vec![0_u8; graph.units.len()]);
    for unit in order {
        let micros = graph.units[unit].micros;
        let mut best: Option<(u64, usize, usize)> = None;
        for (site, processors) in busy.iter().enumerate() {
            let ready = arrival(graph, &scheduler, unit, site, &ends, &site_of);
            for (processor, taken) in processors.iter().enumerate() {
                let start = first_gap(taken, ready, micros);
                if best.is_none_or(|(end, ..)| start + micros < end) {
                    best = Some((start + micros, site, processor));
                }
                if taken.is_empty() {
                    // The other idle ones are no better.
                    break;
                }
            }
        }
        let (end, site, processor) = best.expect("there is a site");
        ends[unit] = end;
        site_of[unit] = u8::try_from(site).expect("few sites");
        let taken = &mut busy[site][processor];
        let place = taken.partition_point(|(start, _)| *start < end - micros);
        taken.insert(place, (end - micros, end));
    }
    Reference {
        crossing_bytes: graph.crossing_bytes(&site_of),
        makespan_seconds: ends.iter().copied().max().unwrap_or(0) as f64 / 1e6,
        site_of,
    }
}

/// With what is handed on as it costs on average between any two processors.
fn upward_ranks(graph: &Graph, scheduler: &Scheduler<'_>) -> Vec<u64> {
    let sites = graph.sites.len() as u64;
    let mut after: Vec<u64> = vec![0; graph.units.len()];
    let mut ranks = vec![0; graph.units.len()];
    for unit in scheduler.order().iter().rev() {
        let number = *unit as usize;
        ranks[number] = graph.units[number].micros + after[number];
        let (_, read) = scheduler.items_of(*unit);
        let handed = read.iter().map(|item| &graph.items[*item as usize]);
        let costs = handed.filter_map(|item| Some((item.maker?, graph.links.micros(item.bytes) * (sites - 1) / sites)));
        for (maker, cost) in costs.chain(graph.units[number].needs.iter().map(|need| (*need, 0))) {
            let known = &mut after[maker as usize];
            *known = (*known).max(ranks[number] + cost);
        }
    }
    ranks
}

fn arrival(graph: &Graph, scheduler: &Scheduler<'_>, unit: usize, site: usize, ends: &[u64], site_of: &[u8]) -> u64 {
    let needs = graph.units[unit].needs.iter().map(|need| ends[*need as usize]).max().unwrap_or(0);
    let (_, read) = scheduler.items_of(u32::try_from(unit).expect("few units"));
    let arrivals = read.iter().map(|item| &graph.items[*item as usize]).filter_map(|item| {
        let maker = item.maker? as usize;
        let crosses = usize::from(site_of[maker]) != site;
        Some(ends[maker] + if crosses { graph.links.micros(item.bytes) } else { 0 })
    });
    arrivals.max().unwrap_or(0).max(needs)
}

fn first_gap(taken: &[(u64, u64)], ready: u64, micros: u64) -> u64 {
    let mut start = ready;
    for (from, until) in taken {
        if start + micros <= *from {
            break;
        }
        start = start.max(*until);
    }
    start
}
