//! Looking ahead: what a partition promises, and what placement makes of it.

use std::time::Duration;

use atoll_model::placement::EGRESS_PRICE_LABEL;
use atoll_model::session::{DirectShare, Outcome, Report, SiteCommand};
use indexmap::IndexMap;
use proptest::prelude::*;

use super::world::{World, executions_of, file, object, workflow};
use crate::Request;
use crate::look_ahead::{Aim, Goal, Graph, Item, Links, Scheduler, Site, SiteSet, Unit, least_bytes, look_ahead};
use crate::view::{RunState, RunTags};

const LINKS: Links = Links { bytes_per_second: 1e8, latency_micros: 10_000 };
const EFFORT: usize = 50_000;

/// Units that need some of those before them and read what these make, between `sites` sites.
fn graphs() -> impl Strategy<Value = Graph> {
    let unit = (1_u64..5_000_000, proptest::collection::vec((any::<prop::sample::Index>(), 0_u64..1_000_000), 0..4));
    (2_usize..5, proptest::collection::vec(unit, 1..60)).prop_map(|(sites, drawn)| {
        let mut units: Vec<Unit> = Vec::new();
        let mut items: Vec<Item> = Vec::new();
        for (number, (micros, reads)) in drawn.into_iter().enumerate() {
            let mut needs = Vec::new();
            for (index, bytes) in reads.into_iter().filter(|_| number > 0) {
                let maker = index.index(number) as u32;
                needs.push(maker);
                items.push(Item { maker: Some(maker), at: SiteSet::NONE, readers: vec![number as u32], bytes });
            }
            needs.sort_unstable();
            needs.dedup();
            units.push(Unit { micros, cpu_millis: 1_000, sites: SiteSet::all(sites), needs });
        }
        Graph {
            units,
            items,
            sites: vec![Site { cpu_millis: 4_000, spent_micros: 0, busy_micros: 0 }; sites],
            links: LINKS,
        }
    })
}

/// The least that the bound can be for units of these sizes, given to the emptiest site one after the other.
fn possible_share(graph: &Graph) -> f64 {
    let mut sizes: Vec<_> = graph.units.iter().map(|unit| unit.micros).collect();
    sizes.sort_unstable_by_key(|micros| std::cmp::Reverse(*micros));
    let mut loads = vec![0; graph.sites.len()];
    for micros in sizes {
        *loads.iter_mut().min().expect("there are sites") += micros;
    }
    loads.into_iter().max().unwrap_or(0) as f64 / graph.micros() as f64
}

/// What placement without a look ahead comes to: each unit where most of what it reads is, if there is room.
fn greedy(graph: &Graph, cap: u64) -> Option<u64> {
    let mut site_of = vec![0_u8; graph.units.len()];
    let mut loads = vec![0; graph.sites.len()];
    for unit in Scheduler::new(graph).order().iter().map(|unit| *unit as usize) {
        let there = |site: usize| {
            let read = graph.items.iter().filter(|item| item.readers.contains(&(unit as u32)));
            let here = read.filter(|item| item.maker.is_some_and(|maker| usize::from(site_of[maker as usize]) == site));
            here.map(|item| item.bytes).sum::<u64>()
        };
        let fits = |site: &usize| loads[*site] + graph.units[unit].micros <= cap;
        let best = (0..loads.len()).filter(fits).max_by_key(|site| (there(*site), std::cmp::Reverse(loads[*site])))?;
        site_of[unit] = best as u8;
        loads[best] += graph.units[unit].micros;
    }
    Some(graph.crossing_bytes(&site_of))
}

fn highest_share(graph: &Graph, site_of: &[u8]) -> f64 {
    graph.loads(site_of).into_iter().max().unwrap_or(0) as f64 / graph.micros() as f64
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn no_site_has_more_than_its_share_where_that_is_possible(graph in graphs(), aims_at_time: bool) {
        let aim = if aims_at_time { Aim::Time } else { Aim::Bytes };
        let share_max = (possible_share(&graph) + 0.02).min(1.0);
        let found = look_ahead(&graph, Goal { aim, share_max, effort: EFFORT });
        // Bounds are whole microseconds.
        prop_assert!(highest_share(&graph, &found.site_of) <= share_max + 0.001);
        prop_assert_eq!(found.crossing_bytes, graph.crossing_bytes(&found.site_of));
    }

    #[test]
    fn fewer_bytes_cross_than_when_each_unit_goes_where_its_data_is(graph in graphs()) {
        let share_max = (possible_share(&graph) + 0.1).min(1.0);
        let found = least_bytes(&graph, share_max, EFFORT);
        if let Some(bytes) = greedy(&graph, (graph.micros() as f64 * share_max) as u64) {
            // Each item counts for a byte more, so that few items are better than many.
            prop_assert!(found.crossing_bytes <= bytes + graph.items.len() as u64);
        }
    }

    #[test]
    fn the_same_graph_is_looked_at_in_the_same_way_each_time(graph in graphs()) {
        let goal = Goal { aim: Aim::Bytes, share_max: 0.7, effort: EFFORT };
        prop_assert_eq!(look_ahead(&graph, goal), look_ahead(&graph, goal));
    }

    #[test]
    fn what_is_settled_stays_where_it_is(mut graph in graphs(), settled in proptest::collection::vec(any::<u8>(), 60)) {
        let sites = graph.sites.len();
        for (unit, drawn) in graph.units.iter_mut().zip(&settled).step_by(3) {
            unit.sites = SiteSet::only(usize::from(*drawn) % sites);
        }
        let found = look_ahead(&graph, Goal { aim: Aim::Bytes, share_max: 0.6, effort: EFFORT });
        for (unit, site) in graph.units.iter().zip(&found.site_of) {
            prop_assert!(unit.sites.contains(usize::from(*site)));
        }
    }
}

#[test]
fn what_reads_one_another_stays_together_and_what_does_not_is_spread() {
    let unit = |needs: Vec<u32>| Unit { micros: 1_000_000, cpu_millis: 1_000, sites: SiteSet::all(2), needs };
    let item = |maker, reader, bytes| Item { maker: Some(maker), at: SiteSet::NONE, readers: vec![reader], bytes };
    let graph = Graph {
        units: vec![unit(vec![]), unit(vec![]), unit(vec![0]), unit(vec![1]), unit(vec![2, 3])],
        items: vec![item(0, 2, 1 << 30), item(1, 3, 1 << 30), item(2, 4, 1_000), item(3, 4, 2_000)],
        sites: vec![Site { cpu_millis: 1_000, spent_micros: 0, busy_micros: 0 }; 2],
        links: LINKS,
    };
    let found = look_ahead(&graph, Goal { aim: Aim::Bytes, share_max: 0.6, effort: EFFORT });
    assert_eq!(found.crossing_bytes, 1_000);
    assert_eq!(found.site_of[0], found.site_of[2]);
    assert_eq!(found.site_of[1], found.site_of[3]);
    // One second each, three of them at one site, and the byte or so that crosses takes hardly any time.
    assert!(found.makespan_micros < 3_100_000, "{}", found.makespan_micros);
}

#[test]
fn time_alone_keeps_everything_at_one_site_that_has_room_for_it() {
    let unit = |needs: Vec<u32>| Unit { micros: 1_000_000, cpu_millis: 1_000, sites: SiteSet::all(2), needs };
    let item = |maker, reader| Item { maker: Some(maker), at: SiteSet::NONE, readers: vec![reader], bytes: 1 << 30 };
    let graph = Graph {
        units: vec![unit(vec![]), unit(vec![0]), unit(vec![0]), unit(vec![1, 2])],
        items: vec![item(0, 1), item(0, 2), item(1, 3), item(2, 3)],
        sites: vec![Site { cpu_millis: 2_000, spent_micros: 0, busy_micros: 0 }; 2],
        links: LINKS,
    };
    let found = look_ahead(&graph, Goal { aim: Aim::Time, share_max: 1.0, effort: EFFORT });
    assert_eq!((found.crossing_bytes, found.makespan_micros), (0, 3_000_000));
}

const TWO_CHAINS: &str = "workflow: w
steps:
  a1: { run: a1, outputs: { f: file } }
  b1: { run: b1, outputs: { f: file } }
  a2: { run: a2, with: { f: \"${{ steps.a1.outputs.f }}\", g: \"${{ steps.b1.outputs.f }}\" }, outputs: { f: file } }
  b2: { run: b2, with: { f: \"${{ steps.b1.outputs.f }}\", g: \"${{ steps.a1.outputs.f }}\" }, outputs: { f: file } }
";

/// Carries a run out; where each step was.
fn carry_out(world: &mut World, number: u8) -> Vec<String> {
    let run = world.submit(TWO_CHAINS);
    let mut sites = vec![String::new(); 4];
    // `a1` makes much, `b1` hardly anything.
    let bytes = [3 << 30, 1_000, 1_000, 1_000];
    for _ in 0..100 {
        for site in ["edge", "hpc"] {
            for command in world.commands(site) {
                if let SiteCommand::Push { transfer, object } = command {
                    let at = world.now;
                    world.report(site, vec![Report::Pushed { transfer, object, wire_bytes: object.bytes, at }]);
                }
                for (execution, attempt) in executions_of(&command) {
                    let step = execution.step.index();
                    sites[step] = site.to_owned();
                    let began = world.now;
                    world.advance(Duration::from_secs(1));
                    let made = vec![file(number + step as u8, bytes[step])];
                    let mut report = world.finished((execution, attempt), Outcome::Succeeded, made);
                    if let Report::Finished { elements, .. } = &mut report {
                        elements[0].started_at = Some(began);
                    }
                    world.report(site, vec![report]);
                }
            }
        }
        if world.state(run) == RunState::Succeeded {
            return sites;
        }
        for site in ["edge", "hpc"] {
            world.heartbeat(site);
        }
    }
    panic!("the run has not ended");
}

#[test]
fn a_run_like_one_before_goes_where_few_bytes_cross_within_the_bound() {
    let mut world = World::with(|config| {
        config.goal = Goal { aim: Aim::Bytes, share_max: 0.8, effort: EFFORT };
    });
    world.add_site("edge");
    world.add_site("hpc");
    carry_out(&mut world, 10);
    let sites = carry_out(&mut world, 20);
    assert_eq!(sites[0], sites[2], "{sites:?}");
    assert_eq!(sites[0], sites[3], "what is large stays where it is made: {sites:?}");
    assert_ne!(sites[0], sites[1], "and what is small goes elsewhere: {sites:?}");
}

const MADE_AT_EDGE: &str = "workflow: w
steps:
  make: { run: make, site: edge, outputs: { f: file } }
  use: { run: use, site: hpc, with: { f: \"${{ steps.make.outputs.f }}\" } }
";

#[test]
fn a_plan_says_how_long_each_edge_takes_and_what_it_costs() {
    let mut world = World::new();
    world.join("edge", &[(EGRESS_PRICE_LABEL, "0.09")]);
    world.connect("edge");
    world.add_site("hpc");
    world.submit(MADE_AT_EDGE);
    let make = world.dispatched_one("edge");
    world.succeed("edge", make, vec![file(1, 2_000_000_000)]);
    let plan = world.core.plan(&workflow(MADE_AT_EDGE), &IndexMap::new(), &RunTags::default());
    let edge = &plan.edges[0];
    assert_eq!((edge.bytes_expected, edge.route.as_str()), (Some(2_000_000_000), "bucket"));
    assert_eq!(edge.money_expected.map(|money| (money * 1e6).round()), Some(180_000.0));
    // Nothing was measured yet: the rate that is assumed, and what any transfer takes.
    assert_eq!(edge.seconds_expected, Some(40.5));
}

#[test]
fn a_link_is_taken_to_be_as_fast_as_it_was() {
    let mut world = World::new();
    world.add_site("edge");
    world.add_site("hpc");
    for site in ["edge", "hpc"] {
        let agent = world.agents[site].id;
        world.ask(Request::Advertise { agent, addresses: vec!["10.0.0.1:7433".to_owned()], relays: false }).unwrap();
    }
    world.submit(MADE_AT_EDGE);
    let make = world.dispatched_one("edge");
    world.succeed("edge", make, vec![file(1, 2_000_000_000)]);
    let (execution, _) = world.dispatched_one("hpc");
    world.advance(Duration::from_secs(4));
    let object = object(1, 2_000_000_000);
    let (at, wire_bytes) = (world.now, object.bytes);
    let direct = Some(DirectShare { holder: world.agents["edge"].id, wire_bytes });
    world.report("hpc", vec![Report::Fetched { object, wire_bytes, direct, execution, at }]);
    let plan = world.core.plan(&workflow(MADE_AT_EDGE), &IndexMap::new(), &RunTags::default());
    assert_eq!((plan.edges[0].route.as_str(), plan.edges[0].seconds_expected), ("direct", Some(4.5)));
}
