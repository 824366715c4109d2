//! Which event met which state of the machines of both cores, over many seeds.
//!
//! `ATOLL_SIM_SEEDS` says how many (300), `ATOLL_SIM_FIRST` from which (0). With `--nocapture` the tables are printed.

#[path = "coverage/pairs.rs"]
mod pairs;

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use planted::Pair;
use planted_sim_tests::{Scenario, run};

use pairs::{MACHINES, Machine};

fn setting(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name}={text:?} is not a number")))
}

fn play(seeds: std::ops::Range<u64>) -> BTreeMap<Pair, u64> {
    let next = AtomicU64::new(seeds.start);
    let (totals, failed) = (Mutex::new(BTreeMap::new()), Mutex::new(Vec::new()));
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds.end {
                        break;
                    }
                    if std::panic::catch_unwind(|| run(Scenario::drawn(seed))).is_err() {
                        failed.lock().expect("nobody panics with it").push(seed);
                    }
                }
                let mut totals = totals.lock().expect("a thread that failed fails the test");
                for (pair, times) in planted::take_seen() {
                    *totals.entry(pair).or_default() += times;
                }
            });
        }
    });
    assert_eq!(failed.into_inner().expect("nobody panics with it"), [0; 0], "seeds that failed");
    totals.into_inner().expect("a thread that failed fails the test")
}

fn print(machine: &Machine, seen: &BTreeMap<Pair, u64>) {
    println!("\n### {}\n", machine.name);
    println!("| event | {} |", machine.states.join(" | "));
    println!("|---|{}", "---:|".repeat(machine.states.len()));
    for event in machine.events {
        let cell = |state: &&'static str| match seen.get(&(machine.name, *state, *event)) {
            Some(times) => times.to_string(),
            None if machine.why_impossible(state, event).is_some() => "—".to_owned(),
            None => "**never**".to_owned(),
        };
        let cells: Vec<String> = machine.states.iter().map(cell).collect();
        println!("| {event} | {} |", cells.join(" | "));
    }
}

#[test]
fn what_is_reached_is_known_and_is_not_impossible() {
    let first = setting("ATOLL_SIM_FIRST").unwrap_or(0);
    let seeds = setting("ATOLL_SIM_SEEDS").unwrap_or(300);
    let seen = play(first..first + seeds);
    let (mut reached, mut impossible, mut never, mut wrong) = (0, 0, Vec::new(), Vec::new());
    for machine in MACHINES {
        print(machine, &seen);
        for state in machine.states {
            for event in machine.events {
                match (seen.contains_key(&(machine.name, *state, *event)), machine.why_impossible(state, event)) {
                    (true, None) => reached += 1,
                    (true, Some(why)) => wrong.push(format!("{}: {event} met {state}, though {why}", machine.name)),
                    (false, Some(_)) => impossible += 1,
                    (false, None) => never.push(format!("{}: {event} has not met {state}", machine.name)),
                }
            }
        }
    }
    println!("\n{seeds} seeds: {reached} pairs reached, {impossible} cannot be, {} never:", never.len());
    never.iter().for_each(|pair| println!("  {pair}"));
    assert!(wrong.is_empty(), "what was said to be impossible:\n  {}", wrong.join("\n  "));
    let known = |(machine, state, event): &Pair| {
        let machine = MACHINES.iter().find(|known| known.name == *machine);
        machine.is_some_and(|machine| machine.states.contains(state) && machine.events.contains(event))
    };
    let unknown: Vec<_> = seen.keys().filter(|pair| !known(pair)).collect();
    assert_eq!(unknown, [&("", "", ""); 0], "pairs that the tables do not have");
}
