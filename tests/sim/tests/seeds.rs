//! Seeds: each a world of its own.
//!
//! `ATOLL_SIM_SEEDS` says how many (2,000), `ATOLL_SIM_FIRST` from which (0); `ATOLL_SIM_TRACE=1` prints all that happens.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use sim_tests::{Scenario, run};

fn setting(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name}={text:?} is not a number")))
}

fn drawn(seed: u64) -> Scenario {
    Scenario { trace: setting("ATOLL_SIM_TRACE").is_some_and(|on| on > 0), ..Scenario::drawn(seed) }
}

#[derive(Default)]
struct Totals {
    failed: Vec<u64>,
    events: u64,
    crashes: u64,
    starts: u64,
    crossings: u64,
    runs: u64,
    relayed: u64,
    depositions: u64,
    kept: u64,
    lost: u64,
}

/// Plays all of them, on as many threads as there are processors; the seeds that failed.
fn play(seeds: &[u64]) -> Totals {
    let next = AtomicU64::new(0);
    let totals = Mutex::new(Totals::default());
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads.min(seeds.len()) {
            scope.spawn(|| {
                while let Some(seed) = seeds.get(next.fetch_add(1, Ordering::Relaxed) as usize) {
                    let ending = catch_unwind(AssertUnwindSafe(|| run(drawn(*seed))));
                    let mut totals = totals.lock().unwrap_or_else(PoisonError::into_inner);
                    match ending {
                        Ok(ending) => {
                            totals.events += ending.events;
                            totals.crashes += u64::from(ending.crashes);
                            totals.starts += ending.starts;
                            totals.crossings += ending.crossings;
                            totals.runs += ending.states.len() as u64;
                            totals.relayed += ending.relayed;
                            totals.depositions += ending.depositions;
                            totals.kept += ending.kept;
                            totals.lost += ending.lost;
                        }
                        Err(_) => {
                            eprintln!(
                                "seed {seed} failed; again: ATOLL_SIM_TRACE=1 ATOLL_SIM_FIRST={seed} ATOLL_SIM_SEEDS=1 \
                                 cargo test --release -p sim-tests --test seeds sim_seeds -- --nocapture"
                            );
                            totals.failed.push(*seed);
                        }
                    }
                }
            });
        }
    });
    totals.into_inner().unwrap_or_else(PoisonError::into_inner)
}

#[test]
fn sim_seeds() {
    let first = setting("ATOLL_SIM_FIRST").unwrap_or(0);
    let seeds: Vec<u64> = (first..first + setting("ATOLL_SIM_SEEDS").unwrap_or(2_000)).collect();
    let began = Instant::now();
    let totals = play(&seeds);
    println!(
        "{} seeds in {:.1} s: {} events, {} crashes, {} runs ({} in the history), {} starts, {} crossings ({} while they came), {} \
         leaders deposed, {} sites lost, {} failed",
        seeds.len(),
        began.elapsed().as_secs_f64(),
        totals.events,
        totals.crashes,
        totals.runs,
        totals.kept,
        totals.starts,
        totals.crossings,
        totals.relayed,
        totals.depositions,
        totals.lost,
        totals.failed.len()
    );
    assert_eq!(totals.failed, [0; 0], "seeds that failed");
}

/// Seeds that once found something; each line is a seed and what it found.
#[test]
fn seeds_that_once_failed_pass() {
    let seeds: Vec<u64> = include_str!("../seeds.txt")
        .lines()
        .filter(|line| !line.starts_with('#') && !line.trim().is_empty())
        .map(|line| {
            let seed = line.split_whitespace().next().unwrap_or_default();
            seed.parse().unwrap_or_else(|_| panic!("{line:?} does not begin with a seed"))
        })
        .collect();
    assert_eq!(play(&seeds).failed, [0; 0], "seeds that failed");
}

#[test]
fn the_same_seed_twice_makes_the_same_bytes() {
    for seed in 0..20 {
        assert_eq!(run(drawn(seed)).digest, run(drawn(seed)).digest, "seed {seed}");
    }
}
